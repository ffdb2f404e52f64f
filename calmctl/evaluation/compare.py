"""Runs compared on one test set, from the evaluations that are kept with them (`evaluation/runs.py`).

Runs that differ in the seed alone are one system: its numbers have a mean and a spread, and chance in a difference is
that of clips and of seeds (`differences_over_seeds`). Nothing here needs torch or data: what is kept is enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from calmctl.errors import BadInput, CalmError
from calmctl.evaluation.card import Card
from calmctl.evaluation.metrics import Ranks
from calmctl.evaluation.statistics import (
    METRICS,
    RECALLS,
    ClipSums,
    Interval,
    PairedDifference,
    Spread,
    clip_sums,
    differences_over_seeds,
    mean_intervals,
    spread,
)
from calmctl.files import read_json, sha256_bytes, sha256_file, stamp
from calmctl.recipe import Recipe
from calmctl.runs.catalogue import kept_evaluations, recipe_differences
from calmctl.runs.identity import require_own_recipe
from calmctl.runs.run import WEIGHTS, Run
from calmctl.source.base import SourceSpec
from calmctl.source.source import open_source
from calmctl.words import METRIC_NAMES, WAYS, counted

_NOT_COMPARED = ("tmass-released", "dual-softmax", "given")
"""Scorers whose numbers are audits or need the whole test set: `eval --scorer` shows them."""


@dataclass(frozen=True, eq=False)
class KeptEvaluation:
    """One file of a run's `evals/`: where it is, and its content."""

    run: Run
    path: Path
    record: Mapping[str, Any]

    @property
    def result(self) -> Mapping[str, Any]:
        """The numbers with their labels, as `RetrievalResult.to_json` or `CaptionResult.to_json` gave them."""
        result: Mapping[str, Any] = self.record["result"]
        return result

    @cached_property
    def is_current(self) -> bool:
        """Whether it is of the weights that the run has now; a run that went on has others under the same name."""
        path = self.run.trained_weights(str(self.record["weights"]))
        return path.is_file() and self.record.get("weights_sha256") == _sha256(str(path), tuple(stamp(path)))

    @property
    def n_captions(self) -> int:
        """Sentences of the test set."""
        return int(self.result.get("n_captions") or self.result["scores"]["n_references"])

    @property
    def test_set(self) -> str:
        """Digest of the clips and captions that it is of, "" where that was not recorded."""
        return str((self.result.get("test_set") or {}).get("digest", ""))

    @property
    def card(self) -> Card:
        """How the numbers were made; an empty one for an evaluation from before there were cards."""
        return Card.from_json(self.result.get("card") or {}, str(self.path))

    @cached_property
    def sums(self) -> dict[str, ClipSums]:
        """By direction, each clip's part of the metrics that are means over clips or queries."""
        if "clip_scores" in self.record:
            scores = self.record["clip_scores"]
            metrics = tuple(scores)
            clips = tuple(scores[metrics[0]])
            columns = np.array([[100.0 * scores[metric][clip] for metric in metrics] for clip in clips])
            return {"captions": ClipSums(clips, metrics, columns, np.ones(len(clips)))}
        return {way: clip_sums(ranks, self.record["clips"]) for way, ranks in self.ranks.items()}

    @property
    def ranks(self) -> dict[str, Ranks]:
        """Where each query's target stands, by direction; none for captions."""
        found = {}
        for way, columns in self.record.get("ranks", {}).items():
            greater, equal, targets, clips = (
                np.array(columns[name], np.int64) for name in ("greater", "equal", "targets", "clips")
            )
            found[way] = Ranks(greater, equal, targets, clips, int(columns["n_candidates"]))
        return found

    def metrics(self, way: str) -> dict[str, float]:
        """The numbers of a direction as tables show them."""
        if way == "captions":
            scores = self.result["scores"]
            names = ("cider", "rouge_l", "bleu4", "meteor")
            return {name: 100.0 * scores[name] for name in names if scores.get(name) is not None}
        return {name: float(self.result["metrics"][way][name]) for name in METRICS}

    def intervals(self, way: str) -> dict[str, Interval]:
        """Intervals over clips of those numbers, as far as the evaluation has them."""
        if way == "captions":
            known = (self.result["scores"].get("intervals") or {}).items()
            return {name: Interval(*(100.0 * bound for bound in bounds)) for name, bounds in known if bounds}
        bounds = (self.result.get("intervals") or {}).get(way) or {}
        return {name: Interval(**bounds[name]) for name in METRICS if bounds.get(name)}


def read_kept(run: Run, path: Path) -> KeptEvaluation:
    """One kept evaluation, with numbers that can be read. Raises `BadInput` where the file is none."""
    record = read_json(path, what=f"run {run.folder}")
    remedy = f"remove it, and run calmctl eval {run.folder} again"
    is_kept = isinstance(record, dict) and isinstance(record.get("result"), dict)
    if not is_kept or record.get("weights") not in tuple(WEIGHTS):
        raise BadInput(f"{path} is no evaluation that calmctl kept; {remedy}")
    kept = KeptEvaluation(run, path, record)
    try:  # everything once: anybody may have edited it, and a table is too late a place to notice
        for way in kept.sums:
            kept.metrics(way)
            kept.intervals(way)
        kept.n_captions, kept.result["dataset"], kept.result["protocol"], kept.result["split"]
    except (KeyError, TypeError, ValueError, AttributeError, LookupError, OverflowError) as fault:
        why = f"{type(fault).__name__}: {fault}"[:200]
        raise BadInput(f"{path}: its numbers cannot be read ({why}); {remedy}") from None
    return kept


def find_kept(
    run: Run, dataset: str, protocol: str, *, split: str, weights: str, like: KeptEvaluation | None = None
) -> KeptEvaluation | None:
    """The evaluation of a run's weights, as they are now, on a test set; None where it has to be made first.

    Of several, such as captions scored by two tokenizers, the one whose protocol is that of `like`, then the one of
    which the least has to be said.
    """
    candidates = []
    for path in kept_evaluations(run):
        kept = read_kept(run, path)
        labels = kept.result
        wanted = (labels.get("dataset"), labels.get("protocol"), labels.get("split")) == (dataset, protocol, split)
        scorer = str(labels.get("scorer", "")).partition(" (")[0]
        if not wanted or kept.record["weights"] != weights or scorer in _NOT_COMPARED:
            continue
        if kept.is_current:
            differs = bool(like is not None and like.card.differences(kept.card))
            candidates.append((differs, len(labels.get("caveats", ())), path.name, kept))
    return min(candidates)[-1] if candidates else None


def changed_since(kept: KeptEvaluation, spec: SourceSpec) -> str:
    """In what the test set at hand is another one than was evaluated; "" where it is the same, or not at hand."""
    split, then = str(kept.result["split"]), kept.result.get("test_set") or {}
    try:
        now = open_source(spec, kept.run.recipe(), val=split != "test").record(split)
    except CalmError:  # numbers are looked at where no data are
        return ""
    if then.get("digest", now.digest) != now.digest:
        return "its clips or captions are others"
    if (then.get("features") or "") != now.features:
        return "its features were extracted anew" if then.get("features") and now.features else ""
    files = kept.card.files
    if files and now.knows_files and files != sha256_bytes(now.contents.encode()):
        return "files of its clips are others"
    return ""


@lru_cache(maxsize=64)  # several evaluations are of the same weights
def _sha256(path: str, stamped: tuple[int, ...]) -> str:
    return sha256_file(Path(path))


@dataclass(frozen=True, slots=True)
class System:
    """One run, or several that differ in the seed alone.

    Attributes:
        name: For people: the run, or the first of them and how many they are.
        metrics: By direction and metric, over its runs.
        intervals: The same, of 95 %: over clips for one run, over clips and seeds for several.
        differences: This minus the first system by direction and metric; empty for the first itself.
    """

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Mapping[str, Spread]]
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, PairedDifference]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems on one test set.

    Attributes:
        weights: Which weights of each run.
        left_out: Clips of it that could not be evaluated, the same for all.
        test_set: Digest of its clips and captions, "" where that was not recorded.
        card: The column of the first run's protocol card, "" where there is none.
        systems: In the order in which their runs were named.
        recipe: The keys in which recipes differ, with the value of each system; the seed is told by the systems.
        caveats: What must be said of these numbers.
    """

    dataset: str
    protocol: str
    split: str
    weights: str
    clips: int
    captions: int
    left_out: int
    test_set: str
    card: str
    systems: tuple[System, ...]
    recipe: Mapping[str, Sequence[Any]]
    caveats: tuple[str, ...]

    @property
    def ways(self) -> list[str]:
        """The directions that are shown."""
        return [way for way in WAYS if way in self.systems[0].metrics]

    @property
    def title(self) -> str:
        """What it is of: "msrvtt 9k, test split, 1,000 captions, 1,000 clips"."""
        name = f"{self.dataset} {self.protocol}".strip()
        return f"{name}, {self.split} split, {counted(self.captions, 'caption')}, {counted(self.clips, 'clip')}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """A row for every system, direction and metric: what `--csv` writes."""
        rows = []
        for system in self.systems:
            for way, metrics in system.metrics.items():
                for name, value in metrics.items():
                    interval = system.intervals[way].get(name)
                    difference = system.differences.get(way, {}).get(name)
                    rows.append(
                        {
                            "system": system.name,
                            "runs": " ".join(system.runs),
                            "seeds": " ".join(map(str, system.seeds)),
                            "dataset": self.dataset,
                            "protocol": self.protocol,
                            "split": self.split,
                            "clips": self.clips,
                            "left_out": self.left_out,
                            "direction": way,
                            "metric": name,
                            "value": value.mean,
                            "std_over_seeds": value.std,
                            "low": interval.low if interval else None,
                            "high": interval.high if interval else None,
                            "difference": difference.difference if difference else None,
                            "difference_low": difference.interval.low if difference else None,
                            "difference_high": difference.interval.high if difference else None,
                            "p": difference.p_value if difference else None,
                        }
                    )
        return rows


def compare_kept(evaluations: Sequence[KeptEvaluation]) -> Comparison:
    """The comparison of evaluations of two or more runs, one each.

    Raises:
        BadInput: They are of other clips or captions, of two tasks, or fewer than two.
        CheckpointError: A run's recipe or anchors were changed since.
        RecipeError: A recipe cannot be read.
    """
    if len(evaluations) < 2:
        raise BadInput("one run has nothing to be compared with; name at least two")
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_same(first, other)
    for each in evaluations:
        require_own_recipe(each.run)
    recipes = [each.run.recipe() for each in evaluations]
    groups = seed_groups(recipes)
    systems: list[System] = []
    for group in groups:
        members = [evaluations[number] for number in group]
        base = [evaluations[number] for number in groups[0]] if systems else None
        systems.append(_system(members, [recipes[number].seed for number in group], base))
    differing = recipe_differences([recipes[group[0]] for group in groups])
    differing.pop("seed", None)
    result = first.result
    caveats = [caveat for each in evaluations for caveat in each.result.get("caveats", ())]
    for other in evaluations[1:]:
        # The same queries, but seen in another way: what a system sees may be what is compared, so it is said.
        if differs := first.card.differences(other.card):
            caveats.append(f"the protocol of {first.run.name} and {other.run.name} differs: {'; '.join(differs)}")
    if all(len(group) == 1 for group in groups):
        caveats.append("one run a system: another seed differs as well, and no interval over clips knows by how much")
    if not first.test_set:
        caveats.append("the test set's digest was not recorded: its clips and captions have the same names, no more")
    return Comparison(
        dataset=str(result["dataset"]),
        protocol=str(result["protocol"]),
        split=str(result["split"]),
        weights=str(first.record["weights"]),
        clips=len(next(iter(first.sums.values())).clips),
        captions=first.n_captions,
        left_out=int(result.get("left_out", 0)),
        test_set=first.test_set,
        card=first.card.column if first.result.get("card") else "",
        systems=tuple(systems),
        recipe=differing,
        caveats=tuple(dict.fromkeys(caveats)),
    )


def _require_same(first: KeptEvaluation, other: KeptEvaluation) -> None:
    """Raise `BadInput` unless both answered the same queries among the same clips."""
    names = f"{first.run.folder} and {other.run.folder}"
    if ("clip_scores" in first.record) != ("clip_scores" in other.record):
        raise BadInput(f"{names} are runs of two tasks, which share no number")
    one, two = first.result, other.result
    same = [first.record.get(key) == other.record.get(key) for key in ("clips", "captions", "owners")]
    if "clip_scores" in first.record:  # whose "captions" are the answers
        same = [first.sums["captions"].clips == other.sums["captions"].clips]
    digests = {first.test_set, other.test_set} - {""}
    if not all(same) or len(digests) > 1:
        raise BadInput(
            f"{names} were tested on other clips or captions ({one['dataset']} {one['protocol']}, "
            f"{counted(len(next(iter(first.sums.values())).clips), 'clip')}, and {two['dataset']} {two['protocol']}, "
            f"{counted(len(next(iter(other.sums.values())).clips), 'clip')}, or their captions differ): they cannot "
            "be compared; evaluate both on the same data"
        )


def seed_groups(recipes: Sequence[Recipe]) -> list[list[int]]:
    """Numbers of the recipes that differ in the seed alone, group by group, in the order of their first."""
    groups: list[list[int]] = []
    for number, recipe in enumerate(recipes):
        for group in groups:
            if set(recipe_differences([recipes[group[0]], recipe])) == {"seed"}:
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _system(members: Sequence[KeptEvaluation], seeds: Sequence[int], base: Sequence[KeptEvaluation] | None) -> System:
    first = members[0]
    ways = [way for way in first.sums if all(way in each.sums for each in (*members, *(base or ())))]
    metrics, intervals, differences = {}, {}, {}
    for way in ways:
        sums, values = [each.sums[way] for each in members], [each.metrics(way) for each in members]
        shared = [name for name in values[0] if all(name in each for each in values)]
        metrics[way] = {name: spread([each[name] for each in values]) for name in shared}
        # One run has the intervals that `eval` printed of it.
        own = first.intervals(way) if len(members) == 1 else {}
        intervals[way] = own or {name: _possible(name, each) for name, each in mean_intervals(sums).items()}
        if base is not None:
            differences[way] = differences_over_seeds([each.sums[way] for each in base], sums)
    more = f" and {counted(len(members) - 1, 'other seed')}" if len(members) > 1 else ""
    return System(
        name=f"{first.run.name}{more}",
        runs=tuple(str(each.run.folder) for each in members),
        seeds=tuple(seeds),
        metrics=metrics,
        intervals=intervals,
        differences=differences,
    )


def _possible(metric: str, interval: Interval) -> Interval:
    """An interval without what no number can be: Student's t knows of no least rank and no largest share."""
    least, most = (1.0 if metric == "mnr" else 0.0), (100.0 if metric in RECALLS else np.inf)
    return Interval(max(least, interval.low), float(min(most, interval.high)))


# A comparison as a table for papers and pages. What a reader must know of its numbers stands below it.


def paper_notes(comparison: Comparison) -> list[str]:
    """Footnotes: protocol, clips that are missing, how spread and intervals were made, and what else must be said."""
    name = f"{comparison.dataset} {comparison.protocol}".strip()
    notes = [
        f"{name}, {comparison.split} split: {counted(comparison.captions, 'caption')}, "
        f"{counted(comparison.clips, 'clip')}; weights: {comparison.weights}"
        + ("" if "captions" in comparison.ways else "; leak-free scoring, ties averaged")
        + (f"; protocol card {comparison.card}" if comparison.card else "")
        + "."
    ]
    missing = comparison.left_out
    notes.append(
        f"{counted(missing, 'clip')} of the test set {'is' if missing == 1 else 'are'} missing: fewer candidates make "
        "retrieval easier."
        if missing
        else "No clip of the test set is missing."
    )
    several = [system for system in comparison.systems if len(system.runs) > 1]
    if several:
        notes.append("± is the sample standard deviation over seeds.")
    notes.append(
        "Differences from the first row are paired over clips, with 95 % intervals by Student's t over clips"
        f"{' and seeds' if several else ''}."
    )
    return notes + [f"{caveat}." for caveat in comparison.caveats]


def paper_rows(comparison: Comparison, way: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one direction, in plain text: numbers, and the difference of the first metric."""
    names = list(comparison.systems[0].metrics[way])
    main = names[0]
    headings = ["system", *(METRIC_NAMES[name] for name in names), f"difference in {METRIC_NAMES[main]}", "p"]
    rows = []
    for system in comparison.systems:
        cells = [system.name]
        for name in names:
            value = system.metrics[way].get(name)
            cells.append("" if value is None else str(value))
        difference = system.differences.get(way, {}).get(main)
        if difference is None:
            cells += ["", ""]
        else:
            low, high = difference.interval.low, difference.interval.high
            cells += [f"{difference.difference:+z.1f} ({low:+z.1f} to {high:+z.1f})", f"{difference.p_value:z.3f}"]
        rows.append(cells)
    return headings, rows


def markdown(comparison: Comparison) -> str:
    """A table in Markdown for each direction, and the notes."""
    parts = []
    for way in comparison.ways:
        headings, rows = paper_rows(comparison, way)
        lines = [f"**{comparison.dataset} {comparison.protocol}**, {WAYS[way]}".replace(" **,", "**,"), ""]
        lines.append(f"| {' | '.join(headings)} |")
        lines.append(f"|{'---|' + '---:|' * (len(headings) - 1)}")
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        parts.append("\n".join(lines))
    notes = "\n".join(f"- {note}" for note in paper_notes(comparison))
    return "\n\n".join([*parts, notes]) + "\n"


def latex(comparison: Comparison) -> str:
    """A `tabular` by the rules of the package booktabs, a part for each direction, with the notes below."""
    parts = [paper_rows(comparison, way) for way in comparison.ways]
    headings = parts[0][0]
    width = len(headings)
    lines = [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
    lines.append(" & ".join(_latex(each) for each in headings) + r" \\")
    for way, (_, rows) in zip(comparison.ways, parts, strict=True):
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{WAYS[way]}}}}} \\"]
        lines += [" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows]
    lines.append(r"\bottomrule")
    for note in paper_notes(comparison):
        lines.append(rf"\multicolumn{{{width}}}{{p{{0.95\linewidth}}}}{{\footnotesize {_latex(note)}}} \\")
    return "\n".join([f"% {comparison.title}", *lines, r"\end{tabular}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def _latex(text: str) -> str:
    """Plain text as LaTeX sets it: a file's name may hold anything. A number's sign becomes a minus."""
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", "".join(_LATEX.get(c, c) for c in text))


def recipe_rows(comparison: Comparison) -> list[list[str]]:
    """The keys in which recipes differ, a row each, with every system's value as JSON writes it."""
    return [[key, *(json.dumps(value).strip('"') for value in values)] for key, values in comparison.recipe.items()]
