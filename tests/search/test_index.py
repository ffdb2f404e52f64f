"""The index follows its store: clips added, removed, extracted again; damage and strangers are refused."""

import json

import numpy as np
import pytest
import torch

from calmctl.errors import StoreError
from calmctl.model.heads.meanp import MeanPoolHead, mean_video
from calmctl.model.heads.xpool import XPoolHead
from calmctl.search.rows import MappedFrames, searched_rows
from calmctl.search.scorers import choose_scorer, open_index

CPU, SHAPE = torch.device("cpu"), (4, 16)


def opened(store, head=None, **options):
    scorer = choose_scorer(head or MeanPoolHead(), None, CPU, SHAPE)
    return open_index(store, searched_rows(store), scorer, **options)


def is_right(index, features) -> bool:
    """Whether the index has exactly the rows of these features."""
    expected = mean_video(torch.stack([features[key] for key in index.frames.ids])).numpy()
    return set(index.frames.ids) == set(features) and np.allclose(index.columns["video"], expected, atol=1e-6)


def test_only_what_is_new_is_made(write_store, drawn):
    features = drawn(12)
    told = []
    index = opened(write_store(features), progress=lambda *step: told.append(step))
    assert index.made == 12 and told[-1] == ("indexing clips", 12, 12) and is_right(index, features)
    assert opened(write_store(features)).made == 0
    features |= drawn(3, first=12)
    index = opened(write_store(features))
    assert index.made == 3 and is_right(index, features)
    assert len(list(index.folder.glob("*.npy"))) == 1, "what is old was deleted"


def test_removed_clips_drop_out_and_come_back(write_store, drawn):
    features = drawn(12)
    assert is_right(opened(write_store(features)), features)
    fewer = {key: value for key, value in features.items() if key not in ("clip000", "clip006", "clip010", "clip011")}
    index = opened(write_store(fewer))
    assert index.made == 8 and is_right(index, fewer)
    last = {key: value for key, value in features.items() if key > "clip004"}
    assert is_right(opened(write_store(last)), last), "a shard of which nothing is left"
    assert is_right(opened(write_store(features)), features)


def test_clips_extracted_again_are_indexed_again(write_store, drawn):
    features = drawn(12)
    opened(write_store(features))
    features["clip007"] = -features["clip007"]
    index = opened(write_store(features, again=[1]))
    assert index.made == 5 and is_right(index, features)
    store = write_store(features, again=[1], broken=["clip006"])
    assert is_right(opened(store), {key: value for key, value in features.items() if key != "clip006"})


def test_a_damaged_shard_is_refused_at_first_and_later(write_store, drawn):
    store = write_store(drawn(7))
    opened(store)
    path = store.path / "frames-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"frames-00001.*SHA-256"):
        opened(store)
    path.write_bytes(content)
    assert opened(store).made == 0, "whole again: only the time of change is another"
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        opened(store)


def test_another_head_has_an_index_of_its_own_over_the_same_features(write_store, drawn):
    store = write_store(drawn(7))
    torch.manual_seed(0)
    one, other = XPoolHead(16), XPoolHead(16)
    with torch.no_grad():
        other.pooling.linear.weight += 0.1
    folders = {opened(store, head).folder for head in (one, other, MeanPoolHead())}
    assert len(folders) == 3
    assert opened(store, one).made == opened(store, other).made == 0


@pytest.mark.parametrize("damage", ["no json", '{"key": 1}', '{"shards": {}}', None])
def test_an_index_that_says_something_else_is_made_again(write_store, drawn, damage):
    features = drawn(6)
    store = write_store(features)
    about = opened(store).folder / "about.json"
    if damage is None:
        content = json.loads(about.read_text()) | {"key": "0" * 64}
        damage = json.dumps(content)
    about.write_text(damage)
    index = opened(store)
    assert index.made == 6 and is_right(index, features)


def test_a_table_that_was_cut_short_is_made_again(write_store, drawn):
    features = drawn(6)
    index = opened(write_store(features))
    (table,) = index.folder.glob("*.npy")
    del index
    table.write_bytes(table.read_bytes()[:-40])
    assert is_right(opened(write_store(features)), features)


def test_blocks_and_rows_are_the_stored_features(write_store, drawn):
    features = drawn(13)
    gone = {key: value for key, value in features.items() if key not in ("clip003", "clip012")}
    write_store(features)
    store = write_store(gone)
    frames = MappedFrames(store, searched_rows(store))
    expected = torch.stack([gone[key] for key in frames.ids])
    buffer = torch.full((20, *SHAPE), torch.nan)
    for start, stop in [(0, len(frames)), (0, 1), (3, 6), (4, 9), (10, 11)]:
        assert torch.equal(frames.block(start, stop, buffer), expected[start:stop])
        assert torch.equal(frames.block(start, stop), expected[start:stop])
    places = np.array([10, 0, 4, 3])
    assert torch.equal(frames.rows(places), expected[places])
    assert [frames.group(position) for position in (0, 3, 4, 10)] == [0, 0, 1, 2]
