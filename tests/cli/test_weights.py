"""`calmctl weights`: what is recommended, fetched, checked, converted, and where it is."""

import hashlib
import json

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.errors import CalmError, HubError
from calmctl.model import published, weights
from calmctl.model.openclip import open_clip
from calmctl.model.published import RECOMMENDED, Recommended
from calmctl.model.weights import fetch_tag, load_backbone

PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*arguments) -> str:
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)])
    assert isinstance(result.exception, CalmError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def tiny(hub):
    """A small model on the loopback hub."""
    torch.manual_seed(0)
    backbone = load_backbone("demo-clip", None)
    about = {"model_cfg": backbone.spec.architecture, "preprocess_cfg": PIXELS}
    files = {
        "open_clip_config.json": json.dumps(about).encode(),
        "open_clip_model.safetensors": save(backbone.clip.state_dict()),
    }
    hub.add("owner/tiny", files)
    return files


def test_ls_shows_what_is_recommended_and_what_is_here(hub, tiny):
    empty = run("ls").stdout
    assert (
        max(len(line) for line in empty.splitlines() if not line.startswith("In the cache ")) <= 80
    )  # paths stay whole
    assert "605 MB" in empty and "ViT-B-16-SigLIP2" in empty and "\nnothing\n" in empty
    run("get", "hf-hub:owner/tiny")
    table = run("ls").stdout
    assert "owner/tiny" in table and hub.commit("owner/tiny")[:12] in table
    value = json.loads(run("ls", "--json").stdout)
    assert [each["model"] for each in value["recommended"]] == [each.model for each in RECOMMENDED]
    assert {each["sha256_is"] for each in value["recommended"]} == {"published", "unknown"}
    (held,) = value["cache"]["repositories"]
    assert held["repository"] == "owner/tiny" and held["bytes"] >= len(tiny["open_clip_model.safetensors"])


def test_get_says_what_comes_before_it_comes_and_what_it_is(hub, tiny, monkeypatch):
    from calmctl.cli.artifacts.downloads import DownloadBar

    monkeypatch.setattr(DownloadBar, "LEAST", 1000)
    result = run("get", "hf-hub:owner/tiny")
    said = result.stderr.replace("\n", "")
    size = len(tiny["open_clip_model.safetensors"])
    assert f"downloading open_clip_model.safetensors, {size / 1e6:.0f} MB, from {hub.endpoint}/owner/tiny" in said
    assert "models--owner--tiny" in said and hub.commit("owner/tiny")[:12] in said
    digest = hashlib.sha256(tiny["open_clip_model.safetensors"]).hexdigest()
    shown = "".join(result.stdout.split())
    assert digest in shown and "mean0.5,0.5,0.5" in shown and "bilinear,squash" in shown
    value = json.loads(run("check", "hf-hub:owner/tiny", "--json").stdout)
    assert value["weights_sha256"] == digest and value["source"] == "owner/tiny"
    assert run("where", "hf-hub:owner/tiny").stdout.strip().endswith("open_clip_model.safetensors")


def test_names_and_extras_are_checked_before_anything_is_asked(hub, monkeypatch):
    from calmctl.model import spec

    monkeypatch.setattr(spec, "has_transformers", lambda: False)
    assert "pip install 'calmctl[hf]'" in refused("get", "ViT-B-16-SigLIP2", "webli")
    assert "did you mean ViT-B-32-quickgelu" in refused("get", "ViT-B32", "openai")
    assert "use backbone.model: ViT-B-32-quickgelu" in refused("get", "ViT-B-32", "openai")
    assert "neither a file nor a pretrained tag of ViT-B-32" in refused("where", "ViT-B-32", "nonsense")
    monkeypatch.setattr(published, "find_spec", lambda name: None)
    assert "sentence-transformers (pip install" in refused("get", "sentence-transformers:owner/name")
    assert hub.requests == []


def test_where_tells_how_to_bring_a_file(hub):
    shown = run("where", "ViT-B-32-quickgelu", "openai", code=1).stdout
    command = next(line for line in shown.splitlines() if "hf download" in line)
    assert "hf download timm/vit_base_patch32_clip_224.openai" in command  # all of it in one line, to be copied
    assert "--revision a6f597a3" in command and command.endswith("--cache-dir .")
    assert constants.HF_HUB_CACHE in shown.replace("\n", "") and "models--timm--vit_base_patch32" in shown
    value = json.loads(run("where", "PE-Core-B-16", "meta", "--json", code=1).stdout)
    assert value["path"] is None and value["source"]["repository"] == "timm/PE-Core-B-16"
    assert "calmctl weights get ViT-B-32-quickgelu openai" in refused("check", "ViT-B-32-quickgelu", "openai")
    assert run("where", "demo-clip", "drawn-2").stdout.strip().endswith("demo-clip.safetensors")
    assert "no.safetensors does not exist" in refused("where", "demo-clip", "no.safetensors")
    assert hub.requests == []


def test_a_tag_is_fetched_at_the_known_commit_and_must_be_the_known_file(hub, monkeypatch):
    content = b"x" * 5000
    commit = hub.add("owner/tag", {"open_clip_model.safetensors": content})
    digest = hashlib.sha256(content).hexdigest()

    def known(sha256):
        return lambda *_: Recommended("M", "t", "owner/tag", commit, sha256, 1, 1, 1, None, "")

    monkeypatch.setattr(weights, "recommended", known("0" * 64))
    with pytest.raises(HubError, match=r"M 't'.*the hub has another file"):
        fetch_tag("M", "t", {"hf_hub": "owner/tag/"})
    monkeypatch.setattr(weights, "recommended", known(digest))
    repository, path = fetch_tag("M", "t", {"hf_hub": "owner/tag/"})
    assert repository == "owner/tag" and path.read_bytes() == content and path.parent.name == commit
    hub.fault = "503"
    assert fetch_tag("M", "t", {"hf_hub": "owner/tag/"})[1] == path, "from the cache, by its commit"


def test_convert(tmp_path, monkeypatch):
    torch.save(load_backbone("demo-clip", None).clip.state_dict(), tmp_path / "model.bin")
    shown = run("convert", tmp_path / "model.bin").stdout
    assert "model.safetensors" in shown.replace("\n", "")
    assert "exists; name another --out" in refused("convert", tmp_path / "model.bin")
    value = json.loads(run("convert", tmp_path / "model.bin", "--force", "--json").stdout)
    assert value["sha256"] == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert "is no .safetensors file" in refused("convert", tmp_path / "model.bin", "--out", tmp_path / "x.pt")
    shown = "".join(run("check", "demo-clip", tmp_path / "model.safetensors").stdout.split())
    assert value["sha256"] in shown and "thismachine" in shown


def test_what_is_recommended_is_what_open_clip_builds():
    for each in RECOMMENDED:
        tag = open_clip.get_pretrained_cfg(each.model, each.weights)
        assert tag["hf_hub"].rstrip("/") == each.repository
        config = open_clip.get_model_config(each.model)
        assert (config["embed_dim"], config["vision_cfg"]["image_size"]) == (each.dim, each.image_size)
        needs = {"hf_tokenizer_name", "hf_model_name"} & set(config["text_cfg"])
        assert (each.needs == "hf") == bool(needs)
    # The first alone: timm's import for the others takes seconds (docs/backbones.md has the line that counts all).
    with torch.device("meta"):
        model = open_clip.create_model(RECOMMENDED[0].model, load_weights=False, device="meta")
    assert sum(value.numel() for value in model.parameters()) == RECOMMENDED[0].parameters
