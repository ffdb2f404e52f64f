"""What `calmctl data check` finds: all of what is missing, wrong or superfluous, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from calmctl.data import benchmark
from calmctl.data.benchmark import Annotated, Published, split_digest
from calmctl.data.benchmarks import msvd
from calmctl.data.check import CheckReport, check_dataset, explain_dataset, overview
from calmctl.data.registry import BENCHMARKS, DATASETS
from calmctl.errors import DatasetError

CAPTIONS = {"a_1_2": ["one", "two"], "b_1_2": ["three"], "c_1_2": ["four"]}


@pytest.fixture
def root(tmp_path: Path, movies: Any) -> Path:
    """MSVD with a clip a split, of which one is broken."""
    folder = tmp_path / "annotations/msvd"
    folder.mkdir(parents=True)
    (folder / "captions_msvd.json").write_text(json.dumps(CAPTIONS))
    for split, clip in zip(("train", "val", "test"), CAPTIONS, strict=True):
        (folder / f"{split}_list.txt").write_text(clip)
        movies.write(tmp_path / f"videos/msvd/{clip}.mp4", n_frames=12)
    (tmp_path / "videos/msvd/c_1_2.mp4").write_text("no video")
    return tmp_path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what `root` holds were the published MSVD."""
    facts = {}
    for split, clip in zip(("train", "val", "test"), CAPTIONS, strict=True):
        digest = split_digest(Annotated([clip], [(clip, text) for text in CAPTIONS[clip]]))
        facts[split] = Published(1, len(CAPTIONS[clip]), digest)
    monkeypatch.setitem(msvd.MSVD.protocols[""].published, "train", facts["train"])  # type: ignore[index]
    monkeypatch.setitem(msvd.MSVD.protocols[""].published, "val", facts["val"])  # type: ignore[index]
    monkeypatch.setitem(msvd.MSVD.protocols[""].published, "test", facts["test"])  # type: ignore[index]


def told(report: CheckReport, part: str) -> dict[str, tuple[str, str]]:
    return {found.name: (found.state, found.text) for found in report.findings if found.part == part}


def test_complete_and_as_published(root: Path, published: None) -> None:
    report = check_dataset("msvd", root)
    assert report.complete and report.undecodable is None and not any(report.missing.values())
    assert {state for state, _ in told(report, "annotation file").values()} == {"ok"}
    assert told(report, "annotation file")["captions_msvd.json"] == ("ok", "read for train, val and test")
    digest = msvd.MSVD.protocols[""].published["train"].sha256
    assert digest is not None
    assert told(report, "split")["train"] == ("ok", f"1 clip, 2 captions: the published split (SHA-256 {digest[:12]})")
    assert told(report, "video files")["test"] == ("ok", "it is there")


def test_decoding_finds_what_lists_cannot(root: Path, published: None) -> None:
    steps: list[tuple[object, ...]] = []
    report = check_dataset("msvd", root, decode=True, workers=1, progress=lambda *step: steps.append(step))
    assert not report.complete and steps == [("decoding clips", done, 3) for done in (1, 2, 3)]
    assert told(report, "decoding") == {
        "train": ("ok", "it decodes"),
        "val": ("ok", "it decodes"),
        "test": ("wrong", "1 of 1 do not decode"),
    }
    assert report.undecodable is not None and "not a video" in report.undecodable["test"]["c_1_2"]
    assert json.loads(json.dumps(report.to_json()))["complete"] is False


def test_other_counts_and_other_sentences(root: Path, published: None) -> None:
    captions = root / "annotations/msvd/captions_msvd.json"
    captions.write_text(json.dumps({**CAPTIONS, "a_1_2": ["one", "two, changed"], "b_1_2": ["three", "more"]}))
    splits = told(check_dataset("msvd", root), "split")
    assert splits["train"] == (
        "wrong", "as many clips and captions as published, but not the same ones (their digest differs)"
    )  # fmt: skip
    assert splits["val"] == ("wrong", "2 captions in the annotation files, 1 published")
    assert splits["test"][0] == "ok"


def test_missing_files_are_named_with_their_owners(root: Path) -> None:
    (root / "annotations/msvd/train_list.txt").unlink()
    (root / "annotations/msvd/captions_msvd.json").unlink()
    (root / "videos/msvd/b_1_2.mp4").unlink()
    report = check_dataset("msvd", root)
    files = told(report, "annotation file")
    assert files["train_list.txt"][0] == "missing" and "X-Pool" in files["train_list.txt"][1]
    state, text = files["captions_msvd.json"]
    assert state == "missing" and text.startswith("for train, val and test: get it from the X-Pool project")
    assert "raw-captions.pkl can take its place" in text and "AllVideoDescriptions.txt can take its place" in text
    assert "raw-captions.pkl" not in files, "one way to complete it is enough"
    assert files["val_list.txt"][0] == "unused"
    assert {state for state, _ in told(report, "split").values()} == {"missing"}
    assert not told(report, "video files"), "without lists nobody knows which clips"


def test_malformed_files_and_missing_clips_are_findings_too(root: Path, published: None) -> None:
    (root / "annotations/msvd/val_list.txt").write_bytes(b"\xff")
    (root / "videos/msvd/a_1_2.mp4").unlink()
    (root / "videos/msvd/a_1_2.avi").symlink_to("gone")
    (root / "annotations/msvd/AllVideoDescriptions.txt").touch()
    report = check_dataset("msvd", root)
    assert told(report, "split")["val"][0] == "wrong" and "not UTF-8" in told(report, "split")["val"][1]
    state, text = told(report, "video files")["train"]
    assert state == "missing" and text.startswith("0 of 1 are there: get them from Microsoft Research")
    assert report.missing["train"] == {"a_1_2": "dangling link"}
    assert told(report, "annotation file")["AllVideoDescriptions.txt"][0] == "unused"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder(tmp_path: Path, name: str) -> None:
    report = check_dataset(name, tmp_path)
    assert not report.complete
    assert {found.state for found in report.findings} == {"missing"}
    assert all("get it from" in text for _, text in told(report, "annotation file").values())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_file_has_an_owner_and_the_layout_names_it(name: str) -> None:
    owners, copies = BENCHMARKS[name].owners, BENCHMARKS[name].copies
    protocols = BENCHMARKS[name].protocols.values()
    files = {
        file for protocol in protocols for choices in protocol.files.values() for choice in choices for file in choice
    }
    assert {*owners, *copies} == {*files, "clips"} and not set(owners) & set(copies)
    text = explain_dataset(name)
    assert all(file in text for file in files) and max(map(len, text.splitlines())) <= 100
    assert all(" ".join(owner.split()) in " ".join(text.split()) for owner in owners.values())
    assert all(f"protocol {protocol}" in text for protocol in BENCHMARKS[name].protocols if protocol)


def test_the_overview_names_every_dataset() -> None:
    assert all(name in overview() for name in DATASETS)
    texts = [overview(), *(explain_dataset(name) for name in DATASETS)]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 80
    with pytest.raises(DatasetError, match="did you mean didemo"):
        explain_dataset("didmo")


def test_a_folder_of_ones_own(root: Path, movies: Any) -> None:
    report = check_dataset("folder", root / "videos", decode=True, workers=1)
    assert told(report, "split") == {"test": ("ok", "3 clips, 0 captions")}
    assert report.undecodable == {"test": {"msvd/c_1_2": "not a video, or damaged beyond opening"}}


def test_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no protocol '8k'"):
        check_dataset("msrvtt", tmp_path, protocol="8k")
    with pytest.raises(DatasetError, match="is not a folder"):
        check_dataset("msrvtt", tmp_path / "gone")


@pytest.mark.real
def test_the_real_files(real_data: Path) -> None:
    for name, protocol in (
        ("msrvtt", "9k"),
        ("msrvtt", "7k"),
        ("msrvtt", "full"),
        ("msvd", ""),
        ("didemo", "official"),
    ):
        report = check_dataset(name, real_data, protocol=protocol)
        for split, (state, text) in told(report, "split").items():
            if (name, split) == ("didemo", "train"):
                assert state == "missing"
            else:
                assert state == "ok" and "the published split (SHA-256" in text
        assert not report.complete, "most clips are not here"
    assert told(report, "annotation file")["train_data.json"][0] == "missing"
    assert told(report, "annotation file")["ce_train_list.txt"][0] == "unused"
    lsmdc = check_dataset("lsmdc", real_data)
    assert all("Max Planck" in text for _, text in told(lsmdc, "annotation file").values())


def test_benchmarks_publish_only_splits_they_have() -> None:
    assert benchmark.Published(None, None).sha256 is None
    for known in BENCHMARKS.values():
        for protocol in known.protocols.values():
            assert set(protocol.published) == set(protocol.files)


def test_clips_of_a_folder_that_are_in_two_splits_are_found(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    (tmp_path / "captions.csv").write_text("video,caption,split\na.mp4,x,train\nb.mp4,y,test\nc.mp4,z,test\n")
    report = check_dataset("folder", tmp_path)
    text = "1 clip shared with train: the files are the same (first: c)"
    assert told(report, "shared file") == {"test": ("wrong", text)} and not report.complete
    (tmp_path / "c.mp4").write_bytes(b"six")
    assert check_dataset("folder", tmp_path).complete
