"""CALM's models: features of sentences and clips, the alignment loss on them, and the training step for retrieval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.anchors.distribution import (
    AnchorBank,
    anchor_log_probabilities,
    at_least_float32,
    entropy,
    fit_temperature,
    kl_divergence,
    video_log_probabilities,
)
from calmctl.errors import BadInput
from calmctl.model.backbone import Backbone, FeatureAdapter, encode_in_chunks, require_separate_rows, split_preprocess
from calmctl.model.heads.base import Reranker, Similarity, WeightedSimilarity
from calmctl.model.losses import (
    direct_alignment_loss,
    free_bits_kl,
    kl_to_standard_normal,
    reconstruction_loss,
    task_loss,
)
from calmctl.model.vae import CrossModalVAE, Posterior
from calmctl.parallel import SINGLE, World
from calmctl.recipe.schema import AlignmentSection, AnchorsSection
from calmctl.video.compressed import CompressedReader
from calmctl.video.pixels import FrameReader

_CAPTIONS_TO_FIT, _CAPTIONS_AT_ONCE = 2000, 256  # of `AlignedModel.choose_temperature`


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples: sentence i describes clip i.

    Attributes:
        texts: Token ids [B, L], or features of the sentences where they were made before (`encode_texts`).
        frames: Pixels at the backbone's input size, uint8 [B, F, S, S, 3], or frame features [B, F, D]; whatever the
            model's `reader` reads.
        clips: The number of each sample's clip, [B]; equal numbers are captions of one clip.
        captions: For captioning: the sentences as the decoder's tokens, [B, T] (`CaptionVocabulary.encode`).
    """

    texts: Tensor
    frames: Tensor
    clips: Tensor
    captions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return self._each(lambda part: part.to(device, non_blocking=True))

    def first(self, count: int) -> Batch:
        """Its first `count` samples."""
        return self._each(lambda part: part[:count])

    def pinned(self) -> Batch:
        """The same batch where a GPU can fetch it while it computes."""
        return self._each(lambda part: part.pin_memory())

    def used_by(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a batch that another stream has made until `stream` is done with it."""
        for part in (self.texts, self.frames, self.clips, self.captions):
            if part is not None:
                part.record_stream(stream)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        captions = None if self.captions is None else change(self.captions)
        return Batch(change(self.texts), change(self.frames), change(self.clips), captions)


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


# Numbers that tell whether the alignment is alive (docs/science.md).


ACTIVE_UNIT_VARIANCE = 0.01
"""A latent unit is active where the variance of mu_i over the batch exceeds this."""


@torch.no_grad()
def alignment_diagnostics(
    log_s: Tensor, log_v: Tensor, reconstruction: Tensor | None, posterior: Posterior | None
) -> dict[str, Tensor]:
    """Entropies, peaks and divergences of S_p and V_p [B, K], and the VAE's activity, as scalars.

    `rec_excess` is L_rec - H(S_p) = KL(S_p || S_hat), the reducible part; `mean_predictor_excess` is the
    same for the batch mean of S_p. A VAE that does not get below the latter ignores its input.
    """
    entropy_s = entropy(log_s).mean()
    numbers = {
        "entropy_s": entropy_s,
        "entropy_v": entropy(log_v).mean(),
        "peak_s": log_s.max(dim=-1).values.exp().mean(),
        "peak_v": log_v.max(dim=-1).values.exp().mean(),
        "kl_s_v": kl_divergence(log_s, log_v).mean(),
    }
    if reconstruction is not None and posterior is not None:
        # In logarithms: at tau = 100 an entry of S_p can be smaller than float32 holds.
        log_mean = log_s.logsumexp(dim=0) - torch.tensor(float(len(log_s))).log()
        numbers["rec_excess"] = reconstruction - entropy_s
        numbers["mean_predictor_excess"] = kl_divergence(log_s, log_mean).mean()
        active = posterior.mean.var(dim=0, unbiased=False) > ACTIVE_UNIT_VARIANCE
        numbers["active_units"] = active.sum().float()
        numbers["posterior_sigma"] = (0.5 * posterior.logvar).exp().mean()
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedParts:
    """What an `AlignedModel` is made of, beside its backbone.

    Attributes:
        anchor_keys, alignment_keys: Of the recipe.
        anchors, vae, reverse_vae: Absent without an alignment loss, and in an export for inference.
        adapter: What moves features behind the towers.
        frozen: Whether the towers are not trained.
        chunk: Rows whose activations are held at a time in training; None: those of the whole batch.
    """

    anchor_keys: AnchorsSection
    alignment_keys: AlignmentSection
    anchors: AnchorBank | None = None
    vae: CrossModalVAE | None = None
    reverse_vae: CrossModalVAE | None = None
    adapter: FeatureAdapter | None = None
    frozen: bool = False
    chunk: int | None = None


class AlignedModel(nn.Module):
    """What every trained model shares: features of sentences and frames, and CALM's loss on them; a task adds its own.

    Attributes:
        scores_sentences: Whether the task compares sentences with videos, so that sentences must be encoded.
        alignment_factor: The share of the alignment's weight in force, which a warm-up lets rise to 1.
        kl_factor: The same of `alignment.kl_weight`.
        auto_temperature: The tau of `anchors.temperature: auto` that `choose_temperature` found, a buffer, so that it
            is kept with the weights; None where the recipe says another.
        world: The processes of the training.
    """

    scores_sentences = True
    alignment_factor = 1.0
    kl_factor = 1.0
    auto_temperature: Tensor | None
    world: World = SINGLE

    def __init__(self, backbone: Backbone, parts: AlignedParts) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalise = split_preprocess(backbone)[1]
        self.anchors, self.vae, self.reverse_vae = parts.anchors, parts.vae, parts.reverse_vae
        self.adapter = parts.adapter
        self.keys, self.alignment = parts.anchor_keys, parts.alignment_keys
        self.frozen, self.chunk = parts.frozen, parts.chunk
        self.log_temperature: nn.Parameter | None = None
        if self.anchors is not None and self.keys.temperature == "learned":
            self.log_temperature = nn.Parameter(torch.tensor(100.0).log())
        automatic = self.anchors is not None and self.keys.temperature == "auto"
        self.register_buffer("auto_temperature", torch.tensor(torch.nan) if automatic else None)
        if self.frozen:
            backbone.requires_grad_(False)
        if self.chunk is not None:
            require_separate_rows(backbone, "optim.chunk")

    def join(self, world: World) -> None:
        """Train with other processes, each of which has a part of every batch."""
        if world.size > 1:
            require_separate_rows(self, "training with several processes")
        self.world = world

    def texts_and_anchors(self, texts: Tensor) -> tuple[Tensor, Tensor | None]:
        """The texts of a training batch as `encode_texts` gives them, and the anchors P [K, D].

        None in their place where they need a pass of their own (`anchor_features`), or are not needed.
        """
        anchors, encode = self.anchors, partial(encode_in_chunks, self.encode_texts, chunk=self.chunk)
        if anchors is None or not self.aligns or anchors.encode != "gradient":
            return encode(texts), None
        if texts.is_floating_point() or not torch.is_grad_enabled():
            return encode(texts), None
        # Prompts are sentences like others: one pass of the text tower for both, padded to the longer, which changes
        # nothing (`Backbone.tokenize`). A GPU waits for its host in a text tower, and now does so once.
        length = max(texts.shape[1], anchors.tokens.shape[1])
        both = encode(torch.cat([F.pad(rows, (0, length - rows.shape[1])) for rows in (texts, anchors.tokens)]))
        own, prompts = both[: len(texts)], self.sentences(both[len(texts) :])
        return own[:, : 1 + texts.shape[1]] if self.reads_words else own, prompts + anchors.position

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def caption_tokens(self, sentences: Sequence[str]) -> Tensor | None:
        """What a caption decoder learns of sentences, [N, T]; None where the model writes no captions."""
        return None

    def reader(self, n_frames: int) -> FrameReader | CompressedReader:
        """What reads clips for it: `n_frames` frames at the backbone's input size."""
        return FrameReader(n_frames, self.backbone.spec.frame_resize)

    @property
    def keeps_features(self) -> bool:
        """Whether a clip gives the same features in every epoch, before any adapter, so that they can be kept."""
        return self.frozen

    @property
    def reads_words(self) -> bool:
        """Whether texts are words beside the sentence's feature (`FusionHead.reads`)."""
        return False

    @property
    def teaches_sentences(self) -> bool:
        """Whether the alignment loss has a gradient into the sentence's features: as a target, or as an input."""
        return self.aligns and (not self.alignment.detach_target or self.alignment.direction == "both")

    @property
    def aligns(self) -> bool:
        """Whether the alignment loss is part of the training."""
        return self.anchors is not None and self.alignment.kind != "none"

    def encode_texts(self, texts: Tensor) -> Tensor:
        """Sentences as scoring sees them, from token ids [N, L] or from what `bare_texts` gave.

        Returns:
            Sentence features [N, D]; where the head reads words, [N, 1 + L, D]: `sentences` takes the former.

        Raises:
            BadInput: Extracted sentence features where words are needed.
        """
        texts = at_least_float32(self.bare_texts(texts))
        if self.adapter is None:
            return texts
        # Rows of zeros say "no word"; the adapter's bias would make words of them.
        moved: Tensor = self.adapter.texts(texts)
        return moved * (texts != 0).any(-1, keepdim=True) if self.reads_words else moved

    def bare_texts(self, texts: Tensor) -> Tensor:
        """The same before any adapter."""
        if texts.is_floating_point():
            # Token ids are whole numbers, features are not: the type says which of the two these are.
            if self.reads_words and texts.dim() != 3:
                raise BadInput("this head reads words, and a feature store holds sentences only; use the videos")
            return texts
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone.encode_words(texts) if self.reads_words else self.backbone.encode_text(texts)

    @torch.no_grad()
    def prompt_features(self, prompts: Sequence[str]) -> Tensor:
        """CLIP_s(prompts), [K, D], behind any adapter and without learned offsets."""
        return self.sentences(self.encode_texts(self.backbone.tokenize(prompts).to(self.device)))

    def sentences(self, texts: Tensor) -> Tensor:
        """The sentence features [..., D] in what `encode_texts` gave."""
        return texts[..., 0, :] if self.reads_words else texts

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frame features [N, F, D] as scoring sees them, from pixels [N, F, S, S, 3] or features [N, F, D]."""
        frames = at_least_float32(self.bare_frames(frames))
        return frames if self.adapter is None else self.adapter.frames(frames)

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
            encode = partial(encode_in_chunks, self.backbone.encode_text, chunk=self.chunk)
            prompts = at_least_float32(self.anchors.prompts(encode))
        if adapter is not None:
            # Anchors are compared with sentences, and those have passed the adapter.
            prompts = adapter.texts(prompts)
        return prompts + self.anchors.position

    def distributions(self, texts: Tensor, frames: Tensor, anchors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log S_p and log V_p, [B, K] each, of `encode_texts` and of frames [B, F, D] (Eq. 6, 7).

        `anchors` are P, [K, D], where they are at hand.
        """
        anchors = self.anchor_features() if anchors is None else anchors
        tau, keys = self.temperature(), self.keys
        video_tau = keys.video_temperature or tau
        return (
            anchor_log_probabilities(self.sentences(texts), anchors, tau),
            video_log_probabilities(frames, anchors, video_tau, video=keys.video, frame_mean=keys.frame_mean),
        )

    def temperature(self) -> float | Tensor:
        """Tau of Eq. 6: fixed, CLIP's own without gradient, learned, or fitted (docs/science.md, reading 1)."""
        if self.auto_temperature is not None:
            return self.auto_temperature
        if self.log_temperature is not None:
            return self.log_temperature.exp()
        if self.keys.temperature == "clip":
            # Without gradient: the scale is the contrastive loss's to learn.
            return self.backbone.logit_scale.detach().float().exp()
        # `auto` without anchors of its own, as a slim export is: what the other ways begin with.
        return 100.0 if isinstance(self.keys.temperature, str) else float(self.keys.temperature)

    @torch.no_grad()
    def choose_temperature(self, captions: Sequence[str]) -> None:
        """Fit the tau of `anchors.temperature: auto` to training captions, of which 2,000 are enough (our choice).

        Raises:
            BadInput: No tau gives the entropy that `anchors.entropy` asks for.
        """
        if self.auto_temperature is None:
            return
        captions = captions[:: -(-len(captions) // _CAPTIONS_TO_FIT)]
        training = self.training
        self.eval()  # dropout must not draw: the start of a training hangs on its seed alone
        tokens = torch.split(self.backbone.tokenize(captions).to(self.device), _CAPTIONS_AT_ONCE)
        texts = torch.cat([self.sentences(self.encode_texts(part)) for part in tokens])
        # At tau = 1 the logarithms are the cosines and a constant a row, which no softmax sees.
        cosines = anchor_log_probabilities(texts, self.anchor_features(), 1.0)
        self.train(training)
        try:
            self.auto_temperature.fill_(fit_temperature(cosines, self.keys.entropy))
        except ValueError as fault:
            raise BadInput(
                f"anchors.entropy: no tau gives S_p a mean entropy of {self.keys.entropy:g} nats over these anchors "
                f"({fault}); choose another target, or name anchors.temperature"
            ) from None

    def add_alignment(self, texts: Tensor, frames: Tensor, losses: Losses, anchors: Tensor | None = None) -> None:
        """Add the alignment loss of texts and frames [B, F, D], its parts and its diagnostics to `losses`."""
        log_s, log_v = self.distributions(texts, frames, anchors)
        loss, posterior = self._align(log_v, log_s, self.vae, losses.parts)
        if self.alignment.direction == "both":
            # p(V_p | S_p) is another law than p(S_p | V_p): one network cannot be both, so it has a VAE of its own.
            reverse: dict[str, Tensor] = {}
            loss = loss + self._align(log_s, log_v, self.reverse_vae, reverse)[0]
            losses.parts |= {f"{name}_reverse": part for name, part in reverse.items()}
        losses.total = losses.total + self.alignment_factor * self.alignment.weight * loss
        with torch.no_grad():
            # Of the whole batch: the mean predictor of one process's part would be another predictor.
            log_s, log_v = self.world.gather(log_s), self.world.gather(log_v)
            if posterior is not None:
                posterior = Posterior(self.world.gather(posterior.mean), self.world.gather(posterior.logvar))
            losses.diagnostics |= alignment_diagnostics(log_s, log_v, losses.parts.get("rec"), posterior)

    def _align(
        self, given: Tensor, wanted: Tensor, vae: CrossModalVAE | None, parts: dict[str, Tensor]
    ) -> tuple[Tensor, Posterior | None]:
        """The loss of one direction, from log `given` to log `wanted`, [B, K] each; puts its summands into `parts`."""
        # The bound takes S_p for data. With a gradient anchors could make it one-hot: a low loss that aligns nothing.
        target = wanted.detach() if self.alignment.detach_target else wanted
        if vae is None:
            kind = self.alignment.kind
            assert kind in ("kl", "ce", "mse")
            parts[f"align_{kind}"] = loss = self.world.mean(direct_alignment_loss(kind, given, target))
            return loss, None
        posterior = vae.posterior(given)
        drawn = [vae.decode(posterior.sample()) for _ in range(self.alignment.samples)]
        # The mean of the draws' losses and not the loss of a mean guess: Eq. 12 is an expectation over z.
        rec = self.world.mean(torch.stack([reconstruction_loss(guess, target) for guess in drawn]).mean())
        keys = self.alignment
        kl = self.world.mean(kl_to_standard_normal(posterior.mean, posterior.logvar, keys.latent_reduction))
        parts |= {"rec": rec, "kl": kl}
        if keys.free_bits:
            average = partial(self.world.mean_over, dim=0)
            kl = free_bits_kl(posterior.mean, posterior.logvar, keys.free_bits, average, keys.latent_reduction)
        return rec + self.kl_factor * keys.kl_weight * kl, posterior


class CalmModel(AlignedModel):
    """CALM for retrieval: the aligned features and a fusion head; one forward pass gives the losses (Eq. 16)."""

    def __init__(
        self, backbone: Backbone, head: nn.Module, parts: AlignedParts, *, mask_same_clip: bool = False
    ) -> None:
        super().__init__(backbone, parts)
        self.head: Any = head
        self.mask_same_clip = mask_same_clip
        if self.frozen and not isinstance(head, Reranker):
            # The contrastive temperature belongs to the loss, not to the towers: it goes on learning.
            self.backbone.logit_scale.requires_grad_(True)

    @property
    def reads_words(self) -> bool:
        """Whether the head wants words beside the sentence."""
        return bool(self.head.reads == "words")

    def forward(self, batch: Batch) -> Losses:
        """The losses of one step (docs/science.md)."""
        # Frames first: while a GPU is busy with them, its host gets ahead with all the small things that follow.
        frames = encode_in_chunks(self.encode_frames, batch.frames, self.chunk)
        texts, anchors = self.texts_and_anchors(batch.texts)
        # The towers may have run in bf16. Cosines, softmaxes and losses do not: a cosine times 100 needs more digits.
        with torch.autocast(texts.device.type, enabled=False):
            clips = self.world.gather(batch.clips)
            same = clips[:, None] == clips if self.mask_same_clip else None
            scale = at_least_float32(self.backbone.logit_scale).exp()
            total, parts = task_loss(self._similarities(texts, frames, clips), scale, same_clip=same)
            losses = Losses(total, parts)
            if self.aligns:
                self.add_alignment(texts, frames, losses, anchors)
        losses.parts["loss"] = losses.total
        return losses

    def join(self, world: World) -> None:
        """Train with other processes; a head may have something to ask them, too."""
        super().join(world)
        self.head.world = world

    def _similarities(self, texts: Tensor, frames: Tensor, clips: Tensor) -> list[Similarity]:
        """The head's matrices of the whole batch; of its pairs, this process computes the rows of its own texts.

        `clips` are the clips' numbers, [B].
        """
        world = self.world
        # Frames travel and pairs do not: B F D numbers once, and no pair is computed twice.
        frames = world.gather(frames)
        paired = torch.arange(len(frames), device=frames.device)
        if not self.head.rows_are_independent:
            with world.same_random():
                return self.head.similarities(world.gather(texts), frames, paired)
        texts = world.own(texts)
        more = {"clips": clips} if isinstance(self.head, Reranker) else {}
        rows = self.head.similarities(texts, frames, paired[world.first : world.first + len(texts)], **more)
        return [
            replace(part, matrix=world.gather(part.matrix)) if isinstance(part, WeightedSimilarity) else part
            for part in rows
        ]
