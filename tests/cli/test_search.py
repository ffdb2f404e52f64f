"""`calmctl search` as its user meets it: sentences, a folder, a table."""

import io
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.anchors.vocabulary import save_vocabulary
from calmctl.cli.main import app
from calmctl.data.demo_drawing import encode
from calmctl.errors import CalmError
from calmctl.model.build import build_model
from calmctl.model.weights import load_backbone
from calmctl.recipe import recipe_from_dict
from calmctl.runs.checkpoint import save_weights
from calmctl.runs.run import create_run
from calmctl.tensors import save_tensors


def calmctl(*arguments: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["search", *map(str, arguments)], input=stdin)
    if isinstance(result.exception, CalmError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips and a broken one, an X-Pool run that was never trained, and bare weights."""
    root = tmp_path_factory.mktemp("search")
    (root / "my [videos]").mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
        (root / f"my [videos]/clip{number}.mp4").write_bytes(encode(frames.repeat(8, 1).repeat(8, 2)))
    (root / "my [videos]/broken\x1b[31m.mp4").write_text("no video")
    torch.manual_seed(0)
    save_tensors(root / "bare.safetensors", load_backbone("demo-clip", None).clip.state_dict(), {})
    values = {
        "name": "tiny",
        "data": {"dataset": "folder", "root": str(root), "frames": 2},
        "backbone": {"model": "demo-clip", "weights": None},
        "anchors": {"vocabulary": "shapes@1"},
        "head": {"kind": "xpool"},
    }
    recipe = recipe_from_dict(values)
    run, vocabulary = create_run(root / "runs", recipe), resolve_vocabulary("shapes@1")
    save_vocabulary(vocabulary, run.vocabulary)
    model = build_model(recipe, vocabulary)
    save_weights(run.weights("best"), model, slim=False, about={})
    return root


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return Path("my [videos]")


def test_sentences_find_clips_and_the_table_fits_80_columns(here):
    result = calmctl("a man talking", "a [bold]red[/] car \x1b[31m", "--in", here, "--why", "--top", 9)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout and "a [bold]red[/] car \\x1b[31m" in result.stdout
    assert result.stdout.count("clip1.mp4") == 2 and "exact: the head's score of all 3 clips" in result.stdout
    assert "%" in result.stdout, "shared anchors"
    assert "newest run" in result.stderr and "broken\\x1b[31m" in result.stderr and "not a video" in result.stderr
    assert "━" not in result.stderr, "no progress bar where there is no terminal"


def test_json_has_everything_and_nothing_else_is_on_stdout(here):
    record = json.loads(calmctl("a man talking", "--in", here, "--why", "--json").stdout)
    (answer,) = record["answers"]
    assert answer["query"] == "a man talking" and [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    hit = answer["hits"][0]
    assert Path(hit["file"]).is_file() and hit["start_s"] == 0 and hit["end_s"] > 0
    assert hit["shared"] and set(hit["shared"][0]) == {"anchor", "share"}
    assert hit["score"] >= answer["hits"][1]["score"] and record["clips"] == 3
    assert list(record["left_out"]) == ["broken\x1b[31m"] and "head xpool" in record["by"]


def test_queries_come_from_files_and_from_standard_input(here, tmp_path):
    lines = tmp_path / "queries.txt"
    lines.write_text("a dog\n\n  a cat \n", encoding="utf-8")
    table = tmp_path / "queries.csv"
    table.write_text("video,caption\na,a bird\nb,a fish\n", encoding="utf-8")

    def asked(*arguments: object, stdin: str | None = None) -> list[str]:
        found = json.loads(calmctl("--in", here, "--json", *arguments, stdin=stdin).stdout)
        return [answer["query"] for answer in found["answers"]]

    assert asked("first", "--queries", lines) == ["first", "a dog", "a cat"]
    assert asked("--queries", table) == ["a bird", "a fish"]
    assert asked("--queries", "-", stdin="ein Hund\nein Bär\n") == ["ein Hund", "ein Bär"]


def test_a_bare_backbone_searches_without_a_run(here):
    record = json.loads(
        calmctl("x", "--in", here, "--backbone", "demo-clip", "--backbone-weights", "bare.safetensors", "--json").stdout
    )
    assert "mean pooling" in record["by"] and record["clips"] == 3


def test_a_contact_sheet_and_windows(here, tmp_path):
    page = tmp_path / "sheet.html"
    result = calmctl("a man talking", "--in", here, "--window", 0.2, "--html", page, "--top", 4)
    assert result.exit_code == 0 and page.read_text(encoding="utf-8").count("data:image/jpeg") == 12
    assert f"wrote {page.name}" in result.stderr.replace(f"{tmp_path}/", "").replace("\n", "")
    # Neighbouring windows are one moment: none of a file's hits overlaps or adjoins another, and together they are all.
    record = json.loads(calmctl("x", "--in", here, "--window", 0.2, "--top", 99, "--json").stdout)
    hits = record["answers"][0]["hits"]
    assert all(abs(hit["end_s"] - hit["start_s"] - 0.2) < 0.11 for hit in hits)
    for one, other in combinations(hits, 2):
        apart = one["start_s"] > other["end_s"] + 1e-6 or other["start_s"] > one["end_s"] + 1e-6
        assert one["file"] != other["file"] or apart
    assert record["clips"] == len(hits) + sum(hit["neighbours"] for hit in hits) > len(hits)
    said = calmctl("x", "--in", here, "--window", 0.2, "--top", 99).stdout
    assert "0.2 s to 0.4 s" in said or "0.0 s to 0.2 s" in said
    assert "beside it" in said


def test_moments_are_the_windows_of_a_search_in_each_querys_own_video(here, tmp_path):
    truth, out = tmp_path / "timed.jsonl", tmp_path / "answers.jsonl"
    rows = [{"qid": n, "query": f"thing {n}", "vid": f"clip{n}", "relevant_windows": [[0, 0.2]]} for n in range(2)]
    rows.append({"qid": 7, "query": "thing 7", "vid": "elsewhere", "relevant_windows": [[0, 1]]})
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = tmp_path / "kept"
    told = json.loads(
        calmctl(
            *("moments", truth, "--in", here, "--window", 0.2, "--top", 99, "--out", out, "--json", "--cache", kept)
        ).stdout
    )
    assert (told["queries"], told["answered"]) == (3, 2)
    assert told["notes"] == ["1 query without an answer: missed in every metric"]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    for row, answer in zip(rows, answers, strict=False):
        record = json.loads(calmctl(row["query"], "--in", here, "--window", 0.2, "--top", 99, "--json").stdout)
        own = [hit for hit in record["answers"][0]["hits"] if Path(hit["file"]).stem == row["vid"]]
        expected = [[hit["start_s"], hit["end_s"], hit["score"]] for hit in own]
        assert np.allclose(answer["pred_relevant_windows"], expected, atol=1e-6) and len(own) > 1
    scored = CliRunner().invoke(app, ["score", "moments", str(out), str(truth), "--json"])
    assert json.loads(scored.stdout)["metrics"] == told["metrics"]
    with pytest.raises(CalmError, match="with --window SECONDS"):
        calmctl("moments", truth, "--in", here)
    # The store that the search kept has all of it: the videos are asked for nothing.
    (store,) = kept.iterdir()
    again = calmctl("moments", truth, "--in", store, "--top", 99, "--out", tmp_path / "again.jsonl", "--json").stdout
    assert json.loads(again)["metrics"] == told["metrics"]
    assert (tmp_path / "again.jsonl").read_text() == out.read_text()
    stored, fresh = (
        json.loads(calmctl("thing", "--in", where, "--top", 99, "--json").stdout)["answers"][0]["hits"]
        for where in (store, here)
    )
    windows = json.loads(calmctl("thing", "--in", here, "--window", 0.2, "--top", 99, "--json").stdout)
    places = [[hit[key] for key in ("clip", "start_s", "end_s", "neighbours")] for hit in stored]
    hits = windows["answers"][0]["hits"]
    assert places == [[hit[key] for key in ("clip", "start_s", "end_s", "neighbours")] for hit in hits]
    assert {hit["file"] for hit in stored} == {None} and len(fresh) == 3


def test_the_other_directions(here, tmp_path):
    clip = here / "clip0.mp4"
    record = json.loads(calmctl("similar", clip, "--in", here, "--json").stdout)
    assert sorted(hit["clip"] for hit in record["answers"][0]["hits"]) == ["clip1", "clip2"]
    said = tmp_path / "said.txt"
    said.write_text("a dog\na cat\na bird\n")
    ranked = json.loads(calmctl("captions", said, clip, "--why", "--json", "--top", 2).stdout)["sentences"]
    assert len(ranked) == 2 and ranked[0]["score"] >= ranked[1]["score"] and ranked[0]["shared"] is not None
    table = calmctl("captions", said, clip)
    assert "a bird" in table.stdout and max(map(len, table.stdout.splitlines())) <= 80
    # The same pair scores the same from both sides, but for the rounding of the features kept for the folder.
    dog = json.loads(calmctl("a dog", "--in", here, "--json").stdout)["answers"][0]["hits"]
    other = json.loads(calmctl("captions", said, clip, "--json").stdout)["sentences"]
    from_folder = next(hit["score"] for hit in dog if hit["clip"] == "clip0")
    assert next(each["score"] for each in other if each["sentence"] == "a dog") == pytest.approx(from_folder, abs=5e-3)


def test_two_stages_and_their_recall(here):
    pytest.importorskip("usearch")
    exact = json.loads(calmctl("a dog", "--in", here, "--json").stdout)
    two = json.loads(calmctl("a dog", "--in", here, "--approximate", "--json").stdout)
    assert (
        two["answers"] == exact["answers"]
        and two["method"].startswith("two-stage")
        and exact["method"].startswith("exact")
    )
    measured = json.loads(calmctl("recall", "a dog", "a cat", "--in", here, "--candidates", 10, "--json").stdout)
    # never more candidates than there are clips
    assert measured == {"at": 10, "queries": 2, "candidates": 3, "kept": 1.0, "first": 1.0}
    assert (
        "recall@10 of the first stage over 2 queries: 100.0 %"
        in calmctl("recall", "a dog", "a cat", "--in", here).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a sentence"),
        ([" "], "a sentence is empty"),
        (["similar", "nowhere.mp4"], "is no file"),
        (["similar", "CLIP", "--in", "nowhere"], "nowhere: not a folder"),
        (["captions", "nowhere.txt", "CLIP"], "cannot read nowhere.txt"),
        (["captions", "empty.txt", "nowhere.mp4"], "is no file"),
        (["captions", "empty.txt", "CLIP"], "no sentence in it"),
        (["recall", " "], "a sentence is empty"),
        (["x", "--candidates", "5"], "looks at every clip"),
        (["x", "--run", "tiny-001", "--backbone", "demo-clip"], "exclude each other"),
        (["x", "--run", "nothing"], "no run at nothing"),
        (["x", "--stride", "5"], "give their length too"),
        (["x", "--in", "nowhere"], "nowhere: not a folder"),
        (["--queries", "empty.txt"], "no sentence in it"),
        (["--queries", "nowhere.txt"], "cannot read nowhere.txt"),
        (["recall", "--in", "FOLDER"], "give some with --queries"),
    ],
)
def test_mistakes_are_sentences(here, arguments, message):
    Path("empty.txt").write_text("\n \n")
    names = {"CLIP": str(here / "clip0.mp4"), "FOLDER": str(here)}
    with pytest.raises(CalmError, match=message):
        calmctl(*(names.get(argument, argument) for argument in arguments))


def test_standard_input_must_be_text(here, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    from calmctl.search.queries import read_sentences

    with pytest.raises(CalmError, match="not UTF-8"):
        read_sentences("-")


def test_without_usearch_the_command_says_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(CalmError, match=r"pip install 'calmctl\[index\]'"):
        calmctl("a dog", "--in", here, "--approximate")


def test_help_ends_in_commands_to_copy():
    text = calmctl("--help").stdout
    assert 'calmctl search "a man talking" --in holidays' in text and "search captions FILE CLIP" in text
    assert "calmctl search captions captions.csv clip.mp4" in calmctl("captions", "--help").stdout


def test_a_verb_is_the_word_after_search(here):
    """A sentence that is such a word stands behind `--`, or behind an option."""
    found = json.loads(calmctl("--in", here, "--json", "--", "similar", "recall").stdout)
    assert [answer["query"] for answer in found["answers"]] == ["similar", "recall"]
    found = json.loads(calmctl("--in", here, "--json", "similar").stdout)
    assert [answer["query"] for answer in found["answers"]] == ["similar"]
    no_clip = CliRunner().invoke(app, ["search", "similar"])
    assert no_clip.exit_code == 2 and "search similar [OPTIONS]" in no_clip.output


def test_what_a_verb_cannot_use_is_no_option_of_it():
    for words in (
        ["similar", "x.mp4", "--why"],
        ["similar", "x.mp4", "--approximate"],
        ["captions", "a", "b", "--in", "c"],
    ):
        refused = CliRunner().invoke(app, ["search", *words])
        assert refused.exit_code == 2 and "No such option" in refused.output


def test_importing_the_command_imports_no_torch():
    code = "import sys, calmctl.cli.search.search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_nothing_matches_is_an_answer(here, tmp_path):
    record = json.loads(calmctl("a man talking", "--in", here, "--confident", "--json").stdout)
    (answer,) = record["answers"]
    assert answer["matches"] == sum(hit["confidence"]["match"] for hit in answer["hits"])
    assert "phrases of anchors" in record["confidence"] and "not guaranteed" in record["confidence"]
    others = tmp_path / "others.txt"
    others.write_text("\n".join(f"sentence number {n}" for n in range(30)) + "\na man talking\n")
    # The question itself is among those that nothing here answers: it cannot be better than all of them by much.
    table = calmctl("sentence number 7", "--in", here, "--fdr", 0.04, "--calibrate", others)
    assert "31 sentences of others.txt" in " ".join(table.stdout.split())
    assert max(map(len, table.stdout.splitlines())) <= 80
    for wrong, reason in (
        (["--confident", "--fdr", "0.1"], "two rules"),
        (["--calibrate", others], "give one of them too"),
        (["--fdr", "0.001", "--calibrate", others], "needs 999 sentences"),
    ):
        with pytest.raises(CalmError, match=reason):
            calmctl("x", "--in", here, *wrong)


def test_paths_filters_cuts_and_questions_one_after_another(here, tmp_path, monkeypatch):
    paths = calmctl("x", "--in", here, "--paths").stdout.splitlines()
    assert sorted(map(Path, paths)) == [here / f"clip{n}.mp4" for n in range(3)]
    with pytest.raises(CalmError, match="none of 3 clips"):
        calmctl("x", "--in", here, "--longer", 3600)
    with pytest.raises(CalmError, match="none of 3 clips"):
        calmctl("x", "--in", here, "--before", "1999-12-31")
    assert len(calmctl("x", "--in", here, "--after", "2000-01-01", "--paths").stdout.splitlines()) == 3
    cuts = calmctl("x", "--in", here, "--top", 1, "--cut", tmp_path / "cuts")
    assert len(list((tmp_path / "cuts").iterdir())) == 1 and "wrote" in cuts.stderr
    told = calmctl("-i", "--in", here, stdin="a dog\n:like 1\n:like 99\na cat\n\n")
    assert told.exit_code == 0 and told.stdout.count("3 clips of my [videos]") == 3
    assert "from 1 to 2" in told.stderr
    with pytest.raises(CalmError, match=r"--open needs a player|nothing to open"):
        monkeypatch.setenv("PATH", str(tmp_path))
        calmctl("x", "--in", here, "--open")
