"""Where a dataset's files belong, in words."""

from __future__ import annotations

import textwrap
from itertools import chain
from pathlib import Path

from calmctl.data.layout import candidates, listing
from calmctl.data.registry import BENCHMARKS, DATASETS, resolve

_WIDTH = 80
_OWN = {
    "folder": "any folder; its clips are every video file below it, its captions captions.csv, captions.json or\n"
    "captions.jsonl in it, its splits a column `split`, or train.txt, val.txt and test.txt.",
    "demo": "drawn by `calmctl demo` into data/demo; nothing is to be brought.",
    "demo-shifted": "drawn by `calmctl demo` into data/demo; nothing is to be brought.",
}


def overview() -> str:
    """All datasets in a line each, and the layout they share."""
    lines = [_wrapped(info.description, " " * 14, name) for name, info in DATASETS.items()]
    return "\n".join(
        [
            *chain.from_iterable(lines),
            "",
            *_layout("NAME"),
            "",
            "calmctl downloads nothing: bring the files as their owners give them out.",
            "The files of one dataset: calmctl data where msrvtt",
            "Whether they are all there: calmctl data check msrvtt --root ROOT",
        ]
    )


def kept_for_searches(features: Path = Path("features")) -> str:
    """What searches keep below a folder of features, and how large it is; "" where there is nothing."""
    folders = [folder for folder in (features / "search", *features.glob("*/search")) if folder.is_dir()]
    size = sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if not file.is_dir())
    if not size:
        return ""
    names = listing([str(folder) for folder in folders])
    return f"Searches keep {size / 1e6:,.1f} MB in {names}: it may be deleted, the next search makes it again."


def explain_dataset(name: str) -> str:
    """The annotation files and clips of one dataset, who gives them out, and where they are looked for.

    Raises:
        DatasetError: There is no dataset of that name.
    """
    default = resolve(name, None)
    lines = [*_wrapped(DATASETS[name].description), ""]
    if name not in BENCHMARKS:
        return "\n".join([*lines, *_wrapped(_OWN[name])])
    benchmark = BENCHMARKS[name]
    for protocol_name, protocol in benchmark.protocols.items():
        if protocol_name:
            lines.append(f"protocol {protocol_name}{' (default)' if protocol_name == default else ''}")
        for split, choices in protocol.files.items():
            for number, choice in enumerate(choices, start=1):
                way = listing(choice) + (", or" if number < len(choices) else "")
                lines += _wrapped(way, " " * 9, f"  {split}" if number == 1 else "")
        if protocol.val_clips:
            lines.append(f"  val    {protocol.val_clips} clips are carved from train")
        lines.append("")
    lines.append("who gives them out")
    by_owner: dict[str, list[str]] = {}
    for file, owner in benchmark.owners.items():
        by_owner.setdefault(owner, []).append(file)
    for owner, files in by_owner.items():
        lines += [*_wrapped(listing(files), "  "), *_wrapped(owner, "      ")]
    lines += ["", "how clips are named", *_wrapped(benchmark.clip_names, "  ")]
    return "\n".join(
        [*lines, "", *_layout(name), "", f"Whether they are all there: calmctl data check {name} --root ROOT"]
    )


def _layout(name: str) -> list[str]:
    """The folders of a root, first match first."""
    return [
        "where they are looked for, below ROOT (--root, or data.root), first match first",
        *_wrapped(", ".join(candidates("annotations", name)), " " * 15, "  annotations"),
        *_wrapped(f"{', '.join(candidates('videos', name))}; each with all below it", " " * 15, "  clips"),
        "or where --annotations and --videos (data.annotations, data.videos) say.",
    ]


def _wrapped(text: str, indent: str = "", label: str = "") -> list[str]:
    first = label.ljust(len(indent))
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
