"""Fixtures that every test may use."""

import csv
import importlib.util
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from hypothesis import settings

# A shell starts background jobs with Ctrl-C ignored, and every process below inherits that: tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    import torch

    from calmctl.recipe import Recipe
    from calmctl.training.train import Trained


# A deadline a single example would be a timed test, and these machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# Files that take longest, longest first: whoever starts them last leaves one core idle (`make test` prints the ten
# slowest tests, and these are their files). The others follow in the order of their names.
LONGEST = (
    "training/test_distributed.py",
    "training/test_interruption.py",
    "captions/test_scorer.py",
    "training/test_train.py",
    "training/test_caption_train.py",
    "training/test_heads.py",
    "store/test_cluster.py",
    "reproduce/test_demo.py",
    "test_api.py",
    "evaluation/test_bootstrap.py",
    "captions/test_meteor.py",
    "model/test_openclip.py",
    "store/test_extract.py",
    "cli/test_search.py",
    "cli/test_main.py",
    "security/test_told.py",
    "training/test_second_stage.py",
    "training/test_identity.py",
    "reproduce/test_reproduce.py",
    "security/test_stale.py",
    "cli/test_reproduce.py",
    "cli/test_train_eval.py",
    "data/test_real_files.py",
    "test_real_captions.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see what a terminal of 80 columns shows; in a pipe without COLUMNS lines stay whole."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub of models on the loopback address (tests/hub.py) that the client library takes for the only one."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    spec = importlib.util.spec_from_file_location("loopback_hub", Path(__file__).parent / "hub.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopback_hub"] = module
    spec.loader.exec_module(module)
    served = module.Hub()
    # Proxies and tokens of this machine are none of the tests'.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    # Subprocesses read the variables, and this process has read them already.
    for name, value in {
        "HF_ENDPOINT": served.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, name.removeprefix("HF_") if name == "HF_ENDPOINT" else name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()  # or a client of another test's proxy is used
    yield served
    close_session()
    served.close()


WARM_PYTHON = Path(__file__).with_name("warm_python.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # before any test changes it; threads would not survive a fork


@pytest.fixture(scope="session")
def warm_python() -> Iterator[Callable[..., list[str]]]:
    """Makes the words that stand for `python` in a command, where imports are done (tests/warm_python.py).

    Called with the names of modules; with none, all of calmctl is imported.
    """
    if sys.platform != "linux":
        yield lambda *modules: [sys.executable]
        return
    servers: dict[tuple[str, ...], tuple[subprocess.Popen[bytes], list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:  # names of sockets must be short

        def words(*modules: str) -> list[str]:
            if modules not in servers:
                address = f"{folder}/{len(servers)}"
                command = [sys.executable, str(WARM_PYTHON), "serve", address, *(modules or ["calmctl.*"])]
                server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
                assert server.stdout is not None and server.stdout.readline() == b"ready\n"
                servers[modules] = server, [sys.executable, "-IS", str(WARM_PYTHON), address]
            return servers[modules][1]

        yield words
        for server, _ in servers.values():
            server.communicate()


DECODING = ("calmctl.video.*", *(name for name in ("av", "decord") if importlib.util.find_spec(name)))


@pytest.fixture(scope="session", autouse=True)
def warm_decoders(warm_python: Callable[..., list[str]]) -> None:
    """Decoding workers begin in a twentieth of a second, not in a third; those of tests/video are real ones."""
    from calmctl.video import worker

    class Words(tuple[str, ...]):
        def __iter__(self) -> Iterator[str]:
            return iter(warm_python(*DECODING))

    worker._PYTHON = Words()  # type: ignore[assignment]


@pytest.fixture(scope="session", autouse=True)
def one_command_line() -> None:
    """CliRunner makes all our commands from their functions in each call, which takes longer than most of them."""
    from typer import testing

    testing._get_command = cache(testing._get_command)


@pytest.fixture(scope="session", autouse=True)
def one_revision() -> None:
    """Every training, evaluation and search asks git, with three programs, for what does not change meanwhile."""
    from calmctl import runtime

    runtime.git_revision = cache(runtime.git_revision)


@pytest.fixture(scope="session")
def cuda() -> "torch.device":
    """The GPU, where there is one."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here; make gpu runs these tests where there is one")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotation files and clips, where one is at hand."""
    folder = os.environ.get("CALMCTL_REAL_DATA")
    if not folder:
        pytest.skip("CALMCTL_REAL_DATA is not set: no real data to read")
    path = Path(folder)
    assert path.is_dir(), f"CALMCTL_REAL_DATA={folder} is not a folder"
    return path


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo world of 12 / 6 / 6 clips and 6 shifted ones."""
    root = tmp_path_factory.mktemp("world")
    from calmctl.data.demo import generate_demo
    from calmctl.data.demo_world import DemoCounts

    generate_demo(root, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
    return root


# A CLIP of 16 channels: most of a tiny training is the writing of its weights, 25 MB each time with demo-clip.
TINY_CLIP = Path(__file__).with_name("tiny-clip.json")


def _tiny_values(root: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "device": "cpu",
        "data": {
            "dataset": "demo",
            "root": str(root),
            "frames": 2,
            "augment": "none",
            "cache": "memory",
            "workers": 1,
        },
        "backbone": {"model": str(TINY_CLIP), "weights": None},
        "anchors": {"vocabulary": "shapes@1", "subset": 5},
        "head": {"kind": "xpool"},
        "optim": {"epochs": 2, "batch_size": 20, "lr_backbone": 1e-3, "lr_head": 1e-3, "log_every": 1},
    }


@pytest.fixture(scope="session")
def tiny_recipe_values() -> "Callable[[Path], dict[str, Any]]":
    """The keys of a recipe that trains on the tiny world in seconds."""
    return _tiny_values


@pytest.fixture
def tiny_recipe(tiny_world: Path) -> "Callable[..., Recipe]":
    """Makes such a recipe, with overrides."""
    from calmctl.recipe import recipe_from_dict

    return lambda *overrides: recipe_from_dict(_tiny_values(tiny_world), overrides=overrides)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Java: scores come without METEOR, and in no time."""
    _without_java(monkeypatch)


@pytest.fixture(scope="session")
def without_java() -> Callable[[pytest.MonkeyPatch], None]:
    """The same for a fixture that outlives a test."""
    return _without_java


def _without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    from calmctl.captions import score as scorer
    from calmctl.captions.java import JavaUnavailable

    def find_java() -> None:
        raise JavaUnavailable("no Java in this test")

    monkeypatch.setattr(scorer, "find_java", find_java)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder that all processes of this run of the tests share: the first that needs it fills it, others wait.

    What is in it must be read only.
    """
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = base / name, base / f"{name}.whole"
        with FileLock(base / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # another process failed in the middle
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def caption_folder(tiny_world: Path, made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder of the tiny world's clips, one sentence a training clip, told 60 times so that epochs are few."""
    from calmctl.data.registry import load_dataset

    def make(folder: Path) -> None:
        rows = []
        for name, split in load_dataset("demo", tiny_world, protocol="captioning").splits.items():
            for clip in split.clips:
                shutil.copy(clip.path, folder)
            first = {owner: number for number, owner in reversed(list(enumerate(split.owners)))}
            told = [number for owner in sorted(first) for number in [first[owner]] * 60] if name == "train" else None
            for number in told or range(len(split.captions)):
                rows.append((split.clips[split.owners[number]].path.name, split.captions[number], name))
        with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("video", "caption", "split"), *rows])

    return made_once("captioned", make)


@pytest.fixture(scope="session")
def captioner(
    caption_folder: Path,
    made_once: Callable[[str, Callable[[Path], None]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> "Trained":
    """A finished captioning run that has learned its 12 clips by heart; its towers are frozen.

    Trained once; each process of the tests has a copy, in which it may write.
    """
    from calmctl.recipe import recipe_from_dict
    from calmctl.runs.run import Run
    from calmctl.training.train import train

    values = _tiny_values(caption_folder) | {"name": "told", "task": "caption"}
    overrides = [
        "data.dataset=folder",
        "backbone.model=demo-clip",
        "backbone.weights=drawn-2",
        "backbone.freeze=true",
        "backbone.adapter=linear",
        "anchors.encode=frozen",
        "caption.width=64",
        "caption.heads=2",
        "caption.ffn=128",
        "caption.decoder_layers=2",
        "caption.dropout=0",
        "caption.vocabulary=train",
        "optim.batch_size=24",
        "optim.epochs=4",
        "optim.lr_head=5e-3",
        "optim.decay=matrices",
        "optim.weight_decay=0.01",
    ]

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            _without_java(monkeypatch)
            trained = train(recipe_from_dict(values, overrides=overrides), folder)
        (folder / "trained.pickle").write_bytes(pickle.dumps(trained))

    made = made_once("captioner", make)
    trained: Trained = pickle.loads((made / "trained.pickle").read_bytes())
    own = Run(tmp_path_factory.mktemp("runs") / trained.run.name)
    shutil.copytree(trained.run.folder, own.folder)
    return replace(trained, run=own)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many hostile inputs were refused or made harmless, by kind (tests/security)."""
    passed = terminalreporter.getreports("passed")
    kinds = Counter(str(kind) for report in passed for name, kind in report.user_properties if name == "hostile")
    if kinds:
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        terminalreporter.write_line(f"hostile inputs refused or made harmless: {kinds.total()} ({told})")


# Videos that tests encode themselves: every frame shows its own number, as eight black or white stripes.

STRIPES = 8


def draw(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    stripes = (number >> np.arange(STRIPES)) & 1
    row = np.repeat(np.where(stripes, 235, 16), width // STRIPES)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


class Movies:
    """What the fixture `movies` gives to tests."""

    draw = staticmethod(draw)

    @staticmethod
    def write(
        path: Path,
        *,
        n_frames: int = 60,
        rate: int = 30,
        codec: str = "libx264",
        container: str | None = None,
        pixels: str = "yuv420p",
        size: tuple[int, int] = (64, 48),
        b_frames: int | None = 2,
        pts: Sequence[int] | None = None,
        time_base: Fraction | None = None,
        still: bool = False,
        audio_s: float = 0.0,
        options: dict[str, str] | None = None,
        muxer: dict[str, str] | None = None,
    ) -> Path:
        """Encode frames 0, 1, 2, ... with a key frame every 12; `pts` are in units of `time_base`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        base = time_base or Fraction(1, rate)
        with (
            path.open("wb") as handle,
            av.open(handle, "w", format=container or path.suffix[1:], options=muxer or {}) as out,
        ):
            if n_frames:
                stream = out.add_stream(codec, rate=rate, options=options or {})
                stream.width, stream.height = size
                stream.pix_fmt = pixels
                stream.codec_context.gop_size = 12
                stream.codec_context.thread_count = 1
                if b_frames is not None:
                    stream.codec_context.max_b_frames = b_frames
                if time_base is not None:
                    stream.codec_context.time_base = time_base
            if audio_s:
                sound = out.add_stream("aac", rate=16000)
                sound.layout = "mono"
            for number in range(n_frames):
                frame = av.VideoFrame.from_ndarray(draw(7 if still else number, *size), format="rgb24")
                frame.pts = number if pts is None else pts[number]
                frame.time_base = base
                out.mux(stream.encode(frame))
            if n_frames:
                out.mux(stream.encode(None))
            if audio_s:
                for k in range(int(audio_s * 16)):
                    tone = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
                    tone.sample_rate = 16000
                    tone.pts = k * 1000
                    out.mux(sound.encode(tone))
                out.mux(sound.encode(None))
        return path

    @staticmethod
    def number(frame: np.ndarray) -> int:
        """The number that a frame [H, W, 3] shows."""
        height, width = frame.shape[:2]
        centres = (np.arange(STRIPES) * 2 + 1) * width // (2 * STRIPES)
        return int(((frame[height // 4, centres].mean(axis=-1) > 125) << np.arange(STRIPES)).sum())

    def numbers(self, frames: np.ndarray) -> list[int]:
        return [self.number(frame) for frame in frames]

    @staticmethod
    def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
        """Write another display matrix (a, b, c, d) into the track header of an MP4 file."""
        content = bytearray(path.read_bytes())
        start = content.index(b"tkhd") + 4 + 4 + 36  # version 0: 36 bytes of times, ids and volume come before
        a, b, c, d = (entry << 16 for entry in matrix)
        content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
        return path


@pytest.fixture(scope="session")
def movies() -> Movies:
    return Movies()
