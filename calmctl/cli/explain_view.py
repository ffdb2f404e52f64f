"""What `calmctl explain` shows on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from calmctl.cli.console import Sheet, printable, stdout
from calmctl.explaining.distributions import worth_saying
from calmctl.explaining.words import explain_terms, percent, seconds, summary

if TYPE_CHECKING:
    from torch import Tensor

    from calmctl.explaining.explanation import Explanation
    from calmctl.explaining.failures import Candidate, Failures, Weighed

VIDEO, TEXT, GOOD, BAD = "cyan", "yellow", "green", "red"
_LEVELS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 13


def print_pair(explanation: Explanation) -> None:
    """Print one pair."""
    out = stdout()
    explainer, seen = explanation.explainer, explanation.seen
    facts = _grid()
    facts.add_row(
        "[dim]video[/]", f"{printable(seen.clip.path.name)}, {seconds(seen.start_s)} to {seconds(seen.end_s)}"
    )
    facts.add_row("[dim]sentence[/]", f"[bold]{printable(explanation.sentence)}[/]")
    facts.add_row("[dim]by[/]", printable(explainer.name))
    anchors = explainer.vocabulary
    facts.add_row("[dim]anchors[/]", f"{anchors.reference}, K = {len(anchors)}, tau = {explainer.temperature:g}")
    for note in explainer.notes:
        facts.add_row("[dim]note[/]", f"[yellow]{printable(note)}[/]")
    out.print(facts, "")
    for number, line in enumerate(summary(explanation)):
        out.print(printable(line), style="bold" if number == 0 else None)
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
        bars = [(_bar(float(p[k]), colour), percent(p[k])) for p, colour in ((c.video, VIDEO), (c.text, TEXT))]
        table.add_row(printable(labels[k]), *bars[0], *bars[1])
    out.print(table)
    related = _grid()
    for name, p in (("video", c.video), ("sentence", c.text)):
        most, least = (", ".join(printable(labels[k]) for k in _top(sign * p, 2)) for sign in (1, -1))
        related.add_row(f"[dim]{name}[/]", f"[{GOOD}]most[/]  {most}\n[{BAD}]least[/] {least}")
    related.add_row("[dim]shared[/]", _listed(c.shared, labels, 3))
    related.add_row("[dim]only video[/]", _listed((c.video - c.shared), labels, 3))
    related.add_row("[dim]only sentence[/]", _listed((c.text - c.shared), labels, 3))
    related.add_row(
        "[dim]in numbers[/]",
        f"overlap {percent(c.overlap)}, KL(S_p || V_p) {c.divergence:z.3f} nats,\n"
        f"H(V_p) {c.video_entropy:z.2f}, H(S_p) {c.text_entropy:z.2f} of at most {_log(len(labels)):z.2f} nats",
    )
    out.print(related)
    out.print(f"[dim]{explain_terms(explanation)['distributions']}[/]")


def _print_vae(out: Console, explanation: Explanation) -> None:
    found = explanation.reconstruction
    if found is None:
        return
    grid = _section(out, "What the VAE makes of it")
    grid.add_row("[dim]S_hat[/]", _listed(found.text, explanation.labels, 3))
    if found.closed is None:
        closed = "nothing to close"
    elif not found.sees_the_clip:
        closed = "no nearer than a decoder that knows nothing"
    else:
        closed = f"closes {_share(found.closed)} of the divergence"
    grid.add_row(
        "[dim]divergence[/]", f"{found.divergence:z.3f} nats, {closed};\n{found.prior_divergence:z.3f} at z = 0"
    )
    grid.add_row(
        "[dim]posterior[/]",
        f"mean sigma {found.sigma:z.2f}, {found.active} of {found.units} units active, KL {found.kl:z.2f} nats;\n"
        f"S_hat moves by {percent(found.spread)} of its mass between samples of z",
    )
    out.print(grid)
    out.print(f"[dim]{explain_terms(explanation)['vae']}[/]")


def _print_score(out: Console, explanation: Explanation) -> None:
    pair, split, labels = explanation.pair, explanation.split, explanation.labels
    grid = _section(out, f"Why the score is {pair.score:z.3f} (cosine, head {explanation.explainer.model.head.name})")
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
    grid = _grid()
    for k in line.strongest(4):
        strip = sparkline(_pooled(line.video[:, k].tolist(), 40), top=1.0)
        grid.add_row(f"[{VIDEO}]{strip}[/]", printable(labels[k]))
    out.print(grid)


def _print_without(out: Console, explanation: Explanation) -> None:
    standing, less, c = explanation.standing, explanation.without, explanation.comparison
    if standing is not None and less is None:
        grid = _section(out, f"Rank among the {standing.clips} clips of {explanation.collection}")
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


def print_failures(found: Failures) -> None:
    """Print a run's worst queries."""
    out = stdout()
    out.print(f"[bold]{printable(found.run)}[/], {found.split} split of {found.dataset}", soft_wrap=True)
    out.print(
        f"{found.failed} of {found.queries} sentences do not find their clip first among {found.clips} clips; "
        f"the worst {len(found.worst)}:"
    )
    for failure in found.worst:
        grid = _section(out, f"rank {failure.rank:g}  {printable(failure.query)}")
        grid.add_row("[dim]sentence[/]", _weighed(failure.anchors))
        grid.add_row(f"[{GOOD}]right[/]", _candidate(failure.right))
        grid.add_row(f"[{BAD}]confusing[/]", _candidate(failure.confusing))
        pulled = ", ".join(f"{printable(each.anchor)} {each.value:+z.3f}" for each in failure.pulled)
        lead = failure.confusing.score - failure.right.score
        grid.add_row("[dim]pulled by[/]", f"{pulled}\nof a lead of {lead:+z.3f}")
        out.print(grid)


def _candidate(candidate: Candidate) -> str:
    said = f"\n“{printable(candidate.captions[0])}”" if candidate.captions else ""
    anchors = _weighed(candidate.anchors)
    return f"[bold]{printable(candidate.clip)}[/] {candidate.score:z.3f}  {anchors}{said}"


def _weighed(anchors: Sequence[Weighed]) -> str:
    return ", ".join(f"{printable(each.anchor)} [dim]{percent(each.value)}[/]" for each in anchors)


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
    return [max(values[i * len(values) // most : (i + 1) * len(values) // most]) for i in range(most)]


def _top(values: Tensor, count: int) -> list[int]:
    return [int(k) for k in values.argsort(descending=True, stable=True)[:count]]


def _listed(values: Tensor, labels: Sequence[str], count: int) -> str:
    listed = worth_saying(values, count)
    return ", ".join(f"{printable(labels[k])} [dim]{percent(values[k])}[/]" for k in listed) or "[dim]nothing[/]"


def _share(value: float) -> str:
    return percent(value) if value >= 0 else "none"


def _log(count: int) -> float:
    from math import log

    return log(count)


def _bar(share: float, colour: str) -> Bar:
    return Bar(1.0, 0.0, share, width=_BAR_WIDTH, color=colour)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=8)
    grid.add_column(ratio=1)
    return grid


def _section(out: Console, title: str) -> Table:
    out.print(f"\n[bold]{title}[/]")
    return _grid()


def _table(title: str, first: str, *columns: tuple[str, int]) -> Table:
    table = Sheet(title=f"\n[bold]{title}[/]", title_justify="left", title_style="", header_style="dim")
    table.add_column(first, ratio=1)
    for name, cells in columns:
        table.add_column(name)
        for _ in range(cells - 1):
            table.add_column("", justify="right", no_wrap=True)
    return table
