"""CLIP4Clip's heads: meanP, and seqLSTM and seqTransf, whose layers see the order of frames before their mean."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import BadInput, CheckpointError
from calmctl.model.backbone import Backbone, full_precision
from calmctl.model.heads.base import Compared, VideoTable, WeightedSimilarity
from calmctl.words import counted

_POSITION_STD = 0.01  # as CLIP starts the positions of its text tower
_HEAD_WIDTH = 64  # of every CLIP text tower

# Layers that see the order of frames (docs/science.md, The heads).


class FrameLSTM(nn.Module):
    """f + LSTM(f): one unidirectional layer of width D; frame k sees the frames up to k.

    2,101,248 parameters at D = 512.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, frames: Tensor) -> Tensor:
        """Map [N_v, F, D] to the same shape."""
        return frames + self.lstm(frames)[0]


class FrameTransformer(nn.Module):
    """f + layers(f + positions): CLIP's text layers without their causal mask, over frames.

    A layer is x + attention(LN x), then + W2 act(W1 LN x), with an inner width of 4 D; every frame sees all.
    12,609,536 + F D parameters with four layers at D = 512.

    Args:
        dim: D.
        frames: F, the most frames a video may have; each has a learned position.
        layers: Their number.
        heads: Attention heads; None for D / 64, as CLIP has, at least one.
        quick_gelu: Whether act is x sigmoid(1.702 x), as in OpenAI's CLIP, or GELU.
    """

    def __init__(
        self, dim: int, frames: int, layers: int = 4, *, heads: int | None = None, quick_gelu: bool = True
    ) -> None:
        from calmctl.model.openclip import open_clip

        super().__init__()
        heads = heads or max(1, dim // _HEAD_WIDTH)
        if dim % heads:
            raise BadInput(f"{heads} attention heads do not divide {dim} dimensions of the frame layers")
        # One for each of data.frames (our choice): the released code has CLIP's 77, most of which no frame ever takes.
        self.positions = nn.Parameter(_POSITION_STD * torch.randn(frames, dim))
        activation = open_clip.transformer.QuickGELU if quick_gelu else nn.GELU
        block = open_clip.transformer.ResidualAttentionBlock
        self.layers = nn.Sequential(*(block(dim, heads, act_layer=activation) for _ in range(layers)))
        for layer in self.layers:
            _start_as_clip(layer, dim, layers)

    def forward(self, frames: Tensor) -> Tensor:
        """Map [N_v, F, D] to the same shape; raises `BadInput` where there are more frames than positions."""
        return frames + self.attend(frames + self.positions_of(frames.shape[1]))

    def positions_of(self, n_frames: int) -> Tensor:
        """The first rows of the position table, [F, D]; raises `BadInput` where it has fewer."""
        known = len(self.positions)
        if n_frames > known:
            raise BadInput(
                f"the head knows the positions of {counted(known, 'frame')} and was given {n_frames}; extract "
                f"{counted(known, 'frame')}"
            )
        return self.positions[:n_frames]

    def attend(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """The layers alone over tokens [N, n, D]; nobody sees those that are not `real` [N, n] (None: all are)."""
        mask = None
        # A process without a row of a batch has nothing to mask, and torch cannot reshape a mask of nothing.
        if real is not None and len(tokens):
            # As the attention wants it: what is added to its logits, [N heads, n, n].
            attention: Any = self.layers[0].attn
            heads, count = attention.num_heads, tokens.shape[1]
            hidden = torch.zeros_like(real, dtype=tokens.dtype).masked_fill(~real, -torch.inf)
            mask = hidden[:, None, None].expand(-1, heads, count, -1).flatten(0, 1)
        for layer in self.layers:
            tokens = layer(tokens, attn_mask=mask)
        return tokens

    @torch.no_grad()
    def start_from(self, backbone: Backbone) -> None:
        """Copy CLIP's first text layers, and its first text positions for the frames'.

        Raises:
            CheckpointError: The text tower has other layers, fewer of them, or fewer positions.
        """
        tower = text_tower(backbone)
        blocks, positions = list(tower.transformer.resblocks), tower.positional_embedding
        n_frames, dim = self.positions.shape
        fault = None
        if len(blocks) < len(self.layers):
            fault = f"has {len(blocks)} layers and head.layers asks for {len(self.layers)}"
        elif positions.shape[1] != dim:
            fault = f"is {positions.shape[1]} wide and its features are {dim}"
        elif len(positions) < n_frames:
            fault = f"has {len(positions)} positions and data.frames asks for {n_frames}"
        elif {n: p.shape for n, p in self.layers[0].named_parameters()} != {
            n: p.shape for n, p in blocks[0].named_parameters()
        }:
            fault = "has another kind of layers"
        if fault:
            raise CheckpointError(
                f"head.init: the text tower of {backbone.spec.model} {fault}; "
                "set head.init=random" + (f", or head.layers={len(blocks)}" if "head.layers" in fault else "")
            )
        # Not strict: the tower may be deeper, and its first layers are meant.
        for own, theirs in zip(self.layers, blocks, strict=False):
            own.load_state_dict(theirs.state_dict())
        self.positions.copy_(positions[:n_frames])


def text_tower(backbone: Backbone) -> Any:
    """The module that holds the text tower's `transformer` and `positional_embedding`.

    Raises `CheckpointError` where the tower is no CLIP transformer.
    """
    tower = getattr(backbone.clip, "text", backbone.clip)
    if not hasattr(getattr(tower, "transformer", None), "resblocks"):
        raise CheckpointError(
            f"head.init: the text tower of {backbone.spec.model} is no CLIP transformer; set head.init=random"
        )
    return tower


def _start_as_clip(layer: nn.Module, dim: int, layers: int) -> None:
    """The random start of CLIP's text layers: N(0, 1 / D), the branches' last matrices smaller by sqrt(2 layers)."""
    last = (2 * layers) ** -0.5
    for name, parameter in layer.named_parameters():
        if parameter.dim() == 1:
            continue
        std = dim**-0.5
        if name.endswith("c_fc.weight"):
            std *= 2**-0.5
        elif name.endswith(("out_proj.weight", "c_proj.weight")):
            std *= last
        nn.init.normal_(parameter, std=std)


class MeanPoolHead(nn.Module):
    """CLIP4Clip's meanP: L2-normalises every frame, averages, L2-normalises; a score is the cosine with the text.

    Args:
        temporal: Layers that the frames [N_v, F, D] pass before; None for meanP, which has no parameters.
    """

    name = "meanp"
    reads = "sentences"
    rows_are_independent = True

    def __init__(self, temporal: nn.Module | None = None) -> None:
        super().__init__()
        self.temporal = temporal

    def similarities(self, texts: Tensor, frames: Tensor, paired: Tensor) -> list[WeightedSimilarity]:
        """Cosines [B_t, B_v] of texts [B_t, D] and frames [B_v, F, D]; `paired` plays no part."""
        with full_precision(texts.device):
            return [WeightedSimilarity("task", 1.0, F.normalize(self._cast(texts), dim=-1) @ self._video(frames).T)]

    @torch.no_grad()
    def video_table(self, frames: Tensor) -> VideoTable:
        """One unit vector per video: {"video": [N_v, D]}."""
        with full_precision(frames.device):
            return {"video": self._video(frames)}

    @torch.no_grad()
    def score(self, texts: Tensor, table: VideoTable) -> Tensor:
        """Cosines [N_t, N_v]."""
        with full_precision(texts.device):
            texts = texts.to(table["video"].dtype)
            return F.normalize(texts, dim=-1) @ table["video"].T

    @torch.no_grad()
    def explain(self, text: Tensor, frames: Tensor) -> Compared:
        """The sentence and the mean frame; every frame has the same share."""
        weights = frames.new_full((len(frames),), 1 / len(frames))
        return Compared(text.new_ones(1), text[None], self.video_table(frames[None])["video"], weights, False)

    def _video(self, frames: Tensor) -> Tensor:
        frames = self._cast(frames)
        return mean_video(frames if self.temporal is None else self.temporal(frames))

    def _cast(self, features: Tensor) -> Tensor:
        """To the type of the weights; without any, float64 stays and all else becomes float32."""
        weight = next(self.parameters(), None)
        if weight is not None:
            return features.to(weight.dtype)
        return features if features.dtype == torch.float64 else features.float()


def mean_video(frames: Tensor) -> Tensor:
    """The unit vector of a video: frames [N_v, F, D] -> [N_v, D]."""
    # To unit length before the mean, so that a frame's share does not grow with the length of its feature.
    return F.normalize(F.normalize(frames, dim=-1).mean(1), dim=-1)


class SeqLSTMHead(MeanPoolHead):
    """CLIP4Clip's seqLSTM: scores cos(t, meanp(f + LSTM(f))), of features of width `dim`."""

    name = "seqlstm"

    def __init__(self, dim: int) -> None:
        super().__init__(FrameLSTM(dim))


class SeqTransfHead(MeanPoolHead):
    """CLIP4Clip's seqTransf: scores cos(t, meanp(f + transformer(f + positions))).

    `frames` are the layers over the frames, started at random or from CLIP's text tower.
    """

    name = "seqtransf"

    def __init__(self, frames: FrameTransformer) -> None:
        super().__init__(frames)
