"""Archives and checkpoints of other people become safetensors, and nothing of them is executed."""

import io
import json
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from calmctl.errors import CheckpointError
from calmctl.model.convert import convert, fitting_models, read_foreign
from calmctl.model.openclip import open_clip
from calmctl.model.spec import CLIP_PIXELS, HUB_CONFIG, read_architecture
from calmctl.model.weights import load_backbone
from calmctl.tensors import load_tensors


@pytest.fixture(scope="module")
def demo():
    torch.manual_seed(0)
    return load_backbone("demo-clip", None)


class Archived(nn.Module):
    """A CLIP as OpenAI's archive holds it: the towers, and three numbers about them."""

    def __init__(self, clip):
        super().__init__()
        for name, child in clip.named_children():
            self.add_module(name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(clip, name))
        self.register_buffer("input_resolution", torch.tensor(64))
        self.register_buffer("context_length", torch.tensor(77))
        self.register_buffer("vocab_size", torch.tensor(49408))

    def forward(self, images):
        return self.visual(images)


@pytest.fixture(scope="module")
def archive(demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "clip.pt"
    size = demo.spec.image_size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its makers would rather export: but this is the form of OpenAI's archives
        module = torch.jit.trace(Archived(demo.clip).eval(), torch.randn(1, 3, *size), check_trace=False)
        module.half().save(str(path))
    return path


def test_an_archive_of_torchscript_gives_its_weights(demo, archive, tmp_path):
    done = convert(archive, tmp_path / "clip.safetensors")
    state, _ = load_tensors(done.path, what="test", ours=False)
    own = demo.clip.state_dict()
    assert state.keys() == own.keys()
    for name, value in state.items():
        assert value.dtype == torch.float32 and torch.equal(value, own[name].half().float()), name
    again = load_backbone("demo-clip", str(done.path))
    assert torch.equal(again.clip.visual.proj, own["visual.proj"].half().float())
    assert done.parameters == sum(value.numel() for value in own.values())


def test_a_checkpoint_of_torch_gives_its_weights(demo, tmp_path):
    state = {f"module.{name}": value for name, value in demo.clip.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "c.bin")
    read = read_foreign(tmp_path / "c.bin")
    assert read.keys() == demo.clip.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in demo.clip.state_dict().items())


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/executed-by-a-pickle", "w"))


def changed(archive, out, pickled=None, **entries):
    """The archive with another data.pkl, or other entries."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl") and pickled is not None:
                content = pickled
            for ending, value in entries.items():
                if name.endswith(ending):
                    content = value
            new.writestr(name, content)
    return out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Evil(), r"names _?io\.open, which no weights need"),
        (eval, r"names \w+\.eval, which no weights need"),
        ({"a": 1}, "holds no weights"),
    ],
)
def test_what_could_be_executed_is_refused(archive, tmp_path, value, message):
    evil = changed(archive, tmp_path / "evil.pt", pickle.dumps(value, protocol=2))
    with pytest.raises(CheckpointError, match=message):
        convert(evil, tmp_path / "out.safetensors")
    torch_file = tmp_path / "evil.bin"
    torch_file.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(CheckpointError, match=r"cannot be read|can be read without running it|holds no weights"):
        convert(torch_file, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_long_name_is_cut_in_the_refusal(archive, tmp_path):
    evil = changed(archive, tmp_path / "evil.pt", b"cos\n" + b"9" * 5000 + b"\n.")
    with pytest.raises(CheckpointError, match=r"names os\.9{77}, which no weights need"):
        convert(evil, tmp_path / "out.safetensors")


def tensor_pickle(size, stride, key="0", n=4):
    """A module with one tensor, as torch writes it."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", Named("torch", "FloatStorage"), key, "cpu", n) if isinstance(value, Storage) else None

        def save_global(self, value, name=None):
            raise AssertionError

    class Named:
        def __init__(self, module, name):
            self.names = (module, name)

    def save_named(pickler, value):
        pickler.write(pickle.GLOBAL + "{}\n{}\n".format(*value.names).encode())

    class Call:
        def __init__(self, function, arguments):
            self.function, self.arguments = function, arguments

    def save_call(pickler, value):
        pickler.save(value.function)
        pickler.save(value.arguments)
        pickler.write(pickle.REDUCE)

    class Module:
        def __init__(self, parts):
            self.parts = parts

    def save_module(pickler, value):
        save_named(pickler, Named("__torch__.m", "M"))
        pickler.save(())
        pickler.write(pickle.NEWOBJ)
        pickler.save(value.parts)
        pickler.write(pickle.BUILD)

    Pickler.dispatch = pickle._Pickler.dispatch | {Named: save_named, Call: save_call, Module: save_module}
    out = io.BytesIO()
    rebuild = Call(Named("torch._utils", "_rebuild_tensor_v2"), (Storage(), 0, size, stride, False, ()))
    Pickler(out, protocol=2).dump(Module({"weight": rebuild}))
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "stride", "key", "message"),
    [
        ((1 << 40,), (0,), "0", "larger than its numbers"),
        ((2, 2), (1 << 40, 1), "0", "can be read without running it"),
        ((4,), (1,), "../../etc/passwd", "a storage that cannot be read"),
        ((4,), (1,), "77777", "can be read without running it"),
    ],
)
def test_tensors_that_reach_out_are_refused(archive, tmp_path, size, stride, key, message):
    evil = changed(archive, tmp_path / "evil.pt", tensor_pickle(size, stride, key))
    with pytest.raises(CheckpointError, match=message):
        read_foreign(evil)


def test_a_cut_storage_is_told(archive, tmp_path):
    with pytest.raises(CheckpointError, match=r"is cut: storage 0 has fewer numbers"):
        read_foreign(changed(archive, tmp_path / "cut.pt", **{"/data/0": b"\0\0"}))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x02."])
def test_what_is_no_archive_is_told(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt (is no archive or checkpoint|holds no weights)"):
        convert(path, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "nothing.pt", tmp_path / "out.safetensors")


def test_openais_release_is_recognised_and_gets_its_config(demo, tmp_path, monkeypatch):
    config = read_architecture("demo-clip").config
    for name, quick in (("tiny", False), ("tiny-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config | {"quick_gelu": quick}))
    names = {name: tmp_path / f"{name}.json" for name in ("tiny", "tiny-quickgelu")}
    monkeypatch.setattr("calmctl.model.convert.model_names", lambda: names)
    monkeypatch.setattr("calmctl.model.spec.model_names", lambda: names)
    state = {name: value.half() for name, value in demo.clip.state_dict().items()}
    torch.save(state | {"logit_scale": torch.tensor(100.0).log()}, tmp_path / "x.pt")
    done = convert(tmp_path / "x.pt", tmp_path / "x.safetensors")
    assert done.openai and done.models == ("tiny-quickgelu",) and done.config == tmp_path / HUB_CONFIG
    said = json.loads(done.config.read_text())
    assert said["model_cfg"]["quick_gelu"] and said["preprocess_cfg"]["resize_mode"] == "shortest"
    assert load_backbone("tiny-quickgelu", str(done.path)).spec.pixels == CLIP_PIXELS
    with pytest.raises(CheckpointError, match=r"use backbone\.model: tiny-quickgelu"):
        load_backbone("tiny", str(done.path))
    torch.save(state, tmp_path / "y.pt")
    (tmp_path / "other").mkdir()
    done = convert(tmp_path / "y.pt", tmp_path / "other/y.safetensors")
    assert not done.openai and done.models == ("tiny", "tiny-quickgelu") and done.config is None


def test_the_models_that_weights_fit_are_told_by_their_sizes():
    with torch.device("meta"):
        state = open_clip.create_model("ViT-B-32", load_weights=False, device="meta").state_dict()
    assert {"ViT-B-32", "ViT-B-32-quickgelu"} <= set(fitting_models(state))
    assert not {"ViT-B-16", "ViT-L-14", "ViT-B-32-256"} & set(fitting_models(state))
    assert fitting_models({"a": torch.zeros(1)}) == ()


@pytest.mark.parametrize("number", [b"r\xff\xff\xff\x7f", b"p99999999\n"])
def test_a_number_in_a_pickle_sizes_nothing(archive, tmp_path, number):
    """Python's reader makes an array as long as the highest number that something is remembered by: 17 GB."""
    with pytest.raises(CheckpointError, match=r"is damaged: nothing is remembered by the number \d+"):
        read_foreign(changed(archive, tmp_path / "evil.pt", b"\x80\x02}" + number + b"."))


@pytest.mark.parametrize("member", ["/data.pkl", "/data/0"])
def test_an_archive_that_unfolds_is_refused(archive, tmp_path, member):
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(1 << 27) if name.endswith(member) else b"")
    with pytest.raises(CheckpointError, match="unfolds into 134,217,728 bytes, more than 4 times its size"):
        read_foreign(tmp_path / "bomb.pt")


def test_what_torch_asserts_is_a_sentence(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    evil = changed(tmp_path / "a.pth", tmp_path / "evil.pth", b"\x80\x02K\x01Q.")  # a storage named by a number
    with pytest.raises(CheckpointError, match=r"saved_id must be a tuple"):
        read_foreign(evil)
