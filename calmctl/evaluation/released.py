"""AUDIT ONLY: the released T-MASS evaluation, which leaks the ground truth into the scores (docs/protocols.md).

It pools every candidate video with the caption that belongs to it, so that a video never looks its best for
anybody else's caption. Numbers from here are comparable with published T-MASS numbers and with nothing else;
they never select a model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calmctl.errors import BadInput
from calmctl.model.exact import Queries, mix, pooled_vectors, prepare_texts, score_in_blocks
from calmctl.model.heads.base import VideoTable
from calmctl.model.heads.tmass import PAIRS_PER_BLOCK, TMassHead
from calmctl.model.precision import full_precision

_BLOCK = 64


@torch.no_grad()
def score_tmass_released(head: TMassHead, texts: Tensor, frames: Tensor, owners: Tensor) -> Tensor:
    """The scores of the released code: s(o, i) = cos(t_s(o|i), V(i | the caption that video i OWNS)).

    t_s is the one of the head's trials that was best for the right pooling, V(i | o), as in the released code.
    On true pairs this equals the correct score; elsewhere it tends to be lower.

    Args:
        head: A T-MASS head; its device computes.
        texts: Raw sentence features [N, D].
        frames: Raw frame features [N, F, D].
        owners: [N], the index of each text's own video: every video exactly once.

    Returns:
        [N, N] on the CPU.

    Raises:
        BadInput: N_texts != N_videos, or a video without exactly one caption.
    """
    n_texts, n_videos = len(texts), len(frames)
    if n_texts != n_videos or not torch.equal(owners.cpu().sort().values, torch.arange(n_videos)):
        raise BadInput(
            "the released T-MASS protocol exists only where every video has exactly one caption, and here "
            f"{n_texts} texts meet {n_videos} videos, or one video has several; use the default protocol"
        )
    weights = head.pooling.query.weight
    device, texts, frames = weights.device, texts.to(weights), frames.to(weights)
    with full_precision(device):
        table = head.video_table(frames)
        table["leak"] = _pooled_with_own_caption(head, texts[owners.to(device).argsort()], table)
        bank = head.noise_bank().to(device)

        def score_block(block_texts: Queries, videos: VideoTable) -> Tensor:
            chosen = head.trial_cosines(bank, block_texts, videos).argmax(1, keepdim=True)
            leaked = head.trial_cosines(bank, block_texts, videos, goal=videos["leak"])
            return leaked.gather(1, chosen).squeeze(1)

        pairs = PAIRS_PER_BLOCK.get(device.type, 1 << 14)
        return score_in_blocks(score_block, head.pooling, texts, table, pairs).cpu()


def _pooled_with_own_caption(head: TMassHead, captions: Tensor, table: VideoTable) -> Tensor:
    """V(i | caption i) of captions [N, D] in the order of the videos: [N, D]."""
    found = []
    for i in range(0, len(captions), _BLOCK):
        block = {name: tensor[i : i + _BLOCK] for name, tensor in table.items()}
        pooled = pooled_vectors(mix(head.pooling, prepare_texts(head.pooling, captions[i : i + _BLOCK]), block), block)
        found.append(pooled.diagonal(dim1=0, dim2=2).T)
    return torch.cat(found)
