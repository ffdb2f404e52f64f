"""Gradient caching: large batches through towers that hold the activations of a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calmctl.errors import RecipeError


def encode_in_chunks(encode: Callable[[Tensor], Tensor], rows: Tensor, chunk: int | None) -> Tensor:
    """`encode(rows)`, with the activations of at most `chunk` rows in memory at any time; None: all at once.

    The method of Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup": encode
    in chunks and keep the features only; compute the loss on all features; then, chunk by chunk, encode again and
    send the features' gradients through. The gradients are exact. Here the backward pass of the loss itself encodes
    again, so nothing else has to know: gradients add up and are exchanged between processes as ever. Random state
    and mixed precision are those of the first time, so that the second pass gives the same features.
    """
    if chunk is None or len(rows) <= chunk or not torch.is_grad_enabled():
        return encode(rows)
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in torch.split(rows, chunk)])


def require_separate_rows(module: nn.Module, why: str) -> None:
    """Refuse batch normalisation, which makes a row's features depend on the rows it is encoded with.

    Raises:
        RecipeError: Naming `why` rows are not encoded together.
    """
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
        raise RecipeError(
            f"{why} encodes parts of a batch, and this backbone's batch normalisation needs all of it; "
            "use a backbone without (a ViT), or leave that out"
        )
