"""The feature store: what goes in comes out, and nothing damaged, mixed or half written is ever trusted."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import calmctl.files
from calmctl.errors import RunFailed, StoreError
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.store import writer as store_writer
from calmctl.store.format import CATALOGUE, INDEX, Header
from calmctl.store.store import FeatureStore
from calmctl.store.writer import StoreWriter, merge_stores, record_origin, source_of

F, D = 3, 4
BACKBONE = {"model": "tiny", "weights": "a.safetensors", "parameters_sha256": "a" * 64, "dim": D, "mean": [0.5]}
HEADER = Header(dataset="folder", backbone=BACKBONE, n_frames=F)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "CLIPS_PER_SHARD", 2)
    monkeypatch.setattr(store_writer, "SENTENCES_PER_SHARD", 3)


def dataset(folder: Path, ids: str = "abcde", captions_each: int = 2) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for name in ids:
        path = folder / f"{name}.mp4"
        if not path.exists():
            path.write_text(name)
        clips.append(Clip(name, path))
    captions = [f"{name} {number}" for name in ids for number in range(captions_each)]
    owners = [place for place in range(len(ids)) for _ in range(captions_each)]
    missing = (LeftOut("z", "no such file"),)
    return Dataset("folder", "p", {"test": Split("test", tuple(clips), tuple(captions), tuple(owners), missing)})


def frames_of(key: str) -> torch.Tensor:
    return torch.full((F, D), float(ord(key[0]))) + torch.arange(D) / 7


def text_of(sentence: str) -> torch.Tensor:
    return torch.full((D,), float(ord(sentence[0]))) + float(sentence[-1]) / 3


def fill(path: Path, data: Dataset, broken: str = "", groups: slice = slice(None), header: Header = HEADER) -> None:
    clips = {clip.id: clip for clip in data.splits["test"].clips}
    with StoreWriter.create(path, header) as store:
        store.plan(data)
        for group in range(len(store.groups("frames")))[groups]:
            keys = store.groups("frames")[group]
            good = [frames_of(key) for key in keys if key not in broken]
            features = torch.stack(good) if good else torch.empty(0, F, D)
            left_out = [LeftOut(key, "truncated") for key in keys if key in broken]
            store.add_frames(group, features, {key: source_of(clips[key]) for key in keys}, left_out)
        for group in range(len(store.groups("texts")))[groups]:
            store.add_texts(group, torch.stack([text_of(sentence) for sentence in store.groups("texts")[group]]))


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith(".")}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    fill(tmp_path / "store", dataset(tmp_path / "videos"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that tests damage and repair again."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_writer, "CLIPS_PER_SHARD", 2)
        fill(folder / "store", dataset(folder / "videos", "abc"))
    return folder / "store"


@contextmanager
def replaced(path: Path, damaged: bytes) -> Generator[None, None, None]:
    whole = path.read_bytes()
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(whole)


def flipped(path: Path, data: st.DataObject) -> bytes:
    """The file with one bit flipped."""
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) * 8 - 1))
    content[place // 8] ^= 1 << place % 8
    return bytes(content)


# --- reading what was written ----------------------------------------------------------------------------


def test_features_come_back_by_id_in_the_order_asked_for(filled: Path) -> None:
    store = FeatureStore.open(filled)
    assert store.ids == tuple("abcde") and store.splits == ("test",) and store.protocol == "p"
    ids = ["d", "a", "e", "a"]
    assert torch.equal(store.frames(ids), torch.stack([frames_of(key) for key in ids]))
    sentences = ["e 1", "a 0", "e 1"]
    assert torch.equal(store.texts(sentences), torch.stack([text_of(sentence) for sentence in sentences]))
    assert store.frames([]).shape == (0, F, D) and store.texts([]).shape == (0, D)
    assert store.verify() == ()


def test_a_store_in_which_nothing_is_planned_is_not_complete(filled: Path, tmp_path: Path) -> None:
    """An extraction that ends before it knows its clips leaves one: it lacks nothing, and has nothing."""
    assert FeatureStore.open(filled).is_complete
    with StoreWriter.create(tmp_path / "begun", FeatureStore.open(filled).header):
        pass
    assert FeatureStore.open(tmp_path / "begun").pending == 0
    assert not FeatureStore.open(tmp_path / "begun").is_complete


def test_unknown_keys_are_named(filled: Path) -> None:
    store = FeatureStore.open(filled)
    with pytest.raises(StoreError, match=r"no features of 2 of 3 clips \(first: 'x'\)"):
        store.frames(["a", "x", "y"])
    with pytest.raises(StoreError, match="no features of 1 of 1 sentences"):
        store.texts(["never said"])
    with pytest.raises(StoreError, match="no split 'train'; it has test"):
        store.split("train")


def test_clips_left_out_take_their_captions_with_them(tmp_path: Path) -> None:
    fill(tmp_path / "store", dataset(tmp_path / "videos"), broken="acd")
    store = FeatureStore.open(tmp_path / "store")
    split = store.split("test")
    assert split.ids == store.ids == ("b", "e"), "the group (c, d) is an empty shard"
    pairs = [(caption, split.ids[owner]) for caption, owner in zip(split.captions, split.owners, strict=True)]
    assert pairs == [("b 0", "b"), ("b 1", "b"), ("e 0", "e"), ("e 1", "e")]
    assert {(clip.id, clip.reason) for clip in split.left_out} == {
        ("z", "no such file"),
        *((key, "truncated") for key in "acd"),
    }
    assert torch.equal(store.frames(["e", "b"]), torch.stack([frames_of("e"), frames_of("b")]))
    with pytest.raises(StoreError, match="first: 'c'"):
        store.frames(["c"])


def test_half_precision_is_rounded_once_and_read_as_float32(tmp_path: Path) -> None:
    half = HEADER.model_copy(update={"dtype": "float16"})
    fill(tmp_path / "store", dataset(tmp_path / "videos"), header=half)
    read = FeatureStore.open(tmp_path / "store").frames(["b"])[0]
    assert read.dtype == torch.float32
    assert torch.equal(read, frames_of("b").half().float()) and not torch.equal(read, frames_of("b"))


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is not a feature store.*calmctl extract"):
        FeatureStore.open(tmp_path)


# --- mixing ----------------------------------------------------------------------------------------------


def test_another_backbone_is_refused_and_both_are_named(filled: Path) -> None:
    other = {**BACKBONE, "weights": "b.safetensors", "parameters_sha256": "b" * 64}
    before = content(filled)
    with (
        pytest.raises(StoreError, match=r"tiny with a.safetensors \[aaaaaaaaaaaa\], not of .* b.safetensors \[bbbb"),
        StoreWriter.create(filled, HEADER.model_copy(update={"backbone": other})),
    ):
        pass
    assert content(filled) == before
    FeatureStore.open(filled).require_backbone({**BACKBONE, "weights": "renamed.safetensors"})


@pytest.mark.parametrize(
    ("key", "value"), [("dataset", "msvd"), ("n_frames", 12), ("dtype", "float16"), ("sampling", "first frames")]
)
def test_another_kind_of_feature_is_refused(filled: Path, key: str, value: object) -> None:
    header = HEADER.model_copy(update={key: value})
    with pytest.raises(StoreError, match=f"with {key} {getattr(HEADER, key)}, not {value}"):
        FeatureStore.open(filled).require(header)


def test_features_that_are_no_numbers_or_do_not_fit_are_refused(filled: Path) -> None:
    with StoreWriter.create(filled, HEADER) as store:
        bad = torch.zeros(2, F, D)
        bad[1, 2, 3] = float("nan")
        with pytest.raises(StoreError, match="no float32 number for 'd'"):
            store.add_frames(1, bad, {}, [])
        with pytest.raises(ValueError, match=r"must be \(2, 3, 4\)"):
            store.add_frames(1, torch.zeros(1, F, D), {}, [])
    assert torch.equal(FeatureStore.open(filled).frames(["d"])[0], frames_of("d"))


def test_a_value_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    half = HEADER.model_copy(update={"dtype": "float16"})
    with StoreWriter.create(tmp_path / "store", half) as store:
        store.plan(dataset(tmp_path / "videos"))
        with pytest.raises(StoreError, match="too large for float16"):
            store.add_frames(0, torch.full((2, F, D), 1e5), {}, [])


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"holds other things \(thesis.tex"), StoreWriter.create(tmp_path, HEADER):
        pass
    with pytest.raises(StoreError, match="Not a directory"), StoreWriter.create(tmp_path / "thesis.tex", HEADER):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_writer_at_a_time_and_leftovers_are_cleared(filled: Path) -> None:
    leftover = filled / ".frames-00000.safetensors.x1y2.tmp"
    leftover.touch()
    with StoreWriter.create(filled, HEADER):
        assert not leftover.exists()
        with pytest.raises(StoreError, match="another process is extracting"), StoreWriter.create(filled, HEADER):
            pass
    with StoreWriter.create(filled, HEADER):
        pass


# --- damage ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_of_a_shard_is_noticed(sound: Path, data: st.DataObject) -> None:
    shard = sound / "frames-00000.safetensors"
    store = FeatureStore.open(sound)
    with replaced(shard, flipped(shard, data)):
        with pytest.raises(StoreError, match=r"frames-00000.safetensors is damaged.*calmctl extract"):
            store.frames(["b"])
        assert torch.equal(store.frames(["c"])[0], frames_of("c")), "other shards are not affected"
        assert [line.split()[0] for line in store.verify()] == ["frames-00000.safetensors"]


def test_truncated_and_missing_shards_are_noticed(filled: Path) -> None:
    os.truncate(filled / "frames-00001.safetensors", 100)
    (filled / "texts-00000.safetensors").unlink()
    store = FeatureStore.open(filled)
    assert [line.split(" ", 1) for line in store.verify()] == [
        ["frames-00001.safetensors", "is damaged (its SHA-256 is not the one in the index)"],
        ["texts-00000.safetensors", "is missing"],
    ]
    with pytest.raises(StoreError, match=r"texts-00000.safetensors is missing"):
        store.texts(["a 0"])


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from([INDEX, CATALOGUE]), data=st.data())
def test_any_flipped_bit_of_the_json_is_noticed(sound: Path, name: str, data: st.DataObject) -> None:
    before = FeatureStore.open(sound)
    with replaced(sound / name, flipped(sound / name, data)):
        try:
            store = FeatureStore.open(sound)
        except StoreError as error:
            assert name in str(error)
        else:  # one kind of white space became another
            assert (store._index, store._catalogue) == (before._index, before._catalogue)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["schema_version", "clips"]), inner),
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from([INDEX, CATALOGUE]), junk=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_bytes_are_an_error_of_ours(sound: Path, name: str, junk: bytes) -> None:
    with replaced(sound / name, junk), pytest.raises(StoreError, match=name):
        FeatureStore.open(sound)


@pytest.mark.parametrize("key", ["header", "shards", "protocol", "schema_version"])
@settings(max_examples=50, deadline=None)
@given(value=JSON)
def test_any_other_value_is_an_error_of_ours(sound: Path, key: str, value: object) -> None:
    index = json.loads((sound / INDEX).read_text())
    if index[key] == value:
        return
    changed = json.dumps({**index, key: value}).encode()
    with replaced(sound / INDEX, changed), pytest.raises(StoreError, match=INDEX):
        FeatureStore.open(sound)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "NaN"])
def test_a_number_that_json_cannot_write_is_an_error_of_ours(filled: Path, number: str) -> None:
    index = filled / "index.json"
    index.write_text(index.read_text().replace('"dim": ', f'"epsilon": {number}, "dim": '))
    with pytest.raises(StoreError, match=r"index\.json is not JSON: it has a number that is -?(inf|nan)"):
        FeatureStore.open(filled)


@pytest.mark.parametrize(
    ("was", "now"),
    [('"dtype"', f'"dtype{"9" * 5000}"'), ('"schema_version": ', f'"schema_version": "{"9" * 5000}", "x": ')],
    ids=["key", "version"],
)
def test_a_long_name_is_cut_in_a_sentence(filled: Path, was: str, now: str) -> None:
    index = filled / "index.json"
    assert was in index.read_text()
    index.write_text(index.read_text().replace(was, now, 1))
    with pytest.raises(StoreError, match=r"index\.json") as fault:
        FeatureStore.open(filled)
    assert len(str(fault.value)) < 1000


def test_an_index_cannot_point_outside_its_folder(filled: Path) -> None:
    index = json.loads((filled / INDEX).read_text())
    index["shards"]["../../elsewhere.safetensors"] = index["shards"].pop("frames-00000.safetensors")
    (filled / INDEX).write_text(json.dumps(index))
    with pytest.raises(StoreError, match="elsewhere"):
        FeatureStore.open(filled)


def test_a_store_of_another_schema_says_so(filled: Path) -> None:
    index = json.loads((filled / INDEX).read_text())
    (filled / INDEX).write_text(json.dumps({**index, "schema_version": 2}))
    with pytest.raises(StoreError, match=r"not of schema 1 \(it says 2\)"):
        FeatureStore.open(filled)


# --- growth, change, merging -----------------------------------------------------------------------------


def test_a_growing_dataset_keeps_what_is_there(filled: Path, tmp_path: Path) -> None:
    before = {name: data for name, data in content(filled).items() if name.startswith(("frames", "texts"))}
    with StoreWriter.create(filled, HEADER) as store:
        store.plan(dataset(tmp_path / "videos", "Aabcdef"))
        assert store.groups("frames") == [["a", "b"], ["c", "d"], ["e"], ["A", "f"]]
        assert store.split("test").ids == tuple("abcde")
        assert ("A", "not extracted yet") in {(clip.id, clip.reason) for clip in store.split("test").left_out}
    assert before.items() <= content(filled).items()


def test_a_changed_file_is_noticed(filled: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "videos")
    clips = {clip.id: clip for clip in data.splits["test"].clips}
    with StoreWriter.create(filled, HEADER) as store:
        assert [store.changed_clips(group, clips) for group in range(3)] == [[], [], []]
        clips["d"].path.write_text("longer than it was")
        before = clips["e"].path.stat()
        # As long and as old, and another file.
        clips["e"].path.write_bytes(bytes(byte ^ 1 for byte in clips["e"].path.read_bytes()))
        os.utime(clips["e"].path, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(clips["a"].path, ns=(0, 1))  # another date and the same file
        assert [store.changed_clips(group, clips) for group in range(3)] == [[], ["d"], ["e"]]
        clips["a"] = Clip("a", clips["a"].path, start_s=1.0)
        assert store.changed_clips(0, clips) == ["a"], "another window of the same file"
        assert store.changed_clips(0, {}) == [], "a clip that is not asked for cannot have changed"


def test_a_shard_that_was_renewed_under_a_reader_is_not_called_damaged(filled: Path) -> None:
    reader = FeatureStore.open(filled)
    with StoreWriter.create(filled, HEADER) as store:
        store.add_frames(0, torch.ones(2, F, D), {}, [])
    with pytest.raises(StoreError, match=r"was extracted anew since this process opened the store.*start again"):
        reader.frames(["a"])
    assert torch.equal(FeatureStore.open(filled).frames(["a"]), torch.ones(1, F, D))


def test_a_record_of_a_split_changes_with_its_features_alone(filled: Path, tmp_path: Path) -> None:
    before = FeatureStore.open(filled).record("test")
    assert (before.dataset, before.protocol, before.clips, before.captions) == ("folder", "p", 5, 10)
    assert before.knows_files and before.dtype == "float32" and before.differs == ()
    assert FeatureStore.open(Path(shutil.copytree(filled, tmp_path / "moved"))).record("test") == before
    with StoreWriter.create(filled, HEADER) as store:
        store.add_frames(0, torch.ones(2, F, D), {}, [])
    after = FeatureStore.open(filled).record("test")
    assert after.digest == before.digest and after.features != before.features and not after.knows_files


def test_a_store_from_before_splits_were_compared_is_read(filled: Path) -> None:
    """Written by hand as the first version wrote it, without `differs`."""
    catalogue = json.loads((filled / CATALOGUE).read_text())
    for split in catalogue["splits"].values():
        del split["differs"]
    del catalogue["sha256"]
    canonical = json.dumps(catalogue, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    (filled / CATALOGUE).write_text(json.dumps({**catalogue, "sha256": digest}))
    store = FeatureStore.open(filled)
    assert store.record("test").differs is None and len(store.split("test").ids) == 5


def test_an_old_shard_is_judged_by_size_and_date(filled: Path, tmp_path: Path) -> None:
    clips = {clip.id: clip for clip in dataset(tmp_path / "videos").splits["test"].clips}
    with StoreWriter.create(filled, HEADER) as store:
        store.add_frames(0, torch.ones(2, F, D), {key: source_of(clips[key])[:4] for key in "ab"}, [])
        assert store.changed_clips(0, clips) == []
        os.utime(clips["b"].path, (1, 1))
        assert store.changed_clips(0, clips) == ["b"]


def test_a_store_is_used_as_what_it_is(filled: Path) -> None:
    store = FeatureStore.open(filled)
    store.require_dataset("folder", None)
    store.require_dataset("folder", "p")
    for wrong in (("msrvtt", None), ("folder", "q")):
        with pytest.raises(StoreError, match="holds features of folder p, not of"):
            store.require_dataset(*wrong)
    assert store.pending == 0
    with StoreWriter.create(filled, HEADER) as writer:
        writer.plan(dataset(filled.parent / "videos", "abcdefg"))
        assert writer.pending == 2 + 4


def test_parts_merge_into_the_store_of_one_machine(tmp_path: Path) -> None:
    data = dataset(tmp_path / "videos", "abcdefg")
    fill(tmp_path / "whole", data, broken="c")
    for part in range(3):
        fill(tmp_path / f"part{part}", data, broken="c", groups=slice(part, None, 3))
    report = merge_stores([tmp_path / "part2", tmp_path / "part0"], tmp_path / "merged")
    assert report.incomplete == tuple(
        f"{name} is not extracted yet"
        for name in ("frames-00001.safetensors", "texts-00001.safetensors", "texts-00004.safetensors")
    )
    report = merge_stores([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    assert (report.shards_taken, report.clips, report.sentences, report.incomplete) == (3, 6, 14, ())
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


def test_a_merge_that_a_full_disk_stops_at_any_file_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path / "videos", "abcdefg")
    for part in range(2):
        fill(tmp_path / f"part{part}", data, groups=slice(part, None, 2))
        record_origin(tmp_path / f"part{part}", tmp_path / "videos")
    whole = merge_stores([tmp_path / "part0", tmp_path / "part1"], tmp_path / "whole").store
    replace, left = os.replace, 0

    def failing(source: str, target: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    for stopped in range(1, 9):
        left, merged = stopped, tmp_path / f"stopped{stopped}"
        with pytest.raises(RunFailed, match="No space left"):
            merge_stores([tmp_path / "part0", tmp_path / "part1"], merged)
        merge_stores([tmp_path / "part0", tmp_path / "part1"], merged)
        assert content(merged) == content(whole) and (merged / ".origin").read_text() == (whole / ".origin").read_text()


def test_a_merge_that_was_killed_before_any_of_its_writes_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(tmp_path / "videos")
    parts = [tmp_path / f"part{part}" for part in range(2)]
    for part, path in enumerate(parts):
        fill(path, data, groups=slice(part, None, 2))
        store_writer.record_origin(path, tmp_path / "videos")

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}

    merge_stores(parts, tmp_path / "whole")
    assert ".origin" in files(tmp_path / "whole")
    write, count, reached = calmctl.files.write_atomic, 0, False

    def killed(*arguments: Any) -> None:
        nonlocal count
        if count == 0:
            raise KeyboardInterrupt
        count -= 1
        write(*arguments)

    for number in range(100):
        merged, count = tmp_path / f"merged{number}", number
        monkeypatch.setattr(calmctl.files, "write_atomic", killed)
        try:
            merge_stores(parts, merged)
            reached = True
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(calmctl.files, "write_atomic", write)
        merge_stores(parts, merged)
        assert files(merged) == files(tmp_path / "whole"), f"killed before write {number + 1}"
        if reached:
            break
    assert reached and number > 8


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    data = dataset(tmp_path / "videos")
    fill(tmp_path / "one", data, groups=slice(0, 1))
    fill(tmp_path / "longer", dataset(tmp_path / "videos", "abcdef"), groups=slice(1, 2))
    with pytest.raises(StoreError, match="not made from the same list"):
        merge_stores([tmp_path / "one", tmp_path / "longer"], tmp_path / "merged1")
    other = HEADER.model_copy(update={"backbone": {**BACKBONE, "parameters_sha256": "b" * 64}})
    fill(tmp_path / "other", data, groups=slice(1, 2), header=other)
    with pytest.raises(StoreError, match="cannot be mixed"):
        merge_stores([tmp_path / "one", tmp_path / "other"], tmp_path / "merged2")
    assert not (tmp_path / "merged2").exists()
    fill(tmp_path / "disagrees", data, broken="a", groups=slice(0, 1))
    with pytest.raises(StoreError, match="different features of the same 2 keys"):
        merge_stores([tmp_path / "one", tmp_path / "disagrees"], tmp_path / "merged3")
    os.truncate(tmp_path / "one" / "frames-00000.safetensors", 10)
    with pytest.raises(StoreError, match=r"is damaged.*extract that part again"):
        merge_stores([tmp_path / "one"], tmp_path / "merged4")


def test_merging_repairs_a_damaged_shard(tmp_path: Path) -> None:
    data = dataset(tmp_path / "videos")
    fill(tmp_path / "one", data)
    merge_stores([tmp_path / "one"], tmp_path / "merged")
    os.truncate(tmp_path / "merged" / "frames-00001.safetensors", 10)
    assert merge_stores([tmp_path / "one"], tmp_path / "merged").shards_taken == 1
    assert content(tmp_path / "merged") == content(tmp_path / "one")
