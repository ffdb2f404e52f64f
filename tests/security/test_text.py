"""Captions and file names are other people's text: on a page and on a terminal they are shown and never obeyed."""

import csv
import dataclasses
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.table import Table

from calmctl.captions.generate import Caption, Segment, srt
from calmctl.cli import console
from calmctl.cli.console import print_left_out
from calmctl.cli.main import main
from calmctl.data.annotations import write_captions
from calmctl.data.registry import load_dataset
from calmctl.evaluation.result import Labels
from calmctl.explain.explainer import explain_with_run, see_video
from calmctl.explain.pages import pair_page
from calmctl.explain.pair import explain
from calmctl.referee.rank_files import format_ranks, read_ranks
from calmctl.referee.score_files import Pairs
from calmctl.referee.scores import Matrix, judge_scores, match
from calmctl.words import cell, is_formula, uncell

TEXTS = {
    "clear the screen": "a\x1b[2J\x1b[Hb",
    "colours": "a \x1b[31;1mred\x1b[0m b",
    "move up and overwrite": "a\x1b[1A\x1b[2Kb",
    "title of the window": "a\x1b]0;owned\x07b",
    "link of the terminal": "a\x1b]8;;http://evil.example\x1b\\b",
    "clipboard": "a\x1b]52;c;ZWNobyBvd25lZA==\x07b",
    "answer back": "a\x1b[6n\x1b[cb",
    "device control": "a\x1bP+q544e\x1b\\b",
    "eight-bit control": "a\x9b2J\x9d0;x\x9cb",
    "bell and backspace": "a\x07\x08\x08\x08b",
    "carriage return": "all is well\rowned      ",
    "lines": "a\nerror: b\r\nc\x0b\x0cd",
    "NUL and DEL": "a\x00\x7fb",
    "right to left": "clip\u202e4pm.exe",
    "isolates": "a\u2066\u2067b\u2069",
    "marks of direction": "a\u200e\u200f\u061cb",
    "no width": "a\u200b\u200c\u2060\ufeffb",
    "line separators": "a\u2028b\u2029c\x85d",
    "half a character": "a\udc80\ud800b",
    "private and unassigned": "a\ue000\uffff\U0010ffffb",
    "tag characters": "a\U000e0041\U000e007fb",
    "end of script": "</script><script>owned=1</script>",
    "end of style": "</style><style>*{display:none}</style>",
    "end of title": "</title><script>owned=1</script>",
    "picture": "<img src=x onerror=owned=1>",
    "drawing": "<svg/onload=owned=1>",
    "attribute": '" onclick="owned=1" x="',
    "attribute in single quotes": "' onmouseover='owned=1' x='",
    "comment": "--><script>owned=1</script><!--",
    "CDATA": "]]><script>owned=1</script><![CDATA[",
    "entity": "&lt;script&gt;owned=1&lt;/script&gt; &#60;b&#62;",
    "frame": "<iframe srcdoc='<script>owned=1</script>'>",
    "base": "<base href=http://evil.example/><meta http-equiv=refresh content=0>",
    "address": "javascript:owned=1",
    "style": "x;background:url(http://evil.example/x)",
    "template": "{{ 7*7 }}{% raw %}{{ config }}{# x #}",
    "format": "{0} {x.__class__} %s %n $HOME `id` $(id)",
    "mark-up of rich": "[bold red]x[/] [link=http://evil.example]y[/link] [/nothing]",
    "mark-up left open": "[/][[bold]\\[red]",
    "emoji of rich": ":skull: :warning:",
    "very long": "<b>" * 2000,
    "marks on marks": "e" + "\u0301" * 300,
}
each = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="session")
def explanation(run, tiny_world):
    explainer = explain_with_run(run, torch.device("cpu"))
    clip = load_dataset("demo", tiny_world).splits["test"].clips[0]
    return explain(explainer, see_video(explainer, clip, instants=3, pictures=True), "a red circle")


def page_of(explanation, text):
    clip = dataclasses.replace(explanation.seen.clip, id=text, path=Path(text.replace("\0", "")))
    return pair_page(
        dataclasses.replace(explanation, sentence=text, seen=dataclasses.replace(explanation.seen, clip=clip))
    )


@each
def test_on_a_page(explanation, refused, text):
    plain, page = page_of(explanation, "a red circle"), page_of(explanation, text)
    page.encode("utf-8")
    assert Elements(page).found == Elements(plain).found, "the text became an element or an attribute"
    assert all(c == "\n" or c.isprintable() for c in page)
    assert console.visible(text) in "".join(Elements(page).texts), "it is shown as it is"
    refused("text on a page")


def received(capsys):
    """What the terminal got on both streams: only what is printable, and lines."""
    shown = "".join(capsys.readouterr())
    shown.encode("utf-8")
    assert [c for c in shown if c != "\n" and not c.isprintable()] == []
    return shown


@each
def test_on_the_terminal(capsys, refused, text):
    console.note(console.printable(text))
    console.stdout().print(text, markup=False)
    print_left_out({"train": {text: text}})
    table = Table(title=console.printable(text))
    table.add_column(console.printable(text))
    table.add_row(console.printable(text))
    console.stdout().print(table)
    with console.progress_bar("clips") as bar:
        bar.add_task(console.printable(text), total=1, note=console.printable(text))
    shown = received(capsys)
    assert console.visible(text)[:20] in shown
    refused("text on the terminal")


@each
def test_in_json_for_programs(capsys, refused, text):
    console.print_json({text: [text]})
    shown = received(capsys)
    assert json.loads(shown) == {text: [text]}, "a program gets the text itself"
    refused("text in JSON")


@each
def test_in_an_error(capsys, refused, monkeypatch, text):
    monkeypatch.setattr(sys, "argv", ["calmctl", "train", text + ".yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = received(capsys)
    assert ended.value.code == 2 and "Traceback" not in shown
    refused("text in an error")


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=1", "''-1", '=HYPERLINK("http://evil.example")']


def test_no_cell_of_a_table_of_ours_is_a_formula(tmp_path, refused):
    """Names of ranks come back as they were; of captions the file and the sentence do."""
    text_ids, video_ids = tuple(FORMULAS[:3]), tuple(FORMULAS[3:6])
    found = match((3, 3), Pairs("pairs", dict(zip(text_ids, video_ids, strict=True))), text_ids, video_ids)
    verdict = judge_scores(Matrix(np.eye(3, dtype=np.float32)), found, Labels(scorer="given"))
    path = tmp_path / "ranks.csv"
    path.write_text(format_ranks(verdict, ".csv"))
    rows = list(csv.reader(path.read_text().splitlines()))
    assert len(rows) > 9 and not [each for row in rows for each in row if is_formula(each)]
    again = read_ranks(path)
    assert (again.text_ids, again.video_ids) == (text_ids, video_ids)
    for text in FORMULAS:
        assert uncell(cell(text)) == text and not is_formula(cell(text))
        refused("formula in a table")


def test_captions_of_ours_are_no_formulas_and_lead_to_their_files(tmp_path, refused):
    names = ["=a.mp4", "-b.mp4", "@c.mp4", "d.mp4"]
    write_captions(tmp_path / "captions.csv", dict(zip(names, ["=1+1", "-x", "@y", "a man"], strict=True)))
    for name in names:
        (tmp_path / name).touch()
    cells = [each for row in csv.reader((tmp_path / "captions.csv").read_text().splitlines()) for each in row]
    assert not [each for each in cells if is_formula(each)]
    splits = load_dataset("folder", tmp_path).splits
    said = {split.clips[owner].path.name: caption.strip() for split in splits.values()
            for caption, owner in zip(split.captions, split.owners, strict=True)}  # fmt: skip
    assert said == dict(zip(names, ["=1+1", "-x", "@y", "a man"], strict=True))
    refused("formula in a table")


@each
def test_in_subtitles(refused, text):
    """Whatever a caption says, it is one line of one cue."""
    cue = f"{text}\n\n2\n00:00:01,000 --> 00:00:02,000\nowned"
    blocks = srt([Segment(0.0, 1.0, Caption(cue, 0.0, 1))])
    assert blocks.count("-->") == 1 and blocks.count("\n") == 3 and "\n\n" not in blocks
    assert all(c == "\n" or c.isprintable() or c in "\u3000\xa0\u200c\u200d" for c in blocks)
    refused("text in subtitles")
