"""The page of a run: what is drawn and listed is what was kept, and it is safe to open."""

import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from calmctl.api import evaluate
from calmctl.cli.main import app
from calmctl.errors import BadInput
from calmctl.evaluation.compare import read_kept
from calmctl.explain.report import _COLOURS, histograms, training_figures, worst, write_report
from calmctl.runs.catalogue import kept_evaluations
from calmctl.runs.run import Run
from calmctl.source.base import SourceSpec

GOLDEN = Path(__file__).parents[1] / "golden/runs"
EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=1"> \x1b[31m'


@pytest.fixture(scope="module")
def runs(tiny_world, tmp_path_factory):
    """The committed runs, of both tasks, with an evaluation each on the drawn world."""
    pytest.importorskip("matplotlib")
    folder, made = tmp_path_factory.mktemp("reported"), {}
    patched = pytest.MonkeyPatch()
    from calmctl.captions import score
    from calmctl.captions.java import JavaUnavailable

    def find_java() -> None:
        raise JavaUnavailable("no Java in this test")

    patched.setattr(score, "find_java", find_java)
    for name in ("tiny-001", "told-001"):
        shutil.copytree(GOLDEN / name, folder / name, ignore=shutil.ignore_patterns("evals"))
        made[name] = Run(folder / name)
        recipe = json.loads(made[name].recipe_file.read_text())
        recipe["data"]["root"] = str(tiny_world)
        made[name].recipe_file.write_text(json.dumps(recipe))
        evaluate(made[name], SourceSpec("demo", tiny_world), device="cpu")
    patched.undo()
    return made


def kept(run):
    (path,) = kept_evaluations(run)
    return read_kept(run, path)


def bars(figure):
    """The numbers above the bars of a histogram, as they are written."""
    return [float(text) for text in re.findall(r">(\d+\.\d)</text>", figure.svg)]


def test_the_histogram_counts_ranks(runs):
    evaluation = kept(runs["tiny-001"])
    forward, back = histograms(evaluation)
    for figure, way in ((forward, "text_to_video"), (back, "video_to_text")):
        columns = evaluation.record["ranks"][way]
        ranks = [1 + greater + equal / 2 for greater, equal in zip(columns["greater"], columns["equal"], strict=True)]
        n = len(ranks)
        by_hand = [sum(np.ceil(rank) in bin for rank in ranks) for bin in ((1,), (2,), (3, 4, 5), (6, 7, 8, 9, 10))]
        assert bars(figure) == [round(100 * count / n, 1) for count in by_hand] and sum(by_hand) == n
    (captions,) = histograms(kept(runs["told-001"]))
    assert sum(bars(captions)) == pytest.approx(100, abs=0.6)


def test_the_worst_come_first_and_their_rivals_are_the_clips_they_like_best(runs):
    evaluation = kept(runs["tiny-001"])
    record, misses = evaluation.record, worst(evaluation, 100)
    ranks = evaluation.ranks["text_to_video"].ranks()
    assert len(misses) == (ranks > 1).sum() > 0
    shown = [float(re.findall(r"rank (\S+) of 6", miss.figure)[0]) for miss in misses]
    assert shown == sorted(ranks[ranks > 1], reverse=True)
    for miss in misses:
        query = record["captions"].index(miss.text)
        assert miss.right.clip == record["clips"][record["owners"][query]]
        assert miss.rival is not None and miss.rival.clip == record["clips"][record["rivals"][query]] != miss.right.clip
    scores = kept(runs["told-001"]).record["clip_scores"]["cider"]
    assert [miss.right.clip for miss in worst(kept(runs["told-001"]), 3)] == sorted(scores, key=scores.get)[:3]


def test_figures_are_parts_of_the_page(runs):
    figures = [*training_figures(runs["tiny-001"]), *histograms(kept(runs["tiny-001"]))]
    assert [figure.title for figure in figures[:2]] == ["Losses in training", "Validation, text to video"]
    ids = []
    for figure in figures:
        root = ElementTree.fromstring(figure.svg.replace("xlink:", ""))
        assert root.tag == "svg" and root.get("aria-label") == figure.title and root.get("width") is None
        own = [element.get("id") for element in root.iter() if element.get("id")]
        used = re.findall(r'(?:url\(#|href="#)([^")]+)', figure.svg)
        assert set(used) <= set(own), "a name that leads nowhere draws nothing"
        ids += own
        assert not any(colour in figure.svg for colour in _COLOURS), "colours are those of the page"
    assert len(ids) == len(set(ids))
    again = [*training_figures(runs["tiny-001"]), *histograms(kept(runs["tiny-001"]))]
    assert again == figures


def test_the_page_says_what_is_kept_and_nothing_acts(runs, tmp_path, browser):
    run = Run(tmp_path / "evil-001")
    shutil.copytree(runs["tiny-001"].folder, run.folder)
    (path,) = kept_evaluations(run)
    record = json.loads(path.read_text())
    record["captions"] = [EVIL for _ in record["captions"]]
    path.write_text(json.dumps(record))
    page = tmp_path / "page.html"
    write_report(run, page, top=3)
    for width in (1100, 360):
        browser.open(page, width=width, dark=width < 600)
        assert [entry["message"] for entry in browser.logs("browser")] == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.title") == "Report of evil-001 · calmctl report"
    assert browser.run("return [document.scripts.length, document.querySelectorAll('main img[onerror]').length]") == [
        1,
        0,
    ]
    assert browser.run("return document.querySelectorAll('article').length") == 3
    assert browser.run("return document.querySelectorAll('.strip img').length") >= 9, "pictures of the clips"
    text = browser.run("return document.querySelector('main').textContent")
    r1 = record["result"]["metrics"]["text_to_video"]["r1"]
    interval = record["result"]["intervals"]["text_to_video"]["r1"]
    assert f"{r1:.1f} ({interval['low']:.1f} to {interval['high']:.1f})" in text
    assert "optim.epochs" in text and "\\x1b" in text


def test_a_page_of_a_captioner_and_of_a_run_without_its_data(runs, tmp_path):
    page = tmp_path / "page.html"
    run = Run(tmp_path / "told-001")
    shutil.copytree(runs["told-001"].folder, run.folder)
    recipe = json.loads(run.recipe_file.read_text())
    recipe["data"]["root"] = "nowhere"
    run.recipe_file.write_text(json.dumps(recipe))
    write_report(run, page)
    text = page.read_text()
    assert "Without pictures" in text and "CIDEr" in text and "The clip that came first" not in text


def test_the_command_writes_it_beside_the_run(runs, tmp_path, monkeypatch):
    shutil.copytree(runs["tiny-001"].folder, tmp_path / "runs/tiny-001")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["report"])
    assert result.exit_code == 0 and "wrote runs/tiny-001/report.html" in result.stderr, result.output
    assert CliRunner().invoke(app, ["report"]).exit_code == 0, "a page of ours is replaced"
    shutil.rmtree("runs/tiny-001/evals")
    nothing = CliRunner().invoke(app, ["report", "tiny-001"])
    assert isinstance(nothing.exception, BadInput) and "calmctl eval runs/tiny-001" in str(nothing.exception)


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=r"pip install 'calmctl\[report\]'"):
        write_report(Run(tmp_path), tmp_path / "page.html")
