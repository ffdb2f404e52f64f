"""What weights say they were made of, and what is said of a number because of it; nothing is trained here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calmctl.data.identity import SplitRecord, record_split
from calmctl.errors import CheckpointError
from calmctl.evaluation.runs import labels_of
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.runs.identity import RunIdentity, judge, recipe_digest, weights_identity
from calmctl.runs.run import Run, create_run, find_run
from calmctl.samples import Clip, LeftOut, Split
from calmctl.source.base import SourceSpec
from calmctl.source.source import open_source
from calmctl.tensors import save_tensors


def record(
    name: str, ids: range, dataset: str = "msrvtt", protocol: str = "9k", left_out: int = 0, **changes: Any
) -> SplitRecord:
    clips = tuple(Clip(f"video{number}", Path("x.mp4")) for number in ids)
    captions, owners = tuple(f"sentence {number}" for number in ids), tuple(range(len(ids)))
    missing = tuple(LeftOut(f"m{number}", "gone") for number in range(left_out))
    return replace(record_split(dataset, protocol, Split(name, clips, captions, owners, missing), {}), **changes)


def identity(train: SplitRecord, **changes: Any) -> RunIdentity:
    splits = {"train": train, "val": record("val", range(500, 505)), "test": record("test", range(900, 910))}
    return RunIdentity("r" * 64, "v" * 64, "", "p" * 64, splits, **changes)


TRAIN, TEST = record("train", range(100)), record("test", range(900, 910))
OLD = "before calmctl recorded"


def said(found: RunIdentity | None, test: SplitRecord = TEST, **options: Any) -> tuple[str, bool]:
    judgement = judge(found, test, run=None, **{"own": False, **options})
    return " | ".join(judgement.caveats), judgement.published


def test_nothing_is_said_where_everything_is_as_its_name_says() -> None:
    assert said(identity(TRAIN), own=True) == ("", True)


@pytest.mark.parametrize(
    ("found", "test", "message"),
    [
        (
            identity(TRAIN),
            replace(TEST, differs=("2 clips, 1,000 published",)),
            "not the published test split: 2 clips",
        ),
        (identity(TRAIN), replace(TEST, differs=None), OLD),
        (
            identity(record("train", range(12), left_out=8988)),
            TEST,
            "trained on 12 of 9,000 training clips of msrvtt 9k",
        ),
        (identity(TRAIN, undecodable=3), TEST, "trained on 97 of 100 training clips"),
        (identity(replace(TRAIN, differs=("another list",))), TEST, "not on the published train split: another list"),
        (identity(record("train", range(850, 903))), TEST, "3 of 10 test clips were trained on"),
        (identity(TRAIN, ancestors=(record("train", range(909, 950)),)), TEST, "1 of 10 test clips was trained on"),
        (identity(TRAIN, unknown=("msrvtt 9k",)), TEST, f"msrvtt 9k {OLD}"),
        (identity(TRAIN), record("test", range(503, 513)), "2 of 10 test clips are validation clips"),
        (None, TEST, OLD),
    ],
)
def test_whatever_is_not_is_said_and_takes_the_papers_row(
    found: RunIdentity | None, test: SplitRecord, message: str
) -> None:
    caveats, published = said(found, test)
    assert message in caveats
    assert not published


def test_other_protocols_of_a_set_share_its_clips() -> None:
    full = record("test", range(90, 110), protocol="full")
    assert "10 of 20 test clips were trained on (msrvtt 9k)" in said(identity(TRAIN), full)[0]


def test_missing_clips_count_for_a_set_that_nobody_published() -> None:
    train = record("train", range(5), "folder", "", left_out=3)
    assert "trained on 5 of 8 training clips of folder" in said(identity(train))[0]


def test_a_folders_old_features_promise_nothing() -> None:
    train, test = record("train", range(5), "folder", ""), record("test", range(9, 12), "folder", "")
    assert f"{OLD} the content of clips" in said(identity(train), test)[0]


def test_an_unfinished_run_and_a_changed_test_set_are_said() -> None:
    assert "is not finished" in said(identity(TRAIN), finished=False)[0]
    other = record("test", range(900, 909))
    assert (
        "the test split has changed since the run was trained (1 clip gone)"
        in said(identity(TRAIN), other, own=True)[0]
    )
    assert "has changed" not in said(identity(TRAIN), other, own=False)[0]


@pytest.fixture
def run(tiny_recipe: Any, tmp_path: Path) -> Run:
    return create_run(tmp_path, tiny_recipe("data.dataset=msrvtt", "data.protocol=9k"))


def write_weights(run: Run, found: Any, which: str = "best") -> None:
    about = {"trained_on": ["msrvtt 9k"], "backbone": {}}
    save_tensors(run.weights(which), {"x": torch.zeros(1)}, about | ({} if found is None else {"identity": found}))


def test_weights_carry_it_and_it_comes_back(run: Run) -> None:
    write_weights(run, identity(TRAIN).for_weights(3))
    back = weights_identity(run.weights("best"))
    assert back is not None and back.undecodable == 3
    assert back.train == TRAIN.lean() and back.train.sentences == ""
    write_weights(run, None)
    assert weights_identity(run.weights("best")) is None


@pytest.mark.parametrize("damaged", [[], {}, "x", {"splits": {}}, {**identity(TRAIN).for_weights(0), "splits": {}}])
def test_a_damaged_one_is_a_sentence(run: Run, damaged: Any) -> None:
    write_weights(run, damaged)
    with pytest.raises(CheckpointError, match="does not say"):
        weights_identity(run.weights("best"))


def test_retrieval_is_not_tested_on_a_list_that_is_known_to_be_trained_on(run: Run) -> None:
    write_weights(run, identity(TRAIN).for_weights(0))
    test = SourceSpec("msrvtt", protocol="full")
    with pytest.raises(CheckpointError, match=r"trained on msrvtt 9k, whose training list holds 1,990 of the 2,990"):
        labels_of(run, "best", test, record("test", range(900, 910), protocol="full"))
    assert labels_of(run, "best", test, TEST).trained_protocol == "9k"


def test_labels_are_of_what_was_read(run: Run) -> None:
    write_weights(run, identity(record("train", range(9), "didemo", "")).for_weights(0))
    labels = labels_of(run, "best", SourceSpec("lsmdc"), record("test", range(5), "msvd", ""))
    assert (labels.dataset, labels.trained_on, labels.trained_protocol) == ("msvd", "didemo", "")
    assert labels.test_set is not None and labels.test_set["clips"] == 5


def test_a_digest_of_a_recipe_knows_numbers_and_no_places(tiny_recipe: Any) -> None:
    def digest(*overrides: str) -> str:
        recipe: Recipe = tiny_recipe("alignment.kind=none", *overrides)
        return recipe_digest(recipe.model_dump(mode="json"))

    same = ("name=x", "data.root=elsewhere", "data.workers=3", "optim.save_every=7", "device=cpu")
    assert {digest(each) for each in same} == {digest()}
    kept = ("data.cache=disk", "data.cache_folder=elsewhere", "data.cache_gb=3")
    assert digest(*kept) == digest("data.cache=none") != digest("data.cache=none", "data.short_side=64")
    other = ("data.frames=3", "seed=3", "data.features=f", "backbone.weights=a.safetensors", "backbone.weights=openai")
    assert len({digest(), *(digest(each) for each in other)}) == 6
    files = {digest(f"backbone.weights={place}.safetensors") for place in ("a", "b/c")}
    assert len(files) == 1, "the file's content has a digest of its own"


def test_the_newest_run_is_the_one_that_logged_last(tiny_recipe: Any, tmp_path: Path) -> None:
    first, second = create_run(tmp_path, tiny_recipe()), create_run(tmp_path, tiny_recipe())
    for run, time in ((second, 2000.0), (first, 1000.0)):  # the first one was put back from a backup
        run.weights("best").write_bytes(b"x")
        run.log.write_text(json.dumps({"step": 1, "time": time}) + '\n{"step": 2, "ti')
    assert find_run(None, tmp_path).folder == second.folder


def test_another_protocol_of_a_runs_own_set_does_not_ask_for_its_validation_clips(
    tmp_path: Path, tiny_recipe_values: Any
) -> None:
    videos = [{"video_id": f"video{k}", "split": "test"} for k in range(2)]
    sentences = [{"video_id": f"video{k}", "caption": "a"} for k in range(2)]
    (tmp_path / "test_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    for k in range(2):
        (tmp_path / f"video{k}.mp4").write_bytes(b"x")
    values = tiny_recipe_values(tmp_path)
    values["data"] |= {"dataset": "msrvtt", "val_clips": 7}
    recipe = recipe_from_dict(values)
    source = open_source(SourceSpec("msrvtt", tmp_path, protocol="full"), recipe)
    assert len(source.split("test").ids) == 2
