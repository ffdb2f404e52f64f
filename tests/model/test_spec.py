"""What a backbone is: the same before it is written down and after it is read, for everything open_clip knows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from calmctl.errors import CheckpointError
from calmctl.model import weights as module
from calmctl.model.backbone import Normalise, fingerprint, split_preprocess
from calmctl.model.openclip import open_clip
from calmctl.model.spec import CLIP_PIXELS, BackboneSpec, check_backbone, read_architecture, read_pixels, read_spec
from calmctl.model.weights import build_backbone, build_unrecorded, load_backbone
from calmctl.tensors import save_tensors

PreprocessCfg = open_clip.transform.PreprocessCfg
image_transform_v2 = open_clip.transform.image_transform_v2
merge_preprocess_dict = open_clip.transform.merge_preprocess_dict

HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
OTHER = {"mean": 0.1, "std": 1.0, "resize_mode": "longest", "fill_color": 9}
VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
FRAMES = np.random.default_rng(0).integers(0, 256, (1, 37, 61, 3), dtype=np.uint8)


def config(folder: Path, name: str = "small", **changes: Any) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(CONFIG | changes))
    return str(path)


def again(spec: BackboneSpec) -> BackboneSpec:
    """The spec as a checkpoint's metadata gives it back."""
    read = read_spec(json.loads(json.dumps({"backbone": spec.model_dump(mode="json")})), source="test")
    assert read is not None
    return read


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for an address fails the test."""

    def asked(*arguments: object, **keys: object) -> None:
        raise AssertionError(f"a request: {arguments}")

    monkeypatch.setattr("socket.getaddrinfo", asked)
    monkeypatch.setattr("socket.socket.connect", asked)


def test_every_tag_of_open_clip_reads_back_as_it_is_or_is_refused(no_network, monkeypatch):
    refused = 0
    for name, tag in open_clip.list_pretrained():
        theirs, towers = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
        text = towers["text_cfg"]
        if tokenizer := text.get("hf_tokenizer_name") or text.get("hf_model_name"):
            monkeypatch.setattr("calmctl.model.spec.has_transformers", lambda: False)
            with pytest.raises(CheckpointError, match=r"package transformers .* the files of that repository"):
                load_backbone(name, tag)
            refused += 1
            # With the extra its record is as whole as the others'.
            monkeypatch.setattr("calmctl.model.spec.has_transformers", lambda: True)
        spec = again(read_architecture(name).spec(read_pixels(theirs, where=tag), tag=tag, weights=tag))
        assert (spec.model, spec.tag, spec.architecture) == (name, tag, towers)
        assert spec.activation == ("quick_gelu" if towers.get("quick_gelu") else "gelu")
        assert spec.tokenizer == tokenizer and spec.context_length == text.get("context_length", 77)
        size = towers["vision_cfg"]["image_size"]
        assert spec.image_size == (size, size) and spec.dim == towers["embed_dim"]
        whole = image_transform_v2(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(size=size), theirs)), False)
        ours = Normalise(spec.mean, spec.std)(torch.from_numpy(spec.frame_resize(FRAMES)))
        assert torch.equal(ours[0], whole(Image.fromarray(FRAMES[0]))), (name, tag)
    assert refused == 47, "SigLIP, CLIPA, NLLB and kin"


def test_clips_tokenizer_is_the_one_open_clip_takes():
    for name in {name for name, _ in open_clip.list_pretrained()}:
        text = open_clip.get_model_config(name)["text_cfg"]
        if not (text.get("hf_tokenizer_name") or text.get("hf_model_name")):
            assert "siglip" not in name.lower() and not text.get("tokenizer_kwargs"), "a tokenizer by its name"


@pytest.mark.parametrize("pixels", [HALVES, OTHER], ids=["halves", "other"])
def test_a_backbone_is_the_same_after_saving_and_loading(tmp_path, pixels):
    torch.manual_seed(0)
    first = load_backbone(config(tmp_path, preprocess_cfg=pixels, quick_gelu=True), None).eval()
    recorded = fingerprint(first)
    (tmp_path / "small.json").unlink()  # nothing but the record is needed
    second = build_backbone(read_spec({"backbone": recorded}, source="test")).eval()
    second.load_weights(first.clip.state_dict(), source="test")
    assert fingerprint(second) == recorded and second.spec.activation == "quick_gelu"
    with torch.inference_mode():
        features = []
        for backbone in (first, second):
            resize, normalise = split_preprocess(backbone)
            tokens = backbone.tokenize(["a man is talking about a dog that runs far away"])
            assert tokens.shape == (1, 8)
            seen = backbone.encode_frames(normalise(torch.from_numpy(resize(FRAMES)))[None])
            features.append(torch.cat([seen.flatten(), backbone.encode_text(tokens).flatten()]))
    assert torch.equal(*features)
    config_of_theirs = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(size=16), pixels))
    expected = image_transform_v2(config_of_theirs, False)(Image.fromarray(FRAMES[0]))
    resize, normalise = split_preprocess(second)
    assert torch.equal(normalise(torch.from_numpy(resize(FRAMES)))[0], expected)


def test_a_rectangle_keeps_both_numbers(tmp_path):
    model = config(tmp_path, "rect", vision_cfg=VISION | {"image_size": [16, 32]}, preprocess_cfg=HALVES)
    backbone = load_backbone(model, None)
    assert again(backbone.spec).image_size == (16, 32) == tuple(backbone.clip.visual.image_size)
    resize, normalise = split_preprocess(backbone)
    assert backbone.encode_frames(normalise(torch.from_numpy(resize(FRAMES)))[None]).shape == (1, 1, 16)


class TestForeignWeights:
    """Files that calmctl did not write: what says how their pixels are prepared."""

    @pytest.fixture
    def place(self, tmp_path):
        save_file(load_backbone(config(tmp_path), None).clip.state_dict(), tmp_path / "w.safetensors")
        return tmp_path

    def load(self, place, **changes):
        return load_backbone(config(place, **changes), str(place / "w.safetensors")).spec.pixels

    def test_without_a_word_they_are_refused(self, place):
        with pytest.raises(CheckpointError, match=r"Put the open_clip_config\.json .* or write preprocess_cfg"):
            self.load(place)

    def test_the_models_config_says_it(self, place):
        assert self.load(place, preprocess_cfg=HALVES) == read_pixels(HALVES, where="test")

    def test_the_config_that_was_published_beside_them_says_it(self, place):
        beside = place / "open_clip_config.json"
        beside.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": HALVES}))
        assert self.load(place, preprocess_cfg=OTHER) == read_pixels(HALVES, where="test")
        as_model = load_backbone(str(beside), str(place / "w.safetensors")).spec
        assert as_model.model == place.name and as_model.pixels == read_pixels(HALVES, where="test")
        beside.write_text(json.dumps({"model_cfg": CONFIG | {"quick_gelu": True}, "preprocess_cfg": HALVES}))
        with pytest.raises(CheckpointError, match="trained with the activation quick_gelu"):
            self.load(place)
        beside.write_text(json.dumps({"model_cfg": CONFIG | {"embed_dim": 32}, "preprocess_cfg": HALVES}))
        with pytest.raises(CheckpointError, match="is of another model than small"):
            self.load(place)
        beside.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}))
        with pytest.raises(CheckpointError, match="does not say mean and std"):
            self.load(place)

    def test_all_tags_of_the_model_agree_or_it_is_refused_with_the_choices(self, place):
        with pytest.raises(CheckpointError, match="does not fit PE-Core-T-16-384"):  # accepted so far: its one tag
            load_backbone("PE-Core-T-16-384", str(place / "w.safetensors"))
        with pytest.raises(CheckpointError, match=r"mean 0\.481.*\(openai, .*; mean 0\.5.*\(laion2b_s32b_b82k\)"):
            load_backbone("ViT-L-14", str(place / "w.safetensors"))

    def test_a_checkpoint_of_ours_says_it(self, place):
        first = load_backbone(config(place, preprocess_cfg=HALVES), None)
        towers = {f"backbone.clip.{name}": value for name, value in first.clip.state_dict().items()}
        path = place / "ours.safetensors"
        save_tensors(path, towers | {"head.w": torch.ones(1)}, {"backbone": fingerprint(first)})
        second = load_backbone(config(place, preprocess_cfg=OTHER), str(path))
        assert second.spec.pixels == first.spec.pixels
        (note,) = second.notes
        assert "its trained head left out (--run uses all of it)" in note
        save_tensors(path, towers, {"backbone": fingerprint(first)})
        assert load_backbone(config(place), str(path)).notes == ()
        with pytest.raises(
            CheckpointError, match=r"has the towers of small, and backbone\.model small is built otherwise"
        ):
            load_backbone(config(place, text_cfg=TEXT | {"heads": 4}), str(path))  # which no shape shows


class TestRunsFromBefore:
    """Runs that recorded no spec: trained with a tag's statistics, or else with CLIP's, and read with the same."""

    def test_a_tag_has_its_own(self, monkeypatch):
        built = []
        monkeypatch.setattr(module, "build_backbone", built.append)
        build_unrecorded("PE-Core-B-16", "meta")
        build_unrecorded("PE-Core-B-16", "somewhere/pe.safetensors")
        build_unrecorded("ViT-B-32-quickgelu", "openai")
        tag, file, openai = built
        assert tag.mean == (0.5, 0.5, 0.5) and (tag.interpolation, tag.resize) == ("bilinear", "squash")
        assert file.pixels == openai.pixels == CLIP_PIXELS and file.weights == "pe.safetensors"

    def test_a_config_of_ones_own_has_clips(self, tmp_path):
        assert build_unrecorded(config(tmp_path), None).spec.pixels == CLIP_PIXELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": VISION | {"timm_model_name": "hf-hub:evil/model"}}, "lies elsewhere"),
        ({"vision_cfg": VISION | {"timm_model_name": "hf_hub:evil/model"}}, "lies elsewhere"),
        ({"vision_cfg": VISION | {"timm_model_name": "local-dir:/tmp/x"}}, "lies elsewhere"),
        ({"vision_cfg": VISION | {"timm_model_name": ["x"]}}, "lies elsewhere"),
        ({"text_cfg": TEXT | {"hf_tokenizer_name": "evil/model"}}, "nothing is fetched for a config"),
        ({"text_cfg": TEXT | {"hf_model_name": "evil/model"}}, "nothing is fetched for a config"),
        ({"text_cfg": TEXT | {"tokenizer_kwargs": {"reduction_mask": "syntax"}}}, "not known here: reduction_mask"),
        ({"vision_cfg": VISION | {"image_size": [16, 16, 3]}}, "image_size must be a positive whole number"),
        ({"vision_cfg": VISION | {"image_size": "16"}}, "image_size must be a positive whole number"),
        ({"embed_dim": -1}, "embed_dim must be a positive whole number"),
        ({"vision_cfg": 3}, "a tower is no object"),
        ({"preprocess_cfg": HALVES | {"std": 0}}, "cannot be used"),
        ({"preprocess_cfg": HALVES | {"interpolation": "nearest"}}, "cannot be used"),
        ({"preprocess_cfg": 3}, "does not say mean and std"),
    ],
)
def test_a_config_that_cannot_be_is_refused_without_a_request(tmp_path, no_network, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_backbone(config(tmp_path, **changes), None)
    if "preprocess_cfg" in changes:
        return
    recorded = fingerprint(load_backbone(config(tmp_path), None))
    recorded["architecture"] |= changes  # the same from the metadata of a stranger's checkpoint
    with pytest.raises(CheckpointError, match=message):
        read_spec({"backbone": recorded}, source="x.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", [0.5]), ("std", [0, 0, 0]), ("tokenizer", "evil/model"), ("image_size", [8, 8]), ("model", None)],
)
def test_a_record_that_cannot_be_is_refused(tmp_path, key, value):
    recorded = fingerprint(load_backbone(config(tmp_path), None))
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_spec({"backbone": recorded | {key: value}}, source="x.safetensors")


def test_mistakes_in_names_are_told_without_torch():
    code = """
import sys
from calmctl.errors import CheckpointError
from calmctl.model import spec
spec.has_transformers = lambda: False
for model, weights in (("ViT-B32", "openai"), ("ViT-B-16-SigLIP", "webli"), ("demo-clip", "x.pt"), ("a.json", None)):
    try:
        spec.check_backbone(model, weights)
    except CheckpointError:
        continue
    raise AssertionError(model)
assert not {"torch", "open_clip"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    check_backbone("ViT-B-32-quickgelu", "openai")
