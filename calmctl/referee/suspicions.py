"""What is likely wrong with scores, and the evidence: shifted ids, distances, leaks, copies, scores of all at once.

One pass over the scores gathers a `Survey`; nothing of it is as large as they are. Each check then compares what it
found with what scores of a working model cannot give by chance. A check says nothing where it has too little to say it
from; what cannot be told at all is in docs/score.md, and how often the checks are right benchmarks/planted.py measures.

The unit of most checks is the standing of a pair: how many standard deviations of its row it lies above its row's mean.
True pairs of a working model stand high. If pairs one column further on stand higher, the ids are shifted by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmctl.words import counted

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

FEWEST_CLIPS = 20
"""Of fewer clips the checks of pairing, leaks and normalisation say nothing."""
SAMPLE = 1200  # clips whose scores among each other are kept, for what needs a whole matrix
_SURE = 6.0  # standard errors: an alternative must be better by so many
_CHANCE = 2.6  # the true pairs of a working model stand higher than by so many standard errors
_EXACT = 1e-5
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something that is likely wrong.

    Attributes:
        kind: A short name, the same wherever it is found.
        text: What, where and what to do, in a sentence.
        evidence: The numbers that the sentence rests on.
    """

    kind: str
    text: str
    evidence: Mapping[str, Any]


class Survey:
    """What one pass over scores [N_t, N_v] leaves behind for the checks."""

    def __init__(self, owners: Integers, n_videos: int, alternatives: Mapping[str, Integers]) -> None:
        """`alternatives`: by name, other columns than `owners` that the texts' videos might be in, [N_t] each."""
        self.owners, self.alternatives = owners, alternatives
        rng = np.random.default_rng(0)
        n_texts = len(owners)
        self.shape = (n_texts, n_videos)
        self._weights = rng.standard_normal(n_texts), rng.standard_normal(n_videos)
        self.row_low, self.row_high, self.row_mean, self.row_std, self.row_mark = np.zeros((5, n_texts))
        self.column_low, self.column_high = np.full(n_videos, np.inf), np.full(n_videos, -np.inf)
        self.column_sum, self.column_squares, self.column_mark = np.zeros((3, n_videos))
        self.nan_rows, self.infinite_rows = np.zeros((2, n_texts), np.int64)
        self.nan_columns, self.infinite_columns = np.zeros((2, n_videos), np.int64)
        self.standing = np.zeros(n_texts)
        self.other_standing = {name: np.zeros(n_texts) for name in alternatives}
        clips, first = np.unique(owners, return_index=True)
        chosen = np.sort(rng.permutation(len(clips))[:SAMPLE])
        self.sample_texts, self.sample_videos = first[chosen], clips[chosen]
        self.sample = np.zeros((len(chosen), len(chosen)))
        self._place = {int(text): place for place, text in enumerate(self.sample_texts)}

    def add(self, rows: Integers, block: NDArray[Any]) -> None:
        """Take in the scores `block` [B, N_v] of the texts `rows` [B]."""
        finite = np.isfinite(block)
        if not finite.all():
            nan = np.isnan(block)
            self.nan_rows[rows], self.infinite_rows[rows] = nan.sum(1), (~finite & ~nan).sum(1)
            self.nan_columns += nan.sum(0)
            self.infinite_columns += (~finite & ~nan).sum(0)
            block = np.where(finite, block, 0)
        doubles = block.astype(np.float64, copy=False)
        self.row_low[rows], self.row_high[rows] = doubles.min(1), doubles.max(1)
        self.row_mean[rows], self.row_std[rows] = doubles.mean(1), doubles.std(1)
        self.row_mark[rows] = doubles @ self._weights[1]
        self.column_low = np.minimum(self.column_low, doubles.min(0))
        self.column_high = np.maximum(self.column_high, doubles.max(0))
        self.column_sum += doubles.sum(0)
        self.column_squares += (doubles**2).sum(0)
        self.column_mark += self._weights[0][rows] @ doubles
        within, scale = np.arange(len(rows)), np.where(self.row_std[rows] > 0, self.row_std[rows], np.inf)
        self.standing[rows] = (doubles[within, self.owners[rows]] - self.row_mean[rows]) / scale
        for name, columns in self.alternatives.items():
            self.other_standing[name][rows] = (doubles[within, columns[rows]] - self.row_mean[rows]) / scale
        for number, text in enumerate(rows.tolist()):
            if (place := self._place.get(text)) is not None:
                self.sample[place] = doubles[number, self.sample_videos]

    @cached_property
    def advantage(self) -> dict[str, float] | None:
        """As `diagonal_advantage`, of the sampled clips whose rows and columns were computed."""
        kept = (self.row_low < self.row_high)[self.sample_texts]
        kept &= (self.column_low < self.column_high)[self.sample_videos]
        return diagonal_advantage(self.sample[np.ix_(kept, kept)])

    def over_clips(self, values: Doubles, texts: NDArray[np.bool_] | None = None) -> tuple[float, float, int]:
        """Mean of `values` [N_t] over the clips of `texts`, how many standard errors it is from 0, and their number."""
        texts = np.ones(len(values), bool) if texts is None else texts
        _, cluster, sizes = np.unique(self.owners[texts], return_inverse=True, return_counts=True)
        means = np.bincount(cluster, values[texts]) / sizes
        if len(means) < 2:
            return 0.0, 0.0, len(means)
        error = means.std(ddof=1) / len(means) ** 0.5
        mean = float(means.mean())
        return mean, float(np.clip(mean / max(error, 1e-300), -1e6, 1e6)), len(means)


def possible_alignments(
    rows: Integers, owners: Integers, text_ids: Sequence[str], video_ids: Sequence[str]
) -> dict[str, Integers]:
    """Mistakes that programs make, each as the column that a text's video would then be in, [N_t] each.

    Args:
        rows: The row of each text in its file, [N_t]: what is shifted is a file.
        owners: The column of its video as the ids say, [N_t].
        text_ids: Of the texts, [N_t].
        video_ids: Of the columns.
    """
    n_texts, n_videos = len(owners), len(video_ids)
    in_file = np.argsort(rows, kind="stable")
    listed = owners[in_file]  # in the order of the file's rows

    def of_rows(columns: Integers) -> Integers:
        by_text = np.empty_like(columns)
        by_text[in_file] = columns
        return by_text

    alignments = {
        "the columns are shifted by one to the right": (owners + 1) % n_videos,
        "the columns are shifted by one to the left": (owners - 1) % n_videos,
        "the rows are shifted by one downwards": of_rows(np.roll(listed, 1)),
        "the rows are shifted by one upwards": of_rows(np.roll(listed, -1)),
        "the columns are in reverse order": n_videos - 1 - owners,
        "the rows are in reverse order": of_rows(listed[::-1]),
    }
    if n_texts > n_videos and n_texts % n_videos == 0:
        number = np.arange(n_texts)
        alignments["the rows go through all videos, then through all again"] = of_rows(number % n_videos)
        alignments["the rows go through all captions of a video, then of the next"] = of_rows(
            number // (n_texts // n_videos)
        )
    for how, key in (("as text", str), ("by their numbers", _by_number)):
        place = {name: n for n, name in enumerate(sorted(video_ids, key=key))}
        alignments[f"the columns are in the order of their ids sorted {how}"] = np.array(
            [place[video_ids[owner]] for owner in owners.tolist()]
        )
        ordered = sorted(range(n_texts), key=lambda text: key(text_ids[text]))
        alignments[f"the rows are in the order of their ids sorted {how}"] = of_rows(owners[np.array(ordered)])
    if n_texts == n_videos and len(np.unique(owners)) == n_videos:
        inverse = np.empty_like(owners)  # row r would be a video and column c a text: whose video is r?
        in_rows = np.empty_like(owners)
        in_rows[in_file] = np.arange(n_texts)
        inverse[owners] = in_rows
        alignments[TRANSPOSED] = inverse[in_rows]
    different = [(owners, "")]  # one caption a clip: to shift columns one way is to shift rows the other
    for name, columns in alignments.items():
        if not any(np.array_equal(columns, other) for other, _ in different):
            different.append((columns, name))
    return {name: columns for columns, name in different[1:]}


TRANSPOSED = "rows and columns have changed places"


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name[:500])]


def look(survey: Survey, text_ids: Sequence[str], video_ids: Sequence[str]) -> list[Suspicion]:
    """All checks that scores alone allow, the gravest first."""
    suspicions = [*_not_numbers(survey, text_ids, video_ids), *_constant(survey, text_ids, video_ids)]
    suspicions += [*_pairing(survey), *_copies(survey, text_ids, video_ids), *_filled(survey), *_normalised(survey)]
    return [*suspicions, *_near_one(survey), *_leak_in(survey)]


def _named(which: Iterable[int], ids: Sequence[str]) -> str:
    names = [str(ids[each])[:60] for each in list(which)[: _NAMED + 1]]
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _not_numbers(survey: Survey, text_ids: Sequence[str], video_ids: Sequence[str]) -> Iterable[Suspicion]:
    for kind, rows, columns, what in (
        ("nan", survey.nan_rows, survey.nan_columns, "NaN"),
        ("infinite", survey.infinite_rows, survey.infinite_columns, "infinite"),
    ):
        if total := int(rows.sum()):
            texts, videos = np.flatnonzero(rows), np.flatnonzero(columns)
            yield Suspicion(
                kind,
                f"{counted(total, 'score')} of {survey.shape[0] * survey.shape[1]:,} "
                f"{'is' if total == 1 else 'are'} {what}, in {counted(len(texts), 'row')} "
                f"({_named(texts, text_ids)}) and {counted(len(videos), 'column')} ({_named(videos, video_ids)}): a "
                "feature is missing or damaged there; make these scores again or leave the rows or columns out",
                {"scores": total, "rows": len(texts), "columns": len(videos)},
            )


def _constant(survey: Survey, text_ids: Sequence[str], video_ids: Sequence[str]) -> Iterable[Suspicion]:
    rows = np.flatnonzero(survey.row_low == survey.row_high)
    columns = np.flatnonzero(survey.column_low == survey.column_high)
    for kind, which, ids, noun, values in (
        ("constant rows", rows, text_ids, "row", survey.row_low),
        ("constant columns", columns, video_ids, "column", survey.column_low),
    ):
        if len(which) and 1 not in survey.shape:
            yield Suspicion(
                kind,
                f"{counted(len(which), noun)} of {len(ids):,} {'has' if len(which) == 1 else 'have'} the same score "
                f"everywhere ({_named(which, ids)}; {values[which[0]]:.4g}): nothing was computed there, or its "
                "features are zeros",
                {"count": len(which), "value": float(values[which[0]])},
            )


def _pairing(survey: Survey) -> Iterable[Suspicion]:
    """Distances, another alignment that fits better, or none that fits at all."""
    mean, errors, clips = survey.over_clips(survey.standing)
    if clips < FEWEST_CLIPS or not survey.row_std.any():
        return
    better = []
    for name, columns in survey.alternatives.items():
        differs = columns != survey.owners
        change, sure, counted_clips = survey.over_clips(survey.other_standing[name] - survey.standing, differs)
        if sure > _SURE and counted_clips >= FEWEST_CLIPS:
            own = survey.over_clips(survey.standing, differs)[0]
            other, above, _ = survey.over_clips(survey.other_standing[name], differs)
            if above > _SURE:  # of distances, any other alignment is better than the true one
                better.append((change, name, own, other, sure))
    if better:
        _, name, own, other, sure = max(better)
        yield Suspicion(
            "transposed" if name == TRANSPOSED else "shifted",
            f"{name}, or so it looks: the pairs that would then be the true ones stand {other:z.2f} standard "
            f"deviations above their rows' means, and those that the ids say {own:+z.2f}; "
            + ("give --transpose" if name == TRANSPOSED else "compare the order of the ids with that of the scores"),
            {"own": own, "other": other, "standard_errors": sure},
        )
    elif errors < -4.0:
        yield Suspicion(
            "distances",
            f"true pairs score lower than others, {-mean:z.2f} standard deviations below their rows' means: these are "
            "distances, or a sign is wrong; give --distances",
            {"own": mean, "standard_errors": errors},
        )
    elif errors < _CHANCE:
        yield Suspicion(
            "chance",
            f"true pairs score like any others ({mean:+z.2f} standard deviations from their rows' means, over "
            f"{counted(clips, 'clip')}): the ids belong to other rows or columns, or the model has learned nothing; "
            "scores alone cannot tell which",
            {"own": mean, "standard_errors": errors},
        )


def _copies(survey: Survey, text_ids: Sequence[str], video_ids: Sequence[str]) -> Iterable[Suspicion]:
    n_texts, n_videos = survey.shape
    rows = np.stack([survey.row_mark, survey.row_mean, survey.row_std, survey.row_low, survey.row_high])
    columns = np.stack(
        [survey.column_mark, survey.column_sum, survey.column_squares, survey.column_low, survey.column_high]
    )
    varied_rows = survey.row_low < survey.row_high
    varied_columns = survey.column_low < survey.column_high
    for kind, marks, varied, ids, noun, width, advice in (
        ("equal rows", rows, varied_rows, text_ids, "row", n_videos, "one caption stands there twice"),
        ("equal columns", columns, varied_columns, video_ids, "column", n_texts, "one video stands there twice"),
    ):
        groups = _equal(marks, np.flatnonzero(varied)) if width > 2 else []
        if groups:
            count = sum(map(len, groups))
            yield Suspicion(
                kind,
                f"{counted(count, noun)} equal another one ({_named(groups[0], ids)}): {advice}, or its "
                "features were written twice; of true copies no more than one can come first",
                {"count": count, "groups": len(groups), "first": [ids[each] for each in groups[0][:10]]},
            )


def _equal(marks: Doubles, which: Integers) -> list[list[int]]:
    """Groups of `which` whose marks [M, N] all agree to rounding; the first mark is a random projection."""
    order = which[np.argsort(marks[0, which], kind="stable")]
    scale = np.abs(marks).max(1, initial=0.0)[:, None] + 1e-300
    same = (np.abs(np.diff(marks[:, order], axis=1)) <= 1e-12 * scale).all(0)
    groups: list[list[int]] = []
    for place in np.flatnonzero(same):
        if groups and groups[-1][-1] == order[place]:
            groups[-1].append(int(order[place + 1]))
        else:
            groups.append([int(order[place]), int(order[place + 1])])
    return groups


def _off_own(survey: Survey) -> Doubles:
    return survey.sample[~np.eye(len(survey.sample), dtype=bool)]


def _filled(survey: Survey) -> Iterable[Suspicion]:
    """One value that stands where others are all different: what was not computed."""
    varied_rows = (survey.row_low < survey.row_high)[survey.sample_texts]
    varied_columns = (survey.column_low < survey.column_high)[survey.sample_videos]
    values = survey.sample[np.ix_(varied_rows, varied_columns)].ravel()
    values = values[:: 1 + len(values) // 100_003]  # a hundred thousand tell as much
    if len(values) < 400:
        return
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < 3:
        return
    place = int(counts.argmax())
    most, second = int(counts[place]), int(np.delete(counts, place).max())
    share = most / len(values)
    if share > 0.002 and most > 20 and most > 5 * second:
        value = float(distinct[place])
        yield Suspicion(
            "filled",
            f"{100 * share:z.1f} % of the scores are exactly {value:.4g}, and no other value is near as frequent: they "
            "were not computed, or only the best were kept; ranks behind them mean nothing",
            {"value": value, "share": share},
        )


def _normalised(survey: Survey) -> Iterable[Suspicion]:
    """Sums that agree better than chance allows: a softmax, or another use of all queries at once."""
    n_texts, n_videos = survey.shape
    if min(n_texts, n_videos) < 2 * FEWEST_CLIPS:
        return
    row_sums = survey.row_mean * n_videos
    total = survey.column_sum.sum() / (n_texts * n_videos)
    variance = survey.column_squares.sum() / (n_texts * n_videos) - total**2
    if variance <= 0:
        return
    # Independent scores give sums of a ratio near 1. Vectors of few dimensions may come to 0.1 by chance, and to none
    # of what an exact normalisation leaves after rounding.
    column_ratio = float(survey.column_sum.var(ddof=1) / (n_texts * variance))
    row_ratio = float(row_sums.var(ddof=1) / (n_videos * variance))
    positive = survey.column_low.min() >= -1e-3 * survey.column_high.max()
    peaked = positive and float(np.median(survey.column_high / np.maximum(survey.column_sum, 1e-300))) > 0.1
    evidence = {"column_ratio": column_ratio, "row_ratio": row_ratio, "column_sums": float(survey.column_sum.mean())}
    if max(column_ratio, row_ratio) < _EXACT and positive:
        text = "rows and columns have the same sums: the matrix is doubly stochastic (Sinkhorn, or a dual softmax)"
    elif column_ratio < _EXACT and positive:
        text = f"every column sums to {evidence['column_sums']:.3g}: a softmax over all texts, or Sinkhorn's steps"
    elif column_ratio < _EXACT:
        text = "all columns have the same mean: scores were normalised over all texts, as QB-Norm and z-scores do"
    elif row_ratio < _EXACT:
        yield Suspicion(
            "normalised rows",
            f"every row has the same {'sum' if positive else 'mean'}: scores were normalised over all videos, which "
            "leaves text to video as it is and changes video to text, whose queries then know one another",
            evidence,
        )
        return
    elif column_ratio < 0.25 and peaked:
        text = "columns have nearly the same sums, each of a few scores: a dual softmax was applied"
    else:
        return
    yield Suspicion(
        "normalised columns",
        f"{text}; each query's scores depend on all other queries, so this number cannot stand beside one that was "
        "made a query at a time (docs/protocols.md)",
        evidence,
    )


def _near_one(survey: Survey) -> Iterable[Suspicion]:
    low, high = survey.row_low.min(), survey.row_high.max()
    others = _off_own(survey)
    if low >= -1.001 and high <= 1.001 and len(others) > 100 and others.mean() > 0.9 and others.std() < 0.1:
        yield Suspicion(
            "near one",
            f"all cosines are near one (wrong pairs {others.mean():z.4f}, standard deviation {others.std():.1g}): the "
            "embeddings share one large component; in half precision such scores tie; subtract the mean of the "
            "training set's embeddings, or compute in float32",
            {"mean": float(others.mean()), "std": float(others.std())},
        )


def _leak_in(survey: Survey) -> Iterable[Suspicion]:
    lead = survey.advantage
    # Of an honest lead at most the part that lies in D dimensions which were not predicted, sqrt(D (1 - fit)), is left.
    if lead is not None and lead["standard_errors"] > 8 and lead["share"] > 0.02 + 20 * (1 - lead["fit"]) ** 0.5:
        yield Suspicion(
            "leak",
            f"true pairs score higher than all other scores predict, by {100 * lead['share']:z.0f} % of their lead, "
            "and wrong pairs do not: the scorer knew which pair is true",
            lead,
        )


def diagonal_advantage(sample: Doubles) -> dict[str, float] | None:
    """How much higher true pairs score than the other scores predict; None where they predict too little.

    Scores of one vector a side are a matrix of rank D. Of three groups of clips A, B, C, the block S[A, A], which holds
    true pairs, is then S[A, B] S[C, B]^+ S[C, A], in which there are none. The permutation that pairs the clips can be
    read off a leak alone: any other permutation of the predicted block has no lead. With fewer than 3 D clips, or with
    pooling by the text, the prediction is poor, and nothing can be said.

    Args:
        sample: Scores of n texts and their n videos, true pairs on the diagonal.
    """
    n = len(sample) // 3
    if n < FEWEST_CLIPS:
        return None
    order = np.random.default_rng(1).permutation(len(sample))
    a, b, c = order[:n], order[n : 2 * n], order[2 * n : 3 * n]
    target, left, right = sample[np.ix_(a, a)], sample[np.ix_(a, b)], sample[np.ix_(c, a)]
    u, s, vt = np.linalg.svd(sample[np.ix_(c, b)])
    if not s[0] > 0:
        return None
    others = ~np.eye(n, dtype=bool)
    best: dict[str, float] | None = None
    for least in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2):
        kept = s > least * s[0]
        # Noise that is inverted as well hides what can be predicted: the cut that predicts best is taken.
        rest = target - (left @ vt[kept].T / s[kept]) @ (u[:, kept].T @ right)
        fit = 1 - float(rest[others].var() / max(target[others].var(), 1e-300))
        lead = float(np.diag(target).mean() - target[others].mean())
        own = float(np.diag(rest).mean() - rest[others].mean())
        error = float(max(rest[others].std(), np.diag(rest).std(ddof=1)) / n**0.5)
        if best is None or fit > best["fit"]:
            sure = min(own / max(error, 1e-300), 1e6)
            best = {"fit": fit, "share": own / lead if lead > 0 else 0.0, "standard_errors": sure, "clips": float(n)}
    return best if best is not None and best["fit"] > 0.9999 else None


def compare_with_embeddings(survey: Survey, recomputed: Callable[[Integers, Integers], Doubles]) -> list[Suspicion]:
    """Whether the scores are those of embeddings, and whether true pairs got more than the embeddings give them.

    Args:
        survey: Of the scores.
        recomputed: Scores [n, m] of texts [n] and videos [m] from their embeddings.
    """
    given, ours = survey.sample, np.asarray(recomputed(survey.sample_texts, survey.sample_videos), dtype=np.float64)
    others = ~np.eye(len(given), dtype=bool)
    if len(given) < FEWEST_CLIPS:
        return []
    slope, constant = np.polyfit(ours[others], given[others], 1)
    rest = given - (slope * ours + constant)
    alike = float(np.corrcoef(ours[others], given[others])[0, 1])
    own = np.diag(rest)
    error = max(float(rest[others].std()), float(own.std(ddof=1))) / len(own) ** 0.5
    lead = float(np.diag(given).mean() - given[others].mean())
    evidence = {"correlation": alike, "advantage": float(own.mean()), "lead": lead}
    if alike < 0.5:
        return [
            Suspicion(
                "other embeddings",
                f"the scores are not those of these embeddings (correlation of wrong pairs {alike:z.2f}): another "
                "model's, or rows in another order",
                evidence,
            )
        ]
    if own.mean() > 0.05 * abs(lead) and own.mean() > 8 * error:
        return [
            Suspicion(
                "leak",
                f"true pairs score {own.mean():.3g} higher than their embeddings give, "
                f"{100 * own.mean() / lead:z.0f} % of their lead, and wrong pairs do not: "
                "the scorer knew which pair is true",
                evidence | {"standard_errors": float(min(own.mean() / max(error, 1e-300), 1e6))},
            )
        ]
    return []


def look_at_norms(norms: Mapping[str, Doubles]) -> list[Suspicion]:
    """Under dot products the length of a vector counts: lengths that differ decide ranks, by text or video."""
    suspicions = []
    for side, lengths in norms.items():
        spread = float(lengths.std() / max(lengths.mean(), 1e-300))
        if spread > 0.01:
            suspicions.append(
                Suspicion(
                    f"{side} norms",
                    f"the {side}s' vectors are not normalised, their lengths go from {lengths.min():.3g} to "
                    f"{lengths.max():.3g}, and a dot product counts them; give --similarity cosine, unless the model "
                    "was trained with dot products",
                    {"spread": spread, "least": float(lengths.min()), "most": float(lengths.max())},
                )
            )
    return suspicions
