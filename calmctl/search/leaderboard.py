"""A run, or a bare backbone, as a model that MTEB's own code evaluates: `mteb.evaluate(MtebModel(...), tasks)`.

Retrieval between sentences and videos, either way. Each pair is scored alone, by the head's exact score: no query sees
another, and nothing is known of the right answers. mteb is an extra (`calmctl[mteb]`), and is imported only here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmctl.errors import BadInput, VideoError
from calmctl.evaluation.retrieval import score_all
from calmctl.model.backbone import split_preprocess
from calmctl.samples import Clip, LeftOut
from calmctl.search.model import BARE_FRAMES, SearchModel
from calmctl.source.encoding import FRAMES_PER_BATCH, encode_captions
from calmctl.video.pool import TIMEOUT_S, decode_clips


class MtebModel:
    """What `mteb.models.SearchProtocol` asks for.

    A head that re-ranks is asked for the scores of its first stage: MTEB knows one score a pair.

    Attributes:
        left_out: Videos that could not be decoded, with reasons. They are candidates of no query, so a task in which
            there are any is an easier one, and its number is none to send in.
    """

    def __init__(self, model: SearchModel, *, workers: int | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """Evaluate `model` (`search_model_of_run`, `bare_search_model`), decoding in `workers` processes."""
        self.left_out: list[LeftOut] = []
        self._model, self._workers, self._timeout_s = model, workers, timeout_s
        self._corpus: tuple[list[str], Tensor, bool] | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """The name and what it reads, as MTEB records them."""
        from mteb.models.model_meta import ModelMeta

        name = re.sub(r"[^\w.+-]+", "-", self._model.name.partition(",")[0]).strip("-")
        return ModelMeta.create_empty(
            {"name": f"calmctl/{name}", "modalities": ["text", "video"], "framework": ["PyTorch"]}
        )

    def index(self, corpus: Any, **_: Any) -> None:
        """Take the candidates of a task; what else MTEB says of them is not needed.

        Raises:
            BadInput: They are neither sentences nor videos.
        """
        self._corpus = self._encoded(corpus)

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any) -> dict[str, dict[str, float]]:
        """The `top_k` best candidates of every query with their scores, by id.

        Raises:
            BadInput: Nothing was indexed, queries and candidates are of one kind, or some candidates are asked for.
        """
        if self._corpus is None:
            raise BadInput("there are no candidates; call index first, as mteb.evaluate does")
        if top_ranked is not None:
            raise BadInput("a task of re-ranking gives each query candidates of its own; calmctl ranks all of them")
        asked, queried, of_video = self._encoded(queries)
        ids, candidates, are_videos = self._corpus
        if of_video == are_videos:
            raise BadInput("queries and candidates are of one kind; calmctl compares sentences with videos")
        texts, frames = (candidates, queried) if of_video else (queried, candidates)
        scores = score_all(self._model.model.head, texts, frames, device=self._model.device).numpy()
        scores = scores.T if of_video else scores
        count = min(top_k, len(ids))
        found = {}
        for query, row in zip(asked, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:count]
            found[query] = {ids[place]: float(row[place]) for place in best.tolist()}
        return found

    def _encoded(self, rows: Any) -> tuple[list[str], Tensor, bool]:
        """Ids, features and whether they are of videos: of a data set of MTEB's with `id` and `video` or `text`."""
        names = rows.column_names
        if "video" in names:
            return (*self._videos(rows), True)
        if "text" not in names:
            raise BadInput(f"a task with {', '.join(names)}: calmctl compares sentences with videos")
        texts = tuple(str(each) for each in rows["text"])
        return [str(each) for each in rows["id"]], encode_captions(self._model.model, texts), False

    @torch.inference_mode()
    def _videos(self, rows: Any) -> tuple[list[str], Tensor]:
        from datasets import Video

        model = self._model.model
        ids: list[str] = []
        features: list[Tensor] = []
        waiting: list[np.ndarray] = []
        n_frames = self._model.n_frames or BARE_FRAMES
        # As bytes: MTEB's own decoder takes other frames, at another size, and needs libraries of its own.
        rows = rows.cast_column("video", Video(decode=False))
        with TemporaryDirectory(prefix="calmctl-mteb-", ignore_cleanup_errors=True) as folder:
            decoded = decode_clips(
                self._files(rows, Path(folder)),
                n_frames,
                workers=self._workers,
                timeout_s=self._timeout_s,
                transform=split_preprocess(model.backbone)[0],
            )
            for clip, frames in decoded:
                if clip.path.is_relative_to(folder):
                    clip.path.unlink(missing_ok=True)
                if isinstance(frames, VideoError):
                    self.left_out.append(LeftOut(clip.id, str(frames)))
                    continue
                ids.append(clip.id)
                waiting.append(frames)
                if len(waiting) * n_frames >= FRAMES_PER_BATCH:
                    features.append(self._frames(waiting))
                    waiting = []
        if waiting:
            features.append(self._frames(waiting))
        if not features:
            raise BadInput(f"not one of {len(rows):,} videos can be decoded (first: {self.left_out[0].reason})")
        return ids, torch.cat(features)

    def _frames(self, clips: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(clips)).to(self._model.device)
        return self._model.model.encode_frames(pixels).cpu()

    @staticmethod
    def _files(rows: Any, folder: Path) -> Iterator[Clip]:
        """A file for every video, written when it is due: a few at a time are on disk."""
        for number, row in enumerate(rows):
            video = row["video"]
            path = folder / f"{number}.mp4"
            if video["bytes"] is not None:
                path.write_bytes(video["bytes"])
            elif video["path"]:
                path = Path(video["path"])
            yield Clip(str(row["id"]), path)
