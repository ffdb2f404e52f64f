"""Published models: folders and hubs, CLIP as transformers writes it, its tokenizers, sigmoid-trained models."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file

from calmctl.errors import CheckpointError
from calmctl.model import published
from calmctl.model.backbone import LN_100, fingerprint
from calmctl.model.published import clip_of_transformers, usual_weights
from calmctl.model.spec import check_backbone, read_spec
from calmctl.model.weights import build_backbone, load_backbone
from calmctl.recipe.schema import BackboneSection
from calmctl.tensors import save_tensors
from calmctl.training.optim import clamp_logit_scale

VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
SIGMOID = CONFIG | {
    "init_logit_bias": -10,
    "custom_text": True,
    "text_cfg": TEXT | {"vocab_size": 300, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
"""What SigLIP's configs say, but for the sizes."""


def published_files(config, backbone=None):
    backbone = backbone or build(config)
    about = {"model_cfg": config, "preprocess_cfg": PIXELS}
    return {
        "open_clip_config.json": json.dumps(about).encode(),
        "open_clip_model.safetensors": save(backbone.clip.state_dict()),
    }


def build(config):
    from calmctl.model.spec import Architecture, read_pixels

    torch.manual_seed(0)
    return build_backbone(Architecture("tiny", config, None, False).spec(read_pixels(PIXELS, where="test")))


def same(first, second):
    ours, theirs = first.clip.state_dict(), second.clip.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rebuilt(backbone):
    """The backbone as a checkpoint's metadata gives it back."""
    return build_backbone(read_spec({"backbone": json.loads(json.dumps(fingerprint(backbone)))}, source="test"))


class TestPlaces:
    def test_a_repository_of_a_hub(self, hub):
        first = build(CONFIG)
        commit = hub.add("owner/tiny", published_files(CONFIG, first))
        backbone = load_backbone("hf-hub:owner/tiny", "own")
        assert same(first, backbone)
        spec = backbone.spec
        assert (spec.model, spec.source, spec.revision) == ("hf-hub:owner/tiny", "owner/tiny", commit)
        assert spec.weights == "open_clip_model.safetensors" and spec.mean == (0.5, 0.5, 0.5)
        hub.fault, hub.requests[:] = "503", []
        assert same(first, load_backbone("hf-hub:owner/tiny", "own")) and not hub.requests, "from the cache"
        assert rebuilt(backbone).spec.pixels == spec.pixels and not hub.requests
        constants.HF_HUB_OFFLINE = True  # the fixture takes it back
        assert same(first, load_backbone("hf-hub:owner/tiny", "own"))

    def test_what_another_program_brought_is_not_taken_for_all_there_is(self, hub):
        """timm's own config.json lies beside open_clip's, and may be the only one in the cache."""
        first = build(CONFIG)
        hub.add("owner/tiny", published_files(CONFIG, first) | {"config.json": b'{"architecture": "vit"}'})
        published.fetch("owner/tiny", "config.json")
        assert same(first, load_backbone("hf-hub:owner/tiny", "own"))

    def test_a_file_that_a_repository_lacks_is_asked_for_once(self, hub):
        files = {"config.json": b'{"model_type": "clip"}', "preprocessor_config.json": b"{}"}
        hub.add("owner/theirs", files)
        place = published.Published.of("hf-hub:owner/theirs")
        assert place.config()[1].name == "config.json"
        hub.requests[:] = []
        assert place.config()[1].name == "config.json" and hub.requests == []

    def test_a_folder(self, tmp_path):
        first = build(CONFIG)
        for name, content in published_files(CONFIG, first).items():
            (tmp_path / name).write_bytes(content)
        backbone = load_backbone(f"local-dir:{tmp_path}", "own")
        assert same(first, backbone) and backbone.spec.model == tmp_path.name, "and no path of this machine"

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "has neither open_clip_config.json nor config.json"),
            (
                {"config.json": {"model_type": "siglip2"}},
                "is of the kind 'siglip2' and not a CLIP; name open_clip's own",
            ),
            ({"config.json": {"model_type": "bert"}}, "is of the kind 'bert' and not a CLIP; read it with"),
            ({"config.json": {"model_type": "clip", "vision_config": 3}}, "no config of a CLIP that can be read"),
            ({"open_clip_config.json": {"model_cfg": CONFIG}}, "has none of open_clip_model.safetensors"),
        ],
    )
    def test_what_is_no_model_is_told(self, tmp_path, files, message):
        for name, value in files.items():
            (tmp_path / name).write_text(json.dumps(value))
        with pytest.raises(CheckpointError, match=message):
            load_backbone(f"local-dir:{tmp_path}", "own")

    def test_weights_are_its_own_where_nobody_says_it(self):
        for model in ("hf-hub:a/b", "local-dir:x", "sentence-transformers:a/b", "sentence-transformers-clip:a/b"):
            assert BackboneSection(model=model).weights == usual_weights(model) == "own"
            assert BackboneSection(model=model, weights=None).weights is None
        assert BackboneSection().weights == usual_weights("ViT-B-32-quickgelu") == "openai"
        with pytest.raises(CheckpointError, match=r"own means what lies beside .* and demo-clip is neither"):
            check_backbone("demo-clip", "own")

    def test_a_tag_of_another_model_is_none_of_it(self, hub):
        hub.add("owner/tiny", published_files(CONFIG))
        with pytest.raises(CheckpointError, match=r"openai is no tag of hf-hub:owner/tiny.*backbone\.weights=own"):
            check_backbone("hf-hub:owner/tiny", "openai")


class TestClipOfTransformers:
    @pytest.fixture
    def theirs(self, tmp_path):
        transformers = pytest.importorskip("transformers", reason="the extra calmctl[hf] is not installed")
        text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = text | {"hidden_size": 32, "intermediate_size": 96, "image_size": 16, "patch_size": 8}
        more = {"max_position_embeddings": 12, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
        torch.manual_seed(0)
        config = transformers.CLIPConfig(projection_dim=16, text_config=text | more, vision_config=vision)
        model = transformers.CLIPModel(config).eval()
        model.save_pretrained(tmp_path)
        crops = {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}, "resample": 3}
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps(crops | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
        )
        return SimpleNamespace(folder=tmp_path, model=model)

    def test_its_features_are_the_same(self, theirs):
        ours = load_backbone(f"local-dir:{theirs.folder}", "own").eval()
        assert ours.spec.activation == "quick_gelu" and ours.spec.mean == (0.1, 0.2, 0.3)
        pixels = torch.randn(2, 3, 3, 16, 16)
        tokens = ours.tokenize(["a man is talking", "a dog"])
        whole = (torch.arange(tokens.shape[1]) <= tokens.argmax(dim=1)[:, None]).long()
        with torch.inference_mode():
            image = theirs.model.get_image_features(pixel_values=pixels.flatten(0, 1))
            text = theirs.model.get_text_features(input_ids=tokens, attention_mask=whole)
            image, text = (getattr(each, "pooler_output", each) for each in (image, text))
            torch.testing.assert_close(ours.encode_frames(pixels).flatten(0, 1), image, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ours.encode_text(tokens), text, atol=1e-5, rtol=1e-4)

    def test_its_file_alone_fits_a_config_of_open_clips(self, theirs):
        config = clip_of_transformers(json.loads((theirs.folder / "config.json").read_text()), PIXELS, where="test")
        path = theirs.folder / "mine.json"
        path.write_text(json.dumps(config["model_cfg"] | {"preprocess_cfg": PIXELS}))
        ours = load_backbone(str(path), str(theirs.folder / "model.safetensors"))
        assert same(ours, load_backbone(f"local-dir:{theirs.folder}", "own"))

    def test_other_norms_are_refused(self):
        config = {"model_type": "clip", "vision_config": {"layer_norm_eps": 1e-6}}
        with pytest.raises(CheckpointError, match="layer_norm_eps"):
            clip_of_transformers(config, {}, where="test")

    def test_the_library_leaves_out_what_is_usual(self):
        config = clip_of_transformers({"model_type": "clip"}, {}, where="test")["model_cfg"]
        from calmctl.model.spec import Architecture, read_architecture

        usual = read_architecture("ViT-B-32-quickgelu")
        spec = Architecture("x", config, None, False).spec(load_backbone("demo-clip", None).spec.pixels)
        wanted = usual.spec(spec.pixels)
        assert (spec.dim, spec.image_size, spec.context_length) == (wanted.dim, wanted.image_size, 77)
        assert spec.activation == wanted.activation == "quick_gelu"


def tokenizer_files(folder):
    """The files of a tokenizer of words, made on the spot."""
    pytest.importorskip("transformers", reason="the extra calmctl[hf] is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "man", "dog", "talks", "runs", "far", "away", "and", "on"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", sep_token="</s>"
    )
    fast.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestTokenizersOfTransformers:
    @pytest.fixture
    def sigmoid(self, hub, tmp_path):
        """A sigmoid-trained model on the hub, whose config names a tokenizer there."""
        hub.add("owner/words", tokenizer_files(tmp_path / "words"))
        first = build(SIGMOID)
        first.clip.logit_scale.data.fill_(math.log(117.0))
        text = SIGMOID["text_cfg"] | {"hf_tokenizer_name": "owner/words", "tokenizer_kwargs": {"clean": "canonicalize"}}
        hub.add("owner/sig", published_files(SIGMOID | {"text_cfg": text}, first))
        return load_backbone("hf-hub:owner/sig", "own")

    def test_tokens_weights_and_record(self, hub, sigmoid):
        tokens = sigmoid.tokenize(["A man, talks.", "dog"])
        assert tokens.tolist() == [[3, 4, 6, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0]], "canonicalized, whole length"
        assert sigmoid.tokens.longer(["a man talks and a dog runs far away"]) == 1
        assert sigmoid.spec.tokenizer == "owner/words" and sigmoid.spec.tokenizer_sha256
        hub.fault, hub.requests[:] = "503", []
        again = rebuilt(sigmoid)
        assert again.tokenize(["a man talks"]).tolist() == [[3, 4, 6, 0, 0, 0, 0, 0]] and not hub.requests
        assert again.spec == sigmoid.spec.model_copy(update={"parameters_sha256": again.spec.parameters_sha256})

    def test_another_tokenizer_under_the_same_name_is_refused(self, sigmoid):
        path = next(iter(published.cached("owner/words", "tokenizer.json").parent.glob("tokenizer.json")))
        path.write_text(path.read_text().replace('"man"', '"MAN"'))
        with pytest.raises(CheckpointError, match=r"is not the one that hf-hub:owner/sig was used with"):
            rebuilt(sigmoid)

    def test_a_record_asks_nobody(self, hub, sigmoid, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
        hub.requests[:] = []
        with pytest.raises(CheckpointError, match=r"nothing is fetched for a config.*hf download owner/words"):
            rebuilt(sigmoid)
        assert hub.requests == []

    def test_the_sigmoid_bias_is_kept_and_never_trained(self, sigmoid):
        assert sigmoid.clip.logit_bias.item() == -10 and not sigmoid.clip.logit_bias.requires_grad
        assert sigmoid.logit_scale.requires_grad

    def test_its_scale_stays_where_it_was_trained_to(self, sigmoid):
        model = SimpleNamespace(backbone=sigmoid)
        before = sigmoid.logit_scale.item()
        clamp_logit_scale(model)
        assert sigmoid.logit_scale.item() == before > LN_100
        sigmoid.logit_scale.data.add_(1)
        clamp_logit_scale(model)
        assert sigmoid.logit_scale.item() == pytest.approx(before)
        plain = load_backbone("demo-clip", None)
        plain.logit_scale.data.fill_(9)
        clamp_logit_scale(SimpleNamespace(backbone=plain))
        assert plain.logit_scale.item() == pytest.approx(LN_100)

    def test_a_text_tower_of_transformers(self, hub, tmp_path):
        files = tokenizer_files(tmp_path / "words")  # skips without the extra
        from transformers import RobertaConfig

        tower = RobertaConfig(
            vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=20, pad_token_id=0,
        )  # fmt: skip
        tower.save_pretrained(tmp_path / "tower")
        hub.add("owner/tower", files | {"config.json": (tmp_path / "tower/config.json").read_bytes()})
        text = {"hf_model_name": "owner/tower", "hf_tokenizer_name": "owner/tower", "hf_proj_type": "mlp"}
        config = CONFIG | {"text_cfg": text | {"hf_pooler_type": "mean_pooler", "context_length": 8}}
        about = {"model_cfg": config, "preprocess_cfg": PIXELS}
        hub.add("owner/multi", {"open_clip_config.json": json.dumps(about).encode()})
        torch.manual_seed(0)
        first = load_backbone("hf-hub:owner/multi", None).eval()
        state = dict(first.clip.state_dict())
        state["text.transformer.embeddings.position_ids"] = torch.arange(20)  # which transformers once saved
        hub.add("owner/multi", {"model.safetensors": save(state)})
        assert same(first, load_backbone("hf-hub:owner/multi", "own"))
        with torch.inference_mode():
            assert first.encode_text(first.tokenize(["a dog runs"])).shape == (1, 16)
        config = published.cached("owner/tower", "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoConfig": "evil.Config"}}))
        with pytest.raises(CheckpointError, match="owner/tower brings code of its own"):
            rebuilt(first)


def test_a_sigmoid_trained_model_trains_with_calm_and_its_bias_stays(tiny_recipe, tmp_path):
    from calmctl.runs.checkpoint import load_run
    from calmctl.training.train import train

    text = SIGMOID["text_cfg"] | {"vocab_size": 49408, "context_length": 16}
    first = build(SIGMOID | {"text_cfg": text})
    first.clip.logit_scale.data.fill_(math.log(117.0))
    for name, content in published_files(SIGMOID | {"text_cfg": text}, first).items():
        (tmp_path / name).write_bytes(content)
    keys = [f"backbone.model=local-dir:{tmp_path}", "backbone.weights=own", "optim.epochs=1", "head.kind=meanp"]
    done = train(tiny_recipe(*keys, "anchors.temperature=clip", "optim.lr_backbone=1e-4"), tmp_path / "runs")
    model = load_run(done.run, "last", torch.device("cpu"))
    assert model.backbone.clip.logit_bias.item() == -10 and not same(first, model.backbone)
    assert 110 < model.backbone.logit_scale.exp().item() <= 117.001
    log = [json.loads(line) for line in (done.run.folder / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(each["loss"]) for each in log if "loss" in each)


class TestAnotherResolution:
    def test_position_embeddings_are_interpolated(self, tmp_path):
        path = tmp_path / "small.json"
        path.write_text(json.dumps(CONFIG | {"preprocess_cfg": PIXELS}))
        torch.manual_seed(0)
        first = load_backbone(str(path), None)
        # A plane of positions: any right interpolation keeps what is constant, and the mean of a symmetric grid.
        first.clip.visual.positional_embedding.data[1:] = 3.0
        save_file(first.clip.state_dict(), tmp_path / "w.safetensors")
        larger = load_backbone(str(path), str(tmp_path / "w.safetensors"), image_size=32)
        assert larger.spec.image_size == (32, 32) == tuple(larger.clip.visual.image_size)
        positions = larger.clip.visual.positional_embedding
        assert positions.shape[0] == 17 and torch.allclose(positions[1:], torch.tensor(3.0))
        assert torch.equal(positions[0], first.clip.visual.positional_embedding[0])
        save_file(first.clip.state_dict(), tmp_path / "open_clip_model.safetensors")
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PIXELS}))
        beside = load_backbone(str(path), str(tmp_path / "w.safetensors"), image_size=32)
        own = load_backbone(f"local-dir:{tmp_path}", "own", image_size=32)
        assert same(beside, larger) and same(own, larger)
        assert larger.encode_frames(torch.randn(1, 2, 3, 32, 32)).shape == (1, 2, 16)
        assert rebuilt(larger).spec.image_size == (32, 32)

    def test_half_precision_files_too(self, tmp_path):
        """OpenAI's are; torch interpolates no halves on a CPU."""
        ships = load_backbone("demo-clip", "drawn-2", image_size=64)
        assert ships.spec.image_size == (64, 64) and ships.encode_frames(torch.zeros(1, 1, 3, 64, 64)).shape == (
            1,
            1,
            128,
        )
        (tmp_path / "small.json").write_text(json.dumps(CONFIG | {"preprocess_cfg": PIXELS}))
        state = build(CONFIG).clip.state_dict()
        save_file({name: value.half() for name, value in state.items()}, tmp_path / "half.safetensors")
        save_file({name: value.half().float() for name, value in state.items()}, tmp_path / "whole.safetensors")
        half, whole = (
            load_backbone(str(tmp_path / "small.json"), str(tmp_path / f"{name}.safetensors"), image_size=32)
            for name in ("half", "whole")
        )
        assert same(half, whole)

    @pytest.mark.parametrize(("size", "advice"), [(20, "take 16 or 24"), (4, "take 8$")])
    def test_a_whole_number_of_patches(self, tmp_path, size, advice):
        (tmp_path / "small.json").write_text(json.dumps(CONFIG | {"preprocess_cfg": PIXELS}))
        with pytest.raises(
            CheckpointError, match=rf"small sees patches of 8 x 8, and {size} is no multiple of 8; {advice}"
        ):
            load_backbone(str(tmp_path / "small.json"), None, image_size=size)

    def test_only_where_it_is_asked_for(self, tmp_path):
        small, large = tmp_path / "small.json", tmp_path / "large.json"
        small.write_text(json.dumps(CONFIG | {"preprocess_cfg": PIXELS}))
        large.write_text(json.dumps(CONFIG | {"preprocess_cfg": PIXELS, "vision_cfg": VISION | {"image_size": 32}}))
        backbone = load_backbone(str(large), None)
        save_file(backbone.clip.state_dict(), tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match=r"1 of another shape \(first: visual\.positional_embedding\)"):
            load_backbone(str(small), str(tmp_path / "w.safetensors"))
        towers = {f"backbone.clip.{name}": value for name, value in backbone.clip.state_dict().items()}
        save_tensors(tmp_path / "ours.safetensors", towers, {"backbone": fingerprint(backbone)})
        with pytest.raises(CheckpointError, match=r"frames of 32 x 32; set backbone\.image_size=32"):
            load_backbone(str(small), str(tmp_path / "ours.safetensors"))
        again = load_backbone(str(small), str(tmp_path / "ours.safetensors"), image_size=32)
        assert same(backbone, again)

    def test_tags_belong_to_a_model_at_any_resolution(self):
        from calmctl.model.spec import at_size, is_listed, read_architecture

        config = read_architecture("ViT-B-32-quickgelu").config
        assert is_listed("ViT-B-32-quickgelu", at_size(config, 336))
        assert not is_listed("ViT-B-32-quickgelu", config | {"embed_dim": 500})


def test_every_tag_says_what_to_install_or_is_there(monkeypatch, hub):
    """No tag costs a request before it is refused, nor where it is not refused."""
    from calmctl.model import spec
    from calmctl.model.openclip import open_clip

    names = {name for name, _ in open_clip.list_pretrained()}
    foreign = {
        n for n in names if {"hf_tokenizer_name", "hf_model_name"} & set(open_clip.get_model_config(n)["text_cfg"])
    }
    for name in foreign:
        monkeypatch.setattr(spec, "has_transformers", lambda: False)
        with pytest.raises(CheckpointError, match=r"needs? the package transformers \(pip install 'calmctl\[hf\]'\)"):
            check_backbone(name, None)
        monkeypatch.setattr(spec, "has_transformers", lambda: True)
        check_backbone(name, None)
    assert hub.requests == [] and len(foreign) > 30
