"""Where a dataset's files belong, in words."""

from __future__ import annotations

import textwrap

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
    lines = [f"{name:<14}{info.description}" for name, info in DATASETS.items()]
    return "\n".join(
        [
            *lines,
            "",
            *_layout("NAME"),
            "",
            "calmctl downloads nothing: bring the files as their owners give them out.",
            "The files of one dataset: calmctl data where msrvtt",
            "Whether they are all there: calmctl data check msrvtt --root ROOT",
        ]
    )


def explain_dataset(name: str) -> str:
    """The annotation files and clips of one dataset, who gives them out, and where they are looked for.

    Raises:
        DatasetError: There is no dataset of that name.
    """
    default = resolve(name, None)
    lines = [DATASETS[name].description, ""]
    if name not in BENCHMARKS:
        return "\n".join([*lines, *_wrapped(_OWN[name])])
    benchmark = BENCHMARKS[name]
    for protocol_name, protocol in benchmark.protocols.items():
        if protocol_name:
            lines.append(f"protocol {protocol_name}{' (default)' if protocol_name == default else ''}")
        for split, choices in protocol.files.items():
            ways = ", or\n         ".join(listing(choice) for choice in choices)
            lines.append(f"  {split:<5}  {ways}")
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
        f"  annotations  {', '.join(candidates('annotations', name))}",
        f"  clips        {', '.join(candidates('videos', name))}; each with all below it",
        "or where --annotations and --videos (data.annotations, data.videos) say.",
    ]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
