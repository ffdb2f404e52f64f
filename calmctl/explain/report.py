"""`calmctl report`: one page about one run, from what is kept with it; curves and histograms drawn by matplotlib."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calmctl.errors import BadInput, CalmError
from calmctl.evaluation.compare import KeptEvaluation, changed_since, read_kept
from calmctl.explain.pages import pictures_of, render
from calmctl.files import PAGE, write_output
from calmctl.recipe import recipe_from_dict
from calmctl.runs.catalogue import flat_recipe, kept_evaluations, run_record
from calmctl.runs.identity import require_own_recipe
from calmctl.runs.run import Run, export_metadata
from calmctl.runtime import require_packages
from calmctl.samples import Clip, Split
from calmctl.source.base import SourceSpec
from calmctl.source.source import open_source
from calmctl.words import METRIC_NAMES, WAYS

# Colours of the page (templates/style.css) by the ones that matplotlib draws with: so a figure follows a dark scheme.
_COLOURS = {
    "#0a6c8f": "video",
    "#b05a00": "text",
    "#6a4bbc": "hat",
    "#17703b": "good",
    "#59616b": "soft",
    "#dfe2e0": "line",
}
_VIDEO, _TEXT, _HAT, _GOOD, _SOFT, _LINE = _COLOURS
_LOSSES = ("loss", "task", "rec", "kl", "caption")
"""Lines of the log that are drawn where a run has them, the whole loss first."""
_BINS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
"""Ranks that share a bar of the histogram (our choice)."""
_CAPTIONS_SHOWN = 2


@dataclass(frozen=True, slots=True)
class RankedClip:
    """A clip that a sentence was ranked against.

    Attributes:
        captions: What people said of it, a few.
    """

    clip: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Miss:
    """A sentence that did not find its clip first, or a clip that was described badly.

    Attributes:
        text: The sentence; of a captioner, the one it wrote.
        figure: "rank 17 of 1,000", or "CIDEr 0.0".
        rival: The wrong clip that came first; None where it was not kept, and for captions.
    """

    text: str
    figure: str
    right: RankedClip
    rival: RankedClip | None


def write_report(run: Run, path: Path, *, top: int = 10) -> None:
    """Write the page of a run: curves, numbers with intervals, ranks, the `top` worst failures, recipe.

    Raises:
        BadInput: matplotlib is not installed, or nothing is kept with the run.
        CheckpointError: The run's recipe or anchors were changed since.
        RunFailed: The page cannot be written.
    """
    require_packages(["matplotlib"], extra="report", what="calmctl report")  # which draws with it
    kept = [read_kept(run, file) for file in kept_evaluations(run)]
    if not kept:
        raise BadInput(f"{run.folder} has no kept evaluation to report; make one with: calmctl eval {run.folder}")
    require_own_recipe(run)
    recipe = run.recipe()
    plain = flat_recipe(recipe_from_dict({"name": recipe.name, "data": {"dataset": recipe.data.dataset}}))
    # A page is passed on: of places it has what an export would say.
    keys = flat_recipe(recipe_from_dict(export_metadata(recipe, run.anchors())["recipe"]))
    main = _main(kept)
    misses = worst(main, top)
    clips, why_none = _clips(run, main)
    why = changed_since(main, SourceSpec.of(recipe.data)) if clips else ""
    stale = [f"the test set at hand is not the one of these numbers: {why}"] if why else []
    if why:
        clips, why_none = {}, stale[0]
    names = dict.fromkeys(each.clip for miss in misses for each in (miss.right, miss.rival) if each is not None)
    page = render(
        "report.html.j2",
        record=run_record(run),
        run=run.name,
        about=run.record(),
        curves=training_figures(run),
        main=main.result,
        histograms=histograms(main),
        tables=[_table(each) for each in kept],
        caveats=[*stale, *dict.fromkeys(caveat for each in kept for caveat in each.result.get("caveats", ()))],
        misses=misses,
        failed=_failed(main),
        why_none=why_none,
        pictures=pictures_of([clips[name] for name in names if name in clips]),
        changed={key: _value(value) for key, value in keys.items() if value != plain[key]},
        keys={key: _value(value) for key, value in keys.items()},
    )
    write_output(path, page, PAGE)


def _main(kept: Sequence[KeptEvaluation]) -> KeptEvaluation:
    """The evaluation that ranks and failures are of: the best weights' on the run's own test set, else the first."""

    def order(each: KeptEvaluation) -> tuple[bool, bool, bool, bool, bool]:
        result = each.result
        own = result.get("dataset") == result.get("trained_on")
        audit = str(result.get("scorer", "")).startswith(("dual-softmax", "tmass-released"))
        other = result.get("split") != "test", each.record["weights"] != "best"
        return not each.is_current, not own, *other, audit

    return min(kept, key=order)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).strip('"')


def _clips(run: Run, main: KeptEvaluation) -> tuple[dict[str, Clip], str]:
    """The files of the test set's clips by id; none, and why, where the data are not at hand."""
    recipe, result = run.recipe(), main.result
    own = SourceSpec.of(recipe.data)
    if result["dataset"] != own.dataset:
        return {}, f"pictures are of the run's own data, {own.dataset}, alone"
    try:
        split = open_source(own, recipe, val=result["split"] != "test").split(str(result["split"]))
    except CalmError as fault:  # a page of a run that was given away has no data beside it
        return {}, str(fault)
    if not isinstance(split, Split):
        return {}, "features were extracted, and their videos are not named"
    return {clip.id: clip for clip in split.clips}, ""


def _table(kept: KeptEvaluation) -> dict[str, Any]:
    """Title and rows of one evaluation, a number and its interval a cell."""
    result, rows = kept.result, []
    for way in WAYS:
        if way not in kept.sums:
            continue
        bounds = kept.intervals(way)
        cells = [
            {"name": METRIC_NAMES[name], "value": value, "interval": bounds.get(name)}
            for name, value in kept.metrics(way).items()
        ]
        rows.append({"name": WAYS[way], "cells": cells})
    earlier = "" if kept.is_current else ", as they were earlier"
    facts = [f"{result['split']} split", f"weights: {kept.record['weights']}{earlier}"]
    facts += [f"scorer: {result['scorer']}"] if result.get("scorer") else []
    facts.append(f"{len(next(iter(kept.sums.values())).clips):,} clips, {result.get('left_out', 0):,} left out")
    return {"title": f"{result['dataset']} {result['protocol']}".strip(), "facts": facts, "rows": rows}


def _failed(kept: KeptEvaluation) -> str:
    """How many sentences do not find their clip first, in words; "" for captions."""
    ranks = kept.ranks.get("text_to_video")
    if ranks is None:
        return ""
    values = ranks.ranks()
    return f"{int((values > 1).sum()):,} of {len(values):,} sentences do not find their clip first."


def worst(kept: KeptEvaluation, top: int) -> list[Miss]:
    """The worst of an evaluation, worst first: sentences by their clip's rank, captions by their CIDEr."""
    record = kept.record
    if "clip_scores" in record:
        scores: Mapping[str, float] = record["clip_scores"]["cider"]
        order = sorted(scores, key=lambda clip: scores[clip])[:top]
        return [
            Miss(record["captions"][clip], f"CIDEr {100 * scores[clip]:z.1f}", RankedClip(clip, ()), None)
            for clip in order
        ]
    ranks, owners, names = kept.ranks["text_to_video"], record["owners"], record["clips"]
    captions: list[list[str]] = [[] for _ in names]
    for text, owner in zip(record["captions"], owners, strict=True):
        captions[owner].append(text)
    values, rivals = ranks.ranks(), record.get("rivals") or []

    def candidate(clip: int, without: str) -> RankedClip:
        return RankedClip(names[clip], tuple(text for text in captions[clip] if text != without)[:_CAPTIONS_SHOWN])

    misses = []
    for query in map(int, np.argsort(-values, kind="stable")[:top]):
        if values[query] <= 1:
            break
        text = record["captions"][query]
        rival = candidate(rivals[query], "") if rivals else None
        figure = f"rank {values[query]:g} of {ranks.n_candidates:,}"
        misses.append(Miss(text, figure, candidate(owners[query], text), rival))
    return misses


# Figures. matplotlib draws into a file in memory, and what a page does not need is taken out of it.


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing.

    Attributes:
        svg: As an element of a page.
    """

    title: str
    svg: str


def training_figures(run: Run) -> list[Figure]:
    """Losses over steps, and validation numbers over epochs; nothing of a run that came without its log."""
    if not run.log.is_file():
        return []
    lines = run.read_log(1 << 62, 1 << 62)
    steps = [line for line in lines if "loss" in line]
    epochs = [(line["epoch"], line["validation"]) for line in lines if "validation" in line]
    figures: list[Figure] = []
    if steps:
        drawn = [name for name in _LOSSES if any(name in line for line in steps)]
        series = {name: [(line["step"], line[name]) for line in steps if name in line] for name in drawn}
        figures.append(_curves("Losses in training", "step", series, f"run-{len(figures)}"))
    if epochs:
        wanted = ("t2v_r1", "t2v_r5", "t2v_r10") if "t2v_r1" in epochs[0][1] else ("cider",)
        shown = {"t2v_r1": "R@1", "t2v_r5": "R@5", "t2v_r10": "R@10", "cider": "CIDEr"}
        series = {shown[name]: [(epoch, each[name]) for epoch, each in epochs if name in each] for name in wanted}
        best = max(epochs, key=lambda each: float(each[1]["score"]))[0]
        figures.append(_curves("Validation, text to video", "epoch", series, f"run-{len(figures)}", mark=best))
    return figures


def histograms(kept: KeptEvaluation) -> list[Figure]:
    """How many queries have their target at which rank, by direction; of captions, how they score."""
    if "clip_scores" in kept.record:
        values = 100 * np.array(list(kept.record["clip_scores"]["cider"].values()))
        edges = np.linspace(0, max(100.0, float(values.max())), 11)
        counts, _ = np.histogram(values, edges)
        labels = [f"{low:z.0f}" for low in edges[:-1]]
        return [_bars("CIDEr of a clip's caption, from", labels, counts / len(values), "ranks-0")]
    figures: list[Figure] = []
    for number, way in enumerate(way for way in WAYS if way in kept.ranks):
        ranks = kept.ranks[way]
        values = np.ceil(ranks.ranks())  # a rank between two, of equals, counts as the worse
        bins = [each for each in _BINS if each[0] <= ranks.n_candidates]
        shares = [np.mean((values >= low) & (values <= (high or ranks.n_candidates))) for low, high in bins]
        labels = [str(low) if low == high else f"{low}-{high}" if high else f"{low}+" for low, high in bins]
        figures.append(_bars(f"Rank of the right one, {WAYS[way]}", labels, np.array(shares), f"ranks-{number}"))
    return figures


def _curves(
    title: str, along: str, series: Mapping[str, Sequence[tuple[float, float]]], prefix: str, mark: float | None = None
) -> Figure:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import MaxNLocator

    drawing = Drawing(figsize=(5.6, 3.0))
    axes = drawing.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half of an epoch
    for colour, (name, points) in zip((_VIDEO, _TEXT, _HAT, _GOOD, _SOFT), series.items(), strict=False):
        x, y = zip(*points, strict=True)
        few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) <= 20 else {}
        axes.plot(x, y, label=name, color=colour, linewidth=1.6, **few)
    if mark is not None:
        axes.axvline(mark, color=_SOFT, linewidth=0.8, linestyle="--", label="best epoch")
    axes.set_xlabel(along)
    axes.legend(frameon=False, labelcolor=_SOFT, fontsize=9, ncols=2)
    return Figure(title, _svg(drawing, axes, title, prefix))


def _bars(title: str, labels: Sequence[str], shares: np.ndarray, prefix: str) -> Figure:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(5.6, 2.6))
    axes = drawing.add_subplot()
    bars = axes.bar(labels, 100 * shares, color=_VIDEO, width=0.8)
    axes.bar_label(bars, [f"{100 * share:z.1f}" for share in shares], color=_SOFT, fontsize=8, padding=2)
    axes.set_ylabel("% of queries")
    return Figure(title, _svg(drawing, axes, title, prefix))


def _svg(drawing: Any, axes: Any, title: str, prefix: str) -> str:
    """A drawing as an element of a page: in the page's colours and letters, with names of its own."""
    import matplotlib

    axes.set_facecolor("none")
    axes.tick_params(colors=_SOFT, labelsize=9)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_SOFT)
        label.set_fontsize(9)
    drawing.patch.set_alpha(0.0)
    buffer = io.StringIO()
    # Text as text, which a reader can search and a screen reader can read; the same bytes for the same run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        drawing.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for part in ("metadata", "style"):
        text = re.sub(rf"<{part}.*?</{part}>", "", text, flags=re.DOTALL)
    # The first element alone has a size, which the page gives it.
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-label="TITLE">', text, count=1
    )
    # Several figures share one page, so their names must differ.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for drawn, ours in _COLOURS.items():
        text = text.replace(drawn, f"var(--{ours})")
    return text.replace("TITLE", title)
