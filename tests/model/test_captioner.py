"""The caption head: who sees what, the cache, tied weights, the start from CLIP's tokens, the vocabulary."""

import pytest
import torch

from calmctl.model.build import build_caption_model
from calmctl.model.captioner import (
    PAD,
    Captioner,
    CaptionModel,
    CaptionVocabulary,
    training_vocabulary,
    whole_vocabulary,
)
from calmctl.model.weights import load_backbone
from calmctl.recipe.schema import CaptionSection

SENTENCES = ("a red circle isn't moving", "two t-shirts, left of a cat")
FRAMES, DIM = 3, 128


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return load_backbone("demo-clip", None)


@pytest.fixture(scope="module")
def vocabulary(backbone):
    return CaptionVocabulary(backbone, training_vocabulary(backbone, SENTENCES))


def make(vocabulary, **keys) -> Captioner:
    torch.manual_seed(1)
    section = CaptionSection(width=32, heads=4, ffn=48, decoder_layers=2, max_tokens=12, **keys)
    return Captioner(section, DIM, FRAMES, vocabulary).double().eval()


def test_a_token_sees_the_tokens_before_it_and_no_later_one(vocabulary):
    captioner = make(vocabulary)
    memory = captioner.encode(torch.randn(1, FRAMES, DIM, dtype=torch.float64))
    tokens = torch.randint(0, len(vocabulary), (1, 8))
    before = captioner(tokens, memory)
    for place in range(8):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % len(vocabulary)
        moved = (captioner(other, memory) - before).abs().amax(dim=-1)[0]
        assert (moved[:place] == 0).all() and (moved[place:] > 0).all()


def test_every_frame_is_seen_and_their_order_too(vocabulary):
    captioner = make(vocabulary)
    frames = torch.randn(1, FRAMES, DIM, dtype=torch.float64)
    tokens = torch.tensor([[vocabulary.start]])
    before = captioner(tokens, captioner.encode(frames))
    for frame in range(FRAMES):
        other = frames.clone()
        other[0, frame] += 1
        assert (captioner(tokens, captioner.encode(other)) - before).abs().max() > 1e-6
    assert (captioner(tokens, captioner.encode(frames.flip(1))) - before).abs().max() > 1e-6


@pytest.mark.parametrize("tied", [False, True])
def test_the_cache_gives_what_whole_prefixes_give(vocabulary, tied):
    captioner = make(vocabulary, tied=tied)
    memory = captioner.encode(torch.randn(4, FRAMES, DIM, dtype=torch.float64))
    tokens = torch.randint(0, len(vocabulary), (4, 6))
    cache, order = captioner.start_cache(memory), torch.arange(4)
    for length in range(1, 7):
        logits = captioner.step(tokens[order, length - 1], cache)
        torch.testing.assert_close(logits, captioner(tokens[order, :length], memory[order])[:, -1])
        shuffled = torch.tensor([2, 0, 0, 3])  # a beam goes on twice, another not at all
        cache.select(shuffled)
        order = order[shuffled]


def test_clip4captions_settings_are_their_formula(vocabulary):
    """All of it by hand in float64: LN(W LN(f) + p), both stacks, LN(GELU(W LN(x))) before the tied output."""
    captioner = make(vocabulary, input_norm=True, output_transform=True, encoder_layers=2, tied=True)
    w = dict(captioner.named_parameters())
    with torch.no_grad():
        for parameter in w.values():
            parameter += 0.1 * torch.randn_like(parameter)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def attend(x, seen, name, causal=False):
        out = torch.zeros_like(x)
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            q, k, v = (
                linear(y, f"{name}.{which}")[:, part] for y, which in ((x, "query"), (seen, "key"), (seen, "value"))
            )
            for row in range(len(x)):
                last = row + 1 if causal else len(seen)
                shares = (k[:last] @ q[row] / 8**0.5).exp()
                out[row, part] = shares / shares.sum() @ v[:last]
        return linear(out, f"{name}.out")

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    def perceptron(x, name):
        return linear(gelu(linear(x, f"{name}.0")), f"{name}.2")

    frames, tokens = 10 * torch.randn(FRAMES, DIM, dtype=torch.float64), torch.randint(0, len(vocabulary), (5,))
    x = norm(linear(norm(frames, "feature_norm"), "visual") + w["frame_position"], "frame_norm")
    for name in ("encoder.0", "encoder.1"):
        normed = norm(x, f"{name}.attention_norm")
        x = x + attend(normed, normed, f"{name}.attention")
        x = x + perceptron(norm(x, f"{name}.ffn_norm"), f"{name}.ffn")
    memory = norm(x, "memory_norm")
    x = w["tokens.weight"][tokens] + w["token_position"][:5]
    for name in ("decoder.0", "decoder.1"):
        normed = norm(x, f"{name}.self_norm")
        x = x + attend(normed, normed, f"{name}.self_attention", causal=True)
        x = x + attend(norm(x, f"{name}.memory_norm"), memory, f"{name}.memory_attention")
        x = x + perceptron(norm(x, f"{name}.ffn_norm"), f"{name}.ffn")
    last = norm(gelu(linear(norm(x, "output_norm"), "output_transform.0")), "output_transform.2")
    expected = last @ w["tokens.weight"].T + w["output_bias"]
    torch.testing.assert_close(captioner(tokens[None], captioner.encode(frames[None]))[0], expected)


def test_tied_output_is_the_embedding(vocabulary):
    tied, untied = make(vocabulary, tied=True), make(vocabulary)
    names = {name for name, _ in untied.named_parameters()} - {name for name, _ in tied.named_parameters()}
    assert names == {"output.weight"}
    memory = torch.zeros(1, FRAMES, 32, dtype=torch.float64)
    tied(torch.tensor([[vocabulary.start]]), memory)[0, -1, 3].backward()
    assert tied.tokens.weight.grad is not None and tied.tokens.weight.grad[3].abs().max() > 0


def test_the_start_from_clip_keeps_the_angles_between_tokens(backbone, vocabulary):
    torch.manual_seed(2)
    keys = CaptionSection(width=256, heads=4, max_tokens=12)
    captioner = Captioner(keys, DIM, FRAMES, vocabulary)
    captioner.start_from(backbone.token_embedding)
    theirs = backbone.token_embedding[vocabulary.ids].detach()
    ours = captioner.tokens.weight.detach()
    cosines = [torch.nn.functional.normalize(rows, dim=-1) for rows in (ours, theirs)]
    torch.testing.assert_close(cosines[0] @ cosines[0].T, cosines[1] @ cosines[1].T, atol=1e-5, rtol=0)
    assert captioner.output is not None and torch.equal(captioner.output.weight, captioner.tokens.weight)
    assert float(ours.std()) == pytest.approx(0.02, rel=1e-4)


def test_sentences_come_back_and_padding_stays_out(vocabulary):
    encoded = vocabulary.encode(SENTENCES, 30)
    assert [vocabulary.decode(row[1:].tolist()) for row in encoded] == list(SENTENCES)
    assert (encoded[:, 0] == vocabulary.start).all()
    shorter = min(encoded, key=lambda row: int((row != PAD).sum()))
    kept = int((shorter != PAD).sum())
    assert shorter[kept - 1] == vocabulary.end and (shorter[kept:] == PAD).all()


def test_a_cut_sentence_gets_no_end_mark(vocabulary):
    (row,) = vocabulary.encode(SENTENCES[:1], 3)
    assert len(row) == 4 and vocabulary.end not in row.tolist()
    assert vocabulary.decode(row.tolist()) == "a red circle"


def test_words_outside_the_vocabulary_are_skipped(backbone, vocabulary):
    (row,) = vocabulary.encode(["a red zebra circle"], 30)
    assert vocabulary.decode(row.tolist()) == "a red circle"
    assert len(CaptionVocabulary(backbone, whole_vocabulary(backbone))) == 49408


def recipe_model(tiny_recipe, *overrides) -> CaptionModel:
    from calmctl.anchors.shipped import resolve_vocabulary

    recipe = tiny_recipe("task=caption", "caption.width=32", "caption.heads=2", "caption.ffn=32", *overrides)
    backbone = load_backbone("demo-clip", None)
    tokens = training_vocabulary(backbone, SENTENCES)
    torch.manual_seed(0)
    return build_caption_model(recipe, resolve_vocabulary("shapes@1"), tokens, backbone)


@pytest.mark.parametrize("overrides", [[], ["backbone.freeze=true", "backbone.adapter=linear"]])
def test_the_alignment_moves_what_captions_are_made_of(tiny_recipe, overrides):
    """CALM's loss alone must reach parameters on the path from frames to the decoder's memory (docs/captioning.md)."""
    from calmctl.model.calm import Losses

    model = recipe_model(tiny_recipe, *overrides).train()
    pixels = torch.randint(0, 255, (2, 2, 48, 48, 3), dtype=torch.uint8)
    frames = model.encode_frames(pixels)
    losses = Losses(torch.zeros(()), {})
    model.add_alignment(model.encode_texts(model.backbone.tokenize(list(SENTENCES))), frames, losses)
    losses.total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    on_the_path = "adapter.frames." if overrides else "backbone.clip.visual."
    assert any(name.startswith(on_the_path) for name in reached)
    assert not any(name.startswith("captioner.") for name in reached)


@pytest.mark.parametrize(
    ("override", "taught"),
    [("alignment.weight=1", False), ("alignment.direction=both", True), ("alignment.detach_target=false", True)],
)
def test_sentences_are_taught_where_the_alignment_asks_for_it(tiny_recipe, override, taught):
    """With prompts kept apart (encode: no-gradient) the text tower learns from sentences, or not at all."""
    from calmctl.model.calm import Batch

    model = recipe_model(tiny_recipe, override, "anchors.encode=no-gradient").train()
    captions = model.captioner.vocabulary.encode(SENTENCES, 30)
    pixels = torch.randint(0, 255, (2, 2, 48, 48, 3), dtype=torch.uint8)
    model(Batch(model.backbone.tokenize(list(SENTENCES)), pixels, torch.arange(2), captions)).total.backward()
    gradient = model.backbone.clip.text_projection.grad
    assert (gradient is not None and bool(gradient.abs().max() > 0)) == taught


def test_losses_add_up(tiny_recipe):
    from calmctl.model.calm import Batch

    model = recipe_model(tiny_recipe).train()
    captions = model.captioner.vocabulary.encode(SENTENCES, 30)
    pixels = torch.randint(0, 255, (2, 2, 48, 48, 3), dtype=torch.uint8)
    losses = model(Batch(model.backbone.tokenize(list(SENTENCES)), pixels, torch.arange(2), captions))
    parts = losses.parts
    torch.testing.assert_close(losses.total, parts["task"] + parts["rec"] + 0.1 * parts["kl"])
    assert 0 <= float(losses.diagnostics["token_accuracy"]) <= 1
    with pytest.raises(ValueError, match="tokens"):
        model(Batch(torch.zeros(2, 128), pixels, torch.arange(2)))
