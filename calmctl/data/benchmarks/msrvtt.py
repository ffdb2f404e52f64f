"""MSR-VTT: 10,000 clips, 20 sentences each (docs/data.md)."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from calmctl.data.annotations import field, read_object, read_table, row_captions, text_fields
from calmctl.data.benchmark import Annotated, Benchmark, Protocol, Published
from calmctl.errors import DatasetError

_MERGED = "MSRVTT_data.json"
_TRAIN_VAL = "train_val_videodatainfo.json"
_TEST = "test_videodatainfo.json"
_TEST_1KA = "MSRVTT_JSFUSION_test.csv"
_TRAIN_9K = "MSRVTT_train.9k.csv"
_TRAIN_7K = "MSRVTT_train.7k.csv"
_OFFICIAL_NAMES = {"train": "train", "validate": "val", "test": "test"}
# The official split by position in `videos`, for merged files that do not tell it (docs/captioning.md).
_OFFICIAL_ORDER = ["train"] * 6513 + ["val"] * 497 + ["test"] * 2990
# The test set that 9k and 7k share: 1,000 pairs, 995 different sentences, so no system reaches 100 %.
_ONE_K_A = Published(1000, 1000, "60173d2b8dad19554edd6d5e95ab308e5f599954511ea8aab5f398d97f6427c5")


def _read_retrieval(name: str, files: Mapping[str, Path]) -> Annotated:
    """Train: the clips of a list with all their captions. Test: the 1k-A pairs, one sentence per clip."""
    if len(files) == 1 and (path := next(iter(files.values()))).suffix == ".json":  # a row a clip, with its captions
        return Annotated.of_rows(row_captions(path))
    if name == "test":
        table = read_table(files[_TEST_1KA], ["video_id", "sentence"])
        pairs = [(row["video_id"], row["sentence"]) for _, row in table]
        return Annotated([clip_id for clip_id, _ in pairs], pairs)
    (list_file,) = (path for file, path in files.items() if file.endswith(".csv"))
    clip_ids = [row["video_id"] for _, row in read_table(list_file, ["video_id"])]
    wanted = set(clip_ids)
    jsons = (path for file, path in files.items() if file.endswith(".json"))
    return Annotated(clip_ids, [pair for path in jsons for pair in _captions(path, _load(path), wanted)])


def _read_full(name: str, files: Mapping[str, Path]) -> Annotated:
    """The official split of 2016 with all captions."""
    (path,) = files.values()
    content = _load(path)
    clip_ids = [clip_id for clip_id, split in _official_splits(path, content) if split == name]
    return Annotated(clip_ids, _captions(path, content, set(clip_ids)))


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_object(path, dict)
    return content


def _official_splits(path: Path, content: dict[str, Any]) -> list[tuple[str, str]]:
    """(clip id, split): as the file tells, or by position in a complete file that does not tell."""
    videos = field(content, "videos", str(path), list)
    clip_ids = [clip_id for (clip_id,) in text_fields(videos, ["video_id"], f"{path}: videos")]
    named_splits = [video.get("split") for video in videos]
    known = [_OFFICIAL_NAMES[split] for split in named_splits if isinstance(split, str) and split in _OFFICIAL_NAMES]
    # A merged file in which everything is "train" does not tell the split either.
    complete = path.name != _MERGED or set(known) == set(_OFFICIAL_NAMES.values())
    if len(known) == len(videos) and complete:
        return list(zip(clip_ids, known, strict=True))
    if len(videos) == len(_OFFICIAL_ORDER):
        return list(zip(clip_ids, _OFFICIAL_ORDER, strict=True))
    raise DatasetError(
        f"{path}: which split a video belongs to cannot be told: neither has each of the {len(videos):,} videos "
        "a 'split' (train, validate or test), nor are there 10,000 of them, whose order would tell"
    )


def _captions(path: Path, content: dict[str, Any], clip_ids: Container[str]) -> list[tuple[str, str]]:
    sentences = field(content, "sentences", str(path), list)
    pairs = text_fields(sentences, ["video_id", "caption"], f"{path}: sentences")
    return [(clip_id, caption) for clip_id, caption in pairs if clip_id in clip_ids]


def _rows(hub: str, umt: str) -> list[tuple[str, ...]]:
    """The same split as copies have it, a row a clip: the Hub's, and UMT's (VindLU's, InternVideo2's)."""
    return [(f"msrvtt_{hub}.json",), (f"msrvtt_ret_{umt}.json",)]


MSRVTT = Benchmark(
    name="msrvtt",
    description="MSR-VTT: 10,000 web clips of 10 to 30 s, 20 sentences each",
    owners={
        **dict.fromkeys((_TRAIN_VAL, _TEST), "Microsoft Research (its MSR-VTT challenge of 2016)"),
        **dict.fromkeys(
            (_MERGED, _TRAIN_9K, _TRAIN_7K, _TEST_1KA), "the CLIP4Clip project (msrvtt_data.zip among its releases)"
        ),
        "clips": "Microsoft Research (one by one), or the Frozen in Time project (all in one zip file)",
    },
    copies={
        **dict.fromkeys(
            (f"msrvtt_{split}.json" for split in ("train_9k", "train_7k", "test_1k")),
            "friedrichor/MSR-VTT on the Hub (a copy whose licence nobody states; its videos are compressed again)",
        ),
        **dict.fromkeys(
            (f"msrvtt_ret_{split}.json" for split in ("train9k", "train7k", "test1k")),
            "the UMT, VindLU and InternVideo2 projects",
        ),
    },
    clip_names="video0.mp4 to video9999.mp4; any other suffix will do",
    default_protocol="9k",
    # The others keep one sentence of each test clip, and captions are scored against all twenty.
    caption_protocol="full",
    protocols={
        "9k": Protocol(
            files={
                # The 9k list reaches into the official test split (1,990 of its clips), whose sentences are in the
                # other file of the pair; the 7k list does not.
                "train": [(_TRAIN_9K, _MERGED), (_TRAIN_9K, _TRAIN_VAL, _TEST), *_rows("train_9k", "train9k")],
                "test": [(_TEST_1KA,), *_rows("test_1k", "test1k")],
            },
            read=_read_retrieval,
            published={
                "train": Published(9000, 180_000, "e0557e7b3e3d3c48082c1068a68055a93d068fc0a42902f26a11bb98184bd325"),
                "test": _ONE_K_A,
            },
            # No clip is left for validation, and released code chooses its epoch on the test split (docs/protocols.md).
            val_clips=500,
        ),
        "7k": Protocol(
            files={
                "train": [(_TRAIN_7K, _MERGED), (_TRAIN_7K, _TRAIN_VAL), *_rows("train_7k", "train7k")],
                "test": [(_TEST_1KA,), *_rows("test_1k", "test1k")],
            },
            read=_read_retrieval,
            published={
                "train": Published(7010, 140_200, "d85feeb239928073350a6982772b2f9594f6ff5a005bb13ec6e05dd6b13c23a4"),
                "test": _ONE_K_A,
            },
            val_clips=500,
        ),
        "full": Protocol(
            files={
                "train": [(_TRAIN_VAL,), (_MERGED,)],
                "val": [(_TRAIN_VAL,), (_MERGED,)],
                "test": [(_TEST,), (_MERGED,)],
            },
            read=_read_full,
            published={
                "train": Published(6513, 130_260, "9394c89ba1662ae497d22bc7c80451c3b67745f948fbf118dfc5ac91ed19ce8e"),
                "val": Published(497, 9940, "b499a524c5c12f7450676742fde2314da84b9d5271624ca8cb71d28baba4df91"),
                "test": Published(2990, 59_800, "1baaa41d5d0d7042b89db0c917c25a38eeb125565cefc0a7bb540332d40dc015"),
            },
        ),
    },
)
