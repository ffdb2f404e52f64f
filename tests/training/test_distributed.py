"""Several processes train as one: the same losses, gradients and weights, and no hang whatever one of them does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from calmctl.cli.main import app
from calmctl.errors import BadInput, RecipeError
from calmctl.parallel import SINGLE, World, joined
from calmctl.tensors import load_tensors

LIMIT_S = 300  # for a process to end; a few seconds on an idle machine
PARITY = Path(__file__).with_name("parity.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Pair = list[subprocess.Popen[str]]


@pytest.fixture(scope="module")
def python(warm_python) -> list[str]:
    """DistributedDataParallel imports torch's compiler, which takes longer than all the rest."""
    return warm_python("calmctl.*", "torch._dynamo", "torch.distributed.run")


@pytest.fixture(scope="module")
def start_pair(python) -> Callable[..., Pair]:
    """Two processes in the environment that torchrun makes, without anybody who looks after them."""

    def start(*command: str) -> Pair:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [
            subprocess.Popen(
                [*python, *command],
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in (0, 1)
        ]

    return start


def outcomes(pair: Pair) -> list[tuple[int, str]]:
    """Exit code and output of both."""
    try:
        return [(process.wait(), output) for process in pair for output in process.communicate(timeout=LIMIT_S)[:1]]
    finally:
        for process in pair:
            process.kill()


@pytest.fixture(scope="module")
def pair_of_steps(start_pair, tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """What each of two processes computes of every case of `parity.py`."""
    out = tmp_path_factory.mktemp("parity") / "out"
    found = outcomes(start_pair(str(PARITY), str(out)))
    assert [code for code, _ in found] == [0, 0], found
    return [load_tensors(out.with_suffix(f".{rank}"), what="test")[0] for rank in (0, 1)]


def case_names() -> list[str]:
    import importlib.util

    spec = importlib.util.spec_from_file_location("parity_names", PARITY)
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity_names"] = module
    spec.loader.exec_module(module)
    return list(module.CASES)


@pytest.mark.parametrize("name", case_names())
def test_two_processes_compute_what_one_does(name, alike, pair_of_steps):
    expected = alike.alone(name)
    assert any("|grad " in key for key in expected)
    for found in pair_of_steps:
        ours = {key: value for key, value in found.items() if key.startswith(f"{name}|")}
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-7, atol=1e-9, msg=key)


def test_shares_cover_every_batch_once_in_order():
    for count, batch_size, size in ((10, 4, 3), (3, 8, 4), (9, 4, 2), (12, 5, 1)):
        parts = [World(rank, size).places(count, batch_size, 0) for rank in range(size)]
        steps = [[place for part in step for place in part] for step in zip(*parts, strict=True)]
        assert steps == [list(range(n, min(n + batch_size, count))) for n in range(0, count, batch_size)]
        assert all(max(map(len, step)) - min(map(len, step)) <= 1 for step in zip(*parts, strict=True))
        assert World(0, size).places(count, batch_size, 1) == parts[0][1:]


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe_file(tiny_world, tiny_recipe_values, tmp_path_factory) -> Path:
    """Without chance in a step; the last batch of an epoch has one pair, and one clip is broken."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(tiny_world, folder / "world")
    from calmctl.recipe import recipe_from_dict
    from calmctl.source.source import recipe_source

    values = tiny_recipe_values(folder / "world")
    values["head"] = {"kind": "t-mass", "dropout": 0, "noise": "normal", "noise_std": 1e-9, "support_weight": 0.8}
    values["alignment"] = {"kind": "kl"}
    values["backbone"]["model"] = str(PARITY.with_name("parity-clip.json"))
    values["optim"] |= {"batch_size": 59, "save_every": 3}
    recipe_source(recipe_from_dict(values)).split("train").clips[2].path.write_bytes(b"this was a video once")
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def one(recipe_file, tmp_path_factory) -> Path:
    """The run of one process."""
    from calmctl.recipe import load_recipe
    from calmctl.training.train import train

    return train(load_recipe(recipe_file, []), tmp_path_factory.mktemp("one")).run.folder


@pytest.fixture(scope="module")
def two(python, recipe_file, tmp_path_factory) -> Path:
    """The run of two processes under torchrun."""
    folder = tmp_path_factory.mktemp("two")
    command = [*python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command += ["--no-python", *python, "-m", "calmctl", "train", str(recipe_file), "--runs", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(folder / "tiny-001")  # one process speaks, once
    return folder / "tiny-001"


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_tensors(run / f"{which}.safetensors", what="test")[0]


def test_torchrun_ends_where_one_process_ends(one, two):
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)
    first, second = (json.loads((run / "results.json").read_text()) for run in (one, two))
    assert first["left_out"] == second["left_out"] and len(first["left_out"]["train"]) == 1
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for line, other in zip(*logs, strict=True):
        if "loss" in line:
            assert other["loss"] == pytest.approx(line["loss"], rel=1e-3)
            assert other["grad_head"] == pytest.approx(line["grad_head"], rel=1e-2)
    # The command drops the state of a finished run, which the library keeps for whoever wants to go on.
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()} - {"state.safetensors"}


DYING = """
import os, signal, sys
from calmctl.cli.main import main
from calmctl.training.loop import Stepper

step = Stepper.__call__
def dying(self, batch, number):
    if number == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batch, number)
Stepper.__call__ = dying
sys.argv[1:] = {arguments!r}
main()
"""


def test_a_killed_process_ends_the_other_and_the_run_goes_on_bit_for_bit(start_pair, recipe_file, two, tmp_path):
    dying = DYING.format(arguments=["train", str(recipe_file), "--runs", str(tmp_path)])
    (code, output), (killed, _) = outcomes(start_pair("-c", dying))
    assert killed == -signal.SIGKILL and code == 1
    assert "process 0 of 2 lost another one" in output and "Traceback" not in output
    run = tmp_path / "tiny-001"
    state = load_tensors(run / "state.safetensors", what="test")[1]
    assert (state["step"], state["processes"]) == (3, 2)

    alone = tmp_path / "alone"
    shutil.copytree(run, alone)
    found = outcomes(start_pair("-m", "calmctl", "train", "--resume", str(run)))
    assert [code for code, _ in found] == [0, 0], found
    for name, value in weights(two).items():
        assert torch.equal(weights(run)[name], value), name

    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["train", "--resume", str(alone)])
    assert result.exit_code == 0 and "was trained by 2 processes and goes on with 1" in result.stderr
    for name, value in weights(two).items():
        torch.testing.assert_close(weights(alone)[name], value, rtol=1e-3, atol=1e-4, msg=name)


AGREEING = """
import sys, time
from calmctl.errors import BadInput, RunFailed
from calmctl.parallel import joined

try:
    with joined("cpu", timeout_s=5) as world:
        assert world.begin(3 - world.rank) == 5 and world.first == 3 * world.rank
        assert world.any(world.rank == 1) and not world.any(False)

        def fails(who, text):
            if world.rank in who:
                raise BadInput(text)

        for who, text in (({0, 1}, "everywhere"), ({1}, "only there")):
            try:
                world.together(lambda: fails(who, text))
            except BadInput as error:
                print("told:", error, flush=True)
            except SystemExit as end:
                print("ends:", end.code, flush=True)
        if world.rank == 1:
            time.sleep(600)
        world.begin(1)
except RunFailed as error:
    print("failed:", error, flush=True)
"""


def test_mistakes_are_told_once_and_a_silent_process_is_not_waited_for_forever(start_pair):
    pair = start_pair("-c", AGREEING)
    begun = time.monotonic()
    output, _ = pair[0].communicate(timeout=LIMIT_S)
    pair[1].kill()
    other, _ = pair[1].communicate()
    assert "told: everywhere\nends: 1\n" in output and "failed: process 0 of 2 lost another one" in output
    assert time.monotonic() - begun < LIMIT_S < 600
    assert pair[0].returncode == 0 and other == "ends: 1\ntold: only there\n"


def test_what_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="one process only"), joined("mps"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="which has 0 GPUs"), joined("cuda"):
            pass


def test_one_process_is_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cpu") as world:
        assert world is SINGLE and not torch.distributed.is_initialized()

    def fails() -> None:
        raise RecipeError("told")

    with pytest.raises(RecipeError, match="told"):
        world.together(fails)
