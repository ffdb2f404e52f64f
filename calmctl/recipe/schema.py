"""Every key of a recipe with its default; numbers in parentheses are rows of docs/science.md, Readings of the paper."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Wide enough for anything that means something, and narrow enough that float32 and memory can hold it.
PositiveInt = Annotated[int, Field(gt=0, le=1_000_000)]
Count = Annotated[int, Field(gt=0, le=1000)]
PositiveFloat = Annotated[float, Field(ge=1e-12, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Wide = Annotated[int, Field(gt=0, le=65_536)]
Beams = Annotated[int, Field(gt=0, le=100)]
Extra = Annotated[int, Field(ge=0, le=64)]
Share = Annotated[float, Field(ge=0, lt=1)]
# YAML has lists only; all else is taken as strictly as it stands.
Pair = Annotated[tuple[Share, Share], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]

FirstStage = Literal["meanp", "seqlstm", "seqtransf", "xpool", "t-mass", "emcl", "wti", "uatvr"]
"""Kinds of heads that are trained from the backbone."""
WORD_HEADS = frozenset({"wti", "uatvr"})
"""Kinds of heads that read words beside the sentence's feature, which a feature store does not hold."""


PUBLISHED = ("hf-hub:", "local-dir:", "sentence-transformers:", "sentence-transformers-clip:")
"""What `backbone.model` begins with where it names a published model with its weights (`model/published.py`)."""


def is_published(model: str) -> bool:
    """Whether `backbone.model` names a published model, whose weights are its own."""
    return model.startswith(PUBLISHED)


class Section(BaseModel):
    """A group of keys: frozen, and an unknown key is an error."""

    # With a longest length pydantic looks into every text, and refuses half a character, which no file could hold.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_max_length=4096)


class CompressedSection(Section):
    """What CoCap reads of a clip (docs/captioning.md); other models read frames."""

    gops: Count = Field(8, description="groups of pictures of a clip, each with its I picture")
    pictures: Count = Field(59, description="pictures of a group that vectors and residuals are read of")
    vectors: Literal["quarter", "whole", "none"] = Field(
        "quarter", description="motion vectors in quarter pels, cut to whole ones as CoCap's reader, or left out"
    )
    residual: bool = Field(True, description="whether residuals are read; neither they nor vectors: I pictures alone")
    reencode: bool = Field(False, description="re-encode clips each time they are read; false: data reencode did")


class Data(Section):
    """Where clips and captions come from."""

    dataset: str = Field(description="folder, or a data set of calmctl data where")
    protocol: str | None = Field(None, description="the published protocol, e.g. 9k or 7k; null: its default")
    root: str = Field("data", description="folder that holds annotations and videos")
    annotations: str | None = Field(None, description="folder of the annotation files, when not under root")
    videos: str | None = Field(None, description="folder of the clips, when not under root")
    features: str | None = Field(None, description="a feature store to train on; the backbone is frozen then")
    frames: Count = Field(12, description="frames sampled from a clip: centres of equal intervals")
    # CLIP4Clip's code calls the former `--expand_msrvtt_sentences`; without it there is one a clip.
    captions_per_clip: Literal["all", "one"] = Field(
        "all", description="pairs an epoch: every caption of a clip, or one, drawn anew for each epoch"
    )
    # MSR-VTT's 9k has no validation split. The best epoch is never chosen on test, so some training clips are given up.
    val_clips: PositiveInt | None = Field(
        None, description="clips carved from train for validation; null: as the protocol needs"
    )
    val_seed: Seed = Field(0, description="seed of that carving")
    # Flips are T-MASS's. Captioning recipes turn them off: a caption that says "left" would be taught to lie.
    augment: Literal["none", "crop-flip"] = Field(
        "crop-flip", description="crop-flip: one random crop (area 0.5 to 1) and flip a clip, as T-MASS"
    )
    flip: bool = Field(True, description="whether crop-flip flips; captions with left/right suffer from it")
    # The published preparations re-encode all clips to a short side of 224 or so before they begin. Whole frames of a
    # film are 25 times as much to keep, and a crop of them is 224 pixels again.
    short_side: Annotated[int, Field(ge=16, le=4096)] | None = Field(
        None, description="crop-flip: larger frames are first scaled down to this short side; null: whole frames"
    )
    cache: Literal["none", "memory", "disk"] = Field(
        "none", description="decode every clip once and keep its frames: in memory, or on disk for all runs"
    )
    cache_folder: str | None = Field(None, description="where cache: disk keeps frames; null: .frames under root")
    cache_gb: PositiveFloat = Field(100.0, description="most that folder may hold, in 10^9 bytes")
    # They give way to the training (`nice`), so that every core may decode.
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="processes that decode; 0: one per core")
    timeout_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(120.0, description="time limit for decoding one clip")
    require_complete: bool = Field(False, description="missing or broken clips are an error, not a list")
    compressed: CompressedSection = CompressedSection()


class BackboneSection(Section):
    """The CLIP model under everything."""

    model: str = Field(
        "ViT-B-32-quickgelu",
        description="open_clip model name, demo-clip, a config file, hf-hub:OWNER/NAME, local-dir:FOLDER, or "
        "sentence-transformers:NAME",
    )
    weights: str | None = Field(
        "openai",
        description="pretrained tag, .safetensors path, own: what lies beside a published model (its default), or "
        "null: from nothing",
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        None, description="frames of this height and width: position embeddings are interpolated; null: the model's"
    )
    freeze: bool = Field(False, description="keep the towers as they are; implied by data.features")
    # Not in the paper, so "none": numbers with it are not CALM's. On frozen towers the loss can change nothing else.
    adapter: Literal["none", "linear"] = Field(
        "none", description="linear: x + Wx on frame and text features, W = 0 at first (our choice)"
    )
    checkpoint_activations: bool = Field(False, description="less memory, more time in the backward pass (18)")

    @model_validator(mode="before")
    @classmethod
    def _published_models_have_their_own_weights(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(model := values.get("model"), str) and is_published(model):
            return {"weights": "own", **values}
        return values


class AnchorsSection(Section):
    """The class anchors and the distributions over them (Eq. 4-7)."""

    vocabulary: str = Field("charades@1", description="name@version, or a path to a YAML or a label list")
    subset: PositiveInt | None = Field(None, description="use this many anchors, drawn by subset_seed (20)")
    subset_seed: Seed = Field(0, description="seed of that draw; the drawn labels are stored with the run")
    encode: Literal["gradient", "no-gradient", "refresh", "frozen"] = Field(
        "gradient", description="prompts re-encoded each step with gradient (4), without, every n, or once"
    )
    refresh_every: PositiveInt = Field(100, description="steps between re-encodings for encode: refresh")
    position_init: Literal["normal", "zeros"] = Field("normal", description="start of the offsets e_k (5)")
    # Norm 0.45 at D = 512; N(0, 1) would have 22.6 and drown the labels.
    position_std: PositiveFloat = Field(0.02, description="standard deviation of that start")
    # Eq. 6 gives no number. At 1 the likeliest of K anchors is hardly likelier than the rest and L_rec nearly constant;
    # 100 is what CLIP was trained to.
    temperature: PositiveFloat | Literal["clip", "learned", "auto"] = Field(
        100.0,
        description="tau, times the cosines (1); clip: exp(logit_scale) of the backbone, whatever loss trained it, "
        "detached; learned: from 100; auto: so that S_p has the entropy below",
    )
    entropy: PositiveFloat = Field(
        2.0, description="temperature: auto: mean entropy of S_p over training captions at the start, nats (our choice)"
    )
    video_temperature: PositiveFloat | None = Field(None, description="another one for the video side (2)")
    video: Literal["mean", "frames"] = Field(
        "mean", description="V_p of the mean frame feature (6), or frames: each frame's V_p, averaged (28)"
    )
    frame_mean: Literal["raw", "normalized"] = Field("raw", description="features averaged as they are (6)")


class HeadSection(Section):
    """The fusion head: what a pair scores (8, 9)."""

    kind: Literal[FirstStage, "diffusionret"] = Field(
        "t-mass",
        description="CLIP4Clip's meanp, seqlstm, seqtransf; X-Pool; T-MASS; EMCL; words with frames; UATVR; "
        "diffusionret: the second stage of one of these",
    )
    heads: Count = Field(1, description="xpool, t-mass: attention heads of the text-conditioned pooling")
    dropout: Share = Field(0.3, description="xpool, t-mass: dropout of the pooling's last linear branch")
    noise: Literal["uniform", "normal"] = Field("uniform", description="t-mass: U[0,1) or N(0, noise_std^2)")
    noise_std: PositiveFloat = Field(0.003, description="t-mass: for noise: normal")
    support_weight: NonNegative = Field(0.0, description="t-mass: weight of the support text's loss")
    trials: Annotated[int, Field(ge=0, le=10_000)] = Field(
        20, description="t-mass: noise samples per pair; 0: no noise"
    )
    layers: Count = Field(4, description="seqtransf, emcl, wti, uatvr: transformer layers over the frames")
    hidden: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="wti: width of the tokens' perceptrons, in D; 2: DiffusionRet's first stage"
    )
    init: Literal["backbone", "random"] = Field(
        "backbone", description="those layers start as CLIP's first text layers, or at random"
    )
    bases: Wide = Field(32, description="emcl: bases of the expectation-maximisation")
    em_steps: Count = Field(9, description="emcl: its iterations")
    em_weight: NonNegative = Field(3.0, description="emcl: factor beta of the reconstruction that is added")
    em_init: Literal["released", "gaussian"] = Field(
        "released", description="emcl: bases start alike but for signs, or spread (docs/science.md)"
    )
    em_rebuild: Literal["released", "shares"] = Field(
        "released", description="emcl: weights of the reconstruction; shares adds D / bases times as much (our choice)"
    )

    extra_frames: Extra = Field(2, description="uatvr: learned tokens beside a clip's frames")
    extra_words: Extra = Field(2, description="uatvr: learned tokens beside a sentence's words")
    prob_samples: Annotated[int, Field(ge=0, le=100)] = Field(
        7, description="uatvr: samples of a clip's and a sentence's Gaussian per step; 0: without Gaussians"
    )
    mil_weight: NonNegative = Field(0.01, description="uatvr: weight of the samples' contrastive loss")
    prob_kl_weight: NonNegative = Field(1e-4, description="uatvr: weight of the Gaussians' divergence")

    from_run: str | None = Field(
        None, description="diffusionret: the finished run that is its first stage; all of it is kept as it is"
    )
    base: FirstStage = Field("wti", description="diffusionret: that run's head.kind; wti is the published one")
    base_alignment: Literal["vae", "kl", "ce", "mse", "none"] = Field(
        "none", description="diffusionret: that run's alignment.kind"
    )
    diffusion_steps: Annotated[int, Field(ge=2, le=1000)] = Field(50, description="diffusionret: T, steps of the noise")
    sample_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        50, description="diffusionret: steps of the walk back; 1: one look at the candidates"
    )
    candidates: Annotated[int, Field(ge=2, le=1000)] = Field(
        32, description="diffusionret: best of the base that are re-ranked"
    )
    samples: Annotated[int, Field(ge=0, le=100)] = Field(
        1, description="diffusionret: starts of the walk that are averaged; 0: from zeros, without noise"
    )
    gen_temperature: PositiveFloat = Field(100.0, description="diffusionret: multiplies predictions in the loss")
    rerank_weight: NonNegative = Field(1.0, description="diffusionret: weight of the term that re-ranking adds")
    rerank_temperature: PositiveFloat = Field(1.0, description="diffusionret: multiplies predictions in that term")

    @property
    def reads_words(self) -> bool:
        """Whether it needs words beside the sentence's feature, which a feature store does not hold."""
        return (self.base if self.kind == "diffusionret" else self.kind) in WORD_HEADS


class CaptionSection(Section):
    """The caption head of task: caption, its loss, and how captions are searched for (26; docs/captioning.md)."""

    system: Literal["transformer", "cocap", "semsynan"] = Field(
        "transformer", description="encoder and decoder over frames (CLIP4Caption's too), CoCap, or SemSynAN over CLIP"
    )
    width: Wide = Field(768, description="of the transformer's layers")
    encoder_layers: Count = Field(1, description="transformer layers over the frames")
    decoder_layers: Count = Field(3, description="transformer layers over the words")
    heads: Count = Field(8, description="attention heads of a layer")
    ffn: Wide = Field(2048, description="inner width of a layer's perceptron")
    dropout: Share = Field(0.1, description="on embeddings and behind every branch of a layer")
    max_tokens: Annotated[int, Field(ge=2, le=1000)] = Field(
        30, description="longest caption in CLIP tokens, end included"
    )
    input_norm: bool = Field(False, description="LayerNorms before and behind the linear layer over the frames")
    output_transform: bool = Field(False, description="linear, GELU and LayerNorm before the output, as BERT has")
    concepts: Wide = Field(300, description="semsynan: most frequent nouns, verbs, adjectives of training captions")
    semantics: Literal["both", "concepts", "syntax"] = Field(
        "both", description="semsynan: what steers the words; concepts or syntax alone has one cell of three"
    )
    vocabulary: Literal["all", "train"] = Field(
        "all", description="CLIP's 49,408 tokens, or those of the training captions: faster (our choice)"
    )
    init_tokens: Literal["backbone", "random"] = Field("backbone", description="start of the token embeddings")
    tied: bool = Field(False, description="one matrix for token embeddings and output")
    loss: Literal["smoothed", "symmetric"] = Field(
        "smoothed", description="cross-entropy with smoothing, or half of it and half reversed"
    )
    smoothing: Share = Field(0.1, description="label smoothing of loss: smoothed")
    beam: Beams = Field(5, description="beams of the search; 1: greedy")
    length_penalty: Annotated[float, Field(ge=0, le=10)] = Field(
        1.0, description="log-probability is divided by length to this power (our choice); 0: as it is"
    )
    validation_beam: Beams = Field(1, description="beams for choosing the best epoch; 1: greedy, faster")


class AlignmentSection(Section):
    """CALM's loss and what Table 7 compares it with (23)."""

    kind: Literal["vae", "kl", "ce", "mse", "none"] = Field("vae", description="vae is CALM")
    weight: NonNegative = Field(1.0, description="factor of the whole alignment loss")
    warmup: Share = Field(0.0, description="share of all steps over which that factor rises from 0 (30)")
    direction: Literal["video-to-text", "both"] = Field(
        "video-to-text", description="both: V_p is also reconstructed from S_p, by a VAE of its own (29)"
    )
    kl_weight: NonNegative = Field(0.1, description="alpha of Eq. 16")
    # Both against posterior collapse, and neither in the paper.
    kl_warmup: Share = Field(0.0, description="share of all steps over which alpha rises from 0 (31)")
    free_bits: NonNegative = Field(
        0.0, description="nats of KL that each latent unit has for free, as a mean over the batch (31)"
    )
    latent: Wide = Field(256, description="d, the latent dimension")
    layout: Literal["A", "B", "C", "D", "D2"] = Field("A", description="the VAE's layers, docs/science.md")
    activation: Literal["relu", "gelu", "tanh"] = Field("relu", description="between the VAE's layers (11)")
    dropout: Share = Field(0.1, description="behind those activations, encoder and decoder")
    input: Literal["probability", "log", "scaled"] = Field(
        "probability", description="the VAE sees V_p, log V_p, or K * V_p (12)"
    )
    # With a gradient anchors could make S_p one-hot: a small L_rec without any alignment.
    detach_target: bool = Field(True, description="no gradient through S_p (3)")
    samples: Count = Field(1, description="Monte Carlo samples of z per step (15)")
    # The mean divides by d, so it is the same as an alpha 256 times smaller.
    latent_reduction: Literal["sum", "mean"] = Field("sum", description="over d, Eq. 15 is a sum (14)")
    logvar_limit: Annotated[float, Field(gt=0, le=80)] = Field(
        10.0, description="log sigma^2 is clamped to +- this (10)"
    )


class OptimSection(Section):
    """Optimiser, schedule, length of the run (16-18)."""

    epochs: PositiveInt = Field(5, description="passes over all (clip, caption) pairs")
    batch_size: PositiveInt = Field(128, description="pairs per step; all others in it are negatives")
    chunk: PositiveInt | None = Field(
        None, description="pairs encoded at a time: large batches in little memory, exact; null: the batch"
    )
    lr_backbone: NonNegative = Field(1e-6, description="CLIP's own parameters")
    lr_head: NonNegative = Field(1e-5, description="head and adapter")
    # At the paper's 1e-5 a fresh VAE hardly trains: in DiDeMo's 330 steps a weight moves by 0.0017 at most.
    lr_alignment: NonNegative = Field(1e-5, description="VAE and e_k; the paper's one number, 1e-4 trains more")
    weight_decay: NonNegative = Field(0.2, description="of AdamW")
    decay: Literal["all", "matrices"] = Field(
        "all", description="matrices: not on biases, norms, e_k, logit_scale (17)"
    )
    betas: Pair = Field((0.9, 0.999), description="of AdamW")
    eps: PositiveFloat = Field(1e-6, description="of AdamW")
    warmup: Share = Field(0.1, description="share of all steps with a linear rise of the rate")
    clip_norm: PositiveFloat = Field(1.0, description="largest norm of the gradient over all parameters")
    # Accumulating gradients is no key: smaller batches have fewer negatives, which is another loss. `chunk` is exact.
    # bf16 is for the towers only: a cosine times 100 needs more than its three digits.
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the towers; CALM is always float32")
    # Two compilations a run, 15 s together on an H200, and a quarter off each of MSR-VTT's 6,645 steps.
    compile: Literal["auto"] | bool = Field(
        "auto", description="transformer blocks of towers that train, by torch.compile; auto: on CUDA"
    )
    mask_same_clip: bool = Field(False, description="other captions of a clip are not its negatives (24)")
    save_every: PositiveInt = Field(500, description="steps between checkpoints, beside those of epochs")
    log_every: PositiveInt = Field(10, description="steps between lines of diagnostics")


class Recipe(Section):
    """One run, complete."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", description="names the run's folder")
    task: Literal["retrieval", "caption"] = Field("retrieval", description="what is trained")
    seed: Seed = Field(24, description="of initialisation, order, dropout and noise")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU where there is one")
    init_from: str | None = Field(
        None, description="a finished run: its towers, adapter and head are where this training starts (train --init)"
    )
    data: Data
    backbone: BackboneSection = BackboneSection()
    anchors: AnchorsSection = AnchorsSection()
    head: HeadSection = HeadSection()
    caption: CaptionSection = CaptionSection()
    alignment: AlignmentSection = AlignmentSection()
    optim: OptimSection = OptimSection()

    @property
    def frozen(self) -> bool:
        """Whether the towers are not trained."""
        return self.backbone.freeze or self.data.features is not None or self.head.from_run is not None

    @property
    def reads_compressed(self) -> bool:
        """Whether clips are read as their codec keeps them, and not as frames."""
        return self.task == "caption" and self.caption.system == "cocap"

    @model_validator(mode="after")
    def _cache_fits_augmentation(self) -> Recipe:
        if self.data.cache == "memory" and self.data.augment != "none":
            raise ValueError(
                "data.cache: memory keeps frames at the backbone's input size, and data.augment: "
                f"{self.data.augment} needs whole frames; set data.augment=none, data.cache=disk or data.cache=none"
            )
        if self.data.cache == "disk" and self.reads_compressed:
            raise ValueError(
                "data.cache: disk keeps frames, and caption.system: cocap reads what a codec keeps; set "
                "data.cache=memory data.augment=none, or data.cache=none"
            )
        return self

    @model_validator(mode="after")
    def _starts_from_one_run(self) -> Recipe:
        head = self.head
        if self.task == "retrieval" and head.kind == "diffusionret":
            if head.from_run is None:
                raise ValueError(
                    "head.kind: diffusionret is the second stage of a finished run; name that with "
                    "head.from_run=runs/NAME (recipes/msrvtt-diffusionret.yaml is the published first stage)"
                )
            if self.alignment.kind != "none":
                raise ValueError(
                    f"alignment.kind: {self.alignment.kind} could change nothing here: diffusionret trains its "
                    "denoisers alone; set alignment.kind=none, and train the run of head.from_run with CALM's loss"
                )
        elif head.from_run is not None:
            raise ValueError(
                f"head.from_run: {head.from_run} would not be used; it is for head.kind=diffusionret in "
                "task=retrieval, and backbone.weights starts from the towers of a run"
            )
        if self.init_from is not None and self.head.from_run is not None:
            raise ValueError(
                f"init_from: {self.init_from} would not be used; a second stage starts from its first, head.from_run"
            )
        return self

    @model_validator(mode="after")
    def _alignment_can_act(self) -> Recipe:
        """CALM's loss must reach something that scores or captions are made of; bare frozen features are nothing."""
        acts = self.alignment.kind != "none" and self.alignment.weight > 0
        adapts = self.backbone.adapter != "none" and self.optim.lr_head > 0
        if acts and not adapts and (self.frozen or self.optim.lr_backbone == 0):
            raise ValueError(
                f"alignment.kind: {self.alignment.kind} could change nothing here: the backbone is frozen "
                "(backbone.freeze, data.features or optim.lr_backbone=0) and no adapter that trains stands between "
                f"its features and the {'captions' if self.task == 'caption' else 'scores'}; "
                "set backbone.adapter=linear, or alignment.kind=none, or train the backbone"
            )
        return self

    @model_validator(mode="after")
    def _features_suffice(self) -> Recipe:
        if self.head.reads_words and self.task == "retrieval" and self.data.features is not None:
            key, kind = "head.kind", str(self.head.kind)
            if kind == "diffusionret":
                key, kind = "head.base", self.head.base
            raise ValueError(
                f"{key}: {kind} reads words, and a feature store (data.features) holds sentences only; "
                "train from the videos with data.features=null backbone.freeze=true, or use another head"
            )
        if self.reads_compressed and self.data.features is not None:
            raise ValueError(
                "caption.system: cocap reads vectors and residuals, and a feature store (data.features) holds frames "
                "only; set data.features=null"
            )
        return self

    @model_validator(mode="after")
    def _captioner_fits(self) -> Recipe:
        if self.caption.system == "semsynan" and self.caption.tied:
            raise ValueError(
                "caption.tied: true has no meaning for caption.system=semsynan, whose words are narrower than its "
                "cells; set caption.tied=false"
            )
        if self.caption.width % self.caption.heads:
            raise ValueError(
                f"caption.width: {self.caption.width} must be a multiple of caption.heads: {self.caption.heads}"
            )
        return self
