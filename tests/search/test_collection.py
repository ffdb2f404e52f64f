"""Folders and stores as collections: what is extracted when, and what is refused."""

import copy
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from calmctl.data.demo_drawing import encode
from calmctl.errors import DatasetError, StoreError, VideoError
from calmctl.samples import Clip, LeftOut
from calmctl.search.collection import open_collection
from calmctl.search.model import SearchModel, bare_search_model
from calmctl.search.search import Search
from calmctl.store import writer as store_writer
from calmctl.store.extract import LOG
from calmctl.store.format import INDEX, Index, read_document, shard_file, write_document
from calmctl.store.store import NOT_EXTRACTED
from calmctl.tensors import save_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def seekers(tmp_path_factory) -> list[SearchModel]:
    """Two bare backbones with different random weights."""
    from calmctl.model.weights import load_backbone

    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path_factory.mktemp("weights") / "w.safetensors"
        save_tensors(path, load_backbone("demo-clip", None).clip.state_dict(), {})
        found.append(bare_search_model(CPU, backbone="demo-clip", weights=str(path)))
    return found


def video(path: Path, seed: int, frames: int = 8) -> None:
    path.parent.mkdir(exist_ok=True)
    drawn = np.random.default_rng(seed).integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
    path.write_bytes(encode(drawn.repeat(8, 1).repeat(8, 2)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        video(Path(f"my videos/clip{number}.mp4"), number)
    Path("my videos/notes.txt").write_text("no video, and no fault either")
    return Path("my videos")


def searched(collection) -> list[str]:
    return sorted(key for shard in collection.shards for key in shard.ids)


def extractions(collection) -> int:
    return len((collection.store.path / LOG).read_text().splitlines())


def test_a_store_that_is_not_complete_says_what_cannot_be_found(folder, seekers, monkeypatch):
    monkeypatch.setattr(store_writer, "CLIPS_PER_SHARD", 2)
    place = open_collection(folder, seekers[0]).store.path
    index = read_document(place / INDEX, Index)
    shards = {name: entry for name, entry in index.shards.items() if name != shard_file("frames", 1)}
    write_document(place / INDEX, index.model_copy(update={"shards": shards}))
    half = open_collection(place, seekers[0])
    assert searched(half) == ["clip0", "clip1"]
    assert half.left_out == (LeftOut("clip2", NOT_EXTRACTED),)


def test_only_new_and_changed_files_are_extracted_and_gone_ones_drop_out(folder, seekers):
    told = []
    first = open_collection(folder, seekers[0], progress=lambda *step: told.append(step))
    assert searched(first) == ["clip0", "clip1", "clip2"] and first.extracted == 3 and not first.is_store
    assert first.store.header.dtype == "float16" and told[-1][0] == "clips"
    again = open_collection(folder, seekers[0])
    assert (again.extracted, extractions(again)) == (0, 1) and again.store.path == first.store.path
    video(folder / "sub/new.mp4", 7)
    assert searched(open_collection(folder, seekers[0])) == ["clip0", "clip1", "clip2", "sub/new"]
    (folder / "clip1.mp4").unlink()
    gone = open_collection(folder, seekers[0])
    assert searched(gone) == ["clip0", "clip2", "sub/new"] and "clip1" not in gone.clips and not gone.left_out
    before = gone.store.frames(["clip2"])
    video(folder / "clip2.mp4", 99)
    changed = open_collection(folder, seekers[0])
    assert not torch.equal(changed.store.frames(["clip2"]), before)
    assert searched(changed) == ["clip0", "clip2", "sub/new"]


def test_a_search_follows_the_folder(folder, seekers):
    def hits() -> list[str]:
        found = Search(seekers[0], open_collection(folder, seekers[0])).sentences(["a thing"], 10)
        return [hit.clip for hit in found.answers[0].hits]

    assert sorted(hits()) == ["clip0", "clip1", "clip2"]
    (folder / "clip0.mp4").rename(folder / "renamed.mp4")
    assert sorted(hits()) == ["clip1", "clip2", "renamed"]


def test_broken_clips_are_named_and_the_rest_is_searched(folder, seekers):
    (folder / "clip1.mp4").write_text("no video")
    found = open_collection(folder, seekers[0])
    assert searched(found) == ["clip0", "clip2"] and [clip.id for clip in found.left_out] == ["clip1"]
    assert open_collection(folder, seekers[0]).left_out == found.left_out, "told each time, tried once"
    assert extractions(found) == 1
    video(folder / "clip1.mp4", 1)
    assert len(searched(open_collection(folder, seekers[0]))) == 3


def test_nothing_to_search_is_a_sentence(tmp_path, monkeypatch, seekers):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(DatasetError, match="there is no video in it"):
        open_collection(Path("empty"), seekers[0])
    with pytest.raises(DatasetError, match="neither a feature store nor a folder"):
        open_collection(Path("nowhere"), seekers[0])
    Path("empty/a.mp4").write_text("no video")
    for options in ({}, {"window_s": 1.0, "stride_s": 1.0}):
        with pytest.raises(DatasetError, match=r"its one video could not be decoded \(first: a: not a video"):
            open_collection(Path("empty"), seekers[0], **options)


def test_another_backbone_never_meets_these_features(folder, seekers):
    mine = open_collection(folder, seekers[0])
    other = open_collection(folder, seekers[1])
    assert other.store.path != mine.store.path and other.extracted == 3
    with pytest.raises(StoreError, match=r"parameters_sha256.*cannot be mixed"):
        open_collection(mine.store.path, seekers[1])
    assert searched(open_collection(mine.store.path, seekers[0])) == ["clip0", "clip1", "clip2"]
    trained = SearchModel("a run", seekers[0].model, 4, CPU, None)
    with pytest.raises(StoreError, match="holds 12 frames a clip, and a run was trained on 4"):
        open_collection(mine.store.path, trained)


def test_windows_are_moments(folder, seekers):
    video(folder / "long.mp4", 5, frames=40)
    found = open_collection(folder, seekers[0], window_s=1.0, stride_s=0.5)
    windows = [key for key in searched(found) if key.startswith("long")]
    assert len(windows) > 3
    hits = Search(seekers[0], found).sentences(["a thing"], 100).answers[0].hits
    # Windows that overlap or adjoin a better one are counted with it: nothing is lost, and no moment is told twice.
    assert sum(1 + hit.neighbours for hit in hits) == len(searched(found))
    long = [hit for hit in hits if hit.clip.startswith("long")]
    assert long and all(hit.file == folder / "long.mp4" and hit.end_s - hit.start_s == 1.0 for hit in long)
    assert all(hit.clip == f"long#t={hit.start_s:g},{hit.end_s:g}" for hit in long)
    with pytest.raises(StoreError, match="--window is for a folder"):
        open_collection(found.store.path, seekers[0], window_s=1.0, stride_s=1.0)


def test_hits_know_their_file_and_end(folder, seekers):
    found = Search(seekers[0], open_collection(folder, seekers[0])).sentences(["a thing", "another"], 2)
    assert [len(answer.hits) for answer in found.answers] == [2, 2] and found.clips == 3
    hit = found.answers[0].hits[0]
    assert hit.file == folder / f"{hit.clip}.mp4" and hit.start_s == 0 and hit.end_s is not None and hit.end_s > 0.1
    as_store = open_collection(open_collection(folder, seekers[0]).store.path, seekers[0])
    hit = Search(seekers[0], as_store).sentences(["a thing"], 1).answers[0].hits[0]
    assert hit.file is None and hit.end_s is None
    named = open_collection(as_store.store.path, seekers[0], videos=folder)
    assert Search(seekers[0], named).sentences(["a thing"], 1).answers[0].hits[0].file == folder / f"{hit.clip}.mp4"
    assert json.dumps(found.to_json())


def test_a_clip_finds_its_like_but_not_itself(folder, seekers):
    video(folder / "copy of clip1.mp4", 1)
    search = Search(seekers[0], open_collection(folder, seekers[0]))
    hits = search.similar(Clip("x", folder / "clip1.mp4"), 10).answers[0].hits
    assert hits[0].clip == "copy of clip1" and hits[0].score == pytest.approx(1, abs=1e-5)
    assert sorted(hit.clip for hit in hits) == ["clip0", "clip2", "copy of clip1"]
    with pytest.raises(VideoError, match="nothing"):
        search.similar(Clip("x", Path("nothing.mp4")), 1)


def test_a_clip_is_looked_at_through_the_adapter_as_the_collection_is(folder, seekers):
    """An adapter has weights that train: what passes it here must not be kept for a gradient."""
    from calmctl.model.backbone import FeatureAdapter
    from calmctl.search.search import rank_sentences

    video(folder / "copy of clip1.mp4", 1)
    bare = seekers[0]
    model = copy.deepcopy(bare.model, {id(bare.model.backbone): bare.model.backbone})
    model.adapter = FeatureAdapter(model.backbone.dim)
    torch.nn.init.normal_(model.adapter.frames.weight, std=0.1)
    seeker = dataclasses.replace(bare, model=model)
    search = Search(seeker, open_collection(folder, seeker))
    clip = Clip("x", folder / "clip1.mp4")
    best = search.similar(clip, 1).answers[0].hits[0]
    assert best.clip == "copy of clip1" and best.score == pytest.approx(1, abs=1e-5)
    sentences = ["a cat", "a dog runs", "red"]
    scores = {each.sentence: each.score for each in rank_sentences(seeker, clip, sentences, 3)}
    for answer in search.sentences(sentences, 10).answers:
        (twin,) = (hit for hit in answer.hits if hit.clip == "clip1")
        assert scores[answer.query] == pytest.approx(twin.score, abs=1e-3)  # the collection's features are float16


def test_damaged_features_of_a_folder_can_be_made_again(folder, seekers):
    collection = open_collection(folder, seekers[0])
    shard = collection.store.path / "frames-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(shard)
    with pytest.raises(StoreError, match="SHA-256"):
        Search(seekers[0], open_collection(folder, seekers[0]))
    again = open_collection(folder, seekers[0], verify=True)
    assert again.extracted == 3 and len(Search(seekers[0], again)) == 3
