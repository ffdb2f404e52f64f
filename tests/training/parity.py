"""One training step in float64 of every head and every alignment: alone, in chunks, or as one of two processes.

    python parity.py OUT.safetensors      as one of two processes, in the environment that torchrun sets

What is drawn in a step is drawn in three places: dropout, `Posterior.sample` and `NoiseLaw.sample_like`. Here dropout
is 0 and the other two give every row the same numbers, so that it does not matter who computes a row.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from calmctl.anchors.shipped import resolve_vocabulary, subset
from calmctl.anchors.vocabulary import Vocabulary
from calmctl.model.backbone import Backbone
from calmctl.model.build import build_caption_model, build_model
from calmctl.model.calm import AlignedModel, Batch
from calmctl.model.captioner import training_vocabulary
from calmctl.model.captioners import semsynan
from calmctl.model.captioners.semsynan import SemSynModel
from calmctl.model.heads.tmass import NoiseLaw
from calmctl.model.vae import Posterior
from calmctl.model.weights import load_backbone
from calmctl.parallel import World, joined
from calmctl.recipe import recipe_from_dict
from calmctl.tensors import save_tensors
from calmctl.video.compressed import CompressedReader

SENTENCES = (
    "a red square moves left",
    "a big blue circle",
    "two shapes turn",
    "the square is red",
    "a green star grows and turns slowly",
    "it falls",
)
CLIPS = (0, 1, 2, 0, 3, 4)
SMALL = ["head.dropout=0", "head.layers=1", "head.bases=4", "alignment.dropout=0", "alignment.latent=8"]
HEADS = {
    "meanp": ["head.kind=meanp"],
    "seqlstm": ["head.kind=seqlstm"],
    "seqtransf": ["head.kind=seqtransf"],
    "xpool": ["head.kind=xpool"],
    "t-mass": ["head.kind=t-mass"],
    "t-mass-support": ["head.kind=t-mass", "head.support_weight=0.8"],
    "emcl": ["head.kind=emcl"],
    "emcl-gaussian": ["head.kind=emcl", "head.em_init=gaussian"],
    "wti": ["head.kind=wti"],
    "uatvr": ["head.kind=uatvr"],
}
SECOND_STAGES = {
    f"diffusionret {base}": [
        "head.kind=diffusionret",
        f"head.base={base}",
        "head.hidden=2",
        "head.from_run=first",
        "head.gen_temperature=5",
        "alignment.kind=none",
    ]
    for base in ("wti", "meanp")
}
"""Second stages of a first that is not trained: what a step does to the denoisers does not depend on that."""
CAPTION = [
    "task=caption",
    "caption.width=16",
    "caption.heads=2",
    "caption.ffn=16",
    "caption.dropout=0",
    "caption.init_tokens=random",
]

CAPTIONERS = {
    "semsynan": [*CAPTION, "caption.system=semsynan", "caption.concepts=5"],
    "cocap": [
        *CAPTION,
        "caption.system=cocap",
        "caption.decoder_layers=1",
        "data.compressed.gops=2",
        "data.compressed.pictures=2",
    ],
}


@dataclass(frozen=True)
class Case:
    """A step: what is trained, and how many of the six rows the first of two processes has."""

    overrides: Sequence[str]
    first: int = 3


def _cases() -> dict[str, Case]:
    cases = {
        f"{head} {kind}": Case([*keys, f"alignment.kind={kind}"])
        for head, keys in HEADS.items()
        for kind in ("none", "vae", "kl", "ce", "mse")
    }
    for head, keys in HEADS.items():
        cases[f"{head} unequal"] = Case(keys, first=4)
        cases[f"{head} nothing"] = Case(keys, first=6)
    for name, keys in SECOND_STAGES.items():
        cases |= {f"{name}{rest}": Case(keys, first) for rest, first in (("", 3), (" unequal", 4), (" nothing", 6))}
    mask = ["head.kind=xpool", "optim.mask_same_clip=true"]
    cases["mask"] = Case(mask)
    cases["mask unequal"] = Case(mask, first=5)
    cases["both directions"] = Case(["head.kind=meanp", "alignment.direction=both", "alignment.detach_target=false"])
    cases["frames"] = Case(["head.kind=meanp", "anchors.video=frames", "alignment.samples=2"], first=2)
    cases["temperature"] = Case(["head.kind=meanp", "anchors.temperature=learned", "anchors.encode=refresh"])
    cases["adapter"] = Case(["head.kind=wti", "backbone.freeze=true", "backbone.adapter=linear"], first=5)
    for loss in ("smoothed", "symmetric"):
        for first in (3, 4, 6):
            cases[f"caption {loss} {first}"] = Case([*CAPTION, f"caption.loss={loss}"], first)
    cases["caption none"] = Case([*CAPTION, "alignment.kind=none"])
    cases["caption both"] = Case([*CAPTION, "alignment.direction=both", "caption.tied=true"], first=2)
    cases["caption kl"] = Case([*CAPTION, "alignment.kind=kl", "alignment.detach_target=false"])
    for system, keys in CAPTIONERS.items():
        cases |= {f"{system} {first}": Case(keys, first) for first in (3, 4, 6)}
    for head in ("xpool", "t-mass-support", "emcl", "wti", "uatvr"):
        cases[f"{head} in chunks"] = Case([*HEADS[head], "optim.chunk=2"], first=4)
    cases["cocap in chunks"] = Case([*CAPTIONERS["cocap"], "optim.chunk=2"], first=5)
    cases["caption in chunks"] = Case([*CAPTION, "optim.chunk=1"], first=4)
    return cases


CASES = _cases()


def be_deterministic() -> None:
    """Give every row the same draws."""

    def sample(self: Posterior) -> Tensor:
        return self.mean + (0.5 * self.logvar).exp() * torch.linspace(-1, 1, self.mean.shape[-1]).to(self.mean)

    def sample_like(self: NoiseLaw, texts: Tensor) -> Tensor:
        return torch.linspace(0, 1, texts.shape[-1]).to(texts).expand_as(texts)

    @contextmanager
    def same_random(self: World) -> Iterator[None]:
        # Where processes draw the same numbers they draw what the first one would: as this does, in the same order.
        seed = self.gather_objects(int(torch.randint(2**62, ())))[0]
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            yield

    def tag_captions(captions: Sequence[str]) -> list[list[tuple[str, str]]]:
        # A tag of no sense, in place of a package that is an extra: sentences of as many words may have equal tags.
        return [[(word, ("NOUN", "ADJ", "DET")[len(word) % 3]) for word in text.split()] for text in captions]

    semsynan.tag_captions = tag_captions
    World.same_random = same_random  # type: ignore[method-assign]
    Posterior.sample = sample  # type: ignore[method-assign]
    NoiseLaw.sample_like = sample_like  # type: ignore[method-assign]


@cache
def _anchors() -> Vocabulary:
    return subset(resolve_vocabulary("shapes@1"), 5, 0)


@cache
def _backbone() -> Backbone:
    """A CLIP that knows no tokens but those that are needed: all others would be most of its weights."""
    torch.manual_seed(0)
    backbone = load_backbone(str(Path(__file__).with_name("parity-clip.json")), None)
    genuine = backbone.tokenize
    needed = genuine([*SENTENCES, *_anchors().prompts]).unique()
    backbone.clip.token_embedding = nn.Embedding(len(needed), 64)
    backbone.tokenize = lambda sentences: torch.searchsorted(needed, genuine(sentences).contiguous())  # type: ignore[method-assign]
    return backbone


def build(overrides: Sequence[str]) -> AlignedModel:
    """The model of a case, in float64, with weights away from where they start."""
    values = {
        "name": "parity",
        "data": {"dataset": "demo", "frames": 2},
        "anchors": {"vocabulary": "shapes@1", "subset": 5},
    }
    recipe = recipe_from_dict(values, overrides=[*SMALL, *overrides])
    vocabulary = _anchors()
    backbone = _backbone()
    torch.manual_seed(1)  # behind the backbone's, which is made once: every build draws the same
    backbone = deepcopy(backbone, {id(backbone.tokens): backbone.tokens})
    if recipe.task == "caption":
        model: AlignedModel = build_caption_model(
            recipe, vocabulary, training_vocabulary(backbone, SENTENCES), backbone
        )
    else:
        model = build_model(recipe, vocabulary, backbone)
    if isinstance(model, SemSynModel):
        model.learn_from(SENTENCES, CLIPS)
    for layer in model.modules():  # also what no key sets to 0
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    model.double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() and not name.startswith("backbone."):
                parameter += 0.05 * torch.randn_like(parameter)
    normalise = model.normalise
    model.normalise = lambda frames: normalise(frames).double()  # type: ignore[assignment,method-assign]
    return model


def batch_of(model: AlignedModel, rows: slice) -> Batch:
    """Some of the six rows."""
    size, _ = model.backbone.spec.image_size
    generator = torch.Generator().manual_seed(2)
    reader = model.reader(2)
    shape = reader.shape if isinstance(reader, CompressedReader) else (2, size, size, 3)
    frames = torch.randint(256, (len(CLIPS), *shape), generator=generator, dtype=torch.uint8)
    captions = model.caption_tokens(SENTENCES[rows])
    return Batch(model.backbone.tokenize(SENTENCES[rows]), frames[rows], torch.tensor(CLIPS)[rows], captions)


def numbers_of(name: str, losses, model: AlignedModel) -> dict[str, Tensor]:
    """Losses, diagnostics, and the gradients of those parameters that have one."""
    found = {f"{name}|{key}": value.detach().clone() for key, value in (losses.parts | losses.diagnostics).items()}
    return found | {f"{name}|grad {key}": p.grad for key, p in model.named_parameters() if p.grad is not None}


def alone(name: str, *more: str) -> dict[str, Tensor]:
    """The step of a case in this process."""
    model = build([*CASES[name].overrides, *more])
    torch.manual_seed(3)
    losses = model(batch_of(model, slice(None)))
    losses.total.backward()
    return numbers_of(name, losses, model)


def main(out: Path) -> None:
    """The steps of all cases as one of two processes; each of the two writes what it has."""
    be_deterministic()
    with joined("cpu", timeout_s=60) as world:
        found: dict[str, Tensor] = {}
        for name, case in CASES.items():
            model = build(case.overrides)
            model.join(world)
            step = world.wrap(model)
            rows = slice(case.first) if world.rank == 0 else slice(case.first, None)
            count = len(CLIPS[rows])
            torch.manual_seed(3 if world.rank == 0 else 4)
            world.begin(count)
            losses = step(batch_of(model, rows if count else slice(1)))
            losses.total.backward()
            found |= numbers_of(name, losses, model)
        save_tensors(out.with_suffix(f".{world.rank}"), found, {})
        world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
