"""All datasets by name."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from calmctl.data.benchmark import load_benchmark
from calmctl.data.benchmarks.activitynet import ACTIVITYNET
from calmctl.data.benchmarks.charades_sta import CHARADES_STA
from calmctl.data.benchmarks.didemo import DIDEMO
from calmctl.data.benchmarks.lsmdc import LSMDC
from calmctl.data.benchmarks.msrvtt import MSRVTT
from calmctl.data.benchmarks.msvd import MSVD
from calmctl.data.benchmarks.vatex import VATEX
from calmctl.data.benchmarks.youcook2 import YOUCOOK2
from calmctl.data.folder import load_folder
from calmctl.data.locate import listing
from calmctl.errors import DatasetError
from calmctl.samples import Dataset

PUBLISHED = (MSRVTT, MSVD, DIDEMO, LSMDC, ACTIVITYNET, VATEX, YOUCOOK2, CHARADES_STA)
BENCHMARKS = {benchmark.name: benchmark for benchmark in PUBLISHED}


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a list of datasets says about one.

    Attributes:
        description: One line.
        protocols: Names of its protocols; ("",) where there is only one.
        default_protocol: The one taken where none is named.
        caption_protocol: The one for captioning, which needs all references of every clip; None where any does.
    """

    description: str
    protocols: tuple[str, ...] = ("",)
    default_protocol: str = ""
    caption_protocol: str | None = None


# Typed out: the demo's own module draws, and nobody else has to import it.
_DEMO_PROTOCOLS = ("retrieval", "retrieval-0.6", "retrieval-0.4", "captioning")

DATASETS: Mapping[str, DatasetInfo] = {
    **{
        each.name: DatasetInfo(each.description, tuple(each.protocols), each.default_protocol, each.caption_protocol)
        for each in PUBLISHED
    },
    "demo": DatasetInfo("the drawn demo world", _DEMO_PROTOCOLS, "retrieval", "captioning"),
    "demo-shifted": DatasetInfo(
        "the demo world with other backgrounds, colours and phrasing", _DEMO_PROTOCOLS, "retrieval", "captioning"
    ),
    "folder": DatasetInfo("any folder of videos, with captions.csv, captions.json or captions.jsonl, or without"),
}


def protocol_for(task: str, name: str, protocol: str | None) -> str:
    """The protocol of dataset `name` for a task: `protocol`, or the task's own where None is named.

    Args:
        task: "retrieval" or "caption".
        name: One of `DATASETS`; an unknown one is left to `load_dataset` to refuse.
        protocol: As the user asked.

    Raises:
        DatasetError: Captioning under a protocol whose test clips do not have all their references.
    """
    info = DATASETS.get(name, DatasetInfo(""))
    own = info.caption_protocol if task == "caption" else None
    if own is not None and protocol not in (None, own):
        raise DatasetError(
            f"{name}: captions are scored against all sentences of a clip, which the protocol {protocol!r} does not "
            f"have; set data.protocol={own}"
        )
    return protocol if protocol is not None else own or info.default_protocol


def resolve(name: str, protocol: str | None) -> str:
    """The protocol of dataset `name` that is meant, None being its default.

    Raises:
        DatasetError: There is no such dataset, or it has no such protocol.
    """
    info = DATASETS.get(name)
    if info is None:
        raise DatasetError(f"no dataset {name!r}; {nearest(name) or f'there are {listing(list(DATASETS))}'}")
    protocol = info.default_protocol if protocol is None else protocol
    if protocol not in info.protocols:
        known = f"it has {listing(info.protocols)}" if any(info.protocols) else "it has only one"
        raise DatasetError(f"{name} has no protocol {protocol!r}; {known}")
    return protocol


def nearest(name: str) -> str:
    """`did you mean msrvtt?`, or "" where no dataset's name is like this one; capitals do not count."""
    near = get_close_matches(name.lower(), DATASETS, n=1)
    return f"did you mean {near[0]}?" if near else ""


def require_dataset_or_folder(name: str) -> None:
    """Raise `DatasetError` where `name` is neither one of `DATASETS` nor a folder that can be read."""
    if name in DATASETS or os.path.isdir(name):
        return
    parent = next((path for path in Path(name).parents if os.path.exists(path)), Path())
    # Below a folder that cannot be entered everything seems not to be there, which would be the wrong reason.
    if os.path.isdir(parent) and not os.access(parent, os.X_OK):
        raise DatasetError(f"{name}: {parent} cannot be entered: {os.strerror(errno.EACCES)}")
    hint = nearest(name)
    message = f"{name} is neither a dataset ({', '.join(DATASETS)}) nor a folder"
    raise DatasetError(f"{message}; {hint}" if hint else message)


def require_place(
    name: str, roots: Sequence[Path | None], protocol: str, annotations: Path | None, videos: Path | None
) -> None:
    """Raise what `load_dataset` would, where none of the places is a folder.

    For commands to ask before they load torch, which takes seconds.
    """
    if not any(place is not None and place.is_dir() for place in (*roots, annotations, videos)):
        load_dataset(name, roots[-1], protocol=protocol, annotations=annotations, videos=videos)


def load_dataset(
    name: str,
    root: Path | None,
    *,
    protocol: str | None = None,
    annotations: Path | None = None,
    videos: Path | None = None,
    val_clips: int | None = None,
    val_seed: int = 0,
) -> Dataset:
    """Read a dataset's annotation files and find its clips.

    Args:
        name: One of `DATASETS`.
        root: Folder with the dataset's annotation files and clips; it may hold several datasets. None where
            `annotations` and `videos` are given.
        protocol: One of the dataset's protocols; None for its default.
        annotations: Folder of the annotation files, where they are elsewhere.
        videos: Folder of the clips, searched with everything below it, where they are elsewhere.
        val_clips: How many clips to carve from train for validation, where the protocol has no such split;
            None for the protocol's default, 0 for none.
        val_seed: Seed of that list.

    Returns:
        The splits whose annotation files are there; asking for another one raises what is missing. Clips
        whose file is missing are in `Split.left_out`.

    Raises:
        DatasetError: An unknown name or protocol, a missing or malformed file, or not one clip.
    """
    protocol = resolve(name, protocol)
    if name == "folder":
        dataset = load_folder(root, annotations=annotations, videos=videos, val_clips=val_clips, val_seed=val_seed)
    elif name in BENCHMARKS:
        dataset = load_benchmark(
            BENCHMARKS[name],
            protocol,
            root,
            annotations=annotations,
            videos=videos,
            val_clips=val_clips,
            val_seed=val_seed,
        )
    else:
        from calmctl.data.demo import load_demo

        if root is None or annotations is not None or videos is not None or val_clips is not None:
            raise DatasetError(f"{name} is read from --root alone and has a validation split of its own")
        dataset = load_demo(root, shifted=name == "demo-shifted", protocol=protocol)
    return replace(dataset, folder=videos or root)
