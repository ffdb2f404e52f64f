import hashlib
import json

import pytest

from calmctl.data.demo import generate_demo, load_demo, planned_digest
from calmctl.data.demo_world import DemoCounts
from calmctl.errors import DatasetError, RunFailed

COUNTS = DemoCounts(train=6, val=3, test=4, shifted=4)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small world to read, not to change."""
    root = tmp_path_factory.mktemp("demo")
    generate_demo(root, counts=COUNTS)
    return root


@pytest.fixture
def world(tmp_path):
    """A small world that a test may change."""
    generate_demo(tmp_path, counts=COUNTS)
    return tmp_path


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def change(root, edit):
    annotations = json.loads((root / "demo.json").read_text())
    edit(annotations)
    (root / "demo.json").write_text(json.dumps(annotations))


def test_retrieval_protocol(drawn):
    data = load_demo(drawn, shifted=False)
    assert (data.name, data.protocol) == ("demo", "retrieval")
    assert {name: len(split.clips) for name, split in data.splits.items()} == {"train": 6, "val": 3, "test": 4}
    assert data.splits["train"].owners == tuple(i for i in range(6) for _ in range(5))
    for name in ("val", "test"):
        assert data.splits[name].owners == tuple(range(len(data.splits[name].clips)))
    assert all(clip.path.is_file() for split in data.splits.values() for clip in split.clips)
    assert "seed 0" in data.notes[0]


@pytest.mark.parametrize("protocol", ["retrieval-0.6", "retrieval-0.4"])
def test_the_dial_changes_training_captions_alone(drawn, protocol):
    whole, less = load_demo(drawn, shifted=False).splits, load_demo(drawn, shifted=False, protocol=protocol).splits
    assert less["train"].owners == whole["train"].owners and less["train"].clips == whole["train"].clips
    assert not set(less["train"].captions) & set(whole["train"].captions)
    assert all(less[name] == whole[name] for name in ("val", "test"))
    assert max(map(len, less["train"].captions)) < max(map(len, whole["train"].captions))


def test_what_will_be_drawn_is_known_before(drawn):
    assert json.loads((drawn / "demo.json").read_text())["digest"] == planned_digest(0, COUNTS)


def test_a_world_of_version_1_is_read_and_not_drawn_over(world):
    def older(annotations):
        annotations["version"] = 1
        for clip in annotations["clips"]:
            del clip["partial"]
        entries = json.dumps(annotations["clips"], sort_keys=True, ensure_ascii=False).encode()
        annotations["digest"] = hashlib.sha256(entries).hexdigest()

    change(world, older)
    assert len(load_demo(world, shifted=False).splits["test"].clips) == 4
    with pytest.raises(DatasetError, match=r"version 1, whose clips \(first: train0000\) have no captions for retr"):
        load_demo(world, shifted=False, protocol="retrieval-0.4")
    before = contents(world)
    with pytest.raises(DatasetError, match="holds a demo world of version 1, and this calmctl draws version 2"):
        generate_demo(world, counts=COUNTS)
    assert contents(world) == before


def test_captioning_protocol_has_all_references(drawn):
    first = load_demo(drawn, shifted=False).splits["test"]
    every = load_demo(drawn, shifted=False, protocol="captioning").splits["test"]
    assert every.owners == tuple(i for i in range(4) for _ in range(5))
    assert every.captions[::5] == first.captions


def test_shifted_domain_is_a_test_split_of_its_own(drawn):
    data = load_demo(drawn, shifted=True)
    assert data.name == "demo-shifted" and set(data.splits) == {"test"}
    inside = {clip.id for split in load_demo(drawn, shifted=False).splits.values() for clip in split.clips}
    assert len(data.splits["test"].clips) == 4
    assert not inside & {clip.id for clip in data.splits["test"].clips}


def test_same_seed_same_files(drawn, world):
    assert contents(drawn) == contents(world)


def test_second_call_writes_nothing(world):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in world.rglob("*")}

    before = stamps()
    generate_demo(world, counts=COUNTS)
    assert stamps() == before


def test_interrupted_drawing_is_no_dataset_and_can_be_resumed(drawn, tmp_path):
    def stop(what, done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_demo(tmp_path, counts=COUNTS, progress=stop)
    assert len(list((tmp_path / "clips").iterdir())) == 10
    with pytest.raises(DatasetError, match=r"demo\.json is missing\); `calmctl demo` draws it"):
        load_demo(tmp_path, shifted=False)
    kept = min((tmp_path / "clips").iterdir())
    stamp = kept.stat().st_mtime_ns
    generate_demo(tmp_path, counts=COUNTS)
    assert contents(tmp_path) == contents(drawn)
    assert kept.stat().st_mtime_ns == stamp


def test_progress_counts_to_the_end(tmp_path):
    calls = []
    generate_demo(tmp_path, counts=DemoCounts(2, 1, 1, 1), progress=lambda *step: calls.append(step[1:]))
    assert calls == [(done, 5) for done in range(6)]


def test_another_seed_replaces_the_annotations_and_deletes_nothing(world):
    before = contents(world)
    generate_demo(world, seed=1, counts=COUNTS)
    after = contents(world)
    assert "seed 1" in load_demo(world, shifted=False).notes[0]
    assert {path: after[path] for path in before if path.suffix == ".mp4"} == {
        path: content for path, content in before.items() if path.suffix == ".mp4"
    }


def test_a_missing_clip_is_listed_and_its_captions_are_not_used(world):
    whole = load_demo(world, shifted=False).splits["train"]
    whole.clips[2].path.unlink()
    split = load_demo(world, shifted=False).splits["train"]
    assert [left.id for left in split.left_out] == [whole.clips[2].id]
    assert split.left_out[0].reason.endswith(".mp4 is missing")
    assert split.clips == whole.clips[:2] + whole.clips[3:]
    assert split.captions == whole.captions[:10] + whole.captions[15:]
    assert split.owners == tuple(i for i in range(5) for _ in range(5))


def test_edited_annotations_are_refused(world):
    change(world, lambda annotations: annotations["clips"][0]["captions"].append("a better caption"))
    with pytest.raises(DatasetError, match="was changed after it was written; delete it and draw"):
        load_demo(world, shifted=False)
    with pytest.raises(DatasetError, match="was changed after it was written"):
        generate_demo(world, counts=COUNTS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.pop("clips"), "clips: Field required"),
        (lambda a: a["clips"][3].update(split="dev"), r"clips\.3\.split: Input should be 'train', 'val' or 'test'"),
        (lambda a: a["clips"][1].update(captions=[]), r"clips\.1\.captions: List should have at least 1 item"),
        (lambda a: a["clips"][0].update(colour="red"), r"clips\.0\.colour: Extra inputs are not permitted"),
        (lambda a: a.update(version="new"), "version: Input should be a valid integer"),
    ],
)
def test_malformed_annotations_name_the_place(world, edit, message):
    change(world, edit)
    with pytest.raises(DatasetError, match=message):
        load_demo(world, shifted=False)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_annotations_that_are_no_manifest(tmp_path, content):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(DatasetError, match=r"demo\.json"):
        load_demo(tmp_path, shifted=False)


def test_unknown_protocol(drawn):
    with pytest.raises(DatasetError, match=r"demo has no protocol '9k'; choose one of: retrieval, retrieval-0\.6, ret"):
        load_demo(drawn, shifted=False, protocol="9k")


def test_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunFailed, match="cannot write"):
        generate_demo(tmp_path / "file", counts=COUNTS)
