"""Self-contained pages from templates: no network, no script from elsewhere, nothing from a caption obeyed."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from calmctl.errors import VideoError
from calmctl.evaluation.result import RetrievalResult
from calmctl.explain.anchors import worth_saying
from calmctl.explain.calibration import SIGNALS, Calibration
from calmctl.explain.collection import Collection, Failures
from calmctl.explain.pair import Explanation
from calmctl.explain.words import explain_terms, fixed, ordinal, percent, seconds, summary
from calmctl.files import PAGE, write_output
from calmctl.samples import Clip
from calmctl.video.pixels import jpeg, shrink
from calmctl.video.pool import available_cores, decode_clips
from calmctl.words import counted, visible

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,  # whatever a template is called: captions and file names are other people's text
        # A name that a template misspells is an error, and not a blank on a page.
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
    # Shrunk in the worker: what crosses to this process is small, however large the videos.
    decoded = decode_clips(clips, 3, workers=min(len(clips), available_cores()) or 1, transform=shrink)
    return {
        clip.id: [data_url(jpeg(frame)) for frame in frames]
        for clip, frames in decoded
        if not isinstance(frames, VideoError)
    }


def data_url(picture: bytes) -> str:
    """A JPEG file as an address that needs no network."""
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


_ROWS, _RELATED, _PARTS, _STRIPS, _SHOWN = 10, 3, 6, 8, 3


def write_pair_page(explanation: Explanation, path: Path) -> None:
    """Write the page of one pair; raises `RunFailed` where the file cannot be written."""
    # `PAGE` replaces pages of ours alone. A plain rename over the target once replaced /dev/null.
    write_output(path, pair_page(explanation), PAGE)


def write_failures_page(failures: Failures, collection: Collection, path: Path) -> None:
    """Write the page of a run's worst queries, with pictures of each clip whose file is at hand."""
    names = dict.fromkeys(one.clip for each in failures.worst for one in (each.right, each.confusing))
    pictures = pictures_of([collection.clips[name] for name in names if name in collection.clips])
    write_output(path, render("failures.html.j2", found=failures, pictures=pictures), PAGE)


def write_calibration_page(calibration: Calibration, path: Path) -> None:
    """Write the reliability diagrams and the risk-coverage curves of a run."""
    curves = [
        {"name": signal.name, "points": _polyline(signal.risk_coverage.coverage, 1 - signal.risk_coverage.risk)}
        for signal in calibration.signals
    ]
    write_output(path, render("calibration.html.j2", found=calibration, curves=curves, signals=SIGNALS), PAGE)


@dataclass(frozen=True, slots=True)
class DemoClip:
    """A test clip on the demo's page.

    Attributes:
        written: What the captioner says of it, "" where nothing is known.
        rank: The place at which its caption finds it, of `among` clips.
    """

    explanation: Explanation
    written: str
    rank: float
    among: int


def write_demo_page(
    path: Path,
    systems: Sequence[tuple[str, Sequence[RetrievalResult], Sequence[float]]],
    clips: Sequence[DemoClip],
    commands: Sequence[str],
    verdict: str,
) -> None:
    """Write the page that `calmctl demo` ends on.

    `systems` are name, results and KL of true pairs of each, by test set; `clips` are of the first test set. `verdict`
    says what many seeds have shown, because one shows nothing.
    """
    places = ["in domain", "out of domain"]
    rows, bars = [], []
    for name, results, divergences in systems:
        cells = []
        for place, result, kl in zip(places, results, divergences, strict=True):
            numbers, intervals = result.metrics["text_to_video"], result.intervals["text_to_video"]
            low, high = (intervals.r1.low, intervals.r1.high) if intervals else (numbers.r1, numbers.r1)
            cells.append({"r1": numbers.r1, "r5": numbers.r5, "mnr": numbers.mnr, "kl": kl})
            side = "video" if place == places[0] else "hat"
            bars.append({"system": name, "place": place, "side": side, "r1": numbers.r1, "low": low, "high": high})
        rows.append({"system": name, "cells": cells})
    first = systems[0][1][0].metrics["text_to_video"]
    page = render(
        "demo.html.j2",
        rows=rows,
        bars=bars,
        places=places,
        queries=first.n_queries,
        clips_each=first.n_candidates,
        sentence=verdict,
        commands=commands,
        clips=[
            {
                "x": each.explanation,
                "written": each.written,
                "rank": each.rank,
                "of": each.among,
                "frames": _frames(each.explanation),
                "anchors": _anchor_rows(each.explanation)[:_PARTS],
                "most": _most_mass(each.explanation),
                "strips": _strips(each.explanation)[:4],
            }
            for each in clips
        ],
    )
    write_output(path, page, PAGE)


def pair_page(explanation: Explanation) -> str:
    """The HTML of one pair."""
    seen, c = explanation.seen, explanation.comparison
    return render(
        "pair.html.j2",
        x=explanation,
        summary=summary(explanation),
        terms=explain_terms(explanation),
        anchors=_anchor_rows(explanation),
        related=[
            {"name": name, "side": side, "most": _top(p, _RELATED), "least": _top(-p, 2), "p": p}
            for name, side, p in (("Video", "video", c.video), ("Sentence", "text", c.text))
        ],
        lists=[
            {"name": name, "says": meaning, "top": worth_saying(p, _SHOWN), "p": p}
            for name, meaning, p in (
                ("Both", "mass that the two share", c.shared),
                ("Only the video", "what it has beyond that", c.video - c.shared),
                ("Only the sentence", "what it has beyond that", c.text - c.shared),
            )
        ],
        frames=_frames(explanation),
        most_mass=_most_mass(explanation),
        most_weight=float(explanation.pair.weights.max()),
        parts=_score_parts(explanation),
        strips=_strips(explanation),
        cosine_line=_cosine_line(explanation),
        ticks=_ticks(seen.start_s, seen.end_s),
        most_entropy=math.log(len(explanation.labels)),
        worth_saying=worth_saying,
    )


def _most_mass(x: Explanation) -> float:
    # One scale for both sides, or bars of one length would stand for two shares.
    return max(float(p.max()) for p in (x.comparison.video, x.comparison.text))


def _frames(x: Explanation) -> list[dict[str, Any]]:
    """The frames behind a score, with the weight and the cosine of each; none where no pictures were kept."""
    columns = (x.seen.pictures, x.seen.times_s, x.pair.weights, x.pair.cosines)
    return [
        {"url": data_url(picture), "time": seconds(float(time)), "weight": float(weight), "cosine": float(cosine)}
        for picture, time, weight, cosine in (zip(*columns, strict=True) if x.seen.pictures else ())
    ]


def _anchor_rows(x: Explanation) -> list[dict[str, Any]]:
    """All anchors, the strongest first, with what the page shows and says of each."""
    c, hat = x.comparison, x.reconstruction
    ranks = {side: _ranks(p) for side, p in (("video", c.video), ("text", c.text))}
    order = _top(c.video.maximum(c.text), len(x.labels))
    rows = []
    for place, k in enumerate(order):
        description = (
            f"{x.labels[k]}: video {percent(c.video[k])} ({ordinal(ranks['video'][k])} of {len(order)}), "
            f"sentence {percent(c.text[k])} ({ordinal(ranks['text'][k])})"
        )
        if hat is not None:
            description += f", reconstructed {percent(hat.text[k])}"
        rows.append(
            {
                "k": k,
                "label": x.labels[k],
                "video": float(c.video[k]),
                "text": float(c.text[k]),
                "hat": None if hat is None else float(hat.text[k]),
                "shown": place < _ROWS,
                "says": f"{description}; part of the score {float(x.split.anchors[k]):+z.3f}.",
            }
        )
    return rows


def _score_parts(x: Explanation) -> dict[str, Any]:
    """The score as bars from zero, all on one scale."""
    split = x.split
    strongest = _top(split.anchors.abs(), _PARTS)
    strongest.sort(key=lambda k: -float(split.anchors[k]))
    rest = float(split.anchors.sum()) - sum(float(split.anchors[k]) for k in strongest)
    rows = [
        {
            "k": k,
            "label": x.labels[k],
            "value": float(split.anchors[k]),
            "denied": bool(split.text[k] < 0 and split.video[k] < 0),
        }
        for k in strongest
    ]
    sums = [("what all anchors share", split.shared), ("what no anchor covers", split.rest)]
    if others := len(x.labels) - len(strongest):
        sums.insert(0, (f"the other {counted(others, 'anchor')}", rest))
    rows += [{"k": None, "label": label, "value": value, "denied": False} for label, value in sums]
    # Zero is on the scale even where all parts have one sign: a bar's length is a part of the score.
    values = [0.0, *(float(str(row["value"])) for row in rows)]
    low, high = min(values), max(values)
    return {"rows": rows, "low": low, "span": (high - low) or 1.0}


def _strips(x: Explanation) -> list[dict[str, Any]]:
    line = x.timeline
    strips = []
    for k in line.strongest(_STRIPS):
        values = line.video[:, k].tolist()
        peak = max(range(len(values)), key=values.__getitem__)
        strips.append(
            {
                "k": k,
                "label": x.labels[k],
                "values": values,
                "peak": values[peak],
                "peak_at": seconds(float(line.instants_s[peak])),
            }
        )
    return strips


def _cosine_line(x: Explanation) -> dict[str, Any]:
    cosines = x.timeline.cosines.double().numpy()
    low, high = float(cosines.min()), float(cosines.max())
    span = (high - low) or 1.0
    at = (np.arange(len(cosines)) + 0.5) / len(cosines)
    return {"low": low, "high": high, "points": _polyline(at, (cosines - low) / span)}


def _ticks(start_s: float, end_s: float) -> list[dict[str, Any]]:
    """Round instants on the time axis, at most six."""
    length = max(end_s - start_s, 1e-9)
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000)
    # A hair above five steps, for a length that rounding has made a little longer.
    step = next((step for step in steps if length / step <= 5.01), length / 5)
    first = math.ceil(start_s / step - 1e-9)
    marks = [n * step for n in range(first, math.floor(end_s / step + 1e-9) + 1)]
    return [{"at": (mark - start_s) / length, "label": seconds(mark)} for mark in marks]


def _polyline(x: Any, y: Any) -> str:
    """Points of an SVG polyline in a 100 x 100 box with y upwards."""
    return " ".join(f"{100 * a:z.2f},{100 - 100 * b:z.2f}" for a, b in zip(x, y, strict=True))


def _top(values: Tensor, count: int) -> list[int]:
    return [int(k) for k in values.argsort(descending=True, stable=True)[:count]]


def _ranks(values: Tensor) -> list[int]:
    """The rank of each anchor from 1."""
    order: Sequence[int] = _top(values, len(values))
    return [place for _, place in sorted((k, place) for place, k in enumerate(order, start=1))]
