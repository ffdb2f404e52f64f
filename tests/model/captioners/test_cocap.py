"""CoCap: its published parameter counts, its formulas in float64, and what each setting reads."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.captions.generate import CaptionSearch, caption_features
from calmctl.errors import RecipeError
from calmctl.model.build import build_caption_model
from calmctl.model.calm import Batch
from calmctl.model.captioner import training_vocabulary
from calmctl.model.captioners.cocap import ActionEncoder, CocapDecoder, PictureEncoder, sinusoid, unpack
from calmctl.model.openclip import open_clip
from calmctl.model.weights import load_backbone
from calmctl.recipe import recipe_from_dict
from calmctl.recipe.schema import CaptionSection

CAPTIONS = ("a red circle spinning", "two blue squares at rest")
MOVES = ("it moves left", "it goes to the right", "nothing moves")


class Words:
    """As much of a vocabulary as a decoder asks for."""

    def __init__(self, size: int) -> None:
        self.ids = torch.arange(size)

    def __len__(self) -> int:
        return len(self.ids)


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_parameter_counts_are_the_released_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without their random start: it is only their sizes that count.
    for name in ("kaiming_uniform_", "normal_", "uniform_", "zeros_", "ones_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(torch, "randn", torch.empty)
    keys = CaptionSection(system="cocap", width=512, decoder_layers=2, heads=8, ffn=512, max_tokens=77)
    with torch.device("meta"):
        visual = open_clip.transformer.VisionTransformer(224, 16, 768, 12, 12, 4.0, output_dim=512)
        motion, residual = PictureEncoder(56, 8, 4, 192, 2, 512), PictureEncoder(224, 64, 3, 768, 2, 512)
        action, decoder = ActionEncoder(512, 59, 768), CocapDecoder(keys, 512, 8, Words(49_408))  # type: ignore[arg-type]
    assert parameters(visual) == 86_192_640
    assert parameters(motion) == 1_047_744 and parameters(residual) == 24_017_664
    assert parameters(action) == 4_237_312 + 394_752  # with the I picture's new norm and projection
    assert parameters(decoder) == 28_984_832 + 25_609_984
    # Two linear layers that the released code makes and never uses are not there.
    assert parameters(visual, motion, residual, action, decoder) == 171_010_240 - 525_312


# The formulas, in float64, from the paper's figures and the reference's shapes.


Weights = dict[str, np.ndarray]


def weights(module: nn.Module) -> Weights:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(x: np.ndarray, seen: np.ndarray, w: Weights, name: str, heads: int, sees: np.ndarray | None = None):
    """Row by row and head by head."""
    q, k, v = linear(x, w, f"{name}.query"), linear(seen, w, f"{name}.key"), linear(seen, w, f"{name}.value")
    out = np.zeros_like(q)
    size = q.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for row in range(len(q)):
            scores = k[:, part] @ q[row, part] / np.sqrt(size)
            if sees is not None:
                scores = np.where(sees[row], scores, -np.inf)
            shares = np.exp(scores - scores.max())
            out[row, part] = shares / shares.sum() @ v[:, part]
    return linear(out, w, f"{name}.out")


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def perceptron(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return linear(quick_gelu(linear(x, w, f"{name}.0")), w, f"{name}.2")


def gelu(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_a_picture_encoder_is_its_formula(trained) -> None:
    encoder = trained(PictureEncoder(7, 3, 2, 16, 2, 8).double())
    pictures = torch.randn(3, 2, 7, 7, dtype=torch.float64)
    w = weights(encoder)
    for picture, feature in zip(pictures.numpy(), encoder(pictures).detach().numpy(), strict=True):
        tokens = [w["token"]]
        for top in (0, 3):  # 2 x 2 patches: the seventh row and column are not seen
            for left in (0, 3):
                tokens.append((w["patches.weight"] * picture[:, top : top + 3, left : left + 3]).sum((1, 2, 3)))
        x = norm(np.stack(tokens) + w["position"], w, "input_norm")
        for layer in range(2):
            normed = norm(x, w, f"blocks.{layer}.attention_norm")
            x = x + attend(normed, normed, w, f"blocks.{layer}.attention", 8)
            x = x + perceptron(norm(x, w, f"blocks.{layer}.perceptron_norm"), w, f"blocks.{layer}.perceptron")
        assert np.allclose(norm(x[0], w, "output_norm") @ w["projection"], feature, atol=1e-10)


def test_the_action_encoder_is_its_formula(trained) -> None:
    encoder = trained(ActionEncoder(16, 3, 24).double())
    moved, patches = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 5, 24, dtype=torch.float64)
    w = weights(encoder)
    out = encoder(moved, patches).detach().numpy()
    for each, seen, feature in zip(moved.numpy(), patches.numpy(), out, strict=True):
        hidden = norm(norm(seen, w, "patch_norm") @ w["patch_projection"], w, "seen_norm")
        x = each + w["position.weight"] + w["kind.weight"][0]
        normed = norm(x, w, "self_norm")
        x = x + attend(normed, normed, w, "self_attention", 8)
        x = x + attend(norm(x, w, "cross_norm"), hidden, w, "cross_attention", 8)
        x = x + perceptron(norm(x, w, "perceptron_norm"), w, "perceptron")
        assert np.allclose(norm(x.mean(0), w, "output_norm"), feature, atol=1e-10)


def small_decoder(trained, **keys: object) -> CocapDecoder:
    section = CaptionSection(
        system="cocap",
        width=16,
        decoder_layers=2,
        heads=4,
        ffn=24,
        max_tokens=6,
        **keys,  # type: ignore[arg-type]
    )
    return trained(CocapDecoder(section, 12, 2, Words(30)).double()).eval()  # type: ignore[arg-type]


def test_the_decoder_is_its_formula(trained) -> None:
    decoder = small_decoder(trained)
    frames, tokens = torch.randn(1, 4, 12, dtype=torch.float64), torch.tensor([[3, 7, 1]])
    w = weights(decoder)

    def enter(x: np.ndarray, name: str) -> np.ndarray:
        return norm(np.maximum(linear(norm(x, w, f"{name}.0"), w, f"{name}.2"), 0), w, f"{name}.4")

    # Two I pictures (kind 1), two motions (0), three words (2), each in its place of one sequence.
    x = np.concatenate([enter(frames[0].numpy(), "visual_input"), enter(w["tokens.weight"][[3, 7, 1]], "word_input")])
    x = x + w["kind.weight"][[1, 1, 0, 0, 2, 2, 2]]
    places = [[f(p / 10_000 ** (2 * i / 16)) for i in range(8) for f in (np.sin, np.cos)] for p in range(7)]
    x = norm(x + np.array(places), w, "input_norm")
    sees = np.tril(np.ones((7, 7), bool))
    sees[:4, :4], sees[:4, 4:] = True, False
    for layer in range(2):
        x = norm(x + attend(x, x, w, f"layers.{layer}.attention", 4, sees), w, f"layers.{layer}.attention_norm")
        inner = linear(gelu(linear(x, w, f"layers.{layer}.ffn.0")), w, f"layers.{layer}.ffn.2")
        x = norm(x + inner, w, f"layers.{layer}.ffn_norm")
    last = norm(gelu(linear(x[4:], w, "output_transform.0")), w, "output_transform.2")
    expected = last @ w["output.weight"].T + w["output_bias"]
    logits = decoder(tokens, decoder.encode(frames)).detach().numpy()[0]
    assert np.allclose(logits, expected, atol=1e-6)  # the table of places is float32
    assert np.allclose(sinusoid(7, 16).numpy(), places, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_cache_changes_nothing(trained, tied: bool) -> None:
    decoder = small_decoder(trained, tied=tied)
    memory = decoder.encode(torch.randn(3, 4, 12, dtype=torch.float64))
    tokens = torch.randint(0, 30, (3, 6))
    whole = decoder(tokens, memory)
    cache = decoder.start_cache(memory)
    rows = torch.tensor([2, 0, 0])
    for place in range(6):
        if place == 3:
            cache.select(rows)
            tokens = tokens[rows]
            whole = decoder(tokens, memory[rows])
        assert torch.allclose(decoder.step(tokens[:, place], cache), whole[:, place], atol=1e-10)


# The model.


def recipe_values(**compressed: object) -> dict:
    return {
        "name": "x",
        "task": "caption",
        "data": {"dataset": "demo", "compressed": {"gops": 2, "pictures": 3, **compressed}},
        "backbone": {"model": "demo-clip", "weights": None},
        "caption": {"system": "cocap", "width": 32, "heads": 2, "ffn": 32, "decoder_layers": 1, "max_tokens": 12},
        "alignment": {"latent": 8},
        "anchors": {"vocabulary": "shapes@1"},
    }


def model_of(values: dict, captions: Sequence[str] = CAPTIONS):
    torch.manual_seed(0)
    backbone = load_backbone("demo-clip", None)
    recipe = recipe_from_dict(values)
    tokens = training_vocabulary(backbone, captions)
    return build_caption_model(recipe, resolve_vocabulary("shapes@1"), tokens, backbone)


def batch_of(model) -> Batch:
    packed = torch.randint(0, 256, (2, *model.reader(0).shape), dtype=torch.uint8)
    texts = model.backbone.tokenize(CAPTIONS)
    return Batch(texts, packed, torch.arange(2), model.caption_tokens(CAPTIONS))


@pytest.mark.parametrize(
    ("compressed", "parts", "n_features"),
    [
        ({}, ("motion", "residual", "action"), 4),
        ({"residual": False}, ("motion", "action"), 4),
        ({"vectors": "none"}, ("residual", "action"), 4),
        ({"vectors": "none", "residual": False}, (), 2),
    ],
)
def test_every_setting_has_its_parts_and_trains_them(compressed, parts, n_features) -> None:
    model = model_of(recipe_values(**compressed))
    assert tuple(name for name in ("motion", "residual", "action") if getattr(model, name) is not None) == parts
    batch = batch_of(model)
    assert model.encode_frames(batch.frames).shape == (2, n_features, 128)
    losses = model(batch)
    assert {"task", "rec", "kl"} <= losses.parts.keys()
    losses.total.backward()
    # Every part learns; the row of B pictures and CLIP's scale have no part in it.
    still = {name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()}
    assert {name.partition(".")[0] for name in still} <= {"backbone", "anchors"}
    (caption, _) = caption_features(model.eval(), model.encode_frames(batch.frames).detach(), CaptionSearch(beam=2))
    assert caption.n_tokens <= 12


def test_v_p_is_of_the_i_pictures_alone() -> None:
    model = model_of(recipe_values()).eval()
    texts, frames = torch.randn(2, 128), torch.randn(2, 4, 128)
    _, log_v = model.distributions(texts, frames)
    other = torch.cat([frames[:, :2], torch.randn(2, 2, 128)], dim=1)
    assert torch.equal(model.distributions(texts, other)[1], log_v)


def test_i_pictures_are_encoded_as_clip_encodes_frames() -> None:
    model = model_of(recipe_values()).eval()
    packed = batch_of(model).frames
    pictures, vectors, residual = unpack(packed, model.reader(0))
    assert pictures.shape == (2, 2, 48, 48, 3) and vectors.shape == (2, 2, 3, 4, 12, 12)
    assert residual.shape == (2, 2, 3, 3, 48, 48)
    features = model.backbone.encode_frames(model.normalise(pictures))
    assert torch.allclose(model.encode_frames(packed)[:, :2], features, atol=1e-5)
    raw = packed[1, 0].numpy()[model.reader(0).lengths[0] :][:1152].view(np.int16)
    assert np.array_equal(vectors[1, 0, 0].flatten().numpy(), raw)


def test_frozen_towers_leave_the_motion_encoders_to_learn() -> None:
    values = recipe_values()
    values["backbone"]["freeze"], values["alignment"] = True, {"kind": "none"}
    model = model_of(values)
    assert not model.keeps_features
    model(batch_of(model)).total.backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.motion.parameters())


def test_it_learns_from_vectors_what_no_picture_shows() -> None:
    """Pictures of noise whose blocks move: captions of held-out clips say where to. The drawn world's are too few
    steps away to be learned in a test: benchmarks/cocap.py."""
    values = recipe_values(residual=False, gops=1, pictures=2)
    values["backbone"]["freeze"], values["alignment"] = True, {"kind": "none"}
    model = model_of(values, MOVES)
    reader, rng = model.reader(0), np.random.default_rng(0)
    kinds = rng.integers(len(MOVES), size=90)
    vectors = rng.integers(-3, 4, (90, 2, 4, 12, 12), dtype=np.int16)
    vectors[:, :, 0] += np.array([-16, 16, 0], np.int16)[kinds, None, None, None]
    packed = rng.integers(256, size=(90, *reader.shape), dtype=np.uint8)
    packed[:, 0, reader.lengths[0] :] = vectors.reshape(90, -1).view(np.uint8)
    clips, sentences = torch.from_numpy(packed), [MOVES[kind] for kind in kinds]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    model.train()
    losses = []
    for step in range(45):
        rows = torch.arange(20) + 20 * (step % 3)
        tokens = model.caption_tokens([sentences[row] for row in rows])
        loss = model(Batch(torch.empty(0), clips[rows], rows, tokens)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses
    with torch.no_grad():
        said = caption_features(model.eval(), model.encode_frames(clips[60:]), CaptionSearch(beam=1))
    right = [caption.text == sentence for caption, sentence in zip(said, sentences[60:], strict=True)]
    other = [caption.text == sentence for caption, sentence in zip(said, sentences[61:], strict=False)]
    assert sum(right) > 24 and sum(other) < 16, (right, other)


def test_what_does_not_fit_is_refused() -> None:
    values = recipe_values()
    values["data"]["features"], values["alignment"] = "store", {"kind": "none"}
    with pytest.raises(RecipeError, match=r"caption.system: cocap reads vectors.*data.features=null"):
        recipe_from_dict(values)
