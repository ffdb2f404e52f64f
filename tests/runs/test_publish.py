"""Runs passed on: exported, pushed to the loopback hub and fetched again, they score as before and tell no secret."""

import hashlib
import json
import os
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from calmctl import locks
from calmctl.api import evaluate, load
from calmctl.data.registry import load_dataset, protocol_for
from calmctl.errors import BadInput, CalmError, CheckpointError, HubError, RunFailed, RunNotFound
from calmctl.recipe import load_recipe
from calmctl.runs import publish
from calmctl.runs.publish import export_run, published_results, push_run, training_sentence
from calmctl.runs.run import ExportedRun, Run, find_run
from calmctl.source.base import SourceSpec

GOLDEN = Path(__file__).parents[1] / "golden/runs"
USER, TOKEN = "zaphodbeeblebrox", "hf_" + "s3cr3t" * 5


@pytest.fixture
def place(tmp_path: Path, tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a person whose paths and name stand wherever a run keeps such things."""
    home = tmp_path / "home" / USER
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    for name, value in {"HOME": str(home), "USER": USER, "LOGNAME": USER, "HF_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    (home / "world").symlink_to(tiny_world)
    for name in ("tiny-001", "frozen-001", "told-001"):
        shutil.copytree(GOLDEN / name, home / "runs" / name)
        recipe = json.loads((home / f"runs/{name}/recipe.json").read_text())
        recipe["data"] |= {"root": str(home / "world"), "videos": str(home / "world/clips")}
        recipe["backbone"]["weights"] = str(home / "start.safetensors")
        (home / f"runs/{name}/recipe.json").write_text(json.dumps(recipe))
    return home


def test_a_pushed_and_fetched_run_scores_bit_for_bit_as_before(place, hub):
    run, test = Run(place / "runs/tiny-001"), SourceSpec("demo", place / "world")
    before = evaluate(run, test, device="cpu")
    commit = push_run(run, "me/my-model")
    assert commit and hub.repositories["me/my-model"].keys() >= {"slim.safetensors", "README.md"}
    for name in ("hf://me/my-model", f"hf://me/my-model@{commit}", "hf://me/my-model@main"):
        fetched = find_run(name, Path("nowhere"))
        assert isinstance(fetched, ExportedRun) and fetched.name == name and fetched.task == "retrieval"
    after = evaluate("hf://me/my-model", test, device="cpu", kept=False)
    assert np.array_equal(before.scores, after.scores)
    assert before.result.metrics == after.result.metrics and after.result.labels.trained_on == "demo"
    model, again = load(run, device="cpu"), load("hf://me/my-model", device="cpu")
    ours = model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in again.state_dict().items())


def test_a_branch_moves_on_and_a_commit_stays(place, hub):
    run = Run(place / "runs/tiny-001")
    first = push_run(run, "me/my-model", licence="apache-2.0")
    assert find_run("hf://me/my-model", Path("runs")).folder.parent.name == first
    second = push_run(Run(place / "runs/frozen-001"), "me/my-model")
    assert find_run("hf://me/my-model", Path("runs")).folder.parent.name == second
    asked = len(hub.requests)
    assert find_run(f"hf://me/my-model@{first}", Path("runs")).folder.parent.name == first
    assert len(hub.requests) == asked, "a commit that is here needs no hub"


@pytest.mark.parametrize("name", ["tiny-001", "frozen-001", "told-001"])
def test_nothing_of_the_machine_is_published(place, hub, name, monkeypatch):
    run = Run(place / "runs" / name)
    if name == "tiny-001":  # its kept evaluation has the command line and versions
        evaluate(run, SourceSpec("demo", place / "world"), device="cpu")
        assert '"command"' in (run.evals / "demo-retrieval-test-best.json").read_text()
    push_run(run, "me/my-model")
    published = hub.repositories["me/my-model"]
    assert len(published) == 6
    secrets = [USER, TOKEN, str(place), "/tmp", "/home", platform.node(), platform.platform(), platform.release()]
    secrets += [f'"{package}"' for package in ("torch", "platform", "packages", "python", "command", "git", "created")]
    secrets += [torch.__version__, platform.python_version(), str(Path(__file__).parents[2])]
    for file, content in published.items():
        text = content[: 8 + int.from_bytes(content[:8], "little")] if file.endswith(".safetensors") else content
        for secret in secrets:
            assert secret.encode() not in text, f"{secret} is in {file}"
    protocol = protocol_for(run.task, "demo", None)
    captions = load_dataset("demo", place / "world", protocol=protocol).splits["test"].captions
    assert len(captions) >= 6 and not any(text.encode() in published["results.json"] for text in captions)


def test_an_export_is_a_run_by_itself_with_digests_of_all_its_files(place, tmp_path):
    run = Run(place / "runs/tiny-001")
    made = export_run(run, tmp_path / "out", licence="CC BY-NC 4.0")
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "out/SHA256SUMS").read_text().splitlines())
    assert sums.keys() | {"SHA256SUMS"} == made.files.keys()
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    exported = find_run(str(tmp_path / "out"), Path("runs"))
    assert isinstance(exported, ExportedRun) and exported.anchors() == run.anchors()
    recipe = load_recipe(tmp_path / "out/recipe.yaml")
    assert recipe == exported.recipe() and recipe.head == run.recipe().head and recipe.optim == run.recipe().optim
    again = export_run(exported, tmp_path / "again")
    slim = "slim.safetensors"
    assert (tmp_path / "again" / slim).read_bytes() == (tmp_path / "out" / slim).read_bytes(), again


def test_the_card_is_what_the_results_say(place, tmp_path):
    run = Run(place / "runs/tiny-001")
    export_run(run, tmp_path / "out", licence="CC BY-NC 4.0")
    card = (tmp_path / "out/README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["license_name"]) == ("other", "CC BY-NC 4.0")
    tested = json.loads(run.results.read_text())["test"][0]
    (index,) = header["model-index"]
    (entry,) = index["results"]
    assert entry["dataset"] == {"name": "demo retrieval", "type": "demo", "split": "test"}
    values = {each["type"]: each["value"] for each in entry["metrics"]}
    ours = tested["metrics"]["text_to_video"]
    assert values["text_to_video_r1"] == round(ours["r1"], 2) and values["text_to_video_mnr"] == round(ours["mnr"], 2)
    assert "Trained on demo retrieval: 12 clips" in card and "6 clips; 0 clips left out" in card
    assert "No video, no frame and no caption is part of these files." in card
    assert training_sentence(run.recipe(), None).startswith("Trained on demo; how much of it was not recorded.")


def test_what_would_be_lost_or_told_is_refused(place, tmp_path, monkeypatch):
    run = Run(place / "runs/tiny-001")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        export_run(run, tmp_path / "full")
    vocabulary = run.vocabulary.read_text()
    run.weights("slim").unlink()  # or the anchors inside of it are taken
    run.vocabulary.write_text(vocabulary.replace("source: The calmctl authors", f"source: {place}/labels.txt"))
    with pytest.raises(BadInput, match=r"slim\.safetensors of the export would hold the home folder"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half published"
    run.weights("best").unlink()
    with pytest.raises(CalmError, match="train --resume"):
        export_run(run, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot create"):
        export_run(run, tmp_path / "file/below")


@pytest.mark.parametrize(
    "content", ["[]", '{"test": 3}', '{"test": [{"system": "best"}]}', '{"test": [{"system": "best", "dataset": 1}]}']
)
def test_numbers_that_are_none_are_not_published(place, tmp_path, content):
    run = Run(place / "runs/tiny-001")
    run.results.write_text(content)
    with pytest.raises(CheckpointError, match="its recorded numbers cannot be read"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_appears_whole_whoever_is_killed_and_whoever_else_exports(place, tmp_path, monkeypatch):
    run, out = Run(place / "runs/tiny-001"), tmp_path / "out"
    whole = export_run(run, tmp_path / "alone").files
    half = tmp_path / ".calmctl-x1y2.tmp"  # as a killed export leaves it
    half.mkdir()
    locks._tidied.clear()  # as in the next process
    card, others = publish.model_card, []

    def beside(*arguments, **keys):
        monkeypatch.setattr(publish, "model_card", card)
        assert not out.exists() and not half.exists()
        others.append(export_run(run, out))  # a second process, which ends first
        return card(*arguments, **keys)

    monkeypatch.setattr(publish, "model_card", beside)
    with pytest.raises(BadInput, match="exists and is not empty"):
        export_run(run, out)
    assert others[0].files == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "home", "out"]


@pytest.mark.parametrize("name", ["hf://", "hf://me", "hf://me/x/y", "hf://me/x@", "hf://me/../x"])
def test_a_name_that_is_none_is_a_sentence(name, hub):
    with pytest.raises(BadInput):
        find_run(name, Path("runs"))
    assert os.environ["HF_ENDPOINT"] == hub.endpoint


def test_a_repository_without_a_run_and_a_hub_that_refuses_are_sentences(place, hub):
    hub.add("me/other", {"config.json": b"{}"})
    with pytest.raises(RunNotFound, match=r"run hf://me/other: there is no slim\.safetensors in it"):
        find_run("hf://me/other", Path("runs"))
    with pytest.raises(HubError, match="run hf://me/missing"):
        find_run("hf://me/missing", Path("runs"))
    with pytest.raises(BadInput, match="OWNER/NAME"):
        push_run(Run(place / "runs/tiny-001"), "my-model")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("silent", "did not answer within 0.3 s"),
        ("portal", "a web page that is no file of a hub"),
        ("503", "out of order"),
        ("407", "the proxy wants a name and a password"),
        ("gated", "403"),
        ("private", "HF_TOKEN"),
    ],
)
def test_a_hub_that_does_not_take_it_is_a_sentence_at_once(place, hub, monkeypatch, fault, message):
    monkeypatch.setattr("calmctl.hub.ANSWER_S", 0.3)
    hub.fault = fault
    with pytest.raises(HubError, match=rf"pushing to me/my-model: .*{message}") as refused:
        push_run(Run(place / "runs/tiny-001"), "me/my-model")
    assert "hf download" not in str(refused.value), "there is nothing to download"


def test_every_protocol_s_numbers_are_published_and_caveats_name_no_path(place):
    run = Run(place / "runs/tiny-001")
    shutil.rmtree(run.evals)  # of its training: results.json alone is read here
    finished = json.loads(run.results.read_text())
    test = {**finished["test"][0], "card": {"column": "a"}}
    test["caveats"] = [
        "/home/somebody/runs/tiny-001 was made before",
        "runs/tiny-001: old",
        "of runs/tiny-0012 nothing",
    ]
    from_before = {key: value for key, value in test.items() if key != "card"}
    tests = [from_before, test, {**test, "card": {"column": "b"}}, test]
    run.results.write_text(json.dumps({**finished, "test": tests}))
    first, second = published_results(run, "my-model")["results"]
    assert [first["card"]["column"], second["card"]["column"]] == ["a", "b"]
    assert first["caveats"] == ["my-model was made before", "my-model: old", "of runs/tiny-0012 nothing"]


def test_weights_beside_another_recipe_are_not_published(place, tmp_path):
    run = Run(place / "runs/tiny-001")
    recipe = json.loads(run.recipe_file.read_text())
    run.recipe_file.write_text(json.dumps({**recipe, "seed": 25}))
    with pytest.raises(CalmError, match=r"not trained with the recipe\.json beside it"):
        export_run(run, tmp_path / "out")


def test_an_unfinished_training_is_told(place, tmp_path):
    run = Run(place / "runs/tiny-001")
    export_run(run, tmp_path / "whole")
    run.results.unlink()
    export_run(run, tmp_path / "half")
    sentence = "This training had not ended when it was exported."
    assert sentence in (tmp_path / "half/README.md").read_text()
    assert sentence not in (tmp_path / "whole/README.md").read_text()
