"""What commands leave on disk: every file loaded, and all of it that must not depend on kills or on company.

Times, and what follows from them, are no part of it: when something was made, how long it took, by which command line,
and the stamps by which a cache knows that its files are the very ones it wrote.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.files import parse_json, sha256_bytes, sha256_file
from calmctl.tensors import load_tensors

VOLATILE = {"created", "time", "duration_s", "seconds", "command", "clips_per_s", "stamp", "kept_frames", "git"}
"""Keys of JSON that say when, how long, from which revision, or how many frames of the cache were there already."""
_NO_OUTCOME = ("extractions.jsonl", "timing.json")
_DATES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+\d\d:\d\d)?|\d{4}-\d\d-\d\d \d\d:\d\d")


def temporaries(folder: Path) -> list[Path]:
    """The temporary files and folders below `folder`."""
    return sorted(path for path in folder.rglob(".*.tmp"))


def is_temporary(path: Path, folder: Path) -> bool:
    """Whether a file is one, or lies in such a folder."""
    return any(part.startswith(".") and part.endswith(".tmp") for part in path.relative_to(folder).parts)


def load_all(folder: Path) -> int:
    """Load every file that a kill left; returns how many were temporary. Raises for one that is half written."""
    unfinished = 0
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if is_temporary(path, folder):
            unfinished += 1
        else:
            _load(path)
    return unfinished


def _load(path: Path) -> None:
    if path.suffix == ".safetensors":
        load_tensors(path, what="after a kill")
    elif path.suffix == ".json":
        parse_json(path.read_bytes())
    elif path.suffix == ".jsonl":
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):  # the last one may be cut short
                json.loads(line)
    elif path.suffix == ".yaml" and path.name != "recipe.yaml":
        load_vocabulary(path)
    elif path.suffix == ".npy":
        np.load(path, mmap_mode="r")
    elif path.suffix == ".npz":
        assert zipfile.ZipFile(path).testzip() is None, path
    elif path.suffix == ".frames":
        line, _, pixels = path.read_bytes().partition(b"\n")
        assert len(pixels) == np.prod(json.loads(line)["shape"]), f"{path} is not whole"
    elif path.suffix == ".mp4":
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)), path
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>"), f"{path} is not whole"
    elif path.name.startswith("events.out.tfevents"):
        events_of(path.parent)
    elif path.suffix not in (".md", ".yaml") and path.name not in (".lock", ".origin", "SHA256SUMS"):
        raise AssertionError(f"nobody knows what {path} is")


def events_of(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar in the event files of a folder, as they lie there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            found += [(value.tag, event.step, float(value.tensor.float_val[0])) for value in event.summary.value]
    return sorted(found)


def outcome(folder: Path) -> dict[str, str]:
    """A digest of each file below `folder` without what times are in it."""
    found: dict[str, str] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.name in _NO_OUTCOME or path.name.startswith(".lock"):
            continue
        name = str(path.relative_to(folder))
        if path.name.startswith("events.out.tfevents"):
            found[f"{path.parent.relative_to(folder)}/events"] = repr(events_of(path.parent))
        elif path.suffix == ".json":
            found[name] = plain(parse_json(path.read_bytes()), stamped=path.name == "about.json")
        elif path.suffix == ".jsonl":
            found[name] = "\n".join(plain(json.loads(line)) for line in path.read_text().splitlines())
        elif path.suffix in (".md", ".html"):
            found[name] = sha256_bytes(_DATES.sub("DATE", path.read_text()).encode())
        else:
            found[name] = sha256_file(path)
    return found


def plain(value: Any, *, stamped: bool = False) -> str:
    """JSON without times; of what has stamps, without the digest of all of it as well."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(each) for key, each in value.items() if key not in VOLATILE}
        return [without(each) for each in value] if isinstance(value, list) else value

    kept = without(value)
    if stamped:
        kept.pop("sha256", None)
    return json.dumps(kept, sort_keys=True)


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """The names of files that are more, fewer or different."""
    changed = [name for name in found if name in expected and found[name] != expected[name]]
    return [
        *(f"{name} differs" for name in changed),
        *(f"{name} is missing" for name in expected if name not in found),
        *(f"{name} is too many" for name in found if name not in expected),
    ]
