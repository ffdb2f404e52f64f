"""Is there an answer here? How well that is told, and how much of what is shown is wrong.

    python benchmarks/confidence.py --run runs/demo-001 --data data/demo     # the drawn world, a trained run
    python benchmarks/confidence.py                                          # drawn features alone

From 200 test clips folders of 20, 40 or 100 are drawn, 200 of them. Each is asked 40 captions, of which some have their
clip in the folder and the others had it removed. A clip other than the caption's own counts as wrong, however well it
fits. Null sentences are the captions of validation clips, which are in no folder ("captions"), or phrases of the
anchors ("anchors"). "flat" is a threshold on the raw score under which 5, 10 or 20 % of what another folder showed was
wrong.

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

from calmctl.search.confidence import NullBank, Rule, anchor_phrases, sentences_of_others

SIZES, QUESTIONS, LEVELS = (20, 40, 100), 40, (0.05, 0.1, 0.2)


class Scores:
    """Scores of 200 captions [Q, N], of null captions and of anchors [K, N] with all clips; caption n is clip n's."""

    def __init__(self, asked: np.ndarray, nulls: dict[str, np.ndarray]) -> None:
        self.asked, self.nulls = asked, nulls


def of_run(run_name: str, data: Path, cache: Path) -> Scores:
    from calmctl.data.demo import load_demo
    from calmctl.runs.run import find_run
    from calmctl.search.collection import open_collection
    from calmctl.search.exact import all_scores
    from calmctl.search.model import search_model_of_run
    from calmctl.search.search import Search

    model = search_model_of_run(find_run(run_name, Path("runs")), torch.device("cpu"))
    engine = Search(model, open_collection(data / "clips", model, stores=cache))
    splits = load_demo(data, shifted=False).splits
    place = {key.rsplit("/", 1)[-1].rsplit("-", 1)[0]: n for n, key in enumerate(engine.ids)}
    test, val = splits["test"], splits["val"]
    columns = [place[clip.id] for clip in test.clips]

    def scores(texts: list[str]) -> np.ndarray:
        return all_scores(engine._index, engine._scorer, engine._texts(texts), None, lambda _: None)[:, columns]

    first = [test.captions[test.owners.index(n)] for n in range(len(test.clips))]
    nulls = {"captions": list(val.captions), "anchors": list(anchor_phrases(model.labels).texts)}
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


def measure(scores: Scores, folders: int, seed: int) -> tuple[dict[str, float], dict[str, list[float]], float]:
    random = np.random.default_rng(seed)
    n = scores.asked.shape[1]
    signals: dict[str, tuple[list[float], list[float]]] = {}
    wrong: dict[str, list[tuple[float, float, float]]] = {}
    first = []
    threshold = {level: fitted(scores, random, level) for level in LEVELS}
    for _ in range(folders):
        keep = random.choice(n, random.choice(SIZES), replace=False)
        banks = {}
        for name, null in scores.nulls.items():
            k = len(null)
            banks[name] = NullBank(
                sentences_of_others([str(i) for i in range(k)], name), null[:, keep].T, list(map(str, keep))
            )
        for question in random.choice(n, QUESTIONS, replace=False):
            row = scores.asked[question, keep]
            order = np.argsort(-row)
            right = keep[order] == question
            if right.any():
                first.append(right[0])
            best = row[order]
            said = {"raw score": best[0], "margin": best[0] - best[1]}
            for name, bank in banks.items():
                judged = bank.judge(Rule(), order.tolist(), best.tolist())
                # Below the least share the raw score decides: chances come in steps.
                said[f"chance by {name}"] = -judged[0].chance + 1e-4 * best[0]
                said[f"rank of one clip by {name}"] = -judged[0].rank + 1e-4 * best[0]
                for level in LEVELS:
                    for kind in ("any", "fdr"):
                        found = bank.judge(Rule(kind, level), order.tolist(), best.tolist())
                        note(wrong, f"{kind} by {name}", level, np.array([each.match for each in found]), right)
            for level in LEVELS:
                note(wrong, "flat", level, best >= threshold[level], right)
            for name, value in said.items():
                signals.setdefault(name, ([], []))[0 if right.any() else 1].append(float(value))
    table = {name: auroc(*values) for name, values in signals.items()}
    return (
        table,
        {name: np.nanmean(np.array(values), 0).tolist() for name, values in wrong.items()},
        float(np.mean(first)),
    )


def note(
    wrong: dict[str, list[tuple[float, float, float]]], name: str, level: float, shown: np.ndarray, right: np.ndarray
) -> None:
    false = (shown & ~right).sum() / max(1, shown.sum())
    has = right.any()
    found = float((shown & right).any()) if has else np.nan
    silly = np.nan if has else float(shown.any())
    wrong.setdefault(f"{name} {level:g}", []).append((float(false), found, silly))


def fitted(scores: Scores, random: np.random.Generator, level: float) -> float:
    """The least raw score above which at most a share `level` of what one folder shows is wrong."""
    keep = random.choice(scores.asked.shape[1], 40, replace=False)
    rows = scores.asked[:, keep]
    right = keep[None] == np.arange(len(rows))[:, None]
    candidates = np.quantile(rows, np.linspace(0.5, 1, 501))
    for threshold in candidates:
        shown = rows >= threshold
        false = ((shown & ~right).sum(1) / np.maximum(1, shown.sum(1))).mean()
        if false <= level:
            return float(threshold)
    return float(candidates[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run of the drawn world; drawn features without it")
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--cache", type=Path, default=Path("features/search"))
    parser.add_argument("--folders", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    out = Console(width=100)
    scores = of_run(options.run, options.data, options.cache) if options.run else of_features()
    every = [measure(scores, options.folders, seed) for seed in range(options.seeds)]
    recall = [first for _, _, first in every]
    out.print(f"R@1 within a folder: {100 * np.mean(recall):.1f} %, {options.seeds} seeds of {options.folders} folders")
    first = Table(title="is there an answer here?")
    first.add_column("signal")
    first.add_column("AUROC", justify="right")
    for name in every[0][0]:
        values = [table[name] for table, _, _ in every]
        first.add_row(name, f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
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
