"""A cache beside a store is believed only where it was made here and is whole; all else is made again."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch

from calmctl.files import sha256_bytes
from calmctl.model.heads.meanp import MeanPoolHead, mean_video
from calmctl.search.exact import open_graph
from calmctl.search.rows import searched_rows
from calmctl.search.scorers import choose_scorer, open_index
from calmctl.store.store import FeatureStore

CPU, SHAPE = torch.device("cpu"), (4, 16)


def opened(store):
    return open_index(store, searched_rows(store), choose_scorer(MeanPoolHead(), None, CPU, SHAPE))


def graph_of(store):
    return open_graph(store, searched_rows(store), opened(store), None)


def is_right(index, features) -> bool:
    expected = mean_video(torch.stack([features[key] for key in index.frames.ids])).numpy()
    return np.allclose(index.columns["video"], expected, atol=1e-6)


def finds(graph, store, features) -> bool:
    """Whether every clip's own mean finds it."""
    ids = [key for shard in searched_rows(store) for key in shard.ids]
    means = mean_video(torch.stack([features[key] for key in ids]))
    return all(graph.candidates(mean, 1).tolist() == [place] for place, mean in enumerate(means))


def overwritten(path, content):
    """As a program would that hides what it did: same inode, same time of change."""
    before = path.stat()
    with path.open("r+b") as handle:
        handle.write(content)
        handle.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def damaged(content, rng):
    kind = rng.randrange(4)
    place = rng.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + rng.randbytes(min(64, len(content) - place)) + content[place + 64 :]
    if kind == 2:
        return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
    return rng.randbytes(len(content))


@pytest.mark.parametrize("name", ["about.json", "*.npy"])
def test_60_damaged_tables_give_right_answers(write_store, drawn, name):
    features, rng = drawn(9), random.Random(name)
    store = write_store(features)
    for _ in range(60):
        (path,) = opened(store).folder.glob(name)
        overwritten(path, damaged(path.read_bytes(), rng))
        assert is_right(opened(store), features)


@pytest.mark.parametrize("name", ["about.json", "*.usearch"])
def test_60_damaged_graphs_are_never_opened(write_store, drawn, name):
    pytest.importorskip("usearch")
    features, rng = drawn(9), random.Random(name)
    store = write_store(features)
    for _ in range(60):
        (path,) = graph_of(store).path.parent.glob(name)
        overwritten(path, damaged(path.read_bytes(), rng))
        assert finds(graph_of(store), store, features)


def blank_the_best(table):
    content = np.load(table)
    content[0] = np.nan
    np.save(table, content)


def test_a_blanked_row_is_noticed(write_store, drawn):
    features = drawn(9)
    store = write_store(features)
    (table,) = opened(store).folder.glob("*.npy")
    before = table.stat()
    blank_the_best(table)
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    index = opened(store)
    assert index.made == 9 and is_right(index, features)


def fitting(about, **changes):
    """Another `about.json`, whose own digest fits."""
    content = json.loads(about.read_text()) | changes
    content.pop("sha256")
    about.write_text(json.dumps(content | {"sha256": sha256_bytes(json.dumps(content, sort_keys=True).encode())}))
    return content


def test_a_cache_that_came_with_a_store_is_not_believed(write_store, drawn, tmp_path):
    features = drawn(9)
    index = opened(write_store(features))
    (table,) = index.folder.glob("*.npy")
    blank_the_best(table)
    about = index.folder / "about.json"
    files = json.loads(about.read_text())["files"]
    files["table"]["sha256"] = sha256_bytes(table.read_bytes())
    fitting(about, files=files)
    copy = shutil.copytree(tmp_path / "store", tmp_path / "copy")
    index = opened(FeatureStore.open(copy))
    assert index.made == 9 and is_right(index, features)


ABOUTS = {
    "other shards": {"shards": {}},
    "a path": {"files": {"means": {"name": "../x.usearch", "sha256": "0" * 64, "stamp": [1]}}},
    "a list": {"files": []},
    "rows without number": {"shards": {"frames-00000.safetensors": {"mark": "0" * 64, "rows": -5, "stamp": []}}},
    "marks of others": {"shards": {"frames-00000.safetensors": {"mark": "0" * 64, "rows": 5, "stamp": [1, 2, 3, 4]}}},
    "version": {"version": 1},
}


@pytest.mark.parametrize("case", ABOUTS)
def test_an_about_that_lies_with_a_fitting_digest(write_store, drawn, case):
    pytest.importorskip("usearch")
    features = drawn(9)
    store = write_store(features)
    fitting(opened(store).folder / "about.json", **ABOUTS[case])
    assert is_right(opened(store), features)
    fitting(graph_of(store).path.parent / "about.json", **ABOUTS[case])
    assert finds(graph_of(store), store, features)


def test_a_cache_that_cannot_be_kept_is_done_without(write_store, drawn):
    pytest.importorskip("usearch")
    features = drawn(9)
    store = write_store(features)
    (store.path / "search").write_text("no folder")  # root may write everywhere, but not below a file
    index, graph = opened(store), graph_of(store)
    assert is_right(index, features) and finds(graph, store, features)
    assert index.not_kept.startswith("cannot write ") and graph.not_kept.startswith("cannot write ")


def test_a_link_to_a_folder_of_one_s_own_is_not_followed(write_store, drawn, tmp_path):
    features = drawn(9)
    store = write_store(features)
    folder = opened(store).folder
    shutil.rmtree(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.npy").write_bytes(b"years of work")
    folder.symlink_to(tmp_path / "mine")
    index = opened(store)
    assert is_right(index, features) and "a link to elsewhere" in index.not_kept
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["results.npy"]


def test_what_a_killed_build_left_is_removed(write_store, drawn):
    store = write_store(drawn(9))
    folder = opened(store).folder
    for name in (".about.json.x1y2.tmp", ".0123-video.npy.x1y2.tmp"):
        (folder / name).write_bytes(b"half")
    opened(store)
    assert not list(folder.glob(".*.tmp"))
