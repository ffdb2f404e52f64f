"""Is there an answer here? How well that is told, and how much of what is shown is wrong.

    python benchmarks/confidence.py demo-clip       # the drawn world, the small CLIP that ships
    python benchmarks/confidence.py demo-001        # the same, a trained run
    python benchmarks/confidence.py                 # drawn features alone

The drawn world is drawn into --data where it is not there: 300 clips to choose by (--split val) and 1,000 to report on,
none of which was trained on. Of them 210 folders of 20, 40 or 100 are drawn. Each is asked 40 captions: one half (at
most) have their clip in the folder, the others had it removed; the best 20 clips are judged. A clip other than the
caption's own counts as wrong, however well it fits. Null sentences are 300 captions of the other split, in no folder
("captions"), or phrases of the drawn world's anchors ("anchors") or of Charades' and COCO's, of which no model here
knows a word ("strange anchors"). "flat" is a threshold on the raw score that keeps 5, 10 or 20 % wrong in one other
folder. "z" is the best score by each clip's mean and deviation over the captions; "inverted softmax" is the
best score after the clip's log-sum-exp over the captions, at temperature 1/30, is taken off.

Drawn features: a clip is a topic, something of its own and noise on every frame; a caption is about one clip; an
"anchor" is a topic alone. Mean pooling scores them. The topics of captions and of clips are the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from calmctl.search.confidence import NullBank, NullSentences, Rule, anchor_phrases, sentences_of_others

SIZES, QUESTIONS, SHOWN, LEVELS, SHARPNESS = (20, 40, 100), 40, 20, (0.05, 0.1, 0.2), 30
SHIPPED_TAG = "drawn-2"


class Scores:
    """Scores of N captions [N, N], of null captions and of anchors [K, N] with all clips; caption n is clip n's."""

    def __init__(self, asked: np.ndarray, nulls: dict[str, np.ndarray]) -> None:
        self.asked, self.nulls = asked, nulls
        captions = nulls["captions"].astype(np.float64)
        self.mean, self.deviation = captions.mean(0), captions.std(0)
        self.crowd = np.log(np.exp(SHARPNESS * captions).sum(0)) / SHARPNESS

    def bank(self, name: str, keep: np.ndarray) -> NullBank:
        """The null sentences of a name over the clips of a folder."""
        null = self.nulls[name][:, keep].T
        sentences = sentences_of_others([str(i) for i in range(null.shape[1])], name)
        if name != "captions":
            sentences = NullSentences(sentences.texts, sentences.owners, name, False)
        return NullBank(sentences, null, list(map(str, keep)))


def of_model(name: str, data: Path, cache: Path, split: str) -> Scores:
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.data.demo import generate_demo, load_demo
    from calmctl.data.demo_world import DemoCounts
    from calmctl.runs.run import find_run
    from calmctl.search.collection import open_collection
    from calmctl.search.exact import all_scores
    from calmctl.search.model import bare_search_model, search_model_of_run
    from calmctl.search.search import Search

    if not (data / "demo.json").exists():
        generate_demo(data, counts=DemoCounts(train=1, val=300, test=1000, shifted=1))
    if name == "demo-clip":
        model = bare_search_model(torch.device("cpu"), backbone=name, weights=SHIPPED_TAG)
    else:
        model = search_model_of_run(find_run(name, Path("runs")), torch.device("cpu"))
    engine = Search(model, open_collection(data / "clips", model, stores=cache))
    splits = load_demo(data, shifted=False).splits
    place = {key.rsplit("/", 1)[-1].rsplit("-", 1)[0]: n for n, key in enumerate(engine.ids)}
    asked, other = splits[split], splits["val" if split == "test" else "test"]
    columns = [place[clip.id] for clip in asked.clips]

    def scores(texts: list[str]) -> np.ndarray:
        return all_scores(engine._index, engine._scorer, engine._texts(texts), None, lambda _: None)[:, columns]

    first = [asked.captions[asked.owners.index(n)] for n in range(len(asked.clips))]
    nulls = {"captions": list(other.captions[:300])}
    for what, vocabulary in (("anchors", "shapes@1"), ("strange anchors", "charades+coco@1")):
        nulls[what] = list(anchor_phrases(resolve_vocabulary(vocabulary).texts).texts)
    return Scores(scores(first), {name: scores(texts) for name, texts in nulls.items()})


def of_features(seed: int = 0) -> Scores:
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, 512, generator=random)  # noqa: E731
    topics, n = 0.3 * draw(20), 400
    own, topic = 0.2 * draw(n), topics[torch.randint(20, (n,), generator=random)]
    clips = F.normalize(0.4 * draw(1) + topic + own + 0.05 * draw(n), dim=-1)
    cone = 0.4 * draw(1)
    captions = F.normalize(cone + topic + 0.7 * own + 0.2 * draw(n), dim=-1)
    anchors = F.normalize(cone + topics + 0.2 * draw(20), dim=-1)
    scores = (captions @ clips[:200].T).numpy()
    return Scores(scores[:200], {"captions": scores[200:], "anchors": (anchors @ clips[:200].T).numpy()})


def auroc(yes: list[float], no: list[float]) -> float:
    """The chance that a question with an answer gets the larger number, ties half."""
    a, b = np.array(yes)[:, None], np.array(no)[None]
    return float((a > b).mean() + (a == b).mean() / 2)


Signals = dict[tuple[str, int], tuple[list[float], list[float]]]


def measure(
    scores: Scores, folders: int, seed: int
) -> tuple[dict[tuple[str, int], float], dict[str, list[float]], dict[int, float]]:
    random = np.random.default_rng(seed)
    n = scores.asked.shape[1]
    signals: Signals = {}
    wrong: dict[str, list[tuple[float, float, float]]] = {}
    first: dict[int, list[bool]] = {}
    threshold = {level: fitted(scores, random, level) for level in LEVELS}
    for number in range(folders):
        size = SIZES[number % len(SIZES)]
        keep = random.choice(n, size, replace=False)
        banks = {name: scores.bank(name, keep) for name in scores.nulls}
        gone, half = np.setdiff1d(np.arange(n), keep), QUESTIONS // 2
        asked = [random.choice(some, min(half, size), replace=False) for some in (keep, gone)]
        for question in np.concatenate(asked):
            row = scores.asked[question, keep]
            order = np.argsort(-row)[:SHOWN]
            right, answered = keep[order] == question, question in keep
            if answered:
                first.setdefault(size, []).append(bool(right[0]))
            best = row[order]
            said = {
                "raw score": best[0],
                "margin": best[0] - best[1],
                "z": ((row - scores.mean[keep]) / scores.deviation[keep]).max(),
                "inverted softmax": (row - scores.crowd[keep]).max(),
            }
            for name, bank in banks.items():
                sampled = row[bank.sample]
                judged = bank.judge(Rule(), order.tolist(), best.tolist(), sampled)
                # Below the least share the raw score decides: chances come in steps.
                said[f"chance by {name}"] = -judged[0].chance + 1e-4 * best[0]
                said[f"rank of one clip by {name}"] = -judged[0].rank + 1e-4 * best[0]
                chances = np.array([each.chance for each in judged])
                for level in LEVELS:
                    note(wrong, f"any by {name}", level, chances <= level, right, answered)
                    found = bank.judge(Rule("fdr", level), order.tolist(), best.tolist(), sampled)
                    note(wrong, f"fdr by {name}", level, np.array([each.match for each in found]), right, answered)
            for level in LEVELS:
                note(wrong, "flat", level, best >= threshold[level], right, answered)
            for name, value in said.items():
                signals.setdefault((name, size), ([], []))[0 if answered else 1].append(float(value))
    return (
        {key: auroc(*values) for key, values in signals.items()},
        {name: np.nanmean(np.array(values), 0).tolist() for name, values in wrong.items()},
        {size: float(np.mean(each)) for size, each in first.items()},
    )


def note(
    wrong: dict[str, list[tuple[float, float, float]]],
    name: str,
    level: float,
    shown: np.ndarray,
    right: np.ndarray,
    answered: bool,
) -> None:
    false = (shown & ~right).sum() / max(1, shown.sum())
    found = float((shown & right).any()) if answered else np.nan
    silly = np.nan if answered else float(shown.any())
    wrong.setdefault(f"{name} {level:g}", []).append((float(false), found, silly))


def fitted(scores: Scores, random: np.random.Generator, level: float) -> float:
    """The least raw score above which at most a share `level` of what one folder shows is wrong."""
    keep = random.choice(scores.asked.shape[1], 40, replace=False)
    gone = np.setdiff1d(np.arange(len(scores.asked)), keep)
    asked = np.concatenate([keep, random.choice(gone, 40, replace=False)])
    rows = scores.asked[np.ix_(asked, keep)]
    right = keep[None] == asked[:, None]
    candidates = np.quantile(rows, np.linspace(0.5, 1, 501))
    for threshold in candidates:
        shown = rows >= threshold
        false = ((shown & ~right).sum(1) / np.maximum(1, shown.sum(1))).mean()
        if false <= level:
            return float(threshold)
    return float(candidates[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="demo-clip, or a run of the drawn world; drawn features without it")
    parser.add_argument("--data", type=Path, default=Path("data/held-out"))
    parser.add_argument("--cache", type=Path, default=Path("features/search"))
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--folders", type=int, default=70, help="for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    out = Console(width=100)
    known = options.data, options.cache, options.split
    scores = of_model(options.model, *known) if options.model else of_features()
    every = [measure(scores, options.folders, seed) for seed in options.seeds]
    first = Table(title=f"is there an answer here? AUROC, {len(every)} seeds of {options.folders} folders")
    for column in ("signal", *(f"{size} clips" for size in SIZES)):
        first.add_column(column, justify="left" if column == "signal" else "right")
    recall = [100 * np.mean([found[size] for _, _, found in every]) for size in SIZES]
    first.add_row("(R@1 within a folder, %)", *(f"{each:.1f}" for each in recall))
    for name in dict.fromkeys(name for name, _ in every[0][0]):
        values = [[table[name, size] for table, _, _ in every] for size in SIZES]
        first.add_row(name, *(f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in values))
    second = Table(title="what is shown, in %")
    for column in ("rule", "asked", "wrong of it", "answers found", "no answer, yet shown"):
        second.add_column(column, justify="left" if column == "rule" else "right")
    for name in every[0][1]:
        cells = 100 * np.mean([wrong[name] for _, wrong, _ in every], 0)
        rule, _, level = name.rpartition(" ")
        second.add_row(rule, f"{100 * float(level):g}", *(f"{cell:.1f}" for cell in cells))
    out.print(first, second)


if __name__ == "__main__":
    main()
