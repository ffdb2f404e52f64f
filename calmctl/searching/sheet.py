"""A contact sheet: the hits of a search as pictures on one self-contained page."""

from __future__ import annotations

from pathlib import Path

from calmctl.data.samples import Clip
from calmctl.explaining.html import pictures_of, render
from calmctl.files import write_text
from calmctl.searching.answers import Found, Hit

_TEMPLATES = Path(__file__).parent / "templates"


def write_sheet(found: Found, path: Path) -> None:
    """Write the page; raises `RunFailed` where the file cannot be written.

    A hit whose file is not at hand, or does not decode any more, has no pictures, and the page says why.
    """
    clips: dict[str, Clip] = {}
    for answer in found.answers:
        for hit in answer.hits:
            if hit.file is not None and hit.clip not in clips:
                end_s = None if hit.end_s is None else hit.end_s - hit.begins_s
                clips[hit.clip] = Clip(hit.clip, hit.file, max(hit.start_s - hit.begins_s, 0.0), end_s)
    pictures = pictures_of(list(clips.values())) if clips else {}
    best = max((hit.score for answer in found.answers for hit in answer.hits), default=1.0)
    write_text(path, render("sheet.html.j2", _TEMPLATES, found=found, pictures=pictures, best=best, moment=moment))


def moment(hit: Hit) -> str:
    """When a hit is, for people: "0.0 s to 4.2 s"."""
    from calmctl.explaining.words import seconds

    return seconds(hit.start_s) + (f" to {seconds(hit.end_s)}" if hit.end_s is not None else " to its end")
