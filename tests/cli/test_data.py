"""`calmctl data` as a person meets it: a table of 80 columns, and an exit code that tells."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from calmctl.cli.data import app
from calmctl.data.benchmark import Published
from calmctl.data.benchmarks import msvd
from calmctl.errors import BadInput, CalmError
from calmctl.samples import Clip
from calmctl.video.compressed import CompressedReader
from calmctl.yaml_strict import dump_yaml


def calmctl(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, CalmError):
        raise result.exception
    return result


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MSVD of one clip a split, complete as far as files go."""
    (tmp_path / "data").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / f"data/{split}_list.txt").write_text(split)
        (tmp_path / f"data/{split}.avi").write_text("no video")
        monkeypatch.setitem(msvd.MSVD.protocols[""].published, split, Published(1, 1))  # type: ignore[index]
    (tmp_path / "data/captions_msvd.json").write_text(json.dumps({split: ["it"] for split in ("train", "val", "test")}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_complete_is_0(root: Path) -> None:
    result = calmctl("check", "msvd")
    assert result.exit_code == 0, result.output
    assert "complete; where files belong: calmctl data where msvd" in result.stdout
    assert "--decode opens them" in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_missing_is_1_and_named(root: Path) -> None:
    (root / "train.avi").unlink()
    (root / "val_list.txt").unlink()
    result = calmctl("check", "msvd", "--root", root)
    assert result.exit_code == 1
    assert "missing  val_list.txt" in result.stdout and "X-Pool" in result.stdout
    assert "not complete; where files belong" in result.stdout
    assert "train, no file: 1 clip left out" in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_undecodable_is_1_and_listed(root: Path) -> None:
    result = calmctl("check", "msvd", "--annotations", root, "--videos", root, "--decode", "--workers", 1)
    assert result.exit_code == 1 and "not as it should be" in result.stdout
    assert "3 x" not in result.stderr and "1 x not a video" in result.stderr
    report = json.loads(calmctl("check", "msvd", "--decode", "--json", "--workers", 1).stdout)
    assert report["complete"] is False and list(report["undecodable"]) == ["train", "val", "test"]


def test_a_folder_is_named_by_its_path(root: Path) -> None:
    result = calmctl("check", root)
    assert result.exit_code == 0 and "3 clips, 3 captions" in result.stdout
    assert "captions: captions_msvd.json" in result.stdout, "clear by its content: it names the clips that are here"
    (root / "captions_msvd.json").unlink()
    result = calmctl("check", root)
    assert result.exit_code == 0 and "3 clips, 0 captions" in result.stdout
    assert "enough to search, not to train" in " ".join(result.stdout.split())


def test_what_is_lost_is_shown_and_is_1(root: Path) -> None:
    (root / "captions_msvd.json").unlink()
    (root / "more").symlink_to("/")
    (root / "sizes.tsv").write_text("clip\tsize\ntrain\t3\n")
    result = calmctl("check", root)
    shown = " ".join(result.stdout.split())
    assert result.exit_code == 1 and "captions: none" in shown and "not complete" in shown
    assert "more a link out of the folder, not followed" in shown and "sizes.tsv a table that is not read" in shown
    assert "not read: 2 places left out" in result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    report = json.loads(calmctl("check", root, "--json").stdout)
    assert set(report["unread"]) == {"more", "sizes.tsv"} and report["complete"] is False


def test_captions_that_no_text_tower_reads_to_the_end(root: Path) -> None:
    (root / "captions_msvd.json").write_text(json.dumps({"train": ["it", "it " * 40], "val": ["it " * 80], "test": []}))
    shown = " ".join(calmctl("check", root, "--backbone", "demo-clip").stdout.split())
    assert "2 of 3 captions are longer than 32 tokens; the rest is not read" in shown
    shown = " ".join(calmctl("check", "msvd").stdout.split())
    assert (
        "note val 1 of 1 caption is longer than 77 tokens; the rest is not read" in shown and "note train" not in shown
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "msvdd"], "neither a dataset .* nor a folder"),
        (["check", "MSVD"], "did you mean msvd"),
        (["check", "msvd", "--backbone", "ViT-B-23"], "knows no model"),
        (["check", "data", "--root", "."], "is a folder itself"),
        (["check", "msrvtt", "--protocol", "8k"], "no protocol '8k'"),
        (["check", "msvd", "--root", "gone"], "is not a folder"),
        (["where", "msvdd"], "did you mean msvd"),
    ],
)
def test_mistakes_are_sentences(root: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        calmctl(*arguments)


def test_reencode_makes_files_that_cocap_reads_and_keeps_what_is_there(tmp_path: Path, movies: Any) -> None:
    videos, out = tmp_path / "videos", tmp_path / "reencoded"
    (videos / "more").mkdir(parents=True)
    movies.write(videos / "a.mp4")
    movies.write(videos / "more/b.avi", codec="mpeg4", b_frames=0)
    (videos / "c.mp4").write_text("no video")
    shown = calmctl("reencode", videos, out, "--side", 48, "--workers", 1)
    assert shown.exit_code == 1 and "2 videos re-encoded" in shown.stdout
    assert "not re-encoded: 1 clip left out" in shown.stderr and "x not a video" in shown.stderr
    reader = CompressedReader(48, gops=1, pictures=3)
    for name in ("a.mp4", "more/b.mp4"):
        assert reader(Clip(name, out / name)).shape == reader.shape
    before = (out / "a.mp4").stat().st_mtime_ns
    (videos / "c.mp4").unlink()
    again = calmctl("reencode", videos, out, "--side", 48, "--workers", 1, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == {"folder": str(out), "side": 48, "made": 0, "kept": 2, "left_out": {}}
    assert (out / "a.mp4").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone", "out"], "gone is no folder"),
        (["data", "out", "--side", "47"], "H.264 needs even sizes; give 48"),
        (["data", "data/out"], "data/out is in data, where a second call"),
        (["data", "data"], "data is in data"),
        (["empty", "out"], "empty: .*name another folder"),
        (["twice", "out"], "would both become out/a.mp4"),
    ],
)
def test_reencode_refuses_what_would_go_wrong(root: Path, arguments: list[str], message: str) -> None:
    for name in ("empty", "twice"):
        (root.parent / name).mkdir()
    for name in ("a.avi", "a.mkv"):
        (root.parent / "twice" / name).write_text("no video")
    with pytest.raises(BadInput, match=message):
        calmctl("reencode", *arguments)


def test_where_explains_the_layout(root: Path) -> None:
    assert "didemo" in calmctl("where").stdout
    text = calmctl("where", "msrvtt").stdout
    assert "annotations/msrvtt" in text and "MSRVTT_JSFUSION_test.csv" in text and "CLIP4Clip" in text


@pytest.mark.parametrize("command", ["check", "where"])
def test_help_ends_in_commands_to_copy(command: str) -> None:
    assert f"calmctl data {command}" in calmctl(command, "--help").stdout
    assert f"calmctl data {command} msrvtt" in calmctl("--help").stdout


def test_frames_are_kept_beforehand_and_once(
    tiny_world: Path, tiny_recipe_values: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    recipe, kept = tmp_path / "tiny.yaml", tmp_path / "kept"
    recipe.write_text(dump_yaml(tiny_recipe_values(tiny_world)))
    with pytest.raises(BadInput, match=r"keeps no frames on disk; set data\.cache=disk"):
        calmctl("frames", recipe)
    keys = ("data.cache=disk", f"data.cache_folder={kept}")
    with pytest.raises(BadInput, match=r"18 clips of 2 frames take about .* data\.cache_gb is 1e-06"):
        calmctl("frames", recipe, *keys, "data.cache_gb=1e-6")
    assert not kept.exists()
    result = calmctl("frames", recipe, *keys)
    assert result.exit_code == 0 and f"{kept}: 18 clips decoded, 0 there before; " in result.stdout
    assert "18 clips of 2 frames in" in result.stderr and "to come, 0 there" in result.stderr
    again = json.loads(calmctl("frames", recipe, *keys, "--json").stdout)
    assert again["clips"] == {"read": 18, "unkept": 0} and again["undecodable"] == {"train": {}, "val": {}}
