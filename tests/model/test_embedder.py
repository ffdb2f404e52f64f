"""Embedding models of sentence-transformers as frozen backbones: tiny random ones, a CLIP and one that reads videos."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.errors import CheckpointError, RecipeError
from calmctl.model.backbone import fingerprint, split_preprocess
from calmctl.model.embedder import Bytes, load_embedder
from calmctl.model.published import CLIP_EMBEDDER, EMBEDDER, OWN
from calmctl.model.spec import read_spec
from calmctl.model.weights import load_backbone, rebuild

pytest.importorskip("sentence_transformers", reason="the extra calmctl[hf] is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the library's own old modules

MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS = ["<pad>", "<unk>", "a", "man", "dog", "talks", "runs", "user", "system", *MARKS]
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)


def words(**more):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>", **more
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A CLIP with one layer a tower, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    tower = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"hidden_size": 16, "max_position_embeddings": 12, "vocab_size": 50, "eos_token_id": 1}
    vision = tower | {"hidden_size": 32, "image_size": 16, "patch_size": 8}
    place = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(projection_dim=16, text_config=text, vision_config=vision)).save_pretrained(place / "raw")
    frames = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(frames, words(model_max_length=12)).save_pretrained(place / "raw")
    SentenceTransformer(str(place / "raw"), device="cpu").save(str(place / "tiny-clip"))
    return place / "tiny-clip"


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A vision-language model with one layer a tower that reads videos, pooled at the last token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import Qwen2VLConfig, Qwen2VLModel, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    torch.manual_seed(0)
    numbers = {word: place for place, word in enumerate(WORDS)}
    text = {
        "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": numbers["<|im_end|>"], "max_position_embeddings": 512,
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1, "patch_size": 14}
    marks = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    marks |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, **{key: numbers[word] for key, word in marks.items()}
    )
    parts = "".join(
        f"{{% if c['type'] == '{kind}' %}}<|vision_start|><|{kind}_pad|><|vision_end|>{{% endif %}}"
        for kind in ("image", "video")
    )
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for c in m['content'] %}" + parts + "{% if 'text' in c %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": 3136}),
        tokenizer=words(additional_special_tokens=MARKS, model_max_length=200),
        video_processor=Qwen2VLVideoProcessor(
            size={"shortest_edge": 784, "longest_edge": 12544}, cap_pixels_per_frame=True
        ),
        chat_template=template,
    )
    place = tmp_path_factory.mktemp("vlm")
    Qwen2VLModel(config).save_pretrained(place / "raw")
    processor.save_pretrained(place / "raw")
    modules = [Transformer(str(place / "raw")), Pooling(32, "lasttoken")]
    SentenceTransformer(modules=modules, device="cpu").save(str(place / "tiny-vlm"))
    return place / "tiny-vlm"


def prepared(backbone, frames=FRAMES):
    resize, normalise = split_preprocess(backbone)
    return normalise(torch.from_numpy(resize(frames)))[None]


def test_a_frame_has_the_vector_that_the_library_gives_its_picture(pictures):
    from sentence_transformers import SentenceTransformer

    backbone = load_backbone(f"{EMBEDDER}{pictures}", OWN)
    assert backbone.spec.image_size == (16, 16) and backbone.spec.resize == "shortest" and backbone.dim == 16
    theirs = SentenceTransformer(str(pictures), device="cpu")
    seen = backbone.encode_frames(prepared(backbone))
    assert seen.shape == (1, 4, 16) and not seen.requires_grad
    small = [Image.fromarray(frame) for frame in backbone.spec.frame_resize(FRAMES)]
    torch.testing.assert_close(seen[0], theirs.encode(small, convert_to_tensor=True), atol=1e-6, rtol=1e-5)
    whole = theirs.encode([Image.fromarray(frame) for frame in FRAMES], convert_to_tensor=True)
    assert torch.cosine_similarity(seen[0], whole).min() > 0.999, "the processor's own resizing, but for its rounding"
    sentences = ["a man talks", "a dog"]
    wanted = theirs.encode_query(sentences, convert_to_tensor=True)
    torch.testing.assert_close(backbone.encode_text(backbone.tokenize(sentences)), wanted, atol=1e-6, rtol=1e-5)


def test_a_clip_has_one_vector_and_its_order_counts(videos):
    backbone = load_embedder(f"{CLIP_EMBEDDER}{videos}")
    assert backbone.per_clip and backbone.spec.image_size == (336, 336)
    forwards = backbone.encode_frames(prepared(backbone))
    assert forwards.shape == (1, 4, 32) and torch.equal(forwards[0, 0], forwards[0, 3])
    backwards = backbone.encode_frames(prepared(backbone, FRAMES[::-1].copy()))
    assert not torch.allclose(forwards, backwards, atol=1e-4)
    two = torch.cat([prepared(backbone), prepared(backbone, FRAMES[::-1].copy())])
    torch.testing.assert_close(backbone.encode_frames(two), torch.cat([forwards, backwards]), atol=1e-5, rtol=1e-4)
    frames = load_embedder(f"{EMBEDDER}{videos}").encode_frames(prepared(backbone))
    assert not torch.allclose(frames[0, 0], frames[0, 1], atol=1e-4), "one vector a frame by the same model"


def test_sentences_travel_as_bytes():
    rows = Bytes()(["a dog", "ein Hündchen läuft", "x" * 2000], 20)
    assert [Bytes.text(row) for row in rows] == ["a dog", "ein Hündchen läuft", "x" * 20]
    assert Bytes.text(Bytes()(["ä" * 20], 5)[0]) == "ää", "no half letters"


def test_its_weights_are_named_and_not_kept(pictures, tmp_path):
    backbone = load_backbone(f"{EMBEDDER}{pictures}", OWN)
    assert list(backbone.state_dict()) == ["scale"] and [p.shape for p in backbone.parameters()] == [()]
    assert not backbone.train().clip.training, "it stays in evaluation mode"
    recorded = json.loads(json.dumps(fingerprint(backbone)))
    assert str(pictures) not in json.dumps(recorded) and recorded["model"] == f"{EMBEDDER}tiny-clip"
    spec = read_spec({"backbone": recorded}, source="test")
    assert fingerprint(rebuild(spec, f"{EMBEDDER}{pictures}")) == recorded
    with pytest.raises(CheckpointError, match="has other weights than sentence-transformers:tiny-clip had"):
        rebuild(spec.model_copy(update={"parameters_sha256": "0" * 64}), f"{EMBEDDER}{pictures}")


def test_a_repository_is_fetched_once_and_a_record_asks_nobody(hub, pictures, tmp_path, monkeypatch):
    files = {str(path.relative_to(pictures)): path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    commit = hub.add("owner/embedder", files)
    backbone = load_backbone(f"{EMBEDDER}owner/embedder", OWN)
    assert (backbone.spec.source, backbone.spec.revision) == ("owner/embedder", commit)
    hub.fault, hub.requests[:] = "503", []
    spec = read_spec({"backbone": fingerprint(backbone)}, source="test")
    assert rebuild(spec, f"{EMBEDDER}owner/embedder").unchanging == backbone.unchanging
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"is not in the local cache.*bring it: calmctl weights get sentence-tr"):
        rebuild(spec, f"{EMBEDDER}owner/embedder")
    assert hub.requests == []


def named(folder, name):
    """Let a model's first module be of another class."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = name
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "modeling.py").write_text("evil"), "brings code of its own"),
        (lambda folder: named(folder, "os.system"), r"brings code of its own \(os\.system\)"),
        (lambda folder: (folder / "model.safetensors").unlink(), "sentence-transformers cannot load"),
        (lambda folder: (folder / "config.json").write_text("{}"), "sentence-transformers cannot load"),
    ],
)
def test_what_cannot_be_used_is_told(pictures, tmp_path, change, message):
    import shutil

    shutil.copytree(pictures, tmp_path / "copy")
    change(tmp_path / "copy")
    with pytest.raises(CheckpointError, match=message):
        load_embedder(f"{EMBEDDER}{tmp_path / 'copy'}")


def test_code_on_a_hub_is_refused_before_anything_of_it_comes(hub):
    hub.add("owner/code", {"modules.json": b"[]", "modeling.py": b"evil", "model.safetensors": b"x" * 5000})
    with pytest.raises(CheckpointError, match=r"brings code of its own \(modeling\.py\)"):
        load_embedder(f"{EMBEDDER}owner/code")
    assert len(hub.requests) == 1


def test_what_such_a_model_has_not_is_told(pictures):
    with pytest.raises(CheckpointError, match="reads text, image and no videos"):
        load_embedder(f"{CLIP_EMBEDDER}{pictures}")
    with pytest.raises(CheckpointError, match=r"set backbone\.weights=own"):
        load_backbone(f"{EMBEDDER}{pictures}", "openai")
    with pytest.raises(CheckpointError, match="neither a folder nor OWNER/NAME"):
        load_embedder(f"{EMBEDDER}/no/such/place")
    backbone = load_embedder(f"{EMBEDDER}{pictures}")
    with pytest.raises(CheckpointError, match="gives sentences only"):
        backbone.encode_words(backbone.tokenize(["a"]))
    with pytest.raises(CheckpointError, match="does not use CLIP's byte pairs"):
        _ = backbone.bpe


def test_store_training_evaluation_and_a_reload(pictures, tiny_recipe, tiny_world, tmp_path):
    from calmctl.data.registry import load_dataset
    from calmctl.runs.checkpoint import load_run
    from calmctl.store.extract import extract
    from calmctl.training.train import train

    model = f"{EMBEDDER}{pictures}"
    keys = [f"backbone.model={model}", "backbone.weights=own", "optim.epochs=1", "backbone.adapter=linear"]
    with pytest.raises(RecipeError, match=r"set backbone\.freeze=true"):
        train(tiny_recipe(*keys), tmp_path / "runs")
    store = tmp_path / "store"
    extract(load_dataset("demo", tiny_world), load_backbone(model, OWN), store, n_frames=2, workers=1)
    stored = train(tiny_recipe(*keys, f"data.features={store}", "data.cache=none"), tmp_path / "runs")
    seen = train(tiny_recipe(*keys, "backbone.freeze=true"), tmp_path / "runs")
    assert stored.run.folder != seen.run.folder
    size = stored.run.weights("best").stat().st_size
    assert size < 4_000_000, "head, adapter and VAE without the model"
    again = load_run(seen.run, "best", torch.device("cpu"))
    assert again.backbone.unchanging == load_backbone(model, OWN).unchanging
    shown = CliRunner().invoke(app, ["eval", str(seen.run.folder), "--json", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    (result,) = json.loads(shown.stdout)["results"]
    best = seen.results[0].to_json()
    assert result["metrics"] == best["metrics"]
    found = ["search", "a red circle", "--in", store, "--run", stored.run.folder, "--device", "cpu", "--top", 2]
    hits = CliRunner().invoke(app, [str(word) for word in found])
    assert hits.exit_code == 0 and "2" in hits.stdout, hits.output
