"""SemSynAN over CLIP: its cell in float64, its sizes, its losses, and where concepts come from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.captions.generate import CaptionSearch, caption_features
from calmctl.errors import BadInput, RecipeError
from calmctl.model.build import build_caption_model
from calmctl.model.calm import Batch
from calmctl.model.captioner import PAD, training_vocabulary
from calmctl.model.captioners import semsynan
from calmctl.model.captioners.semsynan import (
    MARGIN,
    TAGS,
    CompositionalCell,
    ConceptHead,
    SemSynDecoder,
    SyntaxEmbedding,
    syntax_loss,
    tag_captions,
)
from calmctl.model.weights import load_backbone
from calmctl.recipe import load_recipe, recipe_from_dict, resolve_recipe
from calmctl.recipe.schema import CaptionSection

CAPTIONS = ("a red circle spins", "two blue squares spin", "a red square spins", "the green star is here")
KINDS = {
    "a": "DT", "the": "DT", "two": "CD", "red": "JJ", "blue": "JJ", "green": "JJ", "is": "VBZ", "spins": "VBZ",
    "spin": "VBP", "here": "RB",
}  # fmt: skip


@pytest.fixture(autouse=True)
def tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tagger in TextBlob's place, which is no part of the tests' environment: nouns but for a few words."""
    english = ModuleType("textblob.en")
    english.tag = lambda text: [(word, KINDS.get(word, "NN")) for word in text.split()]  # type: ignore[attr-defined]
    package = ModuleType("textblob")
    package.__spec__ = ModuleSpec("textblob", None)  # by which it is looked for before any work
    monkeypatch.setitem(sys.modules, "textblob", package)
    monkeypatch.setitem(sys.modules, "textblob.en", english)
    torch.manual_seed(0)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Layers are made without their random start: it is only their sizes that count."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("xavier_normal_", "kaiming_uniform_", "normal_", "uniform_", "zeros_", "ones_"):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_cell_is_its_formula(trained) -> None:
    cell = trained(CompositionalCell(5, 6, 7, 4).double())
    x, v, s, h, c = (torch.randn(3, size, dtype=torch.float64) for size in (5, 6, 7, 4, 4))
    new_h, new_c = (part.detach().numpy() for part in cell(x, (h, c), cell.prepare(v, s)))
    w = {name: tensor.detach().numpy() for name, tensor in cell.state_dict().items()}
    values = {"x": x.numpy(), "v": v.numpy(), "h": h.numpy()}
    for row in range(3):
        gates = []
        for gate in range(4):
            rows = slice(4 * gate, 4 * gate + 4)
            total = w["bias"][gate]
            for name, value in values.items():
                own = w[f"inputs.{name}.weight"][rows] @ value[row]
                meaning = w[f"meanings.{name}.weight"][rows] @ s.numpy()[row]
                total = total + (own * meaning) @ w[f"outputs.{name}"][gate]
            gates.append(total)
        enter, forget, leave, new = gates
        cell_state = sigmoid(forget) * c.numpy()[row] + sigmoid(enter) * np.tanh(new)
        assert np.allclose(cell_state, new_c[row], atol=1e-12)
        assert np.allclose(sigmoid(leave) * np.tanh(cell_state), new_h[row], atol=1e-12)


@pytest.mark.parametrize(("word", "count"), [(512, 78_327_808), (300, 75_722_752)])
def test_the_cells_have_the_references_sizes_over_clip(word: int, count: int) -> None:
    with torch.device("meta"), uninitialised():
        cells = [CompositionalCell(word, v, s, 1024) for v, s in ((512, 300), (512, 512), (300, 512))]
        original = CompositionalCell(300, 4096, 700, 1024)
    assert sum(p.numel() for cell in cells for p in cell.parameters()) == count
    # Its cell of visual feature and concepts, in the released sizes: 43.4 million.
    assert sum(p.numel() for p in original.parameters()) == 4 * 1024 * (300 + 4096 + 3 * 700 + 4 * 1024 + 1)


def test_the_decoder_has_so_many_parameters_at_the_recipes_size() -> None:
    keys = load_recipe(resolve_recipe("msvd-semsynan"), []).caption

    class Clip:
        ids, start = torch.arange(49_408), 0

        def __len__(self) -> int:
            return 49_408

    with torch.device("meta"), uninitialised():
        decoder = SemSynDecoder(keys, 512, 20, 512, Clip())  # type: ignore[arg-type]
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in decoder.named_children()}
    assert counts == {
        "concepts": 512 * 1024 + 1024 + 1024 * 300 + 300,
        "syntax": 512 * 2048 + 2048 + 2048 * 1024 + 1024 + 1024 * 512 + 512 + 2 * 512
        + 12 * 64 + 2 * 3 * 256 * (64 + 256 + 2),
        "tokens": 49_408 * 512,
        "cells": 78_327_808,
        "attend": 3 * 1024 * 512 + 512 + 512 * 20,
        "merge": 2 * (1024 * (1024 + 512) + 1024),
        "output": 49_408 * 1024,
        "dropout": 0,
    }  # fmt: skip
    assert sum(p.numel() for p in decoder.parameters()) == 164_002_092


def test_the_embeddings_are_their_formulas(trained) -> None:
    """The concepts' perceptron, the clips' three layers, and the tags' GRU, forwards and backwards, by hand."""
    concepts: ConceptHead = trained(ConceptHead(6, 5).double()).eval()
    syntax: SyntaxEmbedding = trained(SyntaxEmbedding(6).double()).eval()
    mean, tags = torch.randn(6, dtype=torch.float64), [3, 0, 11, 7]
    w = {name: tensor.detach().numpy() for name, tensor in (concepts.state_dict() | syntax.state_dict()).items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(x @ x)

    expected = linear(np.maximum(linear(mean.numpy(), "layers.0"), 0), "layers.3")
    assert np.allclose(concepts(mean[None])[0].detach().numpy(), expected, atol=1e-12)
    x = mean.numpy()
    for layer in (1, 4):
        x = np.maximum(linear(x, f"clips.{layer}"), 0)
    x = linear(x, "clips.7")
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w["clips.8.weight"] + w["clips.8.bias"]
    assert np.allclose(syntax.of_clips(mean[None])[0].detach().numpy(), unit(x), atol=1e-12)
    last = []
    for end, order in (("", tags), ("_reverse", tags[::-1])):
        h = np.zeros(256)
        for tag in order:
            into = w[f"order.weight_ih_l0{end}"] @ w["tags.weight"][tag] + w[f"order.bias_ih_l0{end}"]
            before = w[f"order.weight_hh_l0{end}"] @ h + w[f"order.bias_hh_l0{end}"]
            reset, keep = (sigmoid(into[k : k + 256] + before[k : k + 256]) for k in (0, 256))
            h = (1 - keep) * np.tanh(into[512:] + reset * before[512:]) + keep * h
        last.append(h)
    ours = syntax.of_tags(torch.tensor([[*tags, PAD], [5, 1, 2, 8, 9]]))[0].detach().numpy()
    assert np.allclose(ours, unit(np.concatenate(last)), atol=1e-12)


def test_equal_tag_sequences_are_no_negatives() -> None:
    clips, tags = (torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1) for _ in range(2))
    sequences = torch.tensor([[0, 1, PAD], [1, 1, 0], [0, 1, PAD], [2, PAD, PAD]])
    scores, total = (clips @ tags.T).numpy(), 0.0
    for i in range(4):
        others = [j for j in range(4) if not torch.equal(sequences[i], sequences[j])]
        assert i not in others and (i not in (0, 2) or len(others) == 2)
        total += max(0, MARGIN - scores[i, i] + max(scores[i, j] for j in others))
        total += max(0, MARGIN - scores[i, i] + max(scores[j, i] for j in others))
    assert float(syntax_loss(clips, tags, sequences)) == pytest.approx(total / 4)
    alone = syntax_loss(clips[:1].requires_grad_(), tags[:1], sequences[:1])
    alone.backward()
    assert float(alone.detach()) == 0 and torch.isfinite(clips.sum())


def test_the_tag_encoder_knows_order_and_no_padding() -> None:
    syntax = SyntaxEmbedding(8).eval()
    rows = torch.tensor([[0, 1, 2, PAD], [2, 1, 0, PAD]])
    first, second = syntax.of_tags(rows)
    assert torch.allclose(syntax.of_tags(rows[:1, :3])[0], first, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.allclose(first.norm(), torch.ones(()))


def test_tags_are_the_universal_ones() -> None:
    assert tag_captions(["Two blue squares"]) == [[("two", "NUM"), ("blue", "ADJ"), ("squares", "NOUN")]]
    kinds = [semsynan._universal(tag) for tag in ("NNS", "VBG", "PRP$", "WDT", "TO", ",", "FW", "RP", "WRB")]
    assert kinds == ["NOUN", "VERB", "PRON", "DET", "PRT", ".", "X", "PRT", "X"]
    assert set(kinds) <= set(TAGS)


def test_without_textblob_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textblob", None)
    with pytest.raises(BadInput, match=r"pip install 'calmctl\[syntax\]'"):
        tag_captions(["a"])


# The model.


def values(**caption: object) -> dict:
    keys = {"system": "semsynan", "width": 24, "max_tokens": 8, "concepts": 6, **caption}
    return {
        "name": "x",
        "task": "caption",
        "data": {"dataset": "demo", "frames": 3},
        "backbone": {"model": "demo-clip", "weights": None},
        "caption": keys,
        "alignment": {"latent": 8},
        "anchors": {"vocabulary": "shapes@1"},
    }


def model_of(**caption: object):
    backbone = load_backbone("demo-clip", None)
    recipe = recipe_from_dict(values(**caption))
    tokens = training_vocabulary(backbone, CAPTIONS)
    model = build_caption_model(recipe, resolve_vocabulary("shapes@1"), tokens, backbone)
    model.learn_from(CAPTIONS, (0, 1, 2, 2))
    return model


def test_concepts_are_the_most_frequent_words_of_training_and_labels_those_of_all_captions_of_a_clip() -> None:
    model = model_of()
    assert model.concept_words == ("red", "spins", "blue", "circle", "green", "is")
    shown = [{model.concept_words[int(k)] for k in row.nonzero()} for row in model._shown]
    assert shown == [{"red", "circle", "spins"}, {"blue"}, {"red", "spins", "green", "is"}]


@pytest.mark.parametrize(("semantics", "n_cells"), [("both", 3), ("concepts", 1), ("syntax", 1)])
def test_it_trains_and_searches_in_every_setting(semantics: str, n_cells: int) -> None:
    model = model_of(semantics=semantics)
    assert len(model.captioner.cells) == n_cells
    frames = torch.randint(0, 256, (3, 3, 48, 48, 3), dtype=torch.uint8)
    tokens = model.caption_tokens(CAPTIONS[:3])
    assert tokens.shape[:2] == (3, 2)
    losses = model(Batch(model.backbone.tokenize(CAPTIONS[:3]), frames, torch.arange(3), tokens))
    parts = losses.parts
    whole = parts["task"] + parts["rec"] + 0.1 * parts["kl"] + parts["concepts"] + parts["syntax"]
    assert torch.allclose(losses.total, whole) and torch.equal(parts["loss"], losses.total)
    losses.total.backward()
    still = {name for name, p in model.captioner.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()
    model.eval()
    features = model.encode_frames(frames).detach()
    greedy = caption_features(model, features, CaptionSearch(beam=1))
    assert caption_features(model, features, CaptionSearch(beam=3))[0].log_prob >= greedy[0].log_prob - 1e-5


def test_captions_teach_neither_embedding() -> None:
    model = model_of()
    frames = torch.randn(2, 3, 128, requires_grad=True)
    tokens = model.caption_tokens(CAPTIONS[:2])[:, 0].clamp(min=0)
    model.captioner(tokens, model.captioner.encode(frames)).sum().backward()
    assert frames.grad is not None
    assert all(p.grad is None for part in ("concepts", "syntax") for p in getattr(model.captioner, part).parameters())


def test_the_decoder_merges_as_written(trained) -> None:
    """Steps by hand from the cells: attention by place, divided by the frames, and two gates from the state before."""

    class Words:
        ids, start = torch.arange(20), 1

        def __len__(self) -> int:
            return 20

    keys = CaptionSection(system="semsynan", width=8, concepts=5, dropout=0.0)
    decoder: SemSynDecoder = trained(SemSynDecoder(keys, 6, 3, 7, Words()).double()).eval()  # type: ignore[arg-type]
    frames, tokens = torch.randn(2, 3, 6, dtype=torch.float64), torch.tensor([[1, 4, 9], [1, 3, 3]])
    mean = frames.mean(1)
    concepts, syntax = decoder.concepts(mean).sigmoid(), decoder.syntax.of_clips(mean)
    ways = {"vs": (mean, concepts), "ve": (mean, syntax), "se": (concepts, syntax)}
    states = {pair: (torch.zeros(2, 8).double(), torch.zeros(2, 8).double()) for pair in ways}
    merged = torch.zeros(2, 8).double()
    expected = []
    for place in range(3):
        word = decoder.tokens(tokens[:, place]) if place else torch.zeros(2, 7).double()
        for pair, way in ways.items():
            cell = decoder.cells[pair]
            states[pair] = cell(word, states[pair], cell.prepare(*way))
        hidden = [states[pair][0] for pair in ways]
        alpha = torch.softmax(decoder.attend[1](decoder.attend[0](torch.cat(hidden, 1))), 1)
        context = sum(alpha[:, k, None] * frames[:, k] for k in range(3)) / 3
        before = torch.cat([merged, context], 1)
        b1, b2 = (gate(before).sigmoid() for gate in decoder.merge)
        merged = b2 * (b1 * hidden[0] + (1 - b1) * hidden[1]) + (1 - b2) * hidden[2]
        expected.append(decoder.output(merged) + decoder.output_bias)
    assert torch.allclose(decoder(tokens, decoder.encode(frames)), torch.stack(expected, 1), atol=1e-10)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"caption.tied: true has no meaning"):
        recipe_from_dict(values(tied=True))
    assert isinstance(model_of().captioner.output, nn.Linear)
