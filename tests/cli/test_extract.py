"""`calmctl extract` as a person meets it: arguments in, a table or a sentence out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from calmctl.cli.extract import EXAMPLES, extract
from calmctl.data.demo_drawing import encode
from calmctl.errors import BadInput, CalmError, StoreError, VideoError
from calmctl.model.weights import load_backbone
from calmctl.store import writer as store_writer
from calmctl.store.store import FeatureStore
from calmctl.store.writer import StoreWriter
from calmctl.tensors import save_tensors

app = typer.Typer(pretty_exceptions_enable=False)
app.command(epilog=EXAMPLES)(extract)


def calmctl(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, CalmError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that name a small backbone with random weights in a file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_tensors(path, load_backbone("demo-clip", None).clip.state_dict(), {})
    return ["--backbone", "demo-clip", "--backbone-weights", path, "--frames", 3, "--device", "cpu", "--workers", 1]


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clips, one broken, captions beside them; the current folder is theirs."""
    folder = tmp_path / "holidays [2024]"
    folder.mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
        (folder / f"clip{number}.mp4").write_bytes(encode(frames.repeat(8, 1).repeat(8, 2)))
    (folder / "clip1.mp4").write_text("no video")
    captions = [{"video": f"clip{number}", "caption": f"clip number {number}"} for number in range(4)]
    (tmp_path / "said.json").write_text(json.dumps(captions))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store_writer, "CLIPS_PER_SHARD", 2)
    return folder


def test_a_folder_becomes_a_store_and_the_table_fits_80_columns(videos: Path, model: list[object]) -> None:
    result = calmctl(videos.name, "--captions", "said.json", *model)
    assert result.exit_code == 0
    store = FeatureStore.open(Path("features/holidays [2024]-demo-clip"))
    assert store.ids == ("clip0", "clip2") and store.split("test").captions == ("clip number 0", "clip number 2")
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "2 extracted, 0 there already" in result.stdout and "holidays [2024]-demo-clip" in result.stdout
    assert "1 not decodable, 1 missing" in result.stdout
    assert "not a video" in result.stderr and "clip1" in result.stderr and "clip3" in result.stderr
    assert "━" not in result.stderr, "no progress bar where there is no terminal"
    again = calmctl(videos.name, "--captions", "said.json", *model)
    assert "0 extracted, 2 there already" in again.stdout


def test_what_is_not_read_is_told(videos: Path, model: list[object]) -> None:
    (videos / "all").symlink_to("/")
    (videos / "captions.csv").write_text("video,caption\nclip0," + "word " * 40 + "\nclip2,short\n")
    result = calmctl(videos.name, *model, "--out", "here")
    shown = " ".join(result.stdout.split())
    assert "note captions: captions.csv" in shown
    assert "note 1 of 2 captions is longer than 32 tokens; the rest is not read" in shown
    assert "not read: 1 place left out" in result.stderr and "a link out of the folder, not followed" in result.stderr
    report = json.loads(calmctl(videos.name, *model, "--out", "here", "--json").stdout)
    assert [each["id"] for each in report["unread"]] == ["all"] and "captions: captions.csv" in report["notes"]
    with pytest.raises(VideoError, match="all: a link out of the folder"):
        calmctl(videos.name, *model, "--out", "other", "--strict")


def test_json_is_all_there_is_on_stdout(videos: Path, model: list[object]) -> None:
    result = calmctl(videos.name, *model, "--out", "here", "--half", "--json")
    report = json.loads(result.stdout)
    assert report["clips_extracted"] == 2 and report["store"] == "here"
    assert [clip["id"] for clip in report["undecodable"]] == ["clip1"]
    assert FeatureStore.open(Path("here")).header.dtype == "float16"
    line = json.loads(Path("here/extractions.jsonl").read_text())
    assert line["report"] == report and line["packages"]["torch"] == torch.__version__.split("+")[0]


def test_parts_and_their_merge(videos: Path, model: list[object]) -> None:
    calmctl(videos.name, *model, "--out", "whole")
    for part in ("1/2", "2/2"):
        assert "--merge PARTS" in calmctl(videos.name, *model, "--shard", part).stdout
    name = "features/holidays [2024]-demo-clip"
    half = calmctl("--merge", f"{name}.1of2", "--out", "merged")
    assert half.exit_code == 1 and "frames-00001.safetensors is not extracted yet" in half.stderr
    done = calmctl("--merge", f"{name}.1of2", f"{name}.2of2", "--out", "merged")
    assert done.exit_code == 0 and "2 clips" in done.stdout
    for file in ("index.json", "catalogue.json", "frames-00000.safetensors", "frames-00001.safetensors"):
        assert Path("merged", file).read_bytes() == Path("whole", file).read_bytes()
    with pytest.raises(StoreError, match="n_frames 3, not 4"):
        calmctl(videos.name, *model, "--frames", 4, "--out", "merged")


def test_nothing_decodable_is_a_failed_run(videos: Path, model: list[object]) -> None:
    for number in (0, 2):
        (videos / f"clip{number}.mp4").write_text("no video either")
    result = calmctl(videos.name, *model)
    assert result.exit_code == 1 and "no clip could be decoded" in result.stderr
    with pytest.raises(VideoError, match="clip0: "):
        calmctl(videos.name, *model, "--strict")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is neither a dataset .*msrvtt.* nor a folder"),
        (["msrvtt", "msvd"], "one dataset or folder, got 2; to merge stores, add --merge"),
        (["msrvtt", "--captions", "x.csv"], "--captions belongs to a folder"),
        ([".", "--captions", "x.csv", "--annotations", "y"], "give one"),
        (["msrvtt", "--shard", "0/4"], "counted from 1"),
        (["msrvtt", "--shard", "5/4"], "counted from 1"),
        (["msrvtt", "--shard", "one"], "--shard one: write part/parts"),
        (["--merge", "a"], "--merge needs --out"),
        (["--merge", "nothing-here", "--out", "x"], "nothing-here is not a feature store"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        calmctl(*arguments)


def test_a_scheduler_s_signal_ends_it_with_one_sentence(
    videos: Path, model: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from calmctl.cli.main import main

    put = StoreWriter._put

    def put_and_be_stopped(store: StoreWriter, *shard: Any) -> None:
        put(store, *shard)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StoreWriter, "_put", put_and_be_stopped)
    monkeypatch.setattr(sys, "argv", ["calmctl", "extract", videos.name, *(str(option) for option in model)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown, said = capsys.readouterr()
    assert ended.value.code == 1 and shown == "" and len(list(Path("features").rglob("*.safetensors"))) == 1
    assert said.startswith("loading demo-clip ...\nerror: interrupted; what is extracted is kept; go on with")
    assert said.count("\n") == 2


def test_help_ends_in_commands_to_copy() -> None:
    text = calmctl("--help").stdout
    assert "calmctl extract msrvtt --root /data" in text and "calmctl extract --merge" in text
    assert "(calmctl[cluster])" in " ".join(text.replace("│", " ").split()), "rich would take the extra for markup"


def test_importing_the_command_imports_no_torch() -> None:
    code = "import sys, calmctl.cli.extract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
