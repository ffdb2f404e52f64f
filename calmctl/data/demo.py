"""The demo dataset: a captioned video world drawn on the spot, with a shifted twin for out-of-domain tests.

    root/demo.json                annotations; written last, so that its presence means "complete"
    root/clips/ID-DIGEST.mp4      one H.264 file per clip, named by what is in it

Protocols: "retrieval" (every caption for training; the first caption of each validation and test clip),
"retrieval-0.6" and "retrieval-0.4" (the same, but a training caption names only that share of what a clip's foreground
has: the dial of information imbalance) and "captioning" (every caption everywhere, as references).
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calmctl.data.demo_world import DIALS, VERSION, DemoCounts, PlannedClip, Scene, plan
from calmctl.errors import DatasetError
from calmctl.files import read_json, sha256_bytes, write_bytes, write_json
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.words import Progress

PARTIAL = {f"retrieval-{dial}": str(dial) for dial in DIALS}
"""Protocols whose training captions name less than all, with the dial's setting as demo.json has it."""
PROTOCOLS = ("retrieval", *PARTIAL, "captioning")


class _Entry(BaseModel):
    """One clip in demo.json."""

    model_config = ConfigDict(extra="forbid")
    id: str
    shifted: bool
    split: Literal["train", "val", "test"]
    file: str
    attributes: Scene
    captions: Annotated[list[str], Field(min_length=1)]
    # Worlds of version 1 have none, and can be read all the same.
    partial: dict[str, Annotated[list[str], Field(min_length=1)]] = {}


class _Manifest(BaseModel):
    """The whole of demo.json."""

    model_config = ConfigDict(extra="forbid")
    version: int
    seed: int
    digest: str
    clips: list[_Entry]


def generate_demo(
    root: Path, *, seed: int = 0, counts: DemoCounts | None = None, progress: Progress | None = None
) -> None:
    """Draw the demo world into `root`; what is there already is kept, so an interrupted call can be repeated.

    The same seed gives the same clips. One process draws about a hundred clips per second, which is too
    little work to spread over processes.

    Args:
        root: The dataset's folder; made if missing.
        seed: Chooses another world of the same kind.
        counts: Clips per split; `DemoCounts()` by default.
        progress: Told of the clips.

    Raises:
        DatasetError: The folder holds a world of another version, or a `demo.json` that was changed.
        RunFailed: The folder is not writable or the disk is full.
    """
    from calmctl.data.demo_drawing import draw, encode

    # Before a clip is drawn. Other runs may have been trained on that world, and its clips are no clips of this one.
    there = _read(root) if (root / "demo.json").exists() else None
    if there is not None and there.version != VERSION:
        raise DatasetError(
            f"{root} holds a demo world of version {there.version}, and this calmctl draws version {VERSION}; runs on "
            "the old one can still be evaluated there: choose another folder (--root), or delete this one"
        )
    clips = plan(seed, counts or DemoCounts())
    entries = [_entry(clip, seed) for clip in clips]
    for done, (clip, entry) in enumerate(zip(clips, entries, strict=True)):
        if progress:
            progress("drawing clips", done, len(clips))
        path = root / entry["file"]
        if not path.exists():
            rng = random.Random(f"calmctl demo {VERSION}: drawing {seed} {clip.id}")
            write_bytes(path, encode(draw(clip.scene, rng, shifted=clip.shifted)))
    manifest = {"version": VERSION, "seed": seed, "digest": _digest(entries), "clips": entries}
    if there is None or there.digest != manifest["digest"]:
        write_json(root / "demo.json", manifest)
    if progress:
        progress("drawing clips", len(clips), len(clips))


def planned_digest(seed: int, counts: DemoCounts) -> str:
    """The digest that the world of a seed will have in demo.json, found without drawing a clip."""
    return _digest([_entry(clip, seed) for clip in plan(seed, counts)])


def load_demo(root: Path, *, shifted: bool, protocol: str | None = None) -> Dataset:
    """Read what `generate_demo` wrote.

    Args:
        root: The folder given to `generate_demo`.
        shifted: The shifted domain ("demo-shifted": a test split only) instead of "demo".
        protocol: One of `PROTOCOLS`, the first by default.

    Raises:
        DatasetError: `root` holds no demo world, or `demo.json` was changed, or the protocol is unknown, or the
            world is of before the dial and has no captions for it.
    """
    protocol = protocol or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise DatasetError(f"demo has no protocol {protocol!r}; choose one of: {', '.join(PROTOCOLS)}")
    if not (root / "demo.json").exists():
        raise DatasetError(f"{root} holds no demo world (demo.json is missing); `calmctl demo` draws it")
    manifest = _read(root)
    splits = {}
    for name in ("test",) if shifted else ("train", "val", "test"):
        entries = [entry for entry in manifest.clips if entry.shifted == shifted and entry.split == name]
        captions = {entry.id: entry.captions for entry in entries}
        if protocol in PARTIAL and name == "train":
            if missing := [entry.id for entry in entries if PARTIAL[protocol] not in entry.partial]:
                raise DatasetError(
                    f"{root} is a demo world of version {manifest.version}, whose clips (first: {missing[0]}) have no "
                    f"captions for {protocol}; draw a new one in another folder"
                )
            captions = {entry.id: entry.partial[PARTIAL[protocol]] for entry in entries}
        elif protocol != "captioning" and name != "train":
            # A sentence names one clip's whole foreground, so of retrieval's test each has one right answer.
            captions = {entry.id: entry.captions[:1] for entry in entries}
        splits[name] = _split(name, entries, root, captions)
    note = f"synthetic clips drawn by calmctl: version {manifest.version}, seed {manifest.seed}"
    return Dataset("demo-shifted" if shifted else "demo", protocol, splits, (note,))


def _entry(clip: PlannedClip, seed: int) -> dict[str, Any]:
    attributes = asdict(clip.scene)
    # In the file's name: what another seed or version has drawn is never taken for this clip.
    content = sha256_bytes(json.dumps([VERSION, seed, clip.id, attributes]).encode())
    return {
        "id": clip.id,
        "shifted": clip.shifted,
        "split": clip.split,
        "file": f"clips/{clip.id}-{content[:8]}.mp4",
        "attributes": attributes,
        "captions": list(clip.captions),
        "partial": {dial: list(sentences) for dial, sentences in clip.partial.items()},
    }


def _digest(entries: list[dict[str, Any]]) -> str:
    return sha256_bytes(json.dumps(entries, sort_keys=True, ensure_ascii=False).encode())


def _read(root: Path) -> _Manifest:
    path = root / "demo.json"
    advice = "delete it and draw the demo again (clips that are there are kept)"
    raw = read_json(path, what="demo annotations", error=DatasetError)
    try:
        manifest = _Manifest.model_validate(raw, strict=False)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "top level"
        raise DatasetError(f"{path}: {place}: {fault['msg']}; {advice}") from None
    # A sentence that somebody has edited may fit no clip, or two, and there would no longer be one right answer.
    if _digest(raw["clips"]) != manifest.digest:
        raise DatasetError(f"{path} was changed after it was written; {advice}")
    return manifest


def _split(name: str, entries: list[_Entry], root: Path, captions_of: dict[str, list[str]]) -> Split:
    clips: list[Clip] = []
    captions: list[str] = []
    owners: list[int] = []
    left_out: list[LeftOut] = []
    for entry in entries:
        path = root / entry.file
        if not path.exists():
            left_out.append(LeftOut(entry.id, f"{entry.file} is missing"))
            continue
        used = captions_of[entry.id]
        owners += [len(clips)] * len(used)
        captions += used
        clips.append(Clip(entry.id, path))
    return Split(name, tuple(clips), tuple(captions), tuple(owners), tuple(left_out))
