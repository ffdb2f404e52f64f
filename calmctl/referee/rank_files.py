"""Ranks on disk: all that numbers and comparisons need, without the scores; and the result files of leaderboards."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calmctl.data.annotations import expect, read_table
from calmctl.errors import BadInput
from calmctl.evaluation.card import Card
from calmctl.evaluation.metrics import DIRECTIONS, Direction, Ranks, ndcg_of_captions
from calmctl.evaluation.result import Labels, retrieval_result
from calmctl.files import read_json, read_regular
from calmctl.referee.scores import Verdict
from calmctl.words import cell, uncell

_NO_RANKS = "these are no ranks; calmctl score matrix and embeddings write them with --ranks"
_CAPTIONS = "caption_of_video"
_COLUMNS = ("greater", "equal", "targets", "clips")


def format_ranks(verdict: Verdict, suffix: str) -> str:
    """Each query's rank in every direction, as JSON or, where `suffix` is .csv, as a table."""
    every: dict[str, Ranks] = {str(name): each for name, each in verdict.ranks.items()}
    every[_CAPTIONS] = verdict.captions
    if suffix.lower() != ".csv":
        record = {
            "calmctl_ranks": 1,
            "system": verdict.result.labels.system,
            "scorer": verdict.result.labels.scorer,
            "card": verdict.result.card.to_json(),
            "texts": list(verdict.text_ids),
            "videos": list(verdict.video_ids),
            "ranks": {
                direction: {name: getattr(ranks, name).tolist() for name in _COLUMNS}
                | {"n_candidates": ranks.n_candidates}
                for direction, ranks in every.items()
            },
            # What was likely wrong with the scores stays with the numbers that are made of their ranks.
            "concerns": [
                *dict.fromkeys([*verdict.result.labels.concerns, *(e.text for e in verdict.suspicions or ())])
            ],
        }
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("direction", "query", "clip", "greater", "equal", "targets", "n_candidates", "rank"))
    for direction, ranks in every.items():
        clips = [verdict.video_ids[clip] for clip in ranks.clips.tolist()]
        names = verdict.text_ids if direction in ("text_to_video", _CAPTIONS) else clips
        columns = (ranks.greater.tolist(), ranks.equal.tolist(), ranks.targets.tolist())
        for name, clip, *counts, rank in zip(names, clips, *columns, ranks.ranks().tolist(), strict=True):
            table.writerow((direction, cell(name), cell(clip), *counts, ranks.n_candidates, f"{rank:g}"))
    return out.getvalue()


def is_ranks(path: Path) -> bool:
    """Whether a file is one of ranks, and not of scores."""
    return path.suffix.lower() == ".json" or (
        path.suffix.lower() == ".csv" and path.is_file() and read_regular(path)[:16].startswith(b"direction,query,")
    )


def read_ranks(path: Path) -> Verdict:
    """The verdict on ranks that `format_ranks` wrote.

    Raises:
        BadInput: It is no such file, or its numbers cannot be ranks.
    """
    columns, texts, videos, record = _rank_table(path) if path.suffix.lower() == ".csv" else _rank_record(path)
    every = {name: _ranks(each, f"{path}: {name[:80]}", len(videos)) for name, each in columns.items()}
    absent = {*DIRECTIONS, _CAPTIONS} - set(every)
    if absent:
        raise BadInput(f"{path}: it has no ranks of {', '.join(sorted(absent))}; write it with --ranks again")
    captions, ranks = every.pop(_CAPTIONS), {direction: every[direction] for direction in DIRECTIONS}
    owners, clips = ranks["text_to_video"].clips, ranks["video_to_text"].clips
    fitting = np.array_equal(captions.clips, owners) and np.array_equal(clips, np.unique(owners))
    if not fitting or len(texts) != len(owners) or not np.array_equal(ranks["video_to_text_plain"].clips, clips):
        raise BadInput(f"{path}: its queries do not fit one another; write it with --ranks again")
    card = Card.from_json(expect(record.get("card", {}), dict, f"{path}: card"), str(path))
    labels = Labels(
        dataset=card.dataset or "",
        protocol=card.protocol or "",
        card=card,
        system=str(record.get("system", path.name)),
        scorer=str(record.get("scorer", "given")),
        concerns=tuple(map(str, record.get("concerns", ()))),
    )
    return Verdict(
        result=retrieval_result(ranks, labels), ranks=ranks, captions=captions, text_ids=texts, video_ids=videos
    )


_Columns = dict[str, dict[str, Any]]


def _rank_record(path: Path) -> tuple[_Columns, tuple[str, ...], tuple[str, ...], Mapping[str, Any]]:
    record = expect(read_json(path, what="ranks"), dict, str(path))
    if record.get("calmctl_ranks") != 1:
        raise BadInput(f"{path}: {_NO_RANKS}")
    by_direction = expect(record.get("ranks"), dict, f"{path}: ranks")
    texts, videos = (tuple(map(str, expect(record.get(n), list, f"{path}: {n}"))) for n in ("texts", "videos"))
    expect(record.get("concerns", []), list, f"{path}: concerns")
    columns = {name: expect(each, dict, f"{path}: {name[:80]}") for name, each in by_direction.items()}
    return columns, texts, videos, record


def _rank_table(path: Path) -> tuple[_Columns, tuple[str, ...], tuple[str, ...], Mapping[str, Any]]:
    columns: _Columns = {}
    names: dict[str, list[str]] = {}
    if not is_ranks(path):
        raise BadInput(f"{path}: {_NO_RANKS}")
    for place, row in read_table(path, ["direction", "query", "clip", "greater", "equal", "targets", "n_candidates"]):
        each = columns.setdefault(row["direction"], {name: [] for name in _COLUMNS})
        try:
            for name in _COLUMNS[:3]:
                each[name].append(int(row[name]))
            each["n_candidates"] = int(row["n_candidates"])
        except ValueError:
            raise BadInput(f"{place}: a count is no whole number") from None
        each["clips"].append(uncell(row["clip"]))
        names.setdefault(row["direction"], []).append(uncell(row["query"]))
    # Columns without a caption are no query and stand nowhere: those that are keep their order.
    videos = tuple(dict.fromkeys(names.get("video_to_text", ())))
    number = {video: n for n, video in enumerate(videos)}
    for each in columns.values():
        each["clips"] = [number.get(clip, -1) for clip in each["clips"]]
    return columns, tuple(names.get("text_to_video", ())), videos, {}


def _ranks(columns: Mapping[str, Any], place: str, n_videos: int) -> Ranks:
    candidates = columns.get("n_candidates")
    lists = [columns.get(name) for name in _COLUMNS]
    whole = isinstance(candidates, int) and all(
        isinstance(each, list) and all(type(value) is int and 0 <= value < 2**40 for value in each) for each in lists
    )
    if not whole or len({len(each) for each in lists if each is not None}) != 1 or not lists[0]:
        raise BadInput(f"{place}: its columns are no lists of whole numbers of one length; write it with --ranks again")
    greater, equal, targets, clips = (np.array(each, dtype=np.int64) for each in lists)
    assert isinstance(candidates, int)
    if (greater + equal + targets > candidates).any() or (targets < 1).any() or (clips >= n_videos).any():
        raise BadInput(f"{place}: more stand before a query's target than there are, or its clip is none of them")
    return Ranks(greater, equal, targets, clips, candidates)


# Leaderboards: the same ranks in their result files. Ties stay the mean over all orders here; MTEB's trec_eval puts the
# larger id first, and MMEB's argsort the first candidate, either of which can flatter a score with few distinct values.


_MTEB_DEPTHS = (1, 3, 5, 10, 20, 100, 1000)
_MMEB_DEPTHS = (1, 5, 10)


def board_metrics(verdict: Verdict, direction: Direction, depths: Sequence[int]) -> dict[str, float]:
    """Means over queries as shares of 1, by "NAME@K": hit, recall, precision, ndcg, mrr, and map where it is mrr.

    Of sentences as queries each has one right video. Of videos, all sentences are candidates, as leaderboards have it,
    and a video's own are its right answers: recall is the share of them, hit whether there is any.
    """
    if direction == "text_to_video":
        ranks = verdict.ranks["text_to_video"]
        hits = {k: ranks.recall(k) for k in depths}
        values = {f"recall@{k}": each for k, each in hits.items()} | {f"ndcg@{k}": ranks.gains(k) for k in depths}
        values |= {f"map@{k}": ranks.reciprocal(k) for k in depths}
        values |= {f"precision@{k}": each / k for k, each in hits.items()}
    else:
        ranks, captions = verdict.ranks["video_to_text_plain"], verdict.captions
        _, clip, own = np.unique(captions.clips, return_inverse=True, return_counts=True)
        right = {k: np.bincount(clip, captions.recall(k)) for k in depths}
        values = {f"recall@{k}": each / own for k, each in right.items()}
        values |= {f"precision@{k}": each / k for k, each in right.items()}
        values |= {f"ndcg@{k}": ndcg_of_captions(captions, k) for k in depths}
    values |= {f"hit@{k}": ranks.recall(k) for k in depths} | {f"mrr@{k}": ranks.reciprocal(k) for k in depths}
    return {name: float(each.mean()) for name, each in values.items()}


def format_board(verdict: Verdict, board: str, task: str, direction: Direction) -> str:
    """A leaderboard's result file: MTEB's for one task, or MMEB's TASK_score.json.

    What it was made on is in it as the protocol card: the name of a task says nothing of the clips that were at hand.
    """
    card = verdict.result.card
    if board == "mmeb":
        metrics = board_metrics(verdict, direction, _MMEB_DEPTHS)
        scores: dict[str, Any] = {name: each for name, each in metrics.items() if not name.startswith("ndcg@")}
        for kind in ("linear", "exponential"):  # of gains that are 0 or 1 both are the same
            scores |= {f"ndcg_{kind}@{k}": metrics[f"ndcg@{k}"] for k in _MMEB_DEPTHS}
        n_queries = len(verdict.ranks[direction].clips)
        record = {**scores, "num_pred": n_queries, "num_data": n_queries, "calmctl_card": card.to_json()}
    else:
        names = {"hit": "hit_rate"}
        metrics = board_metrics(verdict, direction, _MTEB_DEPTHS)
        scores = {
            f"{names.get(name, name)}_at_{k}": round(each, 5)
            for (name, _, k), each in ((key.partition("@"), each) for key, each in metrics.items())
        }
        subset = {"hf_subset": "default", "languages": ["eng-Latn"], "main_score": scores["ndcg_at_10"]}
        record = {
            "dataset_revision": f"calmctl {card.list_digest or ''}".strip(),
            "task_name": task,
            "mteb_version": None,
            "scores": {card.split or "test": [{**scores, "accuracy": scores["recall_at_1"], **subset}]},
            "evaluation_time": None,
            "kg_co2_emissions": None,
            "calmctl_card": card.to_json(),
        }
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
