"""`calmctl explain`: what the anchors say about a video and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from calmctl.cli import options
from calmctl.cli.console import Sheet, facts_grid, loading, note, printable, section, stdout
from calmctl.cli.results import open_with_progress, print_result, run_or_backbone
from calmctl.data.locate import drawn as drawn_clips
from calmctl.device import choose_device
from calmctl.errors import BadInput, VideoError
from calmctl.explain.words import explain_terms, percent, seconds, summary
from calmctl.samples import Clip
from calmctl.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from calmctl.explain.pair import Explanation


EXAMPLES = options.examples(
    'calmctl explain video.mp4 "a man talking"',
    'calmctl explain video.mp4 "a man talking" --html page.html',
    'calmctl explain video.mp4 "a man talking" --without "holding a laptop"',
    'calmctl explain video.mp4 "a man talking" --run msrvtt-001 --collection test',
    'calmctl explain video.mp4 "a man talking" --zero-shot --vocabulary coco',
)


def explain(
    video: Annotated[Path | None, typer.Argument(metavar="VIDEO", help="A video file.", show_default=False)] = None,
    sentence: Annotated[str | None, typer.Argument(metavar="SENTENCE", help="A sentence.", show_default=False)] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="ANCHOR", help="What changes without this anchor; repeatable.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Rank the video among the clips of this split of the run.")
    ] = None,
    instants: Annotated[int | None, options.INSTANTS(help="Instants on the timeline; 2 a second, 12 to 240.")] = None,
    html: options.Html = None,
    as_json: options.Json = False,
    run: options.Run = None,
    vocabulary: options.Vocabulary = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="The bare backbone, not a run.", rich_help_panel=options.MODEL)
    ] = False,
    backbone: options.Backbone = None,
    weights: options.BackboneWeights = None,
    device: options.Device = "auto",
    runs: options.Runs = Path("runs"),
) -> None:
    """Explain a video and a sentence by their anchors.

    Without --run it is the newest run that knows such clips, or else the bare backbone.
    """
    from calmctl.anchors.shipped import ZERO_SHOT_VOCABULARY, resolve_vocabulary
    from calmctl.anchors.vocabulary import find_anchors
    from calmctl.video.instants import video_extent

    bare = options.is_bare(run, backbone, weights, zero_shot=zero_shot)
    if video is None or sentence is None or not sentence.strip():
        raise BadInput('give a video and a sentence, such as: calmctl explain video.mp4 "a man talking"')
    if not video.is_file():
        raise VideoError(f"{video} is no file; give the path of a video")
    # A process of its own looks into the file: what is no video is said before a model is loaded, which takes seconds.
    video_extent(video)
    drawn = drawn_clips([video.stem])
    chosen = None if bare else run_or_backbone(run, runs, drawn, "explaining")
    if chosen is None and collection is not None:
        raise BadInput("--collection needs a run, whose dataset it is; name one with --run")
    if chosen is None:
        options.check_bare(backbone, weights)
    own = chosen.anchors() if chosen is not None else None
    anchors = resolve_vocabulary(vocabulary or ZERO_SHOT_VOCABULARY) if vocabulary or own is None else own
    # An anchor that does not exist is said before a model is loaded.
    removed = find_anchors(anchors, without or [])
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    loading(str(chosen.folder) if chosen else backbone or "the bare backbone")
    from calmctl.explain.explainer import explain_with_run, explain_zero_shot, see_video
    from calmctl.explain.pair import explain as explain_pair

    where = choose_device(device)
    if chosen is not None:
        explainer = explain_with_run(chosen, where, vocabulary=vocabulary)
        # In its name, because that stands in every output: what a run was trained on tells what its anchors know.
        explainer = replace(explainer, name=f"{explainer.name}, {chosen.trained_on}")
        if warning := chosen.trained_on.warning(drawn):
            explainer = replace(explainer, notes=(f"!! {warning}", *explainer.notes))
    else:
        explainer = explain_zero_shot(
            where,
            vocabulary=vocabulary,
            weights=weights,
            # Said only where nobody has asked for the bare backbone.
            notes=() if bare else (f"no run in {runs} was trained on such clips: this is the bare backbone",),
            **({"backbone": backbone} if backbone else {}),
        )
    if cut := explainer.model.backbone.tokens.cut([sentence], "sentence"):
        note(f"[yellow]{cut}[/]")
    seen = see_video(explainer, Clip(video.stem, video), instants=instants, pictures=html is not None)
    among = open_with_progress(explainer, collection) if collection else None
    explanation = explain_pair(explainer, seen, sentence, removed=removed, collection=among)
    if html is not None:
        from calmctl.explain.pages import write_pair_page

        write_pair_page(explanation, html)
    print_result(explanation, print_pair, as_json, html)


# What `calmctl explain` shows on a terminal of 80 columns.


VIDEO, TEXT, GOOD, BAD = "cyan", "yellow", "green", "red"
_LEVELS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 13


def print_pair(explanation: Explanation) -> None:
    """Print one pair."""
    out = stdout()
    explainer, seen = explanation.explainer, explanation.seen
    facts = facts_grid()
    when = f"{seconds(seen.start_s)} to {seconds(seen.end_s)}"
    facts.add_row("[dim]video[/]", f"{printable(seen.clip.path.name)}, {when}")
    facts.add_row("[dim]sentence[/]", f"[bold]{printable(explanation.sentence)}[/]")
    facts.add_row("[dim]by[/]", printable(explainer.name))
    anchors = explainer.vocabulary
    facts.add_row("[dim]anchors[/]", f"{anchors.reference}, K = {len(anchors)}, tau = {explainer.temperature:g}")
    for text in explainer.notes:
        facts.add_row("[dim]note[/]", f"[yellow]{printable(text)}[/]")
    out.print(facts, "")
    for number, line in enumerate(summary(explanation)):
        out.print(printable(line), style="bold" if number == 0 else None)
    # Terms are explained where they first stand, since nobody knows nats and V_p from elsewhere.
    out.print(f"[dim]{explain_terms(explanation)['short']}[/]")
    _print_distributions(out, explanation)
    _print_vae(out, explanation)
    _print_score(out, explanation)
    _print_timeline(out, explanation)
    _print_without(out, explanation)


def _print_distributions(out: Console, explanation: Explanation) -> None:
    c, labels = explanation.comparison, explanation.labels
    table = _table("What each says", "anchor", ("video V_p", 2), ("sentence S_p", 2))
    rows = sorted(set(_top(c.video, 5)) | set(_top(c.text, 5)), key=lambda k: -float(max(c.video[k], c.text[k])))
    for k in rows:
        cells: list[Bar | str] = []
        for p, colour in ((c.video, VIDEO), (c.text, TEXT)):
            cells += [Bar(1.0, 0.0, float(p[k]), width=_BAR_WIDTH, color=colour), percent(p[k])]
        table.add_row(printable(labels[k]), *cells)
    out.print(table)
    related = facts_grid()
    for name, p in (("video", c.video), ("sentence", c.text)):
        most, least = (", ".join(printable(labels[k]) for k in _top(sign * p, 2)) for sign in (1, -1))
        related.add_row(f"[dim]{name}[/]", f"[{GOOD}]most[/]  {most}\n[{BAD}]least[/] {least}")
    related.add_row("[dim]shared[/]", _listed(c.shared, labels, 3))
    related.add_row("[dim]only video[/]", _listed((c.video - c.shared), labels, 3))
    related.add_row("[dim]only sentence[/]", _listed((c.text - c.shared), labels, 3))
    related.add_row(
        "[dim]in numbers[/]",
        f"overlap {percent(c.overlap)}, KL(S_p || V_p) {c.divergence:z.3f} nats,\n"
        f"H(V_p) {c.video_entropy:z.2f}, H(S_p) {c.text_entropy:z.2f} of at most {log(len(labels)):z.2f} nats",
    )
    out.print(related)
    out.print(f"[dim]{explain_terms(explanation)['distributions']}[/]")


def _print_vae(out: Console, explanation: Explanation) -> None:
    vae = explanation.reconstruction
    if vae is None:
        return
    grid = section("What the VAE makes of it")
    grid.add_row("[dim]S_hat[/]", _listed(vae.text, explanation.labels, 3))
    if vae.closed is None:
        closed = "nothing to close"
    elif not vae.sees_the_clip:
        closed = "no nearer than a decoder that knows nothing"
    else:
        closed = f"closes {percent(vae.closed) if vae.closed >= 0 else 'none'} of the divergence"
    grid.add_row("[dim]divergence[/]", f"{vae.divergence:z.3f} nats, {closed};\n{vae.prior_divergence:z.3f} at z = 0")
    grid.add_row(
        "[dim]posterior[/]",
        f"mean sigma {vae.sigma:z.2f}, {vae.active} of {vae.units} units active, KL {vae.kl:z.2f} nats;\n"
        f"S_hat moves by {percent(vae.spread)} of its mass between samples of z",
    )
    out.print(grid)
    out.print(f"[dim]{explain_terms(explanation)['vae']}[/]")


def _print_score(out: Console, explanation: Explanation) -> None:
    pair, split, labels = explanation.pair, explanation.split, explanation.labels
    grid = section(f"Why the score is {pair.score:z.3f} (cosine, head {explanation.explainer.model.head.name})")
    times, weights = explanation.seen.times_s, pair.weights
    if pair.conditioned:
        best = ", ".join(f"{seconds(float(times[f]))} ({percent(weights[f])})" for f in _top(weights, 2))
        grid.add_row("[dim]frames[/]", f"{sparkline(weights.tolist())}  attention; most at {best}")
    else:
        best = ", ".join(f"{seconds(float(times[f]))} ({float(pair.cosines[f]):z.3f})" for f in _top(pair.cosines, 2))
        grid.add_row("[dim]frames[/]", f"{sparkline(pair.cosines.tolist())}  equal weights; nearest at {best}")
    ups = [k for k in _top(split.anchors, 5) if split.anchors[k] > 0]
    downs = [k for k in _top(-split.anchors, 2) if split.anchors[k] < 0]
    for name, ks in (("for it", ups), ("against it", downs)):
        lines = [f"{float(split.anchors[k]):+z.3f} {printable(labels[k])}{_denied(explanation, k)}" for k in ks]
        grid.add_row(f"[dim]{name}[/]", "\n".join(lines))
    other = float(split.anchors.sum()) - sum(float(split.anchors[k]) for k in (*ups, *downs))
    grid.add_row(
        "[dim]the rest[/]",
        f"{other:+z.3f} all other anchors, {split.shared:+z.3f} what all anchors share,\n"
        f"{split.rest:+z.3f} what no anchor covers",
    )
    out.print(grid)


def _denied(explanation: Explanation, k: int) -> str:
    split = explanation.split
    # A product of two minuses is positive: without a word it would read as if both had the anchor.
    both_less = split.text[k] < 0 and split.video[k] < 0
    return " [dim](both have less of it than usual)[/]" if both_less else ""


def _print_timeline(out: Console, explanation: Explanation) -> None:
    line, labels = explanation.timeline, explanation.labels
    table = _table("When", "seconds", ("strongest anchors of the video", 1), ("cosine", 1))
    table.columns[-1].justify = "right"
    for segment in line.segments:
        when = f"{seconds(segment.start_s)} - {seconds(segment.end_s)}"
        table.add_row(when, _listed(segment.video, labels, 3), f"{segment.cosine:z.3f}")
    out.print(table)
    grid = facts_grid()
    for k in line.strongest(4):
        # All on one scale, from nothing to the whole mass, so that strips can be compared.
        strip = sparkline(_pooled(line.video[:, k].tolist(), 40), top=1.0)
        grid.add_row(f"[{VIDEO}]{strip}[/]", printable(labels[k]))
    out.print(grid)


def _print_without(out: Console, explanation: Explanation) -> None:
    standing, less, c = explanation.standing, explanation.without, explanation.comparison
    if standing is not None and less is None:
        grid = section(f"Rank among the {counted(standing.clips, 'clip')} of {explanation.collection}")
        grid.add_row("[dim]by score[/]", f"{standing.by_score:g}")
        grid.add_row("[dim]by anchors[/]", f"{standing.by_anchors:g}  (by KL(S_p || V_p) alone)")
        out.print(grid)
    if less is None:
        return
    names = ", ".join(printable(explanation.labels[k]) for k in less.removed)
    table = _table(f"Without {names}", "", ("with", 1), ("without", 1))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, with_it, without_it in (
        ("mass on them in V_p, in S_p", f"{percent(less.mass[0])}, {percent(less.mass[1])}", ""),
        ("KL(S_p || V_p), nats", f"{c.divergence:z.3f}", f"{less.divergence:z.3f}"),
        ("H(V_p), nats", f"{c.video_entropy:z.3f}", f"{less.video_entropy:z.3f}"),
        ("H(S_p), nats", f"{c.text_entropy:z.3f}", f"{less.text_entropy:z.3f}"),
        ("score, their direction taken out", f"{explanation.pair.score:z.3f}", f"{less.score:z.3f}"),
    ):
        table.add_row(name, with_it, without_it)
    if standing is not None and less.standing is not None:
        among = f"of {standing.clips}"
        table.add_row("rank by score", f"{standing.by_score:g} {among}", f"{less.standing.by_score:g} {among}")
        table.add_row("rank by anchors", f"{standing.by_anchors:g} {among}", f"{less.standing.by_anchors:g} {among}")
    out.print(table)
    out.print("[dim]The score itself never looks at anchors: they act in training.[/]")


def sparkline(values: Sequence[float], top: float | None = None) -> str:
    """Numbers as block characters, from the least (or 0 where `top` is given) to the largest (or `top`)."""
    low = min(values) if top is None else 0.0
    high = max(values) if top is None else top
    if high <= low:
        return _LEVELS[0] * len(values)
    scaled = ((value - low) / (high - low) * (len(_LEVELS) - 1) for value in values)
    return "".join(_LEVELS[min(len(_LEVELS) - 1, max(0, round(each)))] for each in scaled)


def _pooled(values: list[float], most: int) -> list[float]:
    """At most `most` numbers: the largest of each stretch."""
    if len(values) <= most:
        return values
    # The largest, not the mean: a shape that blinks would vanish.
    return [max(values[i * len(values) // most : (i + 1) * len(values) // most]) for i in range(most)]


def _top(values: Tensor, count: int) -> list[int]:
    return [int(k) for k in values.argsort(descending=True, stable=True)[:count]]


def _listed(values: Tensor, labels: Sequence[str], count: int) -> str:
    from calmctl.explain.anchors import worth_saying

    listed = worth_saying(values, count)
    return ", ".join(f"{printable(labels[k])} [dim]{percent(values[k])}[/]" for k in listed) or "[dim]nothing[/]"


def _table(title: str, first: str, *columns: tuple[str, int]) -> Table:
    table = Sheet(title=f"\n[bold]{title}[/]", title_justify="left", title_style="", header_style="dim")
    table.add_column(first, ratio=1)
    for name, cells in columns:
        table.add_column(name)
        for _ in range(cells - 1):
            table.add_column("", justify="right", no_wrap=True)
    return table
