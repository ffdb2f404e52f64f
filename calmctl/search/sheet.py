"""A contact sheet: the hits of a search as pictures on one self-contained page."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from calmctl.explain.words import seconds
from calmctl.files import PAGE, write_output
from calmctl.samples import Clip
from calmctl.search.results import Found, Hit

_TEMPLATES = Path(__file__).parent / "templates"


def write_sheet(result: Found, path: Path) -> None:
    """Write the page; raises `RunFailed` where the file cannot be written.

    A hit whose file is not at hand, or does not decode any more, has no pictures, and the page says why.
    """
    from calmctl.explain.pages import pictures_of, render  # jinja2, which hits on a terminal do not need

    clips: dict[str, Clip] = {}
    for answer in result.answers:
        for hit in answer.hits:
            # A clip that answers several sentences is decoded once.
            if hit.file is not None and hit.clip not in clips:
                # A hit counts from where the file begins, decoding from its first frame.
                end_s = None if hit.end_s is None else hit.end_s - hit.begins_s
                clips[hit.clip] = Clip(hit.clip, hit.file, max(hit.start_s - hit.begins_s, 0.0), end_s)
    pictures = pictures_of(list(clips.values())) if clips else {}
    best = max((hit.score for answer in result.answers for hit in answer.hits), default=1.0)
    page = render(
        "sheet.html.j2",
        _TEMPLATES,
        found=result,
        pictures=pictures,
        best=best,
        moment=moment,
        address=lambda hit: address(hit, path.parent),
    )
    write_output(path, page, PAGE)


def address(hit: Hit, folder: Path) -> str:
    """Where a browser finds a hit from a page in `folder`, at its moment (a media fragment, `#t=start,end`).

    The path is relative where both lie on one drive, so that a folder with its page can be moved or given away.
    """
    assert hit.file is not None
    try:
        relative = Path(os.path.relpath(hit.file.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on Windows: another drive
        return hit.file.resolve().as_uri()
    # Without "./" a name such as "a:b.mp4" would be read as an address of its own.
    where = quote(os.fsencode(relative if relative.startswith("../") else f"./{relative}"))
    end = "" if hit.end_s is None else f",{hit.end_s:.3f}".rstrip("0").rstrip(".")
    return f"{where}#t={hit.start_s:.3f}".rstrip("0").rstrip(".") + end


def moment(hit: Hit) -> str:
    """When a hit is, for people: "0.0 s to 4.2 s"."""
    return seconds(hit.start_s) + (f" to {seconds(hit.end_s)}" if hit.end_s is not None else " to its end")
