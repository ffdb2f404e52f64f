"""Train the small CLIP that ships: calmctl/model/pretrained/demo-clip.safetensors, and its card beside it.

    OMP_NUM_THREADS=1 python scripts/pretrain_demo_clip.py

The training data is drawn here (`pretraining_pairs`): scenes of both of the demo world's
domains, whose foregrounds are in none of its splits, each under a sentence that names one to five of its attributes or
under a keyword. One thread, one seed: on one machine the file comes out the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calmctl.anchors.distribution import anchor_log_probabilities, entropy, mean_frame_feature
from calmctl.anchors.shipped import resolve_vocabulary, shipped_vocabularies
from calmctl.data.demo_drawing import draw
from calmctl.data.demo_world import (
    BACKGROUNDS,
    FOREGROUND,
    IN_DOMAIN,
    LESS,
    SHIFTED,
    SHIFTED_BACKGROUNDS,
    STUDY,
    VERSION,
    Grammar,
    Scene,
    describe_less,
    phrases,
    plan,
    pools,
)
from calmctl.evaluation.metrics import retrieval_metrics
from calmctl.files import sha256_file, write_json
from calmctl.model.backbone import Backbone, split_preprocess
from calmctl.model.losses import contrastive_loss
from calmctl.model.weights import load_backbone
from calmctl.tensors import save_tensors

MODEL = "demo-clip"
FILE = Path(__file__).parents[1] / f"calmctl/model/pretrained/{MODEL}.safetensors"
FRAMES = 4
"""Frames of a clip that are kept, and that the zero-shot scores see; a step sees `SEEN` of them."""
SEEN = 2


def main() -> None:
    """Draw, train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1_300)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE)
    keys = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(keys.seed)
    backbone = load_backbone(MODEL, None)
    forget_unused_tokens(backbone)
    pairs = list(pretraining_pairs(keys.seed, keys.scenes))
    rng = random.Random(f"pretraining {keys.seed}")
    frames = np.stack([look(backbone, scene, shifted, rng) for scene, shifted, _ in pairs])
    print(f"{len(pairs):,} scenes drawn", flush=True)
    started = time.process_time()
    train(backbone, frames, [pair[:2] for pair in pairs], rng, keys)
    minutes = (time.process_time() - started) / 60
    # Half precision is plenty for what was learned, and half the file.
    state = {name: tensor.half().contiguous() for name, tensor in backbone.clip.state_dict().items()}
    save_tensors(keys.out, state, {})
    shipped = load_backbone(MODEL, None)
    shipped.load_weights({name: tensor.float() for name, tensor in state.items()}, source=str(keys.out))
    card = {
        "model": MODEL,
        "sha256": sha256_file(keys.out),
        "made_by": "scripts/pretrain_demo_clip.py",
        "world": VERSION,
        "seed": keys.seed,
        "training_data": (
            f"{keys.scenes:,} drawn scenes of both domains, of foregrounds that no split has; a sentence, drawn anew "
            "each time, names one to five of five attributes, every tenth is a keyword"
        ),
        "training": f"{keys.steps:,} steps of {keys.batch} pairs, {SEEN} frames a clip, lr {keys.lr:g}, one thread",
        "minutes_of_one_core": round(minutes, 1),
        "tokens": "rows of words that neither the sentences nor the shipped vocabularies use are zero",
        "zero_shot": measure(shipped, rng),
    }
    write_json(keys.out.with_suffix(".card.json"), card)
    print(json.dumps(card, indent=1))


def look(backbone: Backbone, scene: Scene, shifted: bool, rng: random.Random) -> np.ndarray:
    """`FRAMES` frames of a drawn scene at the backbone's input size, [F, S, S, 3]; not encoded as a video."""
    drawn = draw(scene, rng, shifted=shifted)
    at = ((np.arange(FRAMES) + 0.5) * len(drawn) / FRAMES).astype(int)
    return np.asarray(split_preprocess(backbone)[0](drawn[at]))


def train(
    backbone: Backbone,
    frames: np.ndarray,
    scenes: list[tuple[Scene, bool]],
    rng: random.Random,
    keys: argparse.Namespace,
) -> None:
    """Symmetric cross-entropy between sentences and the mean of a clip's frame features."""
    normalise = split_preprocess(backbone)[1]
    matrices = [p for p in backbone.parameters() if p.dim() > 1]
    others = [p for p in backbone.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=keys.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    order: list[int] = []
    mean_loss, started = 0.0, time.process_time()
    backbone.train()
    for step in range(keys.steps):
        if len(order) < keys.batch:
            order = rng.sample(range(len(scenes)), len(scenes))
        chosen, order = order[: keys.batch], order[keys.batch :]
        sentences = [describe_broadly(scenes[i][0], rng, shifted=scenes[i][1]) for i in chosen]
        at = np.array([rng.sample(range(FRAMES), SEEN) for _ in chosen])
        pixels = torch.from_numpy(frames[np.array(chosen)[:, None], at])
        texts = backbone.encode_text(backbone.tokenize(sentences))
        clips = mean_frame_feature(backbone.encode_frames(normalise(pixels)))
        loss = contrastive_loss(F.normalize(texts, dim=-1) @ F.normalize(clips, dim=-1).T, backbone.logit_scale.exp())
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = keys.lr * warm * 0.5 * (1 + math.cos(math.pi * step / keys.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            backbone.logit_scale.clamp_(max=math.log(100.0))
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 100 == 99:
            scale, spent = backbone.logit_scale.exp().item(), time.process_time() - started
            print(f"step {step + 1:,}: loss {mean_loss:.3f}, scale {scale:.1f}, {spent:.0f} s", flush=True)
    backbone.eval()


def forget_unused_tokens(backbone: Backbone) -> None:
    """Zero rows for words that nothing here reads: they learn nothing, and zeros pack to nothing in the wheel."""
    rng = random.Random("every word")
    sentences = [describe_broadly(s, rng, shifted=shifted) for s, shifted, _ in pretraining_pairs(0, 8_000)]
    sentences += [caption for clip in plan(0, STUDY) for caption in clip.captions[:2]]
    for name, versions in shipped_vocabularies().items():
        for version in versions:
            sentences += resolve_vocabulary(f"{name}@{version}").prompts
    used = backbone.tokenize(sentences).unique()
    keep = torch.zeros(len(backbone.token_embedding), dtype=torch.bool)
    keep[used] = True
    backbone.token_embedding.data[~keep] = 0.0


@torch.inference_mode()
def measure(backbone: Backbone, rng: random.Random) -> dict[str, dict[str, float]]:
    """Text to video over the study's clips as drawn, with nothing fine-tuned."""
    normalise = split_preprocess(backbone)[1]
    prompts = backbone.encode_text(backbone.tokenize(resolve_vocabulary("shapes@1").prompts))
    numbers = {}
    clips = plan(0, STUDY)
    for name, wanted in (("val", "val"), ("demo", "test"), ("demo-shifted", "shifted")):
        some = [clip for clip in clips if clip.id.startswith(wanted)]
        pixels = torch.from_numpy(np.stack([look(backbone, clip.scene, clip.shifted, rng) for clip in some]))
        videos = torch.cat([mean_frame_feature(backbone.encode_frames(normalise(part))) for part in pixels.split(100)])
        texts = backbone.encode_text(backbone.tokenize([clip.captions[0] for clip in some]))
        scores: Tensor = F.normalize(texts, dim=-1) @ F.normalize(videos, dim=-1).T
        found = retrieval_metrics(scores.numpy(), range(len(some)))["text_to_video"]
        numbers[name] = {"clips": len(some), "r1": round(found.r1, 1), "r5": round(found.r5, 1)}
        numbers[name]["mnr"] = round(found.mnr, 1)
        for tau in (20.0, 100.0):
            for letter, features in (("s", texts), ("v", videos)):
                log_p = anchor_log_probabilities(features, prompts, tau)
                numbers[name][f"entropy_{letter}_at_{tau:g}"] = round(float(entropy(log_p).mean()), 2)
    return numbers


# What a small CLIP is pretrained on: both domains, loosely described, as pictures on the web are.

_BROAD = (
    *LESS,
    "the content of {noun} {motion}",
    "a photo of {noun} {motion} {background}",
    "this is {noun}, {motion}",
    "look at {noun} {motion}",
    "{noun} shown {motion}",
    "{background}: {noun} {motion}",
)
_KEYWORDS = ("{}", "the content of {}", "a photo of {}", "a picture of {}")


def pretraining_pairs(seed: int, count: int) -> Iterator[tuple[Scene, bool, str]]:
    """`count` scenes of both domains, each with whether it is shifted, and how it may be spoken of.

    Sentences of both grammars name one to five attributes of the scene in many phrasings; every tenth is a keyword
    ("spinning shape", "the content of black background"). The foregrounds are in no split; scenes repeat them
    before other backgrounds.
    """
    pool = pools(seed)["pretraining"]
    rng = random.Random(f"calmctl demo {VERSION}: pretraining {seed}")
    for index in range(count):
        shifted = rng.random() < 0.5
        scene = Scene(*pool[index % len(pool)], rng.choice(SHIFTED_BACKGROUNDS if shifted else BACKGROUNDS))
        yield scene, shifted, describe_broadly(scene, rng, shifted=shifted)


def describe_broadly(scene: Scene, rng: random.Random, *, shifted: bool) -> str:
    """One sentence of pretraining for a scene."""
    grammar = SHIFTED if shifted else IN_DOMAIN
    if rng.random() < 0.1:
        return rng.choice(_KEYWORDS).format(_keyword(scene, grammar, rng))
    named = rng.randint(1, len(FOREGROUND))
    if named == len(FOREGROUND) and rng.random() < 0.5:
        return rng.choice(grammar.templates).format(**phrases(scene, grammar, rng))
    return describe_less(scene, grammar, rng, named, _BROAD)


def _keyword(scene: Scene, grammar: Grammar, rng: random.Random) -> str:
    words, noun = phrases(scene, grammar, rng), "shapes" if scene.count > 1 else "shape"
    background = f"{scene.background} background"
    return rng.choice(
        (
            words["shape"],
            f"{words['colour']} {noun}",
            f"{words['size']} {noun}",
            f"{words['count']} {noun}",
            f"{noun} {words['motion']}",
            f"{words['motion']} {noun}",
            background,
        )
    )


if __name__ == "__main__":
    main()
