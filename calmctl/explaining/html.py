"""Self-contained pages from templates: no network, no script from elsewhere, nothing from a caption obeyed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from calmctl.counting import visible
from calmctl.data.pictures import jpeg, shrink
from calmctl.data.samples import Clip
from calmctl.data.workers import available_cores, decode_clips
from calmctl.errors import VideoError
from calmctl.explaining.words import fixed, percent, seconds

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,  # whatever a template is called: captions and file names are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": fixed,
        "percent": percent,
        "seconds": seconds,
        "visible": lambda value: visible(str(value)),
    }
    return environment


def render(template: str, folder: Path = _TEMPLATES, **values: Any) -> str:
    """The HTML of a template of `folder` (or of those here) with these values, all of them escaped."""
    script = (_TEMPLATES / "highlight.js").read_text(encoding="utf-8")
    return (
        _environment(folder)
        .get_template(template)
        .render(
            **values,
            style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
            script=script,
            # Only this script may run: a second lock, should anything ever slip past the escaping.
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        )
    )


def pictures_of(clips: Sequence[Clip]) -> dict[str, list[str]]:
    """Three pictures of each clip, by id; clips that cannot be decoded any more have none."""
    decoded = decode_clips(clips, 3, workers=min(len(clips), available_cores()) or 1, transform=shrink)
    return {
        clip.id: [data_url(jpeg(frame)) for frame in frames]
        for clip, frames in decoded
        if not isinstance(frames, VideoError)
    }


def data_url(picture: bytes) -> str:
    """A JPEG file as an address that needs no network."""
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")
