"""How a head scores a whole collection: from its table, kept on disk, or from probes and the frames."""

from __future__ import annotations

import hashlib
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from calmctl.model.adapter import FeatureAdapter
from calmctl.model.heads.base import FusionHead, ProbedHead, Probes, VideoTable

_TABLE_VERSION = 1  # to be raised whenever a head's table comes to mean something else


class Scorer(Protocol):
    """A head with the adapter before it, as a search uses them.

    Attributes:
        key: What its table depends on: the weights of head and adapter, and the way of scoring.
        device: Where head and adapter are.
    """

    device: torch.device
    key: str

    def table(self, frames: Tensor) -> VideoTable:
        """What is kept on disk of clips [n, F, D], float32, as the store has them."""
        ...

    def prepare(self, texts: Tensor) -> Any:
        """The text side, once for all clips; texts as `AlignedModel.encode_texts` gives them."""
        ...

    def score(self, prepared: Any, products: Tensor | None, table: VideoTable) -> Tensor:
        """Scores [N_t, n]; `products` is for a `FrameReader`, None for all others."""
        ...


@runtime_checkable
class FrameReader(Protocol):
    """What a scorer is as well that needs the frames, beside the table."""

    def directions(self, prepared: Any) -> Tensor:
        """What frames are multiplied with, [m, D]; the products are [m, n, F]."""
        ...


def choose_scorer(
    head: FusionHead, adapter: FeatureAdapter | None, device: torch.device, shape: tuple[int, int]
) -> Scorer:
    """The way that reads the least: the head's own table, or probes where they are to be had and it is larger.

    Args:
        head: The head.
        adapter: What frames pass before it.
        device: Where both are.
        shape: (F, D) of a clip.
    """
    if isinstance(head, ProbedHead):
        table = head.video_table(torch.ones(1, *shape, device=device))
        if sum(part[0].numel() for part in table.values()) > prod(shape):
            return ProbeScorer(head, adapter, device)
    return TableScorer(head, adapter, device)


class TableScorer:
    """The head's own `video_table`, kept on disk."""

    def __init__(self, head: FusionHead, adapter: FeatureAdapter | None, device: torch.device) -> None:
        self.head, self.adapter, self.device = head, adapter, device
        self.key = table_key("table", head, adapter)

    @torch.inference_mode()
    def table(self, frames: Tensor) -> VideoTable:
        """The head's `video_table`."""
        return self.head.video_table(adapted(frames, self.adapter))

    def prepare(self, texts: Tensor) -> Tensor:
        """The texts as they are."""
        return texts

    @torch.inference_mode()
    def score(self, prepared: Tensor, products: Tensor | None, table: VideoTable) -> Tensor:
        """The head's `score`."""
        return self.head.score(prepared, table)


class ProbeScorer:
    """A head that scores from dot products with the frames; the adapter, which is linear, moves into the probes."""

    def __init__(self, head: ProbedHead, adapter: FeatureAdapter | None, device: torch.device) -> None:
        self.head, self.adapter, self.device = head, adapter, device
        self.key = table_key("probes", head, adapter)

    @torch.inference_mode()
    def table(self, frames: Tensor) -> VideoTable:
        """The head's `probe_table`."""
        return self.head.probe_table(adapted(frames, self.adapter))

    @torch.inference_mode()
    def prepare(self, texts: Tensor) -> tuple[Probes, Tensor, Tensor]:
        """The head's probes, and what stands for them on frames before the adapter: [N_t P, D] and [N_t, P]."""
        probes = self.head.text_probes(texts)
        directions, constant = probes.directions, probes.directions.new_zeros(probes.directions.shape[:2])
        if self.adapter is not None:  # d.(f + Wf + b) = (d + dW).f + d.b
            layer = self.adapter.frames
            constant = directions @ layer.bias
            directions = directions + directions @ layer.weight
        return probes, directions.flatten(0, 1).contiguous(), constant

    def directions(self, prepared: tuple[Probes, Tensor, Tensor]) -> Tensor:
        """The probes of all texts, [N_t P, D]."""
        return prepared[1]

    @torch.inference_mode()
    def score(self, prepared: tuple[Probes, Tensor, Tensor], products: Tensor | None, table: VideoTable) -> Tensor:
        """The head's `score_probed`."""
        assert products is not None
        probes, _, constant = prepared
        dots = products.reshape(*constant.shape, *products.shape[1:])
        return self.head.score_probed(probes, dots if self.adapter is None else dots + constant[..., None, None], table)


def adapted(frames: Tensor, adapter: FeatureAdapter | None) -> Tensor:
    """Frame features [..., F, D] behind the adapter, if there is one."""
    if adapter is None:
        return frames
    moved: Tensor = frames + adapter.frames(frames)
    return moved


def table_key(way: str, head: object, adapter: FeatureAdapter | None) -> str:
    """A digest of all that a table depends on beside the features."""
    digest = hashlib.sha256(f"{_TABLE_VERSION} {way} {type(head).__qualname__}\n".encode())
    for module in (head, adapter):
        state = module.state_dict() if isinstance(module, nn.Module) else {}
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(b"--\n")
    return digest.hexdigest()
