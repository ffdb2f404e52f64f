"""Files that were renamed, copied, swapped or touched are not decoded again, and what only looks like them is."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

import calmctl.store.shards as shards
from calmctl.data.demo_drawing import FRAMES_PER_S, encode
from calmctl.model.weights import load_backbone
from calmctl.samples import Clip
from calmctl.search import windows
from calmctl.search.collection import Collection, open_collection
from calmctl.search.model import SearchModel, bare_search_model
from calmctl.search.search import Search
from calmctl.tensors import save_tensors

PADDED = 3_000_000  # larger than what the cheap digest reads whole


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SearchModel:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_tensors(path, load_backbone("demo-clip", None).clip.state_dict(), {})
    return bare_search_model(torch.device("cpu"), backbone="demo-clip", weights=str(path))


def video(path: Path, seed: int, size: int = 0) -> None:
    """A video of noise; trailing zeros, which decoders do not mind, make it as large as one likes."""
    path.parent.mkdir(exist_ok=True)
    drawn = np.random.default_rng(seed).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
    path.write_bytes(encode(drawn.repeat(8, 1).repeat(8, 2)).ljust(size, b"\0"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(7):  # more than one shard of five
        video(tmp_path / f"videos/clip{number}.mp4", number, PADDED if number < 2 else 0)
    return tmp_path / "videos"


@pytest.fixture
def opened(tmp_path: Path, folder: Path, model: SearchModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Opens the folder and returns the collection, and the ids of what was decoded and measured for it."""
    decoded: list[str] = []
    decode, measure = shards.decode_clips, windows.measure

    def counted(clips: Iterable[Clip], *args: Any, **options: Any) -> Any:
        return decode((decoded.append(clip.id) or clip for clip in clips), *args, **options)

    def measured(clips: Iterable[Clip], **options: Any) -> Any:
        return measure([decoded.append(f"length of {clip.id}") or clip for clip in clips], **options)

    monkeypatch.setattr(shards, "decode_clips", counted)
    monkeypatch.setattr(windows, "measure", measured)

    def open_again(**options: Any) -> tuple[Collection, list[str]]:
        decoded.clear()
        collection = open_collection(folder, model, stores=tmp_path / "features", **options)
        return collection, list(decoded)

    return open_again


def features(collection: Collection, key: str) -> torch.Tensor:
    return collection.store.frames([key])[0]


def test_what_has_another_name_is_not_decoded(folder: Path, opened: Callable[..., Any], model: SearchModel) -> None:
    collection, decoded = opened()
    assert len(decoded) == collection.extracted == 7
    before = {key: features(collection, key) for key in collection.clips}
    # All at once: renamed, moved into a folder, swapped within a shard and between shards, copied, touched, gone.
    (folder / "clip0.mp4").rename(folder / "named.mp4")
    (folder / "sub").mkdir()
    (folder / "clip1.mp4").rename(folder / "sub/clip1.mp4")
    for one, other in (("clip2", "clip3"), ("clip4", "clip5")):
        (folder / f"{one}.mp4").rename(folder / "swap")
        (folder / f"{other}.mp4").rename(folder / f"{one}.mp4")
        (folder / "swap").rename(folder / f"{other}.mp4")
    shutil.copy(folder / "clip6.mp4", folder / "copy.mp4")
    os.utime(folder / "clip6.mp4")
    collection, decoded = opened()
    assert not decoded and collection.extracted == 0
    was = {"named": 0, "sub/clip1": 1, "clip2": 3, "clip3": 2, "clip4": 5, "clip5": 4, "copy": 6, "clip6": 6}
    assert {key for shard in collection.shards for key in shard.ids} == set(was)
    for key, number in was.items():
        assert torch.equal(features(collection, key), before[f"clip{number}"]), key
    assert len(Search(model, collection).sentences(["a thing"], 20).answers[0].hits) == 8
    written = {file: file.stat().st_mtime_ns for file in collection.store.path.glob("frames-*")}
    collection, decoded = opened()
    assert not decoded and written == {file: file.stat().st_mtime_ns for file in written}, "told once, and remembered"
    (folder / "named.mp4").rename(folder / "clip0.mp4")
    assert not opened()[1], "its old name is known, too"


def test_what_only_looks_the_same_is_decoded(folder: Path, opened: Callable[..., Any]) -> None:
    collection, _ = opened()
    first, second = (features(collection, key) for key in ("clip0", "clip1"))
    content = (folder / "clip0.mp4").read_bytes()
    assert len(content) == (folder / "clip1.mp4").stat().st_size, "one size, another content"
    (folder / "clip0.mp4").unlink()
    # One byte that the sixteen pieces of the cheap digest do not see.
    place = PADDED // 2 + 10_000
    (folder / "new.mp4").write_bytes(content[:place] + b"\1" + content[place + 1 :])
    os.replace(folder / "clip1.mp4", folder / "moved.mp4")
    collection, decoded = opened()
    assert decoded == ["new"] and collection.extracted == 1
    assert torch.equal(features(collection, "moved"), second)
    assert torch.allclose(features(collection, "new"), first, atol=1e-3), "decoded; its pictures are the same"
    video(folder / "clip3.mp4", 99)
    assert opened()[1] == ["clip3"], "a changed file costs no other of its shard"


def test_windows_of_a_renamed_film_are_neither_decoded_nor_measured(folder: Path, opened: Callable[..., Any]) -> None:
    options = {"window_s": 0.5, "stride_s": 0.5}
    collection, decoded = opened(**options)
    assert "length of clip0" in decoded and "clip0#t=0,0.5" in decoded
    before = features(collection, "clip0#t=0.5,1") if "clip0#t=0.5,1" in collection.clips else None
    (folder / "clip0.mp4").rename(folder / "film.mp4")
    collection, decoded = opened(**options)
    assert not decoded and "film#t=0,0.5" in collection.clips and "clip0#t=0,0.5" not in collection.clips
    assert before is None or torch.equal(features(collection, "film#t=0.5,1"), before)


def test_a_damaged_shard_gives_nothing_away(folder: Path, opened: Callable[..., Any]) -> None:
    collection, _ = opened()
    shard = collection.store.path / "frames-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "clip0.mp4").rename(folder / "clip9.mp4")
    _, decoded = opened()
    assert {*decoded} == {"clip1", "clip2", "clip3", "clip4", "clip9"}


def test_two_searches_at_once_agree(folder: Path, opened: Callable[..., Any], model: SearchModel) -> None:
    opened()
    (folder / "clip0.mp4").rename(folder / "named.mp4")
    video(folder / "clip3.mp4", 50)
    found: list[Any] = []
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            collection = open_collection(folder, model, stores=folder.parent / "features")
            found.append(Search(model, collection).sentences(["a thing"], 20).answers[0])
        except BaseException as fault:
            faults.append(fault)

    threads = [Thread(target=ask) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(interval)
    assert not faults and len(found) == 2
    names = {hit.clip for hit in found[0].hits}
    assert names == {hit.clip for hit in found[1].hits} == {"named", *(f"clip{n}" for n in range(1, 7))}


def test_a_store_from_before_whole_digests_is_brought_up_to_date(
    folder: Path, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        whole = shards.source_of
        patch.setattr(shards, "source_of", lambda clip, whole_=whole, **_: whole_(clip))
        opened()
    os.utime(folder / "clip2.mp4")
    _, decoded = opened()
    assert not decoded, "the pieces fit, and the other clips have their dates"
    (folder / "clip2.mp4").rename(folder / "late.mp4")
    assert not opened()[1], "which was digested whole on that occasion"
    (folder / "clip3.mp4").rename(folder / "later.mp4")
    assert opened()[1] == ["later"], "and this one was not"


def test_shots_are_cut_once_and_a_warm_search_starts_no_decoder(
    tmp_path: Path, opened: Callable[..., Any], model: SearchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    (tmp_path / "videos" / "film.mp4").write_bytes(encode(still.repeat(3 * FRAMES_PER_S, 0)))
    collection, decoded = opened(shots=True)
    assert {key for key in decoded if key.startswith("film")} == {"film#t=0,3", "film#t=3,6"}
    assert collection.unit == "shot"
    hits = Search(model, collection).sentences(["a thing"], 20).answers[0].hits
    of_film = [hit for hit in hits if hit.clip.startswith("film")]
    assert {(hit.start_s, hit.end_s) for hit in of_film} == {(0.0, 3.0), (3.0, 6.0)}, "shots beside one another are two"
    monkeypatch.setattr(windows, "find_shots", lambda clips: [pytest.fail("decoded again")] if list(clips) else [])
    collection, decoded = opened(shots=True)
    assert not decoded
    again = Search(model, collection).sentences(["a thing"], 20).answers[0].hits
    assert not decoded and again == hits
