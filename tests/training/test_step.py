"""The fast step beside the step as it once was (benchmarks/train_step.py), and what may be compiled; on the CPU."""

import importlib.util
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from calmctl.errors import BadInput
from calmctl.model.backbone import Backbone, PatchEmbedding, split_preprocess
from calmctl.model.text_tower import Beginnings
from calmctl.training import prepare
from calmctl.training.loop import on_device
from calmctl.training.optim import gradient_norms, group_of

NAMES = [
    *(f"{head} vae" for head in ("meanp", "xpool", "t-mass-support", "emcl", "wti", "uatvr")),
    *(f"xpool {kind}" for kind in ("none", "kl", "ce", "mse")),
    *("both directions", "temperature", "adapter", "xpool in chunks", "wti in chunks"),
    *("caption smoothed 3", "caption both", "caption in chunks"),
]


@pytest.fixture(scope="module")
def train_step():
    path = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("benchmark_train_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_what_it_was(alike, train_step, name, monkeypatch):
    """One pass of the text tower, common beginnings once, patches as a product: the same losses and gradients."""
    monkeypatch.setattr(PatchEmbedding, "forward", PatchEmbedding.product)
    now = alike.alone(name)
    model = alike.build(alike.CASES[name].overrides)
    normalise = model.normalise
    train_step.as_before(model)
    model.normalise = normalise  # parity's, in float64
    torch.manual_seed(3)
    losses = model(alike.batch_of(model, slice(None)))
    losses.total.backward()
    before = alike.numbers_of(name, losses, model)
    assert before.keys() == now.keys() and any("grad" in key for key in now)
    for key, value in before.items():
        torch.testing.assert_close(now[key], value, rtol=1e-10, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


def test_prompts_share_a_pass_only_where_they_need_a_gradient(alike):
    def passes(*overrides):
        model, calls = alike.build(["head.kind=xpool", *overrides]), []
        encode = model.backbone.encode_text
        model.backbone.encode_text = lambda tokens: (calls.append(len(tokens)), encode(tokens))[1]
        model(alike.batch_of(model, slice(None)))
        return calls

    assert passes() == [6 + 5]
    assert passes("alignment.kind=none") == [6]
    assert passes("anchors.encode=no-gradient") == passes("anchors.encode=refresh") == [6, 5]
    assert passes("optim.chunk=4") == [4, 4, 3]


def test_the_last_block_computes_end_tokens_alone_in_training(alike):
    model = alike.build([])
    tokens = model.backbone.tokenize(alike.SENTENCES)
    seen = []
    last = model.backbone.clip.transformer.resblocks[-1]
    last.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    trained = model.backbone.encode_text(tokens)
    with torch.no_grad():
        evaluated = model.backbone.encode_text(tokens)
    assert seen == [len(tokens), tokens.numel()]
    torch.testing.assert_close(trained, evaluated, rtol=1e-12, atol=1e-13)
    # With two blocks, one of them recomputed in the backward pass.
    model.backbone.clip.transformer.resblocks.insert(0, deepcopy(last))
    plain = model.backbone.encode_text(tokens)
    model.backbone.checkpoint_activations()
    torch.testing.assert_close(model.backbone.encode_text(tokens), plain, rtol=0, atol=0)


def test_patches_are_found_by_their_stride():
    assert PatchEmbedding.embeds(nn.Conv2d(3, 8, 4, stride=4))
    assert not PatchEmbedding.embeds(nn.Conv2d(3, 8, 3, stride=2, padding=1))  # a ResNet's
    assert not PatchEmbedding.embeds(nn.Conv2d(4, 8, 4, stride=4, groups=2)) and not PatchEmbedding.embeds(None)
    patches = PatchEmbedding(3, 8, (4, 2), stride=(4, 2)).double()
    pixels = torch.randn(5, 3, 12, 8, dtype=torch.float64)
    product = patches.product(pixels)
    torch.testing.assert_close(product, nn.Conv2d.forward(patches, pixels), rtol=1e-12, atol=1e-13)
    assert product.reshape(5, 8, -1).permute(0, 2, 1).is_contiguous()  # as the tower reads it, without a copy


def test_pixels_come_in_the_type_of_autocast(alike):
    normalise = split_preprocess(alike.build([]).backbone)[1]
    frames = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    exact = normalise(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(normalise(frames), exact.bfloat16())
    assert exact.dtype == torch.float32 and exact.is_contiguous()


def test_gradient_norms_are_those_of_their_groups(alike):
    model = alike.build([])
    model(alike.batch_of(model, slice(None))).total.backward()
    squares = dict.fromkeys(("backbone", "head", "alignment"), 0.0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[group_of(name)] += float((parameter.grad**2).sum())
    found = gradient_norms(model)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {f"grad_{name}": math.sqrt(value) for name, value in squares.items()}, rel=1e-6
    )


def test_batches_on_a_cpu_stay_where_they_are(alike):
    batch = alike.batch_of(alike.build([]), slice(None))
    assert list(on_device([batch, None], torch.device("cpu"))) == [batch, None]


# What is compiled, and when; that it computes the same is for tests/training/test_gpu.py.


def test_blocks_are_compiled_for_training_alone(alike, monkeypatch):
    marked, compiled = [], []

    def compile(forward):
        def call(hidden, *, attn_mask=None):
            compiled.append(tuple(hidden.shape))
            return forward(hidden, attn_mask=attn_mask)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("torch._dynamo.maybe_mark_dynamic", lambda tensor, sizes: marked.append((tensor.dim(), sizes)))
    model = alike.build([])
    model.backbone.clip.transformer.resblocks.insert(0, deepcopy(model.backbone.clip.transformer.resblocks[0]))
    batch = alike.batch_of(model, slice(None))
    model.backbone.text_pass = "ends"
    plain = model(batch).total
    names = list(model.state_dict())
    model.backbone.compile_blocks()
    with torch.no_grad():
        model(batch)
    assert not compiled
    torch.manual_seed(3)
    assert torch.equal(model(batch).total, plain)
    assert compiled == [(12, 5, 32), (11, batch.texts.shape[1], 64)]
    assert list(model.state_dict()) == names
    # Rows and lengths of texts may change; the number of patches and all widths may not.
    assert marked == [(3, 0), (3, 0), (3, 1), (2, [0, 1])]


@pytest.mark.parametrize(
    ("wanted", "device", "frozen", "compiles"),
    [
        ("auto", "cpu", False, False),
        ("auto", "cuda", False, True),
        ("true", "cpu", False, True),
        ("true", "cuda", True, False),
        ("false", "cuda", False, False),
    ],
)
def test_who_compiles(tiny_recipe, alike, monkeypatch, wanted, device, frozen, compiles):
    monkeypatch.setattr(prepare, "find_spec", lambda name: object())
    monkeypatch.setattr(prepare.shutil, "which", lambda name: f"/usr/bin/{name}")
    called = []
    monkeypatch.setattr(Backbone, "compile_blocks", lambda self: called.append(self))
    more = ["backbone.freeze=true", "backbone.adapter=linear"] if frozen else []
    prepare._compile(tiny_recipe(f"optim.compile={wanted}", *more), alike.build([]), torch.device(device))
    assert bool(called) == compiles


def test_a_missing_compiler_is_told(tiny_recipe, alike, monkeypatch):
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: None)
    with pytest.raises(
        BadInput, match=r"needs a C compiler \(gcc or clang\) and the package triton, missing here; install"
    ):
        prepare._compile(tiny_recipe("optim.compile=true"), alike.build([]), torch.device("cuda"))
    model = alike.build([])
    prepare._compile(tiny_recipe(), model, torch.device("cuda"))
    assert model.backbone.notes[-1].startswith("optim.compile=auto: torch.compile needs a C compiler")


# What the text tower computes of sentences.


def test_beginnings_are_each_there_once(alike):
    backbone = alike.build([]).backbone
    sentences = ("a red square", "a red star moves", "two red", "a red star moves", "a")
    tokens = backbone.tokenize(sentences)
    tree = Beginnings(tokens)
    rows = [row[: row.index(max(row)) + 1] for row in tokens.tolist()]
    wanted = {tuple(row[: column + 1]) for row in rows for column in range(len(row))}
    assert len(tree.tokens) == len(wanted) < sum(map(len, rows))
    found = {}
    for row, places in zip(rows, tree.rows.tolist(), strict=True):
        for column, place in enumerate(places[: len(row)]):
            assert found.setdefault(place, tuple(row[: column + 1])) == tuple(row[: column + 1])
    assert set(found.values()) == wanted
    for place, beginning in found.items():
        assert (int(tree.tokens[place]), int(tree.columns[place])) == (beginning[-1], len(beginning) - 1)
    assert [found[end] for end in tree.ends.tolist()] == [tuple(row) for row in rows]


@pytest.mark.parametrize("reads", ["text", "words"])
def test_every_way_through_the_text_tower_gives_the_same(alike, reads):
    backbone = alike.build([]).backbone
    backbone.clip.transformer.resblocks.insert(0, deepcopy(backbone.clip.transformer.resblocks[0]))
    tokens = backbone.tokenize([*alike.SENTENCES, "a red square", alike.SENTENCES[1]])
    weights = torch.linspace(-1, 1, backbone.dim, dtype=torch.float64)
    found = {}
    for way in ("joined", "ends", "whole"):
        backbone.text_pass = way
        backbone.zero_grad()
        features = getattr(backbone, f"encode_{reads}")(tokens)
        (features * weights).pow(2).sum().backward()
        found[way] = [features.detach(), *(p.grad.clone() for p in backbone.parameters() if p.grad is not None)]
    for way in ("joined", "ends"):
        torch.testing.assert_close(found[way], found["whole"], rtol=1e-10, atol=1e-10)
