"""What the study of CALM's loss study: differences paired over seeds, how many there are, tables and a picture."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.statistics import t_quantile, t_tails
from calmctl.files import read_json, unused, write_bytes
from calmctl.reproduce.effect import BASE, RATES, TESTS, WEIGHTS, Grid, Job, tried
from calmctl.reproduce.filled import made_by
from calmctl.runtime import environment
from calmctl.words import METRIC_NAMES

METRICS = ("r1", "r5", "mnr")
"""What is tested for a difference, text to video; KL is what the losses ask for, and stands beside them."""
PLACES = {"demo": "in domain", "demo-shifted": "out of domain"}


@dataclass(frozen=True, slots=True)
class Effect:
    """A loss against none: the same head, dial, seeds and order of batches.

    Attributes:
        loss: "vae" (CALM's), "kl", "ce" or "mse".
        test: Tested on.
        metric: Of `METRICS`, or "kl", the mean KL(S_p || V_p) of true pairs in nats.
        head: "" where the heads are averaged, seed by seed.
        dial: The same.
        base: Mean without the loss.
        difference: Mean with it minus that, in points, ranks or nats.
        half: Half of the 95 % interval over seeds (Student's t, paired).
        p: Two-sided, of the same.
        p_holm: That after Holm's correction for its family: all differences of `METRICS` that are averaged as this one.
    """

    loss: str
    test: str
    metric: str
    head: str
    dial: str
    base: float
    difference: float
    half: float
    p: float
    p_holm: float

    @property
    def star(self) -> str:
        """A star where it is more than chance, all comparisons counted; KL is asked for, and gets none."""
        return "*" if self.metric in METRICS and self.p_holm < 0.05 else ""


@dataclass(frozen=True, slots=True)
class Study:
    """The whole study.

    Attributes:
        grid: What was varied; its seeds are those that are whole.
        rate, weights: Chosen on validation; weights by loss.
        tried: Mean R@1 on validation by what was tried: "rate" by rate, a loss by weight.
        zero_shot: The shipped CLIP by test.
        overall: Effects averaged over heads and dials.
        by_dial: Effects averaged over heads.
        cells: Effects of each head and dial.
        means: Mean over seeds, heads and dials of the diagnostics on the test set in domain, by loss.
        overrides: Recipe keys that a person changed for all runs.
        runs: The records, without their digests.
    """

    grid: Grid
    rate: float
    weights: Mapping[str, float]
    tried: Mapping[str, Mapping[str, float]]
    zero_shot: Mapping[str, Mapping[str, float]]
    overall: tuple[Effect, ...]
    by_dial: tuple[Effect, ...]
    cells: tuple[Effect, ...]
    means: Mapping[str, Mapping[str, float]]
    overrides: tuple[str, ...]
    runs: tuple[Mapping[str, Any], ...]

    @property
    def comparisons(self) -> dict[str, int]:
        """How many differences each family of tests holds."""
        families = {"averaged": self.overall, "by dial": self.by_dial, "by head and dial": self.cells}
        return {name: sum(each.metric in METRICS for each in some) for name, some in families.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "comparisons": self.comparisons}


def evaluate_study(
    grid: Grid,
    rate: float,
    weights: Mapping[str, float],
    done: Mapping[Job, Mapping[str, Any]],
    zero_shot: Mapping[str, Mapping[str, float]],
    overrides: Sequence[str] = (),
) -> Study:
    """Compare, with the seeds of which every run is done. Raises `RunFailed` where there are fewer than two."""
    by_key = {(job.head, job.loss, job.dial, job.seed): record for job, record in done.items() if job.part == "study"}
    cells = [(head, dial) for head in grid.heads for dial in grid.dials]
    seeds = [
        seed
        for seed in range(grid.seeds)
        if all((head, loss, dial, seed) in by_key for head, dial in cells for loss in grid.losses)
    ]
    if len(seeds) < 2:
        raise RunFailed(
            f"{len(seeds)} of {grid.seeds} seeds of the study are whole, and a difference over seeds takes two; "
            "give the same command again: it goes on"
        )

    def values(some: Sequence[tuple[str, str]], loss: str, test: str, metric: str) -> list[float]:
        """By seed, the mean over some heads and dials."""
        return [
            statistics.fmean(by_key[head, loss, dial, seed]["tests"][test][metric] for head, dial in some)
            for seed in seeds
        ]

    def family(groups: Mapping[tuple[str, str], Sequence[tuple[str, str]]]) -> tuple[Effect, ...]:
        effects = []
        for (head, dial), some in groups.items():
            for loss in grid.losses:
                for test in TESTS if loss != BASE else ():
                    for metric in (*METRICS, "kl"):
                        base, ours = (values(some, each, test, metric) for each in (BASE, loss))
                        effects.append(_effect(loss, test, metric, head, dial, base, ours))
        return _corrected(effects)

    kept = [by_key[head, loss, dial, seed] for seed in seeds for head, dial in cells for loss in grid.losses]
    choices = {"rate": {f"{each:g}": tried(done, part="rate", rate=each) for each in RATES}}
    for loss in weights:
        if loss not in (BASE, "ce"):
            choices[loss] = {f"{weight:g}": tried(done, loss=loss, weight=weight) for weight in WEIGHTS}
    return Study(
        Grid(grid.heads, grid.losses, grid.dials, len(seeds)),
        rate,
        weights,
        choices,
        zero_shot,
        family({("", ""): cells}),
        family({("", dial): [(head, dial) for head in grid.heads] for dial in grid.dials}),
        family({(head, dial): [(head, dial)] for head, dial in cells}),
        {loss: _means([record for record in kept if record["loss"] == loss]) for loss in grid.losses},
        tuple(overrides),
        tuple({k: v for k, v in record.items() if k not in ("recipe", "world", "clip")} for record in kept),
    )


def _effect(
    loss: str, test: str, metric: str, head: str, dial: str, base: Sequence[float], ours: Sequence[float]
) -> Effect:
    changes = [b - a for a, b in zip(base, ours, strict=True)]
    freedom, difference = len(changes) - 1, statistics.fmean(changes)
    error = statistics.stdev(changes) / len(changes) ** 0.5
    p = float(difference == 0.0) if error == 0.0 else t_tails(difference / error, freedom)
    half = t_quantile(0.95, freedom) * error
    return Effect(loss, test, metric, head, dial, statistics.fmean(base), difference, half, p, 1.0)


def _corrected(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """With Holm's p: the smallest of n times n, the next times n - 1, ..., and none below the one before it."""
    tested = sorted((each for each in effects if each.metric in METRICS), key=lambda each: each.p)
    adjusted: dict[int, float] = {}
    highest = 0.0
    for place, each in enumerate(tested):
        highest = max(highest, min(1.0, each.p * (len(tested) - place)))
        adjusted[id(each)] = highest
    # What the losses ask for is no part of the question, and counts for itself.
    plain = [asdict(each) | {"p_holm": adjusted.get(id(each), each.p)} for each in effects]
    return tuple(Effect(**each) for each in plain)


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of everything that was measured in domain, and at the start of the training."""
    columns: dict[str, list[float]] = {}
    for record in records:
        start = {f"start_{name}": value for name, value in record["start"].items()}
        tau = {"tau": record["tau"]} if "tau" in record else {}
        for name, value in {**record["tests"]["demo"], **start, **tau, "seconds": record["seconds"]}.items():
            columns.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in columns.items()}


# In words, in Markdown, as a picture.


SHIPPED = Path(__file__).parent / "effect.json"
"""The study as this release ran it, without its single runs; docs/results.md has the command."""


def many_seeds() -> str:
    """What the release's study says of CALM's loss, for those who look at one seed of it."""
    study = read_json(SHIPPED, what="the study")
    here = {(each["test"], each["metric"]): each for each in study["overall"] if each["loss"] == "vae"}

    def change(test: str, metric: str) -> str:
        each = here[test, metric]
        return f"{each['difference']:+z.2f} ± {each['half']:z.2f}"

    grid = study["grid"]
    return (
        f"One seed decides nothing. With {grid['seeds']} seeds, {len(grid['heads'])} heads and {len(grid['dials'])} "
        f"shares of named attributes CALM's loss changed R@1 by {change('demo', 'r1')} points in domain and "
        f"{change('demo-shifted', 'r1')} out of it, the mean rank by {change('demo', 'mnr')} and "
        f"{change('demo-shifted', 'mnr')}, and KL by {change('demo', 'kl')} nats in domain (95 % intervals over seeds; "
        "docs/results.md)."
    )


def legend(study: Study) -> Iterator[str]:
    """What has to be known to read the tables."""
    n = study.grid.seeds
    yield (
        f"Difference from no loss with the same head, dial, seed and order of batches: mean over {n} seeds ± half of "
        f"its 95 % interval (Student's t, paired over seeds; the {len(TESTS)} test sets are the same for all)."
    )
    counts = ", ".join(f"{count} {name}" for name, count in study.comparisons.items())
    yield f"* p < 0.05 after Holm's correction for all differences of a table; there are {counts}."
    weights = ", ".join(f"{loss} {study.weights[loss]:g}" for loss in study.grid.losses if loss != BASE)
    yield (
        f"Chosen on validation, with other seeds: the towers' rate ({study.rate:g}) without a loss, then the weights "
        f"({weights}), the same for all heads and dials. The best epoch of each run is its best there, "
        "too. The test sets were scored once a run, and chose nothing."
    )
    if {"kl", "ce"} <= set(study.grid.losses):
        yield "kl and ce have one gradient (S_p is detached): they are one loss, run twice, and differ by rounding."
    yield "dial: share of a clip's attributes that a training caption names. KL: KL(S_p || V_p) of true pairs, nats."


def as_markdown(study: Study, command: str, about: Mapping[str, Any]) -> str:
    """Everything; `command` makes it again."""
    parts = ["# Does CALM's loss help? On the drawn world", ""]
    for title, effects in (
        ("Averaged over heads and dials", study.overall),
        ("By dial, averaged over heads", study.by_dial),
        ("By head and dial", study.cells),
    ):
        parts += [f"## {title}", "", *_markdown_table(effects), ""]
    parts += ["## Diagnostics, in domain", "", *_diagnostics(study), ""]
    parts += [f"- {line}" for line in legend(study)]
    return "\n".join([*parts, *made_by(command, about), ""])


def _markdown_table(effects: Sequence[Effect]) -> list[str]:
    names = " | ".join(f"{METRIC_NAMES[metric]} {PLACES[test]}" for test in TESTS for metric in METRICS)
    rows = [f"| | loss | {names} | KL | KL shifted |", "|---|---|" + "--:|" * (len(TESTS) * len(METRICS) + 2)]
    for head, dial in dict.fromkeys((each.head, each.dial) for each in effects):
        here = {(e.loss, e.test, e.metric): e for e in effects if (e.head, e.dial) == (head, dial)}
        columns = [(test, metric) for test in TESTS for metric in METRICS] + [(test, "kl") for test in TESTS]
        losses = list(dict.fromkeys(loss for loss, _, _ in here))
        name = " ".join(each for each in (head, f"dial {dial}" if dial else "") if each) or "all"
        without = [f"{here[losses[0], test, metric].base:z.2f}" for test, metric in columns]
        rows.append(f"| {name} | none | " + " | ".join(without) + " |")
        for loss in losses:
            cells = [here[loss, test, metric] for test, metric in columns]
            shown = [f"{e.difference:+z.2f} ± {e.half:z.2f}{e.star}" for e in cells]
            rows.append(f"| | {loss} | " + " | ".join(shown) + " |")
    return rows


_DIAGNOSTICS = {
    "tau": "tau",
    "start_entropy_s": "H(S_p) at the start",
    "start_entropy_v": "H(V_p) at the start",
    "own_entropy_s": "H(S_p)",
    "own_entropy_v": "H(V_p)",
    "own_active_units": "active units",
    "own_rec_excess": "rec_excess",
    "own_mean_predictor_excess": "mean_predictor_excess",
    "seconds": "seconds a run",
}


def _diagnostics(study: Study) -> list[str]:
    rows = ["| loss | " + " | ".join(_DIAGNOSTICS.values()) + " |", "|---|" + "--:|" * len(_DIAGNOSTICS)]
    for loss, means in study.means.items():
        cells = [f"{means[name]:z.2f}" if name in means else "" for name in _DIAGNOSTICS]
        rows.append(f"| {loss} | " + " | ".join(cells) + " |")
    return rows


def write_study(study: Study, folder: Path, command: str) -> tuple[Path, ...]:
    """Write effect.json, effect.md and effect.svg; raises `RunFailed` when it cannot.

    A study of another grid or other keys is not written over: the new one gets a number.
    """
    about = environment()
    path = unused(folder / "effect.json", lambda path: path.exists() and not _asked_alike(path, study))
    content = json.dumps({**study.to_json(), "command": command, **about}, indent=1, allow_nan=False) + "\n"
    for suffix, text in ((".json", content), (".md", as_markdown(study, command, about)), (".svg", picture(study))):
        write_bytes(path.with_suffix(suffix), text.encode())
    return tuple(path.with_suffix(suffix) for suffix in (".json", ".md", ".svg"))


def _asked_alike(path: Path, study: Study) -> bool:
    try:
        there, ours = read_json(path, what="a study"), json.loads(json.dumps(study.to_json()))
        # Seeds may differ: a study that went on has more of them.
        theirs = [{**there["grid"], "seeds": 0}, there["overrides"]]
        return theirs == [{**ours["grid"], "seeds": 0}, ours["overrides"]]
    except (BadInput, KeyError, TypeError):  # something else of this name
        return False


_COLOURS = {"vae": "#0b6e4f", "kl": "#b5541c", "ce": "#c9a227", "mse": "#4b5fa5"}
_WIDTH, _HEIGHT, _LEFT, _TOP = 330, 190, 56, 34


def picture(study: Study) -> str:
    """The effect by dial with its interval, averaged over heads: R@1 and mean rank, in and out of domain, as SVG."""
    panels = [(test, metric) for metric in ("r1", "mnr") for test in TESTS]
    drawn = [
        _panel(study, test, metric, x=(place % 2) * _WIDTH, y=_TOP + (place // 2) * _HEIGHT)
        for place, (test, metric) in enumerate(panels)
    ]
    losses = [loss for loss in study.grid.losses if loss != BASE]
    key = "".join(
        f'<circle cx="{_LEFT + 80 * i}" cy="16" r="4" fill="{_COLOURS[loss]}"/>'
        f'<text x="{_LEFT + 80 * i + 9}" y="20">{loss}{" (CALM)" if loss == "vae" else ""}</text>'
        for i, loss in enumerate(losses)
    )
    width, height = 2 * _WIDTH, _TOP + 2 * _HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>{key}'
        f"{''.join(drawn)}</svg>\n"
    )


def _panel(study: Study, test: str, metric: str, *, x: int, y: int) -> str:
    here = [each for each in study.by_dial if (each.test, each.metric) == (test, metric)]
    low, high = min(0.0, *(e.difference - e.half for e in here)), max(0.0, *(e.difference + e.half for e in here))
    room = 0.08 * (high - low) or 1.0
    low, high = low - room, high + room
    inner_w, inner_h = _WIDTH - _LEFT - 14, _HEIGHT - 58

    def at(value: float) -> float:
        return y + 22 + inner_h * (high - value) / (high - low)

    better = "" if metric == "r1" else " (below 0: better)"
    unit = "points" if metric == "r1" else "ranks"
    title = f"{METRIC_NAMES[metric]}, {PLACES[test]}"
    lines = [
        f'<text x="{x + _LEFT}" y="{y + 13}" font-weight="bold">{title}: {unit}{better}</text>',
        f'<line x1="{x + _LEFT}" x2="{x + _LEFT + inner_w}" y1="{at(0):z.1f}" y2="{at(0):z.1f}" stroke="#888"/>',
    ]
    for value in sorted({0.0, *_ticks(low, high)}):
        lines.append(
            f'<text x="{x + _LEFT - 6}" y="{at(value) + 4:z.1f}" text-anchor="end" fill="#555">{value:+z.3g}</text>'
        )
    losses = [loss for loss in study.grid.losses if loss != BASE]
    for column, dial in enumerate(study.grid.dials):
        middle = x + _LEFT + inner_w * (column + 0.5) / len(study.grid.dials)
        lines.append(f'<text x="{middle:z.1f}" y="{y + _HEIGHT - 16}" text-anchor="middle">dial {dial}</text>')
        for place, loss in enumerate(losses):
            effect = next(e for e in here if (e.loss, e.dial) == (loss, dial))
            left = middle + 14 * (place - (len(losses) - 1) / 2)
            top, bottom = at(effect.difference + effect.half), at(effect.difference - effect.half)
            lines.append(
                f'<line x1="{left:z.1f}" x2="{left:z.1f}" y1="{top:z.1f}" y2="{bottom:z.1f}" stroke="{_COLOURS[loss]}" '
                f'stroke-width="2"/><circle cx="{left:z.1f}" cy="{at(effect.difference):z.1f}" r="4" '
                f'fill="{_COLOURS[loss]}"/>'
            )
    return "".join(lines)


def _ticks(low: float, high: float) -> list[float]:
    """Round values, at most six."""
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0) if (high - low) / s < 6)
    first = math.ceil(low / step)
    return [n * step for n in range(first, int(high // step) + 1)]
