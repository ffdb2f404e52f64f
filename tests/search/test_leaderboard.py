"""mteb's own evaluation, on its mock tasks, of a model of ours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calmctl.errors import BadInput
from calmctl.model.weights import load_backbone
from calmctl.samples import Clip
from calmctl.search.leaderboard import MtebModel
from calmctl.search.model import SearchModel, bare_search_model
from calmctl.tensors import save_tensors

mteb = pytest.importorskip("mteb", reason="mteb is not installed (calmctl[mteb])")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SearchModel:
    weights = tmp_path_factory.mktemp("mteb") / "bare.safetensors"
    torch.manual_seed(0)
    save_tensors(weights, load_backbone("demo-clip", None).clip.state_dict(), {})
    return bare_search_model(torch.device("cpu"), backbone="demo-clip", weights=str(weights))


def tasks() -> tuple[Any, Any]:
    from mteb.mocks.mock_tasks.retrieval import MockVideoRetrievalT2V, MockVideoRetrievalV2T

    return MockVideoRetrievalT2V(), MockVideoRetrievalV2T()


def test_mteb_evaluates_both_directions(model: SearchModel) -> None:
    from mteb.models import SearchProtocol

    wrapped = MtebModel(model, workers=1)
    assert isinstance(wrapped, SearchProtocol)
    assert wrapped.mteb_model_meta.name.startswith("calmctl/demo-clip")
    for task in tasks():
        result = mteb.evaluate(wrapped, [task], cache=None)
        (scores,) = result.task_results[0].scores["test"]
        assert 0.0 < scores["main_score"] <= 1.0 and not wrapped.left_out


def test_its_scores_are_those_of_a_search(model: SearchModel, tmp_path: Path) -> None:
    from datasets import Video

    task = tasks()[0]
    task.load_data()
    data = task.dataset["default"]["test"]
    wrapped = MtebModel(model, workers=1)
    wrapped.index(data["corpus"])
    found = wrapped.search(data["queries"], top_k=9)
    rows = data["corpus"].cast_column("video", Video(decode=False))
    for query in data["queries"]:
        text = torch.nn.functional.normalize(
            model.model.encode_texts(model.model.backbone.tokenize([query["text"]])), dim=-1
        )
        for row in rows:
            path = tmp_path / f"{row['id']}.mp4"
            path.write_bytes(row["video"]["bytes"])
            frames = torch.nn.functional.normalize(model.video(Clip("x", path), 12), dim=-1)
            pooled = torch.nn.functional.normalize(frames.mean(1), dim=-1)
            assert np.isclose(found[query["id"]][row["id"]], float(text @ pooled.T), atol=1e-5)
    assert list(found["q0"].values()) == sorted(found["q0"].values(), reverse=True)


def test_what_it_does_not_do_is_said(model: SearchModel) -> None:
    from datasets import Dataset

    wrapped = MtebModel(model, workers=1)
    texts = Dataset.from_dict({"id": ["a"], "text": ["one"]})
    with pytest.raises(BadInput, match="call index first"):
        wrapped.search(texts, top_k=1)
    wrapped.index(texts)
    with pytest.raises(BadInput, match="of one kind"):
        wrapped.search(texts, top_k=1)
    with pytest.raises(BadInput, match="re-ranking"):
        wrapped.search(texts, top_k=1, top_ranked={"a": ["a"]})
    with pytest.raises(BadInput, match="compares sentences with videos"):
        wrapped.index(Dataset.from_dict({"id": ["a"], "image": ["x"]}))
    broken = Dataset.from_dict({"id": ["v"], "video": [{"bytes": b"no video", "path": None}]})
    with pytest.raises(BadInput, match="not one of 1 videos can be decoded"):
        wrapped.index(broken)
