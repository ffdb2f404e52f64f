"""Feature stores from strangers: every digest fits, and the content lies."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from calmctl.errors import BadInput, StoreError
from calmctl.evaluation.retrieval import score_all
from calmctl.files import sha256_bytes
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.samples import Clip, Dataset, Split
from calmctl.store.format import Header
from calmctl.store.store import FeatureStore
from calmctl.store.writer import StoreWriter

IDS, SAID = ("a", "b", "c"), ("one", "two", "three")


@pytest.fixture
def store(tmp_path) -> Path:
    """A small, sound store."""
    path = tmp_path / "store"
    clips = tuple(Clip(key, tmp_path / f"{key}.mp4") for key in IDS)
    header = Header(dataset="folder", backbone={"model": "tiny", "dim": 4}, n_frames=2)
    with StoreWriter.create(path, header) as writer:
        writer.plan(Dataset("folder", "", {"test": Split("test", clips, SAID, (0, 1, 2))}))
        writer.add_frames(0, torch.randn(3, 2, 4), dict.fromkeys(IDS), [])
        writer.add_texts(0, torch.randn(3, 4))
    return path


def read_all(path: Path) -> None:
    """Everything that evaluation reads of a store."""
    opened = FeatureStore.open(path)
    split = opened.split("test")
    frames, texts = opened.frames(split.ids), opened.texts(split.captions)
    assert all(0 <= owner < len(split.ids) for owner in split.owners)
    score_all(MeanPoolHead(), texts, frames)


def rewrite(path: Path, **changes: object) -> None:
    """Change values of a JSON file by dotted names, and its digest with them."""
    content = json.loads(path.read_text())
    content.pop("sha256")
    for name, value in changes.items():
        *parents, last = name.split("__")
        part = content
        for parent in parents:
            part = part[parent]
        part[last] = value
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(content | {"sha256": sha256_bytes(canonical.encode())}))


def replace_shard(store: Path, content: bytes, name: str = "frames-00000.safetensors") -> None:
    """Another shard, which the index vouches for."""
    (store / name).write_bytes(content)
    index = json.loads((store / "index.json").read_text())
    index["shards"][name]["sha256"] = sha256_bytes(content)
    rewrite(store / "index.json", shards=index["shards"])


ENTRY = {"sha256": "0" * 64, "left_out": []}
INDEX = {
    "shard outside": {"shards": {"../../etc/frames-00000.safetensors": ENTRY}},
    "shard absolute": {"shards": {"/etc/passwd": ENTRY}},
    "shard elsewhere": {"shards": {"x/frames-00000.safetensors": ENTRY}},
    "shard with a line": {"shards": {"frames-00000.safetensors\n": ENTRY}},
    "digest no digest": {"shards": {"frames-00000.safetensors": {"sha256": "x", "left_out": []}}},
    "unknown key": {"run": "touch it-ran"},
    "no frames": {"header__n_frames": 0},
    "negative frames": {"header__n_frames": -2},
    "frames without number": {"header__n_frames": 10**18},
    "frames as text": {"header__n_frames": "2"},
    "other number format": {"header__dtype": "object"},
    "no width": {"header__backbone": {}},
    "width without number": {"header__backbone": {"dim": 10**15}},
    "width negative": {"header__backbone": {"dim": -4}},
    "width a text": {"header__backbone": {"dim": "wide"}},
    "width a list": {"header__backbone": {"dim": [4]}},
    "width nothing": {"header__backbone": {"dim": None}},
    "header a list": {"header": []},
    "shards a list": {"shards": []},
}
SPLIT = "splits__test__"
CATALOGUE = {
    "owner negative": {f"{SPLIT}owners": [0, -1, 2]},
    "owner beyond": {f"{SPLIT}owners": [0, 1, 99]},
    "owner beyond numbers": {f"{SPLIT}owners": [0, 1, 10**30]},
    "owner fractional": {f"{SPLIT}owners": [0, 1, 1.5]},
    "owners too few": {f"{SPLIT}owners": [0]},
    "owners too many": {f"{SPLIT}owners": [0, 1, 2, 2]},
    "caption negative": {f"{SPLIT}captions": [0, -1, 2]},
    "caption beyond": {f"{SPLIT}captions": [0, 1, 99]},
    "captions no list": {f"{SPLIT}captions": "all"},
    "clip unknown": {f"{SPLIT}clips": ["a", "b", "../../etc/passwd"], "clips": [["a", "b"]]},
    "clips twice in a group": {"clips": [["a", "a", "b"]]},
    "clips twice in a split": {f"{SPLIT}clips": ["a", "a", "b"]},
    "clips no text": {"clips": [[1, 2, 3]]},
    "groups no list": {"clips": {"0": ["a"]}},
    "sentences twice": {"sentences": [["one", "one", "two"]]},
}


@pytest.mark.parametrize("name", INDEX)
def test_an_index_that_lies(store, refused, name):
    rewrite(store / "index.json", **INDEX[name])
    with pytest.raises(StoreError):
        read_all(store)
    refused("feature store")


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_catalogue_that_lies(store, refused, name):
    rewrite(store / "catalogue.json", **CATALOGUE[name])
    with pytest.raises(StoreError):
        read_all(store)
    refused("feature store")


NAN, INF = torch.full((3, 2, 4), float("nan")), torch.randn(3, 2, 4).index_fill(0, torch.tensor(1), float("inf"))
SHARDS = {
    "float64": save({"frames": torch.randn(3, 2, 4).double()}),
    "integers": save({"frames": torch.ones(3, 2, 4).long()}),
    "truth values": save({"frames": torch.ones(3, 2, 4).bool()}),
    "complex": save({"frames": torch.ones(3, 2, 4).to(torch.complex64)}),
    "too few rows": save({"frames": torch.randn(2, 2, 4)}),
    "too many rows": save({"frames": torch.randn(4, 2, 4)}),
    "other width": save({"frames": torch.randn(3, 2, 5)}),
    "no frames": save({"frames": torch.randn(3, 0, 4)}),
    "flat": save({"frames": torch.randn(24)}),
    "other name": save({"framed": torch.randn(3, 2, 4)}),
    "nothing": b"",
    "no safetensors": b"PK\3\4 a zip, or a pickle",
    "not a number": save({"frames": NAN}),
    "without end": save({"frames": INF}),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_lies(store, refused, name):
    replace_shard(store, SHARDS[name])
    with pytest.raises(BadInput):
        read_all(store)
    refused("feature store")


@pytest.mark.parametrize("name", ["index.json", "catalogue.json", "frames-00000.safetensors"])
def test_a_folder_or_a_device_in_a_file_s_place(store, refused, name):
    for place in (".", "/dev/null", "/dev/full"):
        (store / name).unlink()
        (store / name).symlink_to(place)
        if place != "/dev/full":
            with pytest.raises(StoreError):
                read_all(store)
            refused("feature store")


def test_the_sound_one_is_read(store):
    read_all(store)
