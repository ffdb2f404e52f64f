"""From a recipe to a model."""

from __future__ import annotations

from torch import Tensor

from calmctl.anchors.distribution import AnchorBank
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.errors import RecipeError
from calmctl.model.backbone import Backbone, FeatureAdapter
from calmctl.model.calm import AlignedParts, CalmModel
from calmctl.model.captioner import CaptionDecoder, Captioner, CaptionModel, CaptionVocabulary
from calmctl.model.captioners.cocap import CocapDecoder, CocapModel
from calmctl.model.captioners.semsynan import SemSynDecoder, SemSynModel
from calmctl.model.embedder import Embedder
from calmctl.model.heads.diffusionret import DiffusionRetHead
from calmctl.model.heads.emcl import EMCLHead
from calmctl.model.heads.meanp import FrameTransformer, MeanPoolHead, SeqLSTMHead, SeqTransfHead
from calmctl.model.heads.tmass import TMassHead
from calmctl.model.heads.uatvr import UATVRHead
from calmctl.model.heads.wti import TokenInteractionHead
from calmctl.model.heads.xpool import XPoolHead
from calmctl.model.vae import CrossModalVAE
from calmctl.model.weights import load_backbone
from calmctl.recipe.schema import AlignmentSection, AnchorsSection, Recipe

Head = MeanPoolHead | XPoolHead | TMassHead | EMCLHead | TokenInteractionHead | UATVRHead | DiffusionRetHead


def build_model(recipe: Recipe, vocabulary: Vocabulary, backbone: Backbone | None = None) -> CalmModel:
    """The retrieval model a recipe describes, freshly initialised from torch's default generator.

    `vocabulary` has the anchors of `recipe.anchors`, already cut to `anchors.subset`. A `backbone` at hand is used
    instead of loading the recipe's.

    Raises:
        CheckpointError: See `load_backbone`.
    """
    backbone = backbone or recipe_backbone(recipe)
    # The order in which parts are made is the order of the random draws: another one gives every seed another model.
    head = build_head(recipe, backbone)
    parts = _parts(recipe, vocabulary, backbone)
    return CalmModel(backbone, head, parts, mask_same_clip=recipe.optim.mask_same_clip)


def build_caption_model(recipe: Recipe, vocabulary: Vocabulary, tokens: Tensor, backbone: Backbone) -> CaptionModel:
    """The captioning model a recipe describes, freshly initialised from torch's default generator.

    `vocabulary` is that of `build_model`; `tokens` are the CLIP ids of the tokens that the decoder writes, [V].

    Raises:
        CheckpointError: The backbone's tokens are not CLIP's.
    """
    keys, read = recipe.caption, recipe.data.compressed
    writes = CaptionVocabulary(backbone, tokens)
    decoder: CaptionDecoder
    match keys.system:
        case "cocap":
            decoder = CocapDecoder(keys, backbone.dim, read.gops, writes)
        case "semsynan":
            word = backbone.token_embedding.shape[1]
            decoder = SemSynDecoder(keys, backbone.dim, recipe.data.frames, word, writes)
        case "transformer":
            decoder = Captioner(keys, backbone.dim, recipe.data.frames, writes)
    # Behind the random start, which draws the same numbers with this key and without.
    if keys.init_tokens == "backbone":
        decoder.start_from(backbone.token_embedding)
    parts = _parts(recipe, vocabulary, backbone)
    if keys.system == "cocap":
        return CocapModel(backbone, decoder, keys, parts, read)
    if isinstance(decoder, SemSynDecoder):
        return SemSynModel(backbone, decoder, keys, parts)
    return CaptionModel(backbone, decoder, keys, parts)


def bare_model(backbone: Backbone, anchors: AnchorsSection) -> CalmModel:
    """A backbone as it is, its frames averaged and nothing trained, in evaluation mode."""
    parts = AlignedParts(anchor_keys=anchors, alignment_keys=AlignmentSection(kind="none"), frozen=True)
    return CalmModel(backbone, MeanPoolHead(), parts).eval()


def recipe_backbone(recipe: Recipe) -> Backbone:
    """The backbone of a recipe with its weights. Raises `CheckpointError`, see `load_backbone`."""
    keys = recipe.backbone
    return load_backbone(keys.model, keys.weights, image_size=keys.image_size)


def build_head(recipe: Recipe, backbone: Backbone) -> Head:
    """The fusion head of `recipe.head` for the features of `backbone`.

    Raises:
        CheckpointError: `head.init: backbone` where the text tower has no layers that fit.
    """
    keys, dim = recipe.head, backbone.dim
    match keys.kind:
        case "meanp":
            return MeanPoolHead()
        case "seqlstm":
            return SeqLSTMHead(dim)
        case "seqtransf":
            return SeqTransfHead(_frame_layers(recipe, backbone))
        case "emcl":
            layers = _frame_layers(recipe, backbone)
            return EMCLHead(
                layers, keys.bases, keys.em_steps, keys.em_weight, start=keys.em_init, rebuild=keys.em_rebuild
            )
        case "wti":
            return TokenInteractionHead(_frame_layers(recipe, backbone), hidden=keys.hidden)
        case "uatvr":
            uatvr = UATVRHead(
                _frame_layers(recipe, backbone),
                backbone.spec.context_length,
                extra_frames=keys.extra_frames,
                extra_words=keys.extra_words,
                samples=keys.prob_samples,
                mil_weight=keys.mil_weight,
                kl_weight=keys.prob_kl_weight,
            )
            if keys.init == "backbone":
                uatvr.start_from(backbone)
            return uatvr
        case "xpool":
            return XPoolHead(dim, heads=keys.heads, dropout=keys.dropout)
        case "t-mass":
            return TMassHead(
                dim,
                recipe.data.frames,
                heads=keys.heads,
                dropout=keys.dropout,
                noise=keys.noise,
                noise_std=keys.noise_std,
                support_weight=keys.support_weight,
                trials=keys.trials,
                # So that the noise of scoring belongs to the run, and not to what else is scored.
                noise_seed=recipe.seed,
            )
        case "diffusionret":
            # What a first stage needs in its own training alone stays there.
            first = keys.model_copy(update={"kind": keys.base, "prob_samples": 0})
            base = build_head(recipe.model_copy(update={"head": first}), backbone)
            return DiffusionRetHead(base, dim, keys, recipe.seed)


def _frame_layers(recipe: Recipe, backbone: Backbone) -> FrameTransformer:
    # The layers may start as copies of the text tower's, whose weights mean the same under its own activation alone.
    quick = backbone.spec.activation == "quick_gelu"
    layers = FrameTransformer(backbone.dim, recipe.data.frames, recipe.head.layers, quick_gelu=quick)
    if recipe.head.init == "backbone":
        layers.start_from(backbone)
    return layers


def _parts(recipe: Recipe, vocabulary: Vocabulary, backbone: Backbone) -> AlignedParts:
    """The towers and CALM's modules."""
    if isinstance(backbone, Embedder) and not recipe.frozen:
        raise RecipeError(
            f"backbone.model: {recipe.backbone.model} is used as it is and not trained; set backbone.freeze=true, or "
            "train on a feature store (data.features)"
        )
    if recipe.backbone.checkpoint_activations:
        backbone.checkpoint_activations()
    # Without CALM's loss nothing of it is built: a baseline has the parameters of its own paper.
    keys, anchors = recipe.alignment, len(vocabulary)
    return AlignedParts(
        anchors=_anchors(recipe.anchors, vocabulary, backbone, recipe.frozen) if keys.kind != "none" else None,
        vae=_vae(keys, anchors) if keys.kind == "vae" else None,
        reverse_vae=_vae(keys, anchors) if (keys.kind, keys.direction) == ("vae", "both") else None,
        adapter=FeatureAdapter(backbone.dim) if recipe.backbone.adapter == "linear" else None,
        anchor_keys=recipe.anchors,
        alignment_keys=keys,
        frozen=recipe.frozen,
        chunk=recipe.optim.chunk,
    )


def _anchors(keys: AnchorsSection, vocabulary: Vocabulary, backbone: Backbone, frozen: bool) -> AnchorBank:
    return AnchorBank(
        backbone.tokenize(vocabulary.prompts),
        backbone.dim,
        # Towers that do not change give the same prompts in every step: encode them once.
        encode="frozen" if frozen else keys.encode,
        refresh_every=keys.refresh_every,
        position_std=keys.position_std if keys.position_init == "normal" else 0.0,
    )


def _vae(keys: AlignmentSection, anchors: int) -> CrossModalVAE:
    return CrossModalVAE(
        anchors,
        # Nothing here is shared with the reverse direction's VAE but these keys: p(V_p | S_p) is another law.
        latent=keys.latent,
        layout=keys.layout,
        activation=keys.activation,
        dropout=keys.dropout,
        input=keys.input,
        logvar_limit=keys.logvar_limit,
    )
