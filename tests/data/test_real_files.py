"""The annotation files and clips that users have (CALMCTL_REAL_DATA)."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from calmctl.data.annotations import read_ids, read_object
from calmctl.data.benchmark import Annotated, Benchmark, differences, split_digest
from calmctl.data.benchmarks.didemo import DIDEMO, clip_id_of
from calmctl.data.benchmarks.msrvtt import MSRVTT
from calmctl.data.benchmarks.msvd import MSVD
from calmctl.data.registry import BENCHMARKS, load_dataset
from calmctl.errors import DatasetError
from calmctl.samples import Clip
from calmctl.video.frames import frame_times, read_frames, read_with_decord, stream_with_pyav, suits_decord
from calmctl.video.inspect import VideoFile, inspect

pytestmark = pytest.mark.real


def read_with_pyav(source: VideoFile, times_s: np.ndarray) -> np.ndarray:
    """All of `stream_with_pyav` at once."""
    return np.stack(list(stream_with_pyav(source, times_s)))


def annotated(benchmark: Benchmark, protocol: str, split: str, folder: Path) -> Annotated:
    choices = benchmark.protocols[protocol].files[split]
    choice = next(names for names in choices if all((folder / name).is_file() for name in names))
    return benchmark.protocols[protocol].read(split, {name: folder / name for name in choice})


@pytest.mark.parametrize(
    ("benchmark", "protocol", "split", "clips", "captions"),
    [
        (MSRVTT, "9k", "train", 9000, 180_000),
        (MSRVTT, "9k", "test", 1000, 1000),
        (MSRVTT, "7k", "train", 7010, 140_200),
        (MSRVTT, "full", "train", 6513, 130_260),
        (MSRVTT, "full", "val", 497, 9940),
        (MSRVTT, "full", "test", 2990, 59_800),
        (MSVD, "", "train", 1200, 48_774),
        (MSVD, "", "val", 100, 4290),
        (MSVD, "", "test", 670, 27_763),
        (DIDEMO, "official", "val", 1065, 1065),
        (DIDEMO, "official", "test", 1004, 1004),
        (DIDEMO, "tmass", "test", 1004, 1004),
        (DIDEMO, "moments", "val", 1065, 4180),
        (DIDEMO, "moments", "test", 1004, 4021),
    ],
)
def test_published_counts(
    real_data: Path, benchmark: Benchmark, protocol: str, split: str, clips: int, captions: int
) -> None:
    read = annotated(benchmark, protocol, split, real_data / "annotations" / benchmark.name)
    assert len(set(read.clip_ids)) == len(read.clip_ids) == clips
    assert len(read.captions) == captions
    published = benchmark.protocols[protocol].published[split]
    assert (published.clips, published.captions) == (clips, captions)
    assert published.sha256 == split_digest(read) and not differences(read, published)


def test_digests_are_known_for_all_that_is_at_hand_and_for_nothing_else(real_data: Path) -> None:
    """DiDeMo's training JSON, T-MASS's own tables and the files of other sets were not: only counts are stated."""
    unknown = {
        (benchmark.name, protocol, split)
        for benchmark in BENCHMARKS.values()
        for protocol, facts in benchmark.protocols.items()
        for split, published in facts.published.items()
        if published.sha256 is None
    }
    assert unknown == {
        ("didemo", "official", "train"),
        ("didemo", "tmass", "train"),
        ("didemo", "moments", "train"),
        ("didemo", "tmass", "val"),
        *(("lsmdc", "", split) for split in ("train", "val", "test")),
        *(
            (name, protocol, split)
            for name in ("activitynet", "vatex", "youcook2", "charades-sta")
            for protocol, facts in BENCHMARKS[name].protocols.items()
            for split in facts.published
        ),
    }


def test_other_files_of_the_same_splits_have_the_same_digests(real_data: Path, tmp_path: Path) -> None:
    """The merged JSON of MSR-VTT in another order; MSVD's captions as token lists."""
    folder = real_data / "annotations/msrvtt"
    pair = [json.loads((folder / f"{name}_videodatainfo.json").read_text()) for name in ("train_val", "test")]
    merged = {key: pair[1][key][::-1] + pair[0][key][::-1] for key in ("videos", "sentences")}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(merged))
    for split in ("train", "val", "test"):
        read = annotated(MSRVTT, "full", split, tmp_path)
        assert not differences(read, MSRVTT.protocols["full"].published[split])
    folder = real_data / "annotations/msvd"
    captions = json.loads((folder / "captions_msvd.json").read_text())
    tokens = {clip: [caption.split(" ") for caption in said] for clip, said in captions.items()}
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(tokens, 2))
    (tmp_path / "test_list.txt").write_bytes((folder / "test_list.txt").read_bytes())
    read = annotated(MSVD, "", "test", tmp_path)
    assert not differences(read, MSVD.protocols[""].published["test"]) and "tokeniser" in read.notes[0]
    swapped = Annotated(read.clip_ids, [(read.captions[-1][0], read.captions[0][1]), *read.captions[1:]])
    assert "not the same ones" in differences(swapped, MSVD.protocols[""].published["test"])[0]


def test_msrvtt_facts(real_data: Path) -> None:
    folder = real_data / "annotations/msrvtt"
    train = annotated(MSRVTT, "9k", "train", folder)
    test = annotated(MSRVTT, "9k", "test", folder)
    assert not set(train.clip_ids) & set(test.clip_ids)
    assert len(set(train.clip_ids) | set(test.clip_ids)) == 10_000
    assert len({sentence for _, sentence in test.captions}) == 995
    official = {name: annotated(MSRVTT, "full", name, folder) for name in ("train", "val", "test")}
    assert len(set(train.clip_ids) & set(official["test"].clip_ids)) == 1990
    seven = set(annotated(MSRVTT, "7k", "train", folder).clip_ids)
    assert seven == set(official["train"].clip_ids) | set(official["val"].clip_ids)
    # The rule by position, for merged files that do not tell the split, gives the official split.
    assert official["val"].clip_ids == [f"video{k}" for k in range(6513, 7010)]


def test_didemo_facts(real_data: Path) -> None:
    """Paragraphs against a derivation of their own, and what T-MASS's grouping loses."""
    folder = real_data / "annotations/didemo"
    for split, n_names, clips in (("val", 1094, 1065), ("test", 1037, 1004)):
        rows = read_object(folder / f"{split}_data.json", list)
        names = {row["video"] for row in rows}
        assert len(names) == n_names and all(name.count(".") == 1 for name in names)
        official = annotated(DIDEMO, "official", split, folder)
        for clip_id, paragraph in official.captions:
            same_clip = [row["description"] for row in rows if row["video"].rpartition(".")[0] == clip_id]
            assert paragraph == " ".join(same_clip)
        assert (official.start_s, official.end_s) == (0.0, 31.0)
        shorter = dict(annotated(DIDEMO, "tmass", split, folder).captions)
        # A clip under two names loses the sentences of one of them.
        assert sum(len(shorter[clip_id]) < len(text) for clip_id, text in official.captions) == n_names - clips
    listed = read_ids(folder / "ce_train_list.txt")
    assert len(listed) == len({clip_id_of(name) for name in listed}) == 8392


def test_didemo_without_its_train_file(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "10015567@N08_3655084291_d8b58466fa.mp4").touch()  # under another suffix than in the JSON
    dataset = load_dataset("didemo", None, annotations=real_data / "annotations/didemo", videos=tmp_path)
    assert list(dataset.splits) == ["val", "test"]
    assert [clip.end_s for clip in dataset.splits["test"].clips] == [31.0]
    with pytest.raises(DatasetError, match=r"no train split, because train_data\.json"):
        dataset.splits["train"]


@pytest.mark.parametrize(
    ("name", "protocol", "clips"),
    [
        ("msvd", None, {"train": 16, "val": 2, "test": 5}),
        ("msrvtt", "full", {"train": 12, "val": 0, "test": 2}),
        ("msrvtt", "9k", {"train": 12, "test": 0, "val": 2}),
    ],
)
def test_the_clips_that_are_there(real_data: Path, name: str, protocol: str | None, clips: dict[str, int]) -> None:
    dataset = load_dataset(name, real_data, protocol=protocol)
    assert {split: len(dataset.splits[split].clips) for split in dataset.splits} == clips
    assert not any("published" in note for note in dataset.notes)
    empty = [split for split in dataset.splits if not dataset.splits[split].clips]
    assert [note for note in dataset.notes if "not one of its clips" in note] == [
        f"{split}: not one of its clips was found" for split in empty
    ]
    everything = sum(len(split.clips) + len(split.left_out) for split in dataset.splits.values())
    assert everything == (1970 if name == "msvd" else 10_000)


def test_every_real_clip_decodes_and_both_readers_agree(real_data: Path) -> None:
    """H.264 to the bit; MPEG-4 to two levels, as FFmpeg's inverse DCT changed between their versions."""
    paths = sorted(path for path in (real_data / "videos").rglob("*") if path.is_file())
    assert len(paths) == 37
    believed = []
    for path in paths:
        source = inspect(path)
        times_s = frame_times(source.duration_s, 12)
        if suits_decord(source):
            frames = read_with_decord(source, times_s)
            assert frames is not None, path.name
            apart = np.abs(read_with_pyav(source, times_s).astype(np.int16) - frames).max()
            assert apart <= (0 if source.codec == "h264" else 2), path.name
            believed.append(path)
        else:
            frames = read_frames(Clip(path.stem, path), 12)
        assert frames.shape == (12, source.height, source.width, 3), path.name
        assert len({frame.tobytes() for frame in frames}) == 12, path.name
    # Of MSVD as released, eight AVI files hold H.264 (decord: wrong frames), and three MP4 files have key frames
    # that are none, or frames outside their edit list.
    assert len(believed) == 26
