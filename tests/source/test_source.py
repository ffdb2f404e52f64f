"""What every source of clips and captions promises, held against the two that there are and one made up here."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from calmctl.data.benchmark import Splits
from calmctl.errors import DatasetError
from calmctl.model.build import build_model
from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.source import batches
from calmctl.source import source as sources
from calmctl.source.base import Source, SourceSpec
from calmctl.source.encoding import EncodedSplit, nothing_usable
from calmctl.source.source import VideoSource, open_source, recipe_source
from calmctl.training.prepare import recipe_vocabulary
from calmctl.video.pixels import FrameReader, FrameResize


def test_a_place_of_data_is_read_from_a_recipe_once(tiny_recipe):
    data = tiny_recipe("data.root=somewhere", "data.annotations=a", "data.protocol=captioning").data
    assert SourceSpec.of(data) == SourceSpec("demo", Path("somewhere"), Path("a"), None, "captioning", None)


def test_a_split_that_is_not_there_says_why(tiny_recipe):
    splits = Splits({"test": Split("test", (), (), ())}, {"val": "no val split, because v.txt cannot be found"})
    source = VideoSource(Dataset("msrvtt", "9k", splits), tiny_recipe().data)
    assert source.absent == {"val": "no val split, because v.txt cannot be found"}
    with pytest.raises(DatasetError, match=r"v\.txt cannot be found"):
        source.split("val")
    with pytest.raises(DatasetError, match="msrvtt has no train split; it has test"):
        source.split("train")


def test_where_nobody_said_a_place_it_is_beside_the_training_data(tiny_recipe, tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe()
    beside = open_source(SourceSpec("demo-shifted"), recipe, val=False)
    assert (beside.name, len(beside.split("test").ids)) == ("demo-shifted", 6)
    with pytest.raises(DatasetError):
        open_source(SourceSpec("demo-shifted"), tiny_recipe(f"data.root={tmp_path}"), val=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo-shifted").symlink_to(tiny_world)
    apart = open_source(SourceSpec("demo-shifted"), tiny_recipe(f"data.root={tmp_path}"), val=False)
    assert apart.split("test").ids == beside.split("test").ids


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_encoded_again_is_decoded_once_where_the_recipe_says_so(tiny_recipe, monkeypatch, frozen):
    """The adapter goes on learning: what is kept is from before it."""
    keys = ("alignment.kind=none", "backbone.adapter=linear", f"backbone.freeze={str(frozen).lower()}")
    decoded = Counter()
    stream = sources.stream_frames

    def counted(split, *arguments):
        decoded[split.name] += 1
        return stream(split, *arguments)

    monkeypatch.setattr(sources, "stream_frames", counted)
    found = []
    for cache, times in (("memory", 1), ("none", 2)):
        recipe = tiny_recipe(*keys, f"data.cache={cache}")
        torch.manual_seed(0)
        source, model = recipe_source(recipe), build_model(recipe, recipe_vocabulary(recipe)).eval()
        decoded.clear()
        for bias in (0.0, 1.0):
            torch.nn.init.constant_(model.adapter.frames.bias, bias)
            found.append(source.encode(model, "val", keep=True).frames)
        assert decoded == {"val": times}
    torch.testing.assert_close(found[:2], found[2:])
    torch.testing.assert_close(found[1] - found[0], torch.ones_like(found[0]), rtol=0, atol=1e-5)


class Told(Source):
    """A source in one class: features that somebody made up."""

    name, protocol, splits = "told", "", ("test",)

    def split(self, name):
        clips = tuple(Clip(f"clip{n}", Path(f"{n}.mp4")) for n in range(3))
        return Split(name, clips, ("a", "b", "c", "d"), (0, 1, 2, 2), (LeftOut("clip3", "lost"),))

    def encode(self, model, split, progress=None, *, keep=False):
        chosen = self.split(split)
        frames = torch.eye(3)[:, None].repeat(1, 2, 1)
        return EncodedSplit(
            torch.eye(3)[[0, 1, 2, 2]], frames, np.array(chosen.owners), chosen.ids, chosen.captions, chosen.left_out
        )


def test_a_new_source_counts_and_is_scored_as_the_others_are():
    source = Told()
    assert source.counts() == {"test": {"clips": 3, "captions": 4, "left_out": 1}}
    assert [entry.id for entry in source.left_out()["test"]] == ["clip3"] and not source.absent and not source.unread
    encoded = source.encode(None, "test")
    assert encoded.ids == ("clip0", "clip1", "clip2") and encoded.owners.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(("workers", "processes"), [("0", None), ("5", 5)])
def test_a_training_decodes_with_as_many_processes_as_the_recipe_says(tiny_recipe, monkeypatch, workers, processes):
    """None is one a core; they give way to the trainer (`nice`, in video/worker.py)."""
    asked = []

    def answer(job, jobs, *, workers, timeout_s, ahead):
        asked.append(workers)
        return iter(())

    monkeypatch.setattr(batches, "run_isolated", answer)
    keys = tiny_recipe(f"data.workers={workers}").data
    assert not list(batches.StreamedFrames((), FrameReader(2, FrameResize(8)), keys, 0).stream([], [], 0))
    assert asked == [processes]


def test_a_split_without_a_usable_clip_tells_each_kind_of_reason() -> None:
    gone = [LeftOut(str(n), "no video file of this name") for n in range(1200)]
    told = nothing_usable("val", [*gone, LeftOut("x", "mpeg4 as it is")])
    assert told == (
        "no clip of the val split is usable: 1,200 x no video file of this name (first: 0); 1 x mpeg4 as it is "
        "(first: x); check data.root and data.videos"
    )
    assert nothing_usable("val", [LeftOut(str(n), str(n)) for n in range(5)]).count(" x ") == 3
