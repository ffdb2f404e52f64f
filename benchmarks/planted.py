"""How often the referee finds what is wrong with scores, and how often it suspects honest ones.

    python benchmarks/planted.py                  # 200 draws of every kind; some minutes on one core
    python benchmarks/planted.py --draws 20 --kind leak

Honest scores are of two makes: correlated Gaussians with effects of rows and columns, and cosines of embeddings of 16
to 512 dimensions that share a component. 100 to 600 clips, one or five captions each, R@1 from 1 to 90 %; a third is
quantised to steps so coarse that true pairs tie, or to half precision. Each kind of fault is planted in such scores; it
is found where the referee names it, alone or beside others. A false alarm is any suspicion of honest scores, among
which are some that look like faults: neighbours that are alike, few clips, a falling spectrum, pooling by the text.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from calmctl.errors import BadInput
from calmctl.referee.score_files import Pairs
from calmctl.referee.scores import Embeddings, Matrix, Scores, examine, match

Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """Scores, and what the referee is told of them."""

    scores: np.ndarray
    pairs: dict[str, str]
    text_ids: list[str]
    video_ids: list[str]
    captions: int
    vectors: tuple[np.ndarray, np.ndarray] | None = None
    candidates: tuple[str, ...] | None = None
    similarity: str = ""  # the vectors are scored, and not the matrix
    recompute: bool = False  # the vectors are given beside the matrix


def honest(
    rng: Rng,
    *,
    captions: int | None = None,
    vectors: bool | None = None,
    exact: bool = False,
    dimensions: int | None = None,
    clips: int | None = None,
) -> Case:
    """Scores of a working model; ids are of clips in an order of no meaning."""
    while True:
        made = _draw(rng, captions, vectors, exact, dimensions, clips)
        owners = np.array([made.video_ids.index(made.pairs[text]) for text in made.text_ids])
        own = made.scores[np.arange(len(owners)), owners][:, None]
        r1 = float(((made.scores > own).sum(1) + ((made.scores == own).sum(1) - 1) / 2 < 0.75).mean())
        if 0.01 <= r1 <= 0.9:
            return made


def _draw(
    rng: Rng, captions: int | None, vectors: bool | None, exact: bool, size: int | None, clips: int | None
) -> Case:
    captions = int(rng.choice([1, 1, 5])) if captions is None else captions
    n_videos = int(rng.choice([100, 200, 300] if captions > 1 else [100, 200, 400, 600])) if clips is None else clips
    owners = np.repeat(np.arange(n_videos), captions)
    quality = rng.uniform(1.2, 5.0)
    vectors = bool(rng.random() < 0.5) if vectors is None else vectors
    sides = None
    if vectors:
        dim = int(rng.choice([16, 64, 256, 512])) if size is None else size
        noise = max(dim / quality**2 - 1, 0.05) ** 0.5
        shared = rng.normal(size=dim) * rng.uniform(0, 1)
        videos = rng.normal(size=(n_videos, dim))
        texts = videos[owners] + noise * rng.normal(size=(len(owners), dim))
        sides = tuple((each / each.std() + shared).astype(np.float32) for each in (texts, videos))
        units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in sides]
        scores = units[0] @ units[1].T
    else:
        scores = rng.normal(size=(len(owners), n_videos))
        scores += rng.uniform(0, 0.7) * rng.normal(size=n_videos) + rng.uniform(0, 0.7) * rng.normal(
            size=(len(owners), 1)
        )
        scores[np.arange(len(owners)), owners] += quality + 0.3 * rng.normal(size=n_videos)[owners]
        scores *= 0.06
    if not exact and (rough := rng.random()) < 0.33:
        step = scores.std() / rng.choice([4, 8, 16])
        scores = scores.astype(np.float16) if rough < 0.11 else np.round(scores / step) * step
    names = [f"v{number}" for number in rng.permutation(n_videos)]
    texts_named = [f"t{number}" for number in rng.permutation(len(owners))]
    pairs = {text: names[owner] for text, owner in zip(texts_named, owners, strict=True)}
    return Case(scores.astype(np.float32), pairs, texts_named, names, captions, sides)


# Faults. Each takes a generator and gives a case in which it is planted.


def _softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def transposed(rng: Rng) -> Case:
    case = honest(rng, captions=5)
    return replace(case, scores=case.scores.T, text_ids=case.video_ids, video_ids=case.text_ids)


def transposed_without_ids(rng: Rng) -> Case:
    """Square, and the pairs are not those of a symmetric order: rows and columns have their numbers for names."""
    case = honest(rng, captions=1)
    order = rng.permutation(len(case.scores))  # the video of text t is in column order[t]
    scores = np.empty_like(case.scores)
    scores[:, order] = case.scores
    numbers = [str(number) for number in range(len(order))]
    return replace(
        case,
        scores=scores.T,
        pairs={str(t): str(v) for t, v in enumerate(order)},
        text_ids=numbers,
        video_ids=numbers,
    )


def shifted_columns(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=np.roll(case.scores, rng.choice([-1, 1]), axis=1))


def shifted_rows(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=np.roll(case.scores, rng.choice([-1, 1]), axis=0))


def permuted(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=case.scores[:, rng.permutation(case.scores.shape[1])])


def interleaved(rng: Rng) -> Case:
    case = honest(rng, captions=5)
    return replace(
        case, scores=case.scores.reshape(-1, 5, case.scores.shape[1]).swapaxes(0, 1).reshape(case.scores.shape)
    )


def reversed_columns(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=case.scores[:, ::-1])


def sorted_columns(rng: Rng) -> Case:
    """Columns in the order of a sorted listing, v10 before v2, and a list of ids in another."""
    case = honest(rng)
    return replace(case, scores=case.scores[:, np.argsort(case.video_ids)])


def distances(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=1 - case.scores)


def _some(rng: Rng, n: int, most: int = 5) -> np.ndarray:
    return rng.permutation(n)[: int(rng.integers(1, most + 1))]


def constant_rows(rng: Rng) -> Case:
    case = honest(rng)
    scores = case.scores.copy()
    scores[_some(rng, len(scores))] = rng.choice([0.0, 1.0, -1.0])
    return replace(case, scores=scores)


def constant_columns(rng: Rng) -> Case:
    case = honest(rng)
    scores = case.scores.copy()
    scores[:, _some(rng, scores.shape[1])] = rng.choice([0.0, 1.0, -1.0])
    return replace(case, scores=scores)


def equal_rows(rng: Rng) -> Case:
    case = honest(rng)
    scores = case.scores.copy()
    one, other = rng.permutation(len(scores))[:2]
    scores[one] = scores[other]
    return replace(case, scores=scores)


def equal_columns(rng: Rng) -> Case:
    case = honest(rng)
    scores = case.scores.copy()
    one, other = rng.permutation(scores.shape[1])[:2]
    scores[:, one] = scores[:, other]
    return replace(case, scores=scores)


def copied_video(rng: Rng) -> Case:
    case = honest(rng, vectors=True)
    assert case.vectors is not None
    videos = case.vectors[1].copy()
    one, other = rng.permutation(len(videos))[:2]
    videos[one] = videos[other]
    return replace(case, vectors=(case.vectors[0], videos), similarity="cosine")


def one_nan(rng: Rng) -> Case:
    case = honest(rng)
    scores = case.scores.copy()
    scores[rng.integers(len(scores)), rng.integers(scores.shape[1])] = np.nan
    return replace(case, scores=scores)


def filled(rng: Rng) -> Case:
    case = honest(rng, exact=True)
    return replace(case, scores=np.where(rng.random(case.scores.shape) < rng.uniform(0.01, 0.3), 0, case.scores))


def best_kept(rng: Rng) -> Case:
    case = honest(rng)
    least = -np.sort(-case.scores, axis=1)[:, [int(rng.choice([5, 10, 20]))]]
    return replace(case, scores=np.where(case.scores > least, case.scores, rng.choice([0.0, -1.0, -np.inf])))


def softmax_of_texts(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=_softmax(rng.choice([20, 50, 100]) * case.scores, 0).astype(np.float32))


def softmax_of_videos(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=_softmax(rng.choice([20, 50, 100]) * case.scores, 1).astype(np.float32))


def dual_softmax(rng: Rng) -> Case:
    """Cosines as CLIP's, true pairs near 0.3 and others near 0.1, and the field's factor of 100."""
    case = honest(rng)
    scores = 0.2 + case.scores / case.scores.std() * 0.05
    return replace(case, scores=(scores * _softmax(100 * scores, 0)).astype(np.float32))


def sinkhorn(rng: Rng) -> Case:
    case = honest(rng)
    powers = np.exp(20 * case.scores.astype(np.float64))
    for _ in range(100):
        powers /= powers.sum(0)
        powers /= powers.sum(1, keepdims=True)
    return replace(case, scores=(powers / powers.sum(0)).astype(np.float32))


def column_z_scores(rng: Rng) -> Case:
    case = honest(rng)
    return replace(case, scores=((case.scores - case.scores.mean(0)) / case.scores.std(0)).astype(np.float32))


def _lengths(case: Case, side: int, rng: Rng) -> Case:
    assert case.vectors is not None
    vectors = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in case.vectors]
    vectors[side] = vectors[side] * np.exp(rng.uniform(0.03, 0.5) * rng.normal(size=(len(vectors[side]), 1)))
    return replace(case, vectors=(vectors[0], vectors[1]), similarity="dot")


def video_lengths(rng: Rng) -> Case:
    return _lengths(honest(rng, vectors=True), 1, rng)


def text_lengths(rng: Rng) -> Case:
    return _lengths(honest(rng, vectors=True), 0, rng)


def near_one(rng: Rng) -> Case:
    case = honest(rng, vectors=True)
    assert case.vectors is not None
    shared = rng.normal(size=case.vectors[0].shape[1]) * rng.uniform(6, 20)
    return replace(case, vectors=(case.vectors[0] + shared, case.vectors[1] + shared), similarity="cosine")


def _leaked(case: Case, rng: Rng, least: float) -> Case:
    scores = case.scores.copy()
    owners = np.array([case.video_ids.index(case.pairs[text]) for text in case.text_ids])
    texts = np.arange(len(owners))
    lead = scores[texts, owners].mean() - scores.mean()
    scores[texts, owners] += rng.uniform(least, 1.0) * lead
    return replace(case, scores=scores)


def leak_beside_embeddings(rng: Rng) -> Case:
    return replace(_leaked(honest(rng, vectors=True, exact=True), rng, 0.15), recompute=True)


def leak_in_low_rank(rng: Rng) -> Case:
    """Scores of one vector a side, at least six times as many clips as dimensions, and nothing else is given."""
    dim = int(rng.choice([16, 32, 64]))
    return _leaked(
        honest(rng, vectors=True, exact=True, dimensions=dim, clips=int(rng.choice([400, 600])), captions=1), rng, 0.4
    )


def other_embeddings(rng: Rng) -> Case:
    case = honest(rng, vectors=True)
    assert case.vectors is not None
    texts, videos = case.vectors
    return replace(case, vectors=(texts, videos[rng.permutation(len(videos))]), recompute=True)


def fewer_candidates(rng: Rng) -> Case:
    case = honest(rng)
    kept = np.sort(rng.permutation(len(case.video_ids))[: len(case.video_ids) - int(rng.integers(1, 6))])
    return replace(
        case,
        scores=case.scores[:, kept],
        video_ids=[case.video_ids[each] for each in kept],
        candidates=tuple(case.video_ids),
    )


def fewer_queries(rng: Rng) -> Case:
    case = honest(rng)
    kept = np.sort(rng.permutation(len(case.text_ids))[: len(case.text_ids) - int(rng.integers(1, 6))])
    return replace(case, scores=case.scores[kept], text_ids=[case.text_ids[each] for each in kept])


FAULTS: dict[str, tuple[Callable[[Rng], Case], set[str]]] = {
    "transposed, by ids": (transposed, {"transposed"}),
    "transposed, square, by numbers": (transposed_without_ids, {"transposed"}),
    "columns shifted by one": (shifted_columns, {"shifted"}),
    "rows shifted by one": (shifted_rows, {"shifted"}),
    "captions in rounds, not by clip": (interleaved, {"shifted"}),
    "columns reversed": (reversed_columns, {"shifted"}),
    "columns sorted, ids not": (sorted_columns, {"shifted"}),
    "columns permuted": (permuted, {"chance"}),
    "distances": (distances, {"distances"}),
    "constant rows, 1 to 5": (constant_rows, {"constant rows"}),
    "constant columns, 1 to 5": (constant_columns, {"constant columns"}),
    "one row twice": (equal_rows, {"equal rows"}),
    "one column twice": (equal_columns, {"equal columns"}),
    "one video twice (embeddings)": (copied_video, {"equal columns"}),
    "one NaN": (one_nan, {"nan"}),
    "1 to 30 % filled with 0": (filled, {"filled"}),
    "only the best 5 to 20 kept": (best_kept, {"filled", "infinite"}),
    "softmax over texts": (softmax_of_texts, {"normalised columns"}),
    "softmax over videos": (softmax_of_videos, {"normalised rows"}),
    "dual softmax": (dual_softmax, {"normalised columns"}),
    "doubly stochastic": (sinkhorn, {"normalised columns"}),
    "z-scores by column": (column_z_scores, {"normalised columns"}),
    "video lengths under dot": (video_lengths, {"video norms"}),
    "text lengths under dot": (text_lengths, {"text norms"}),
    "cosines near one": (near_one, {"near one"}),
    "leak, embeddings given": (leak_beside_embeddings, {"leak"}),
    "leak, matrix alone, low rank": (leak_in_low_rank, {"leak"}),
    "other embeddings given": (other_embeddings, {"other embeddings"}),
    "1 to 5 candidates missing": (fewer_candidates, {"other candidates"}),
    "1 to 5 queries missing": (fewer_queries, {"missing queries"}),
}


def alike_neighbours(rng: Rng) -> Case:
    """Windows of one film follow one another: a clip is much like the one before it."""
    case = honest(rng, vectors=True)
    assert case.vectors is not None
    owners = np.repeat(np.arange(len(case.video_ids)), case.captions)
    texts, videos = (rng.normal(size=each.shape) for each in case.vectors)
    videos += rng.uniform(0.3, 0.8) * np.roll(videos, 1, axis=0)
    texts = videos[owners] + rng.uniform(0.5, 2.5) * texts
    return replace(case, vectors=(texts.astype(np.float32), videos.astype(np.float32)), similarity="cosine")


def few_clips(rng: Rng) -> Case:
    return honest(rng, clips=int(rng.integers(5, 60)))


def falling_spectrum(rng: Rng) -> Case:
    """Dimensions of falling variance, as those of trained embeddings: nearly of low rank, and not quite."""
    case = honest(rng, vectors=True, exact=True, captions=1, dimensions=512)
    scale = np.arange(1, 513) ** -rng.uniform(0.3, 1.5)
    texts, videos = (np.asarray(rng.normal(size=(len(case.video_ids), 512)) * scale) for _ in range(2))
    texts = videos + rng.uniform(0.3, 2) * texts
    return replace(case, vectors=(texts.astype(np.float32), videos.astype(np.float32)), similarity="cosine")


def pooled_by_text(rng: Rng) -> Case:
    """Twelve frames a clip, and of them what fits the sentence best: no matrix of low rank."""
    case = honest(rng, vectors=True, dimensions=int(rng.choice([16, 64])), clips=300, captions=1)
    assert case.vectors is not None
    frames = case.vectors[1][:, None] + 0.5 * rng.normal(size=(300, 12, case.vectors[1].shape[1]))
    return replace(case, vectors=(case.vectors[0], frames.astype(np.float32)), similarity="cosine")


HONEST: dict[str, Callable[[Rng], Case]] = {
    "any": honest,
    "one caption": lambda rng: honest(rng, captions=1),
    "five captions": lambda rng: honest(rng, captions=5),
    "with embeddings": lambda rng: replace(honest(rng, vectors=True), recompute=True),
    "embeddings": lambda rng: replace(honest(rng, vectors=True), similarity="cosine"),
    "neighbours alike": alike_neighbours,
    "5 to 60 clips": few_clips,
    "falling spectrum": falling_spectrum,
    "best of 12 frames": pooled_by_text,
    "low rank": lambda rng: honest(rng, vectors=True, dimensions=int(rng.choice([16, 32, 64]))),
}


def suspected(case: Case) -> set[str]:
    """The kinds of suspicion that the referee has of a case."""
    vectors = None if case.vectors is None else case.vectors
    scores: Scores = Matrix(case.scores)
    beside = Embeddings(*vectors) if vectors is not None and case.recompute else None
    if case.similarity and vectors is not None:
        scores = Embeddings(*vectors, similarity="dot" if case.similarity == "dot" else "cosine")
    try:
        found = match(scores.shape, Pairs("pairs", case.pairs, case.candidates), case.text_ids, case.video_ids)
    except BadInput as fault:
        return {"transposed"} if "is transposed" in str(fault) else {str(fault)}
    return {each.kind for each in examine(scores, found, embeddings=beside)[2]}


def measure(name: str, draws: int, seed: int) -> tuple[int, Counter[str]]:
    """How often a planted fault is found, or an honest case suspected; and all kinds that were named."""
    found, named = 0, Counter[str]()
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw, *name.encode()])
        make, kinds = FAULTS[name] if name in FAULTS else (HONEST[name], set())
        kinds_named = suspected(make(rng))
        named.update(kinds_named)
        found += bool(kinds_named & kinds if kinds else kinds_named)
    return found, named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only what has this in its name")
    options = parser.parse_args()
    table = Table(title=f"{options.draws} draws each, seed {options.seed}", title_justify="left")
    for heading, side in (("", "left"), ("%", "right"), ("also named", "left"), ("s", "right")):
        table.add_column(heading, justify="right" if side == "right" else "left")
    for title, names in (("found", FAULTS), ("suspected, though honest", HONEST)):
        table.add_row(f"[bold]{title}[/]")
        for name in names:
            if options.kind not in name:
                continue
            begun = time.perf_counter()
            found, named = measure(name, options.draws, options.seed)
            own = FAULTS[name][1] if name in FAULTS else set()
            others = ", ".join(f"{kind} {count}" for kind, count in named.most_common() if kind not in own)
            table.add_row(name, f"{100 * found / options.draws:.1f}", others, f"{time.perf_counter() - begun:.0f}")
            print(name, found, others, flush=True)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
