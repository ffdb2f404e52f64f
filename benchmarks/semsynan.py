"""What concepts and syntax do for SemSynAN over CLIP on the drawn world, over several seeds; and how its tagger errs.

    calmctl demo                                   (once: draws the world)
    python benchmarks/semsynan.py
    python benchmarks/semsynan.py --tagger         (beside the world's own grammar, and sentences tagged by hand)

Settings are those of `caption.semantics`: all three cells, or the one of concepts or of syntax alone. The demo's CLIP
is frozen and its frame features are made once. Beside CIDEr of the test clips stands that of the same captions given to
other clips: what is left of it there is the world's way of talking, and no look at a clip. `syntax` is how often the
embedding of a test clip is nearest to a tag sequence of one of its captions, among all that training has; `most
frequent` is how often the most frequent sequence is one. Needs TextBlob (calmctl[syntax]).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.captions.files import cider
from calmctl.captions.generate import CaptionSearch, caption_features
from calmctl.captions.tokens import tokenize, tokenize_references
from calmctl.data.demo import load_demo
from calmctl.model.build import build_caption_model
from calmctl.model.calm import Batch
from calmctl.model.captioner import PAD, training_vocabulary
from calmctl.model.captioners.semsynan import TAGS, SemSynModel, tag_captions
from calmctl.model.weights import load_backbone
from calmctl.recipe import Recipe, load_recipe, resolve_recipe
from calmctl.samples import Split
from calmctl.source.encoding import stream_frames
from calmctl.training.optim import build_optimizer, schedule_factor, set_learning_rate

SETTINGS = ("both", "concepts", "syntax")

# The words of the world's sentences by what the grammar has them for. A participle before a noun may be either.
GRAMMAR = {
    "NOUN": "arrow arrows background backgrounds bands bar bars bolt bolts box boxes brick bricks brickwork camera "
    "chessboard circle circles clip colour crescent crescents cross crosses diamond diamonds disc discs dots facade "
    "fence floor front gradient grid group heart hearts hoop hoops lamp lines moon moons noise pair place plus pond "
    "rest rhombus rhombuses ring rings ripples rows side sign signs size sky spot square squares star stars stick "
    "sticks stripes television thunderbolt thunderbolts triangle triangles video wall waves wire",
    "VERB": "appearing are blinking bouncing changing coming disappearing drew flashing gliding growing has hopping is "
    "jumping keep keeps look moving pulsing rotating see shows shrinking sliding spinning standing turning",
    "ADJ": "big black blue brown green grey huge large little motionless orange pink purple red single small smooth "
    "tiny turquoise wavy white yellow many",
    "ADV": "back down enough exactly fro how left not only rather right",
    "NUM": "one two three four",
    "DET": "a all the there this",
    "PRON": "somebody we what you",
    "ADP": "at before from in like of off on over",
    "CONJ": "and",
    ".": ",",
    "ADJ VERB": "checked coloured dotted fading nested painted rolling speckled striped shaded",
    "ADV PRT ADP": "around up",
    "ADV ADJ": "still",
    "ADP ADV": "as",
    "PRT ADP": "to",
    "DET PRON": "that",
}
# Our own sentences in the manner of captions, and their tags by hand.
BY_HAND = """
a/DET man/NOUN is/VERB slicing/VERB a/DET tomato/NOUN with/ADP a/DET sharp/ADJ knife/NOUN
two/NUM dogs/NOUN run/VERB after/ADP a/DET ball/NOUN in/ADP the/DET snow/NOUN
a/DET woman/NOUN slices/VERB bread/NOUN and/CONJ talks/VERB to/PRT the/DET camera/NOUN
somebody/NOUN is/VERB pouring/VERB milk/NOUN into/ADP a/DET glass/NOUN bowl/NOUN
the/DET band/NOUN plays/VERB a/DET slow/ADJ song/NOUN on/ADP stage/NOUN
children/NOUN are/VERB dancing/VERB happily/ADV around/ADP a/DET tall/ADJ tree/NOUN
a/DET cartoon/NOUN shows/VERB how/ADV planes/NOUN fly/VERB
a/DET boy/NOUN jumps/VERB off/ADP his/PRON bike/NOUN and/CONJ falls/VERB down/PRT
she/PRON folds/VERB the/DET paper/NOUN twice/ADV
an/DET old/ADJ woman/NOUN watches/VERB three/NUM cats/NOUN sleep/VERB
a/DET reporter/NOUN speaks/VERB quickly/ADV about/ADP the/DET new/ADJ cars/NOUN
the/DET cook/NOUN mixes/VERB eggs/NOUN while/ADP it/PRON rains/VERB outside/ADV
a/DET girl/NOUN who/PRON wears/VERB red/ADJ shoes/NOUN is/VERB singing/VERB loudly/ADV
four/NUM men/NOUN lift/VERB a/DET heavy/ADJ box/NOUN up/PRT the/DET stairs/NOUN
a/DET panda/NOUN rolls/VERB over/PRT and/CONJ eats/VERB green/ADJ leaves/NOUN
"""


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=24)
    parser.add_argument("--clips", type=int, default=500, help="of the training split, two captions each")
    parser.add_argument("--tests", type=int, default=200, help="test clips")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tagger", action="store_true", help="judge the tagger instead")
    arguments = parser.parse_args()
    console = Console(width=100)
    if arguments.tagger:
        console.print(judge_tagger(arguments.root))
        return
    torch.set_num_threads(1)
    world = load_demo(arguments.root, shifted=False, protocol="captioning").splits
    train, test = first(world["train"], arguments.clips, 2), first(world["test"], arguments.tests, 5)
    keys = [f"data.root={arguments.root}", f"optim.epochs={arguments.epochs}", "caption.system=semsynan"]
    keys += [
        "caption.width=64",
        "optim.batch_size=64",
        "optim.lr_head=4e-3",
        "caption.concepts=40",
        "caption.smoothing=0",
        "backbone.adapter=none",
        "alignment.kind=none",
    ]
    recipe = recipe_of(keys)
    model = model_of(recipe, train)
    features = {split.name: features_of(model, split, recipe) for split in (train, test)}
    console.print(f"{len(train.clips)} + {len(test.clips)} clips encoded")
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in SETTINGS}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in SETTINGS:
            started = time.process_time()
            rows[name].append(
                run(recipe_of([*keys, f"caption.semantics={name}", f"seed={seed}"]), train, test, features)
            )
            numbers = " ".join(f"{number:.1f}" for number in rows[name][-1])
            console.print(f"seed {seed}, {name}: {numbers}, {time.process_time() - started:.0f} s of one core")
    table = Table("steers", "CIDEr", "to other clips", "concepts AP %", "syntax %", "most frequent %", box=None)
    for name, numbers in rows.items():
        table.add_row(name, *(spread(column) for column in zip(*numbers, strict=True)))
    console.print(table)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def recipe_of(overrides: list[str]) -> Recipe:
    """The demo's captioner with changes."""
    return load_recipe(resolve_recipe("demo-caption"), overrides)


def first(split: Split, count: int, each: int) -> Split:
    """The first clips of a split, and the first sentences of each, which stand one behind another."""
    owners = list(split.owners)
    kept = [place for place, owner in enumerate(owners) if owner < count and place - owners.index(owner) < each]
    captions = tuple(split.captions[place] for place in kept)
    return Split(split.name, split.clips[:count], captions, tuple(owners[place] for place in kept), ())


def model_of(recipe: Recipe, train: Split) -> SemSynModel:
    """A fresh model of a recipe, which knows the training captions."""
    backbone = load_backbone(recipe.backbone.model, recipe.backbone.weights)
    torch.manual_seed(recipe.seed)
    tokens = training_vocabulary(backbone, train.captions)
    model = build_caption_model(recipe, resolve_vocabulary("shapes@1"), tokens, backbone)
    assert isinstance(model, SemSynModel)
    model.learn_from(train.captions, train.owners)
    return model


@torch.inference_mode()
def features_of(model: SemSynModel, split: Split, recipe: Recipe) -> Tensor:
    """Frame features of all clips, [N, F, D]."""
    clips = np.stack([clip for clip in stream_frames(split, model, recipe.data)])  # type: ignore[misc]
    return torch.cat([model.eval().encode_frames(part) for part in torch.from_numpy(clips).split(50)]).clone()


def run(recipe: Recipe, train: Split, test: Split, features: dict[str, Tensor]) -> tuple[float, ...]:
    """Train and test: the columns of the table."""
    model = model_of(recipe, train).train()
    size, owners = recipe.optim.batch_size, torch.tensor(train.owners)
    steps = -(-len(owners) // size)
    optimizer, total = build_optimizer(model, recipe.optim), steps * recipe.optim.epochs
    order = np.random.default_rng(recipe.seed)
    for epoch in range(recipe.optim.epochs):
        for number, pairs in enumerate(np.array_split(order.permutation(len(owners)), steps)):
            set_learning_rate(optimizer, schedule_factor(epoch * steps + number, total, recipe.optim.warmup))
            optimizer.zero_grad()
            captions = model.caption_tokens([train.captions[pair] for pair in pairs])
            clips = owners[pairs]
            model(Batch(torch.empty(0), features["train"][clips], clips, captions)).total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
            optimizer.step()
    model.eval()
    captions_of = [caption.text for caption in caption_features(model, features["test"], CaptionSearch(beam=1))]
    mine: list[list[str]] = [[] for _ in test.clips]
    for caption, owner in zip(test.captions, test.owners, strict=True):
        mine[owner].append(caption)
    said, references = tokenize(captions_of, "ptb-python"), tokenize_references(mine, "ptb-python")
    scores = [100 * float(cider(said, refs).mean()) for refs in (references, [*references[1:], references[0]])]
    with torch.inference_mode():
        mean = features["test"].mean(dim=1)
        precision = concept_precision(model, model.captioner.concepts(mean), mine)
        return (*scores, precision, *syntax_accuracy(model, mean, train, mine))


def concept_precision(model: SemSynModel, logits: Tensor, captions: list[list[str]]) -> float:
    """Mean average precision, in percent, of the concepts that some test caption names."""
    words = [{word for sentence in tag_captions(own) for word, _ in sentence} for own in captions]
    found = []
    for number, concept in enumerate(model.concept_words):
        there = torch.tensor([concept in own for own in words])[logits[:, number].argsort(descending=True)]
        if there.any():
            ranks = torch.arange(1, len(there) + 1)
            found.append(float((there.cumsum(0) / ranks)[there].mean()))
    return 100 * statistics.mean(found)


def syntax_accuracy(model: SemSynModel, mean: Tensor, train: Split, captions: list[list[str]]) -> tuple[float, float]:
    """Percent of clips whose nearest tag sequence is one of theirs, and the same of the most frequent sequence."""
    counts = Counter(tuple(tag for _, tag in words) for words in tag_captions(train.captions))
    sequences = list(counts)
    rows = torch.full((len(sequences), max(map(len, sequences))), PAD)
    for row, tags in enumerate(sequences):
        rows[row, : len(tags)] = torch.tensor([TAGS.index(tag) for tag in tags])
    nearest = (model.captioner.syntax.of_clips(mean) @ model.captioner.syntax.of_tags(rows).T).argmax(dim=1)
    own = [{tuple(tag for _, tag in words) for words in tag_captions(each)} for each in captions]
    right = [sequences[place] in tags for place, tags in zip(nearest.tolist(), own, strict=True)]
    common = max(counts, key=lambda sequence: counts[sequence])
    return 100 * statistics.mean(right), 100 * statistics.mean(common in tags for tags in own)


# The tagger.


def judge_tagger(root: Path) -> Table:
    """TextBlob's tags beside those of the world's grammar, and beside those given by hand."""
    table = Table("sentences", "words", "right %", "most frequent errors", box=None, pad_edge=False)
    clips = json.loads((root / "demo.json").read_text())["clips"]
    kinds = {word: tags.split() for tags, words in GRAMMAR.items() for word in words.split()}
    drawn = [caption for clip in clips for caption in clip["captions"]]
    gold = [[kinds[word] for word in caption.replace(",", " ,").split()] for caption in drawn]
    by_hand = [[pair.split("/") for pair in line.split()] for line in BY_HAND.strip().splitlines()]
    ours = [" ".join(word for word, _ in line) for line in by_hand]
    for name, captions, wanted in (
        ("the drawn world's", drawn, gold),
        ("tagged by hand", ours, [[[tag] for _, tag in line] for line in by_hand]),
    ):
        errors: Counter[str] = Counter()
        n = 0
        for words, tags in zip(tag_captions(captions), wanted, strict=True):
            n += len(tags)
            errors.update(f"{word} {tag}" for (word, tag), right in zip(words, tags, strict=True) if tag not in right)
        wrong = ", ".join(f"{error} ({count})" for error, count in errors.most_common(6))
        table.add_row(name, f"{n:,}", f"{100 * (1 - errors.total() / n):.1f}", wrong)
    return table


if __name__ == "__main__":
    main()
