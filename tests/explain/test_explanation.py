import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from calmctl.anchors.vocabulary import find_anchors
from calmctl.errors import BadInput, DatasetError, VideoError, VocabularyError
from calmctl.evaluation.retrieval import score_split
from calmctl.explain.collection import open_collection, rank_of
from calmctl.explain.explainer import explain_with_run, explain_zero_shot, see_video
from calmctl.explain.pair import explain
from calmctl.explain.words import ordinal, percent, seconds, summary
from calmctl.samples import Clip

CPU = torch.device("cpu")


def test_distributions_are_the_model_s_own(explainer, collection):
    """The anchors are computed once; training computes them in every step."""
    texts, frames = collection.encoded.texts, collection.encoded.frames
    with torch.no_grad():
        log_s, log_v = explainer.model.distributions(texts, frames)
    torch.testing.assert_close(explainer.log_s(texts), log_s)
    torch.testing.assert_close(explainer.log_v(frames), log_v)


def test_a_clip_is_seen_as_evaluation_sees_it(explainer, collection, seen):
    torch.testing.assert_close(seen.frames, collection.encoded.frames[0], atol=1e-5, rtol=1e-4)
    assert len(seen.pictures) == explainer.n_frames and seen.pictures[0].startswith(b"\xff\xd8")
    assert len(seen.instants_s) == 9 and (np.diff(seen.instants_s) > 0).all()


def test_a_window_of_a_clip(explainer, seen):
    half = (seen.start_s + seen.end_s) / 2
    part = see_video(explainer, Clip("half", seen.clip.path, half, None), instants=4)
    assert part.start_s == half and part.instants_s.min() > half and part.pictures == ()


def test_everything_about_a_pair(explainer, seen, collection):
    caption = collection.encoded.captions[0]
    removed = find_anchors(explainer.vocabulary, [explainer.vocabulary.texts[1].upper()])
    assert removed == (1,)
    found = explain(explainer, seen, caption, removed=removed, collection=collection)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    k = len(explainer.vocabulary)
    assert document["anchors"] == list(explainer.vocabulary.texts)
    for side in ("video", "text"):
        p = document["distributions"][side]
        assert len(p) == k and sum(p) == pytest.approx(1)
    # Without an anchor: the others' shares, divided by what is left.
    p, q = (np.array(document["distributions"][side]) for side in ("text", "video"))
    p, q = np.delete(p, 1) / (1 - p[1]), np.delete(q, 1) / (1 - q[1])
    assert document["without"]["divergence"] == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-6)
    assert document["without"]["removed"] == [explainer.vocabulary.texts[1]]
    # The rank is that of the evaluation, as the clip is one of the collection.
    scores = score_split(explainer.model, collection.encoded)[0]
    assert document["standing"]["clips"] == 6
    assert document["standing"]["by_score"] == pytest.approx(1 + (scores > scores[0]).sum(), abs=0.5)
    parts = document["score"]["contributions"]
    total = parts["shared"] + sum(parts["anchors"]) + parts["rest"]
    assert total == pytest.approx(document["score"]["score"]) and total == pytest.approx(float(scores[0]), abs=1e-4)
    assert len(document["timeline"]["video"]) == 9 and len(document["timeline"]["segments"]) == 6
    assert document["vae"]["units"] == 256


def test_a_strange_clip_stands_beside_the_collection(explainer, seen, collection, tmp_path):
    copy = tmp_path / "copy.mp4"
    shutil.copy(seen.clip.path, copy)
    other = see_video(explainer, Clip("copy", copy))
    found = explain(explainer, other, "a red circle", collection=collection)
    assert found.standing.clips == 7
    # Its twin in the collection has the same score, and equals share their places. But the twin was encoded in another
    # batch, which on some processors changes the last bits: then one of the two stands before the other.
    alone = explain(explainer, seen, "a red circle", collection=collection).standing
    assert found.standing.by_score - alone.by_score in (0.0, 0.5, 1.0)
    assert found.standing.by_anchors - alone.by_anchors in (0.0, 0.5, 1.0)


def test_a_collection_of_other_frames_is_refused(explainer, seen, collection):
    more = replace(collection, encoded=replace(collection.encoded, frames=collection.encoded.frames.repeat(1, 2, 1)))
    with pytest.raises(BadInput, match="4 frames each and the video was looked at with 2"):
        explain(explainer, seen, "a red circle", collection=more)


def test_the_timeline_finds_what_happens_when(explainer, seen):
    found = explain(explainer, seen, "a red circle").timeline
    torch.testing.assert_close(found.video.sum(-1), torch.ones(9))
    assert [s.start_s for s in found.segments][1:] == [s.end_s for s in found.segments][:-1]
    assert found.segments[0].start_s == seen.start_s and found.segments[-1].end_s == seen.end_s
    first = explainer.log_v(seen.instants[:1]).exp()
    torch.testing.assert_close(found.video[0], first)
    # 9 instants over 6 segments: the first holds the instants of the first sixth.
    inside = seen.instants_s <= found.segments[0].end_s
    torch.testing.assert_close(found.segments[0].video, explainer.log_v(seen.instants[inside]).exp())
    peaks = found.video.max(0).values
    assert found.strongest(2)[0] == int(peaks.argmax())


@pytest.mark.parametrize(
    ("names", "message"),
    [(["nothing like it"], "has no anchor 'nothing like it'"), (["*"], "at least 2 of the 5")],
)
def test_anchors_that_cannot_be_removed(explainer, names, message):
    names = list(explainer.vocabulary.texts[:4]) if names == ["*"] else names
    with pytest.raises(VocabularyError, match=message):
        find_anchors(explainer.vocabulary, names)


def test_other_anchors_than_the_run_s(trained, seen):
    other = explain_with_run(trained, CPU, vocabulary="coco")
    assert other.vae is None and "instead of the run's" in other.notes[0]
    found = explain(other, seen, "a red circle")
    assert found.reconstruction is None and len(found.labels) == 91
    assert found.to_json()["vae"] is None


def test_the_run_s_own_vocabulary_by_its_file_keeps_the_vae(trained):
    assert explain_with_run(trained, CPU, vocabulary=trained.vocabulary).vae is not None


def test_the_bare_backbone(trained, seen):
    bare = explain_zero_shot(CPU, backbone="demo-clip", weights=str(trained.weights("slim")), vocabulary="shapes")
    found = explain(bare, seen, "a red circle")
    assert not found.pair.conditioned and bare.n_frames == 12
    assert torch.equal(found.pair.weights, torch.full((2,), 0.5))  # `seen` was seen for a run of two frames
    assert "nothing was trained" in bare.notes[-1]
    with pytest.raises(BadInput, match="no dataset"):
        open_collection(bare, "test")


def test_missing_weights_name_the_ways_out(monkeypatch):
    from calmctl.errors import CheckpointError
    from calmctl.explain import explainer

    with pytest.raises(CheckpointError, match=r"nowhere.safetensors does not exist; give a .safetensors file or a"):
        explain_zero_shot(CPU, backbone="demo-clip", weights="nowhere.safetensors")

    def offline(*_):
        raise CheckpointError("no such weights at hand")

    monkeypatch.setattr(explainer, "load_backbone", offline)
    with pytest.raises(CheckpointError, match=r"at hand; here: .*--backbone-weights, or explain with a run"):
        explain_zero_shot(CPU)


def test_a_split_that_is_not_there(explainer):
    with pytest.raises(DatasetError, match="no dev split; it has"):
        open_collection(explainer, "dev")


def test_a_damaged_video(explainer, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"\0" * 200)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        see_video(explainer, Clip("broken", path))


def test_words(explainer, seen):
    said = summary(explain(explainer, seen, "a red circle"))
    assert any("of their mass" in line for line in said) and any("VAE" in line for line in said)
    assert [percent(x) for x in (0, 0.0001, 0.1234, 0.99999)] == ["0 %", "<0.1 %", "12.3 %", "100 %"]
    assert [seconds(x) for x in (4.25, 75, 3723)] == ["4.2 s", "1:15", "1:02:03"]
    assert [ordinal(x) for x in (1, 2, 3, 4, 11, 12, 13, 21, 111)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th"]
    )


def test_rank_counts_equals_half():
    assert rank_of(torch.tensor([0.5, 0.9, 0.5, 0.1]), 0) == 2.5
    assert math.isclose(rank_of(torch.tensor([1.0]), 0), 1.0)


@pytest.mark.real
def test_real_clips_work_with_any_run(explainer, real_data):
    for folder, pattern in (("msvd/YouTubeClips", "*.avi"), ("msvd/YouTubeClips", "*.mp4"), ("msrvtt/videos", "*.mp4")):
        path = sorted((real_data / "videos" / folder).glob(pattern))[0]
        seen = see_video(explainer, Clip(path.stem, path), pictures=True)
        document = json.loads(json.dumps(explain(explainer, seen, "a man is talking").to_json(), allow_nan=False))
        assert len(seen.pictures) == explainer.n_frames and 0 <= seen.start_s < seen.end_s
        assert ((seen.start_s < seen.instants_s) & (seen.instants_s < seen.end_s)).all()
        for side in ("video", "text"):
            p = document["distributions"][side]
            assert len(p) == len(explainer.vocabulary) and sum(p) == pytest.approx(1)
        parts, score = document["score"]["contributions"], document["score"]["score"]
        assert parts["shared"] + sum(parts["anchors"]) + parts["rest"] == pytest.approx(score)
        assert -1 <= score <= 1
