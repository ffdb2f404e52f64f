"""What every trained model shares: the backbone, its adapter, and CALM's alignment of videos with sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor, nn

from calmctl.anchors.bank import AnchorBank
from calmctl.anchors.distribution import anchor_log_probabilities, mean_frame_feature
from calmctl.model.backbone import Backbone
from calmctl.model.diagnostics import alignment_diagnostics
from calmctl.model.preprocess import split_preprocess
from calmctl.model.vae import CrossModalVAE
from calmctl.objectives.alignment import direct_alignment_loss, kl_to_standard_normal, reconstruction_loss
from calmctl.recipe.schema import AlignmentSection, AnchorsSection


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples: sentence i describes clip i.

    Attributes:
        texts: Token ids [B, L], or sentence features [B, D] where they were extracted before.
        frames: Pixels at the backbone's input size, uint8 [B, F, S, S, 3], or frame features [B, F, D].
        clips: The number of each sample's clip, [B]; equal numbers are captions of one clip.
        captions: For captioning: the sentences as the decoder's tokens, [B, T] (`CaptionVocabulary.encode`).
    """

    texts: Tensor
    frames: Tensor
    clips: Tensor
    captions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        texts, frames, clips = (part.to(device, non_blocking=True) for part in (self.texts, self.frames, self.clips))
        captions = None if self.captions is None else self.captions.to(device, non_blocking=True)
        return Batch(texts, frames, clips, captions)


@dataclass(slots=True)
class Losses:
    """What one step yields.

    Attributes:
        total: The scalar to descend.
        parts: Its summands before weighting, and their relatives, by name.
        diagnostics: Numbers of `alignment_diagnostics`, by name; detached.
    """

    total: Tensor
    parts: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class FeatureAdapter(nn.Module):
    """x + Wx + b on frame and on sentence features, W = b = 0 at first (our choice).

    On frozen features it is what the alignment loss can change.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frames = nn.Linear(dim, dim)
        self.texts = nn.Linear(dim, dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class AlignedParts(TypedDict):
    """What an `AlignedModel` is made of, beside its backbone."""

    anchors: NotRequired[AnchorBank | None]
    vae: NotRequired[CrossModalVAE | None]
    adapter: NotRequired[FeatureAdapter | None]
    anchor_keys: AnchorsSection
    alignment_keys: AlignmentSection
    frozen: NotRequired[bool]


class AlignedModel(nn.Module):
    """Features of sentences and frames, and CALM's loss on them; a task adds its own loss.

    Attributes:
        scores_sentences: Whether the task compares sentences with videos, so that sentences must be encoded.
        anchors, vae: Absent without an alignment loss, and in an export for inference.
    """

    scores_sentences = True

    def __init__(self, backbone: Backbone, **parts: Unpack[AlignedParts]) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalise = split_preprocess(backbone)[1]
        self.anchors = parts.get("anchors")
        self.vae = parts.get("vae")
        self.adapter = parts.get("adapter")
        self.keys = parts["anchor_keys"]
        self.alignment = parts["alignment_keys"]
        self.frozen = parts.get("frozen", False)
        self.log_temperature: nn.Parameter | None = None
        if self.anchors is not None and self.keys.temperature == "learned":
            self.log_temperature = nn.Parameter(torch.tensor(100.0).log())
        if self.frozen:
            backbone.requires_grad_(False)

    @property
    def aligns(self) -> bool:
        """Whether the alignment loss is part of the training."""
        return self.anchors is not None and self.alignment.kind != "none"

    def encode_texts(self, texts: Tensor) -> Tensor:
        """Sentence features [N, D] as scoring sees them, from token ids [N, L] or extracted features [N, D]."""
        if not texts.is_floating_point():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                texts = self.backbone.encode_text(texts)
        texts = texts.float()
        return texts if self.adapter is None else texts + self.adapter.texts(texts)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frame features [N, F, D] as scoring sees them, from pixels [N, F, S, S, 3] or features [N, F, D]."""
        frames = self.bare_frames(frames).float()
        return frames if self.adapter is None else frames + self.adapter.frames(frames)

    def bare_frames(self, frames: Tensor) -> Tensor:
        """The same before any adapter."""
        if frames.is_floating_point():
            return frames
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone.encode_frames(self.normalise(frames))

    def anchor_features(self) -> Tensor:
        """The anchors P, [K, D], with the current weights (Eq. 5)."""
        if self.anchors is None:
            raise ValueError("this model was exported without its anchors")
        adapter = self.adapter
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            prompts = self.anchors.prompts(self.backbone.encode_text).float()
        if adapter is not None:
            prompts = prompts + adapter.texts(prompts)
        return prompts + self.anchors.position

    def distributions(self, texts: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log S_p and log V_p, [B, K] each, of features texts [B, D] and frames [B, F, D] (Eq. 6, 7)."""
        anchors = self.anchor_features()
        video = mean_frame_feature(frames, self.keys.frame_mean)
        tau = self.temperature()
        return (
            anchor_log_probabilities(texts, anchors, tau),
            anchor_log_probabilities(video, anchors, self.keys.video_temperature or tau),
        )

    def temperature(self) -> float | Tensor:
        """Tau of Eq. 6: fixed, CLIP's own without gradient, or learned (docs/science.md, reading 1)."""
        if self.log_temperature is not None:
            return self.log_temperature.exp()
        if self.keys.temperature == "clip":
            return self.backbone.logit_scale.detach().float().exp()
        return float(self.keys.temperature)

    def add_alignment(self, texts: Tensor, frames: Tensor, losses: Losses) -> None:
        """Add the alignment loss of features [B, D] and [B, F, D], its parts and its diagnostics to `losses`."""
        log_s, log_v = self.distributions(texts, frames)
        target = log_s.detach() if self.alignment.detach_target else log_s
        posterior = None
        if self.vae is None:
            kind = self.alignment.kind
            assert kind in ("kl", "ce", "mse")
            loss = losses.parts[f"align_{kind}"] = direct_alignment_loss(kind, log_v, target)
        else:
            posterior = self.vae.posterior(log_v)
            drawn = [self.vae.decode(posterior.sample()) for _ in range(self.alignment.samples)]
            rec = torch.stack([reconstruction_loss(log_s_hat, target) for log_s_hat in drawn]).mean()
            kl = kl_to_standard_normal(posterior.mean, posterior.logvar, self.alignment.latent_reduction)
            losses.parts |= {"rec": rec, "kl": kl}
            loss = rec + self.alignment.kl_weight * kl
        losses.total = losses.total + self.alignment.weight * loss
        losses.diagnostics |= alignment_diagnostics(log_s, log_v, losses.parts.get("rec"), posterior)
