"""Who explains, a run or a bare backbone; and a video as it is looked at: frames for the score, instants for when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calmctl.anchors.distribution import anchor_log_probabilities, video_log_probabilities
from calmctl.anchors.shipped import ZERO_SHOT_VOCABULARY, resolve_vocabulary
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.errors import CheckpointError
from calmctl.model.backbone import split_preprocess
from calmctl.model.build import bare_model
from calmctl.model.calm import CalmModel
from calmctl.model.published import usual_weights
from calmctl.model.vae import CrossModalVAE
from calmctl.model.weights import load_backbone
from calmctl.recipe.schema import AnchorsSection
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import Run
from calmctl.samples import Clip
from calmctl.video.instants import sample_video
from calmctl.video.pixels import jpeg, shrink


@dataclass(frozen=True, slots=True)
class SeenVideo:
    """Features of one clip, with times by its file's own clock.

    Attributes:
        start_s, end_s: Its window.
        times_s: When the frames of the score were on the screen, [F].
        frames: Their features, [F, D].
        instants_s: When those of the timeline were, [T].
        instants: Their features, [T, D].
        pictures: JPEG files of the F frames, for a page; empty where none were asked for.
    """

    clip: Clip
    start_s: float
    end_s: float
    times_s: np.ndarray
    frames: Tensor
    instants_s: np.ndarray
    instants: Tensor
    pictures: tuple[bytes, ...]


def see_video(explainer: Explainer, clip: Clip, *, instants: int | None = None, pictures: bool = False) -> SeenVideo:
    """Decode and encode a clip: F frames as scoring samples them, and `instants` for the timeline, in one pass.

    `instants` None means two a second, at least 12 and at most 240 (our choice). `pictures` keeps JPEG pictures of the
    F frames.

    Raises:
        VideoError: The clip cannot be decoded.
    """
    # One pass gives both, because an hour of video without an index is decoded from end to end.
    resize = split_preprocess(explainer.model.backbone)[0]
    sampled = sample_video(
        clip, explainer.n_frames, instants=instants, transform=resize, picture=shrink if pictures else None
    )
    return SeenVideo(
        clip=clip,
        start_s=sampled.start_s,
        end_s=sampled.end_s,
        times_s=sampled.times_s,
        frames=explainer.encode_frames(sampled.frames),
        instants_s=sampled.instants_s,
        instants=explainer.encode_frames(sampled.instants),
        pictures=tuple(map(jpeg, sampled.pictures)),
    )


ZERO_SHOT_MODEL = "ViT-B-32-quickgelu"
# As the paper's recipes have them.
ZERO_SHOT_FRAMES = 12
_FRAMES_PER_BATCH = 64


@dataclass(frozen=True, slots=True)
class Explainer:
    """A model in evaluation mode with its anchors computed once.

    Attributes:
        name: What explains, for people: "runs/demo-001 (best on validation)".
        vocabulary: The K anchors' labels.
        anchors: P with the current weights, [K, D], on the CPU (Eq. 5).
        vae: The VAE over exactly these anchors, or None.
        temperature, video_temperature: Tau of S_p, and of V_p.
        n_frames: F, the frames that a clip's score is made from.
        run: The run, or None for the bare backbone.
        which: Which of the run's weights.
        notes: What a reader must know about the choice.
    """

    name: str
    model: CalmModel
    vocabulary: Vocabulary
    anchors: Tensor
    vae: CrossModalVAE | None
    temperature: float
    video_temperature: float
    n_frames: int
    device: torch.device
    run: Run | None
    notes: tuple[str, ...]
    which: str = "best"

    def log_s(self, texts: Tensor) -> Tensor:
        """log S_p, [N, K], of texts as `encode_texts` gives them (Eq. 6)."""
        return anchor_log_probabilities(self.model.sentences(texts), self.anchors, self.temperature)

    def log_v(self, frames: Tensor) -> Tensor:
        """log V_p, [..., K], of frame features [..., F, D] (Eq. 7)."""
        keys = self.model.keys
        return video_log_probabilities(
            frames, self.anchors, self.video_temperature, video=keys.video, frame_mean=keys.frame_mean
        )

    @torch.inference_mode()
    def encode_texts(self, sentences: Sequence[str]) -> Tensor:
        """Texts as the head reads them (`FusionHead.reads`), behind any adapter, on the CPU."""
        return self.model.encode_texts(self.model.backbone.tokenize(sentences).to(self.device)).cpu()

    @torch.inference_mode()
    def encode_frames(self, pixels: np.ndarray) -> Tensor:
        """Features [T, D], behind any adapter, on the CPU, of frames uint8 [T, S, S, 3] at the input size."""
        parts = [
            self.model.encode_frames(torch.from_numpy(pixels[None, i : i + _FRAMES_PER_BATCH]).to(self.device))[0]
            for i in range(0, len(pixels), _FRAMES_PER_BATCH)
        ]
        return torch.cat(parts).cpu()


def explain_with_run(
    run: Run, device: torch.device, *, vocabulary: str | Path | None = None, which: str = "best"
) -> Explainer:
    """The explainer of a trained run, with its weights `which`, "best" (on validation) or "last".

    `vocabulary` names other anchors than the run's: they have no learned offsets, and the run's VAE cannot be used.

    Raises:
        CalmError: The run's weights or the vocabulary cannot be used.
    """
    model = load_run(run, which, device)
    own = run.anchors()
    chosen = own if vocabulary is None else resolve_vocabulary(vocabulary)
    notes = []
    vae = model.vae
    # By digest: another vocabulary of the same name and size would fit the run's offsets and VAE, and mean something
    # else.
    if chosen.digest != own.digest:
        notes.append(f"anchors of {chosen.reference} instead of the run's {own.reference}: no learned offsets, no VAE")
        # Offsets are learned per label, and the VAE reads the labels by their place: both fit no other list.
        anchors, vae = model.prompt_features(chosen.prompts).cpu(), None
    elif model.anchors is None:
        exported = run.recipe().alignment.kind != "none"
        why = "a slim export leaves out what training alone needs" if exported else "trained without CALM's loss"
        notes.append(f"this run has no anchors of its own ({why}): they are bare prompts, and there is no VAE")
        anchors = model.prompt_features(chosen.prompts).cpu()
    else:
        with torch.inference_mode():
            # With the learned offsets, as the run's own loss saw them.
            anchors = model.anchor_features().cpu()
        if vae is None:
            notes.append(f"this run aligns by {model.alignment.kind}, without a VAE")
    suffix = {"best": "best on validation", "last": "last epoch"}[which]
    tau = float(model.temperature())
    return Explainer(
        name=f"{run.folder} ({suffix})",
        model=model,
        vocabulary=chosen,
        anchors=anchors,
        vae=vae,
        temperature=tau,
        # The video's own temperature where the recipe has one: V_p as it was in training.
        video_temperature=model.keys.video_temperature or tau,
        n_frames=run.recipe().data.frames,
        device=device,
        run=run,
        notes=tuple(notes),
        which=which,
    )


def explain_zero_shot(
    device: torch.device,
    *,
    backbone: str = ZERO_SHOT_MODEL,
    weights: str | None = None,
    vocabulary: str | Path | None = None,
    notes: tuple[str, ...] = (),
) -> Explainer:
    """The explainer of a bare backbone: mean pooling, prompts without offsets, no VAE.

    `backbone` and `weights` are those of `load_backbone`, None the weights that such a model usually has; without
    `vocabulary` the anchors are charades@1. `notes` are said before its own.

    Raises:
        CheckpointError: The weights are not at hand; the message names the ways out.
        VocabularyError: There is no such vocabulary.
    """
    chosen = resolve_vocabulary(vocabulary or ZERO_SHOT_VOCABULARY)
    named = weights is not None or backbone != ZERO_SHOT_MODEL
    weights = weights or usual_weights(backbone)
    try:
        towers = load_backbone(backbone, weights)
    except CheckpointError as fault:
        if named:  # what is wrong is in the user's own words
            raise
        raise CheckpointError(
            f"{fault}; here: give a .safetensors file with --backbone-weights, or explain with a run "
            "('calmctl demo' makes one)"
        ) from fault
    model = bare_model(towers, AnchorsSection(vocabulary=str(vocabulary or ZERO_SHOT_VOCABULARY))).to(device)
    tau = float(model.temperature())
    return Explainer(
        name=f"zero-shot: {towers.spec.model} with {weights}, mean pooling",
        model=model,
        vocabulary=chosen,
        anchors=model.prompt_features(chosen.prompts).cpu(),
        vae=None,
        temperature=tau,
        video_temperature=tau,
        n_frames=ZERO_SHOT_FRAMES,
        device=device,
        run=None,
        notes=(*notes, *towers.notes, "nothing was trained: anchors are bare prompts, and there is no VAE"),
    )
