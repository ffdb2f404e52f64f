"""What a training would do, found out without doing it."""

from __future__ import annotations

from typing import Any

from calmctl.counting import counted
from calmctl.model.caption import CaptionModel
from calmctl.recipe import Recipe
from calmctl.training.batches import PairBatches
from calmctl.training.optim import GROUPS, group_of
from calmctl.training.prepare import prepare
from calmctl.training.prepared import Prepared


def plan_training(recipe: Recipe) -> dict[str, Any]:
    """Resolve a recipe, decode one batch, and say what training would do.

    Returns:
        "summary": facts as text, in order; "left_out": missing clips by split; "recipe": all keys.
    """
    # A plan decodes one batch only: filling the memory cache would be doing the work.
    lean = recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": "none"})})
    prepared = prepare(lean)
    source = prepared.batches()
    batch = next(iter(source.epoch(0, 0)), None)
    trainable = dict.fromkeys(GROUPS, 0)
    for name, parameter in prepared.model.named_parameters():
        if parameter.requires_grad:
            trainable[group_of(name)] += parameter.numel()
    counts = prepared.counts()
    keys = recipe.optim
    rates = {"backbone": keys.lr_backbone, "head": keys.lr_head, "alignment": keys.lr_alignment}
    summary = {
        "data": f"{recipe.data.dataset} {prepared.protocol}".strip(),
        **{
            f"  {name}": f"{counted(c['clips'], 'clip')}, {counted(c['captions'], 'caption')}, "
            f"{counted(c['left_out'], 'clip')} left out"
            for name, c in counts.items()
        },
        **{f"  {note.partition(': ')[0]} captions": note.partition(": ")[2] for note in prepared.cut_captions()},
        "backbone": f"{recipe.backbone.model}, weights {recipe.backbone.weights}"
        + (", frozen" if recipe.frozen else ""),
        "head": recipe.head.kind if recipe.task == "retrieval" else _captioner(recipe, prepared),
        "alignment": f"{recipe.alignment.kind} over {prepared.vocabulary.reference}, K = {len(prepared.vocabulary)}",
        "trained": ", ".join(f"{name} {count:,} at {rates[name]:g}" for name, count in trainable.items() if count),
        "steps": f"{source.steps_per_epoch} an epoch, {source.steps_per_epoch * keys.epochs} in all, "
        f"batch {keys.batch_size}",
        "one batch": "no clip decoded"
        if batch is None
        else f"frames {tuple(batch.frames.shape)} "
        f"{str(batch.frames.dtype).removeprefix('torch.')}, texts {tuple(batch.texts.shape)}",
        "device": str(prepared.device),
    }
    left_out = {name: {e.id: e.reason for e in entries} for name, entries in prepared.left_out().items()}
    if isinstance(source, PairBatches):
        left_out.setdefault("train", {}).update({e.id: e.reason for e in source.left_out.values()})
    return {"summary": summary, "left_out": left_out, "recipe": recipe.model_dump(mode="json")}


def _captioner(recipe: Recipe, prepared: Prepared) -> str:
    assert isinstance(prepared.model, CaptionModel)
    keys, tokens = recipe.caption, len(prepared.model.captioner.vocabulary)
    return f"captioner, {keys.encoder_layers} + {keys.decoder_layers} layers of {keys.width}, {tokens:,} tokens"
