"""The pages, in a real headless Chromium where there is one."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from calmctl.anchors.vocabulary import make_vocabulary
from calmctl.explain.calibration import calibrate
from calmctl.explain.collection import find_failures
from calmctl.explain.explainer import see_video
from calmctl.explain.pages import (
    pair_page,
    visible,
    write_calibration_page,
    write_failures_page,
    write_pair_page,
)
from calmctl.explain.pair import explain
from calmctl.samples import Clip

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=1"> & "quoted" \x1b[31m\u202eback'
PHONE = 360


@pytest.fixture(scope="module")
def page(explainer, seen, collection, tmp_path_factory):
    """A page whose sentence, file name and anchors all try to be more than text."""
    labels = [f"<b onclick='x'>anchor {k}</b>" for k in range(5)]
    vocabulary = make_vocabulary(
        [(f"a{k}", label) for k, label in enumerate(labels)], where="test", name="evil", source="", licence=""
    )
    folder = tmp_path_factory.mktemp("page")
    clip = Clip("evil", folder / "<i>clip&.mp4")
    shutil.copy(seen.clip.path, clip.path)
    found = explain(
        replace(explainer, vocabulary=vocabulary),
        replace(see_video(explainer, clip, pictures=True)),
        EVIL,
        removed=(1,),
        collection=collection,
    )
    path = folder / "page.html"
    write_pair_page(found, path)
    return path


def errors(browser):
    return [entry["message"] for entry in browser.logs("browser")]


def outside(browser):
    """Requests for anything but the page itself and what it carries."""
    return [url for url in browser.requests() if not url.startswith(("file://", "data:"))]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, PHONE])
def test_it_renders_without_errors_or_requests_and_fits(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert errors(browser) == []
    asked = browser.requests()
    assert [url for url in asked if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_a_click_highlights_an_anchor_in_both_distributions(browser, page):
    browser.open(page)
    browser.click("#anchors button[data-anchor='3']")
    lit = browser.run(
        "return [...document.querySelectorAll('#anchors tr.chosen')].map(r => "
        "[r.dataset.anchor, !!r.querySelector('.video'), !!r.querySelector('.text')])"
    )
    assert lit == [["3", True, True]]
    assert browser.run("return document.querySelectorAll(\"[data-anchor='3']:not(.chosen)\").length") == 0
    said = browser.run("return document.getElementById('says').textContent")
    assert re.match(r"<b onclick='x'>anchor 3</b>: video .* %.*, sentence .* %", said)
    pressed = "return [...document.querySelectorAll('button[aria-pressed=true]')].every(b => b.dataset.anchor === '3')"
    assert browser.run(pressed)
    browser.click("#anchors button[data-anchor='3']")
    assert browser.run("return document.querySelectorAll('.chosen').length") == 0


def test_the_keyboard_does_the_same(browser, page):
    enter, escape = "\ue007", "\ue00c"
    browser.open(page)
    browser.press("#anchors button[data-anchor='2']", enter)
    assert browser.run("return document.querySelector('#anchors tr.chosen').dataset.anchor") == "2"
    browser.press("#anchors button[data-anchor='2']", escape)
    assert browser.run("return document.querySelectorAll('.chosen').length") == 0
    assert browser.run("return document.getElementById('says').textContent") == ""


def test_other_people_s_text_stays_text(browser, page):
    browser.open(page)
    heading = browser.run("return document.querySelector('h1').textContent")
    assert heading == "“" + EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e") + "”"
    assert "owned" not in browser.run("return document.title.replace(/.*<script>.*/, '')")
    assert browser.run("return document.querySelectorAll('main b[onclick], h1 img, header i').length") == 0
    assert browser.run("return document.scripts.length") == 1
    assert "<i>clip&.mp4" in browser.run("return document.querySelector('header').textContent")


def test_a_script_that_slipped_in_would_not_run(browser, page, tmp_path):
    """The page's policy knows one script by its digest; this is a page whose escaping has failed."""
    broken = tmp_path / "broken.html"
    text = page.read_text().replace("<main", "<script>window.owned = 1</script><img src=x onerror='owned=1'><main")
    broken.write_text(text)
    browser.open(broken)
    assert browser.run("return window.owned === undefined")
    assert any("Content Security Policy" in message for message in errors(browser))


def test_hidden_anchors_come_out_when_chosen_or_asked_for(browser, trained, seen, tmp_path):
    import torch

    from calmctl.explain.explainer import explain_with_run

    path = tmp_path / "many.html"
    write_pair_page(explain(explain_with_run(trained, torch.device("cpu"), vocabulary="coco"), seen, "a car"), path)
    browser.open(path)
    shown = "return [...document.querySelectorAll('#anchors tbody tr')].filter(r => r.offsetHeight > 0).length"
    assert browser.run(shown) == 10
    browser.click("button[data-all]")
    assert browser.run(shown) == 91
    browser.click("#anchors tr.more:last-child button")
    browser.click("button[data-all]")
    assert browser.run(shown) == 11
    assert errors(browser) == [] and outside(browser) == []


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast of two CSS colours rgb(r, g, b)."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(browser, page, dark):
    browser.open(page, dark=dark)
    found = browser.run(
        """
        const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
          if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
        return [...document.querySelectorAll('h1,h2,h3,p,dt,dd,li,td,th,button,span.num,span.soft,footer')]
          .filter(e => e.offsetHeight > 0 && e.textContent.trim())
          .map(e => [getComputedStyle(e).color, ground(e), e.textContent.trim().slice(0, 30)]);
        """
    )
    assert len(found) > 50
    assert [row for row in found if contrast(row[0], row[1]) < 4.5] == []


def test_it_has_landmarks_names_and_alternatives(browser, page):
    browser.open(page)
    nameless = browser.run(
        """
        const named = e => e.textContent.trim() || e.getAttribute('aria-label');
        return [...document.querySelectorAll('section')].filter(s => !document.getElementById(s.getAttribute(
            'aria-labelledby'))).length + [...document.images].filter(i => !i.alt).length
          + [...document.querySelectorAll('button')].filter(b => !named(b)).length
          + [...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length;
        """
    )
    assert nameless == 0
    assert (
        browser.run("return ['header','main','footer','h1'].map(t => document.querySelectorAll(t).length)") == [1] * 4
    )


class Tags(HTMLParser):
    """Counts start and end tags, and keeps attributes that could reach outside."""

    VOID = frozenset({"meta", "link", "img", "br", "rect", "polyline", "line", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.reaching: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.reaching += [v for k, v in attrs if k in ("src", "href", "action", "xlink:href") and v]

    def handle_startendtag(self, tag, attrs):
        self.reaching += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def check_markup(text: str) -> None:
    """Well nested, and nothing in it points outside; needs no browser."""
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert [url for url in tags.reaching if not url.startswith(("data:", "#"))] == []
    assert not re.search(r"https?://|@import|url\(", text)


def test_markup_is_sound_without_a_browser(page):
    text = page.read_text()
    check_markup(text)
    assert "<script>document" not in text and "\x1b" not in text and "\u202e" not in text


def test_the_page_of_failures(browser, explainer, collection, tmp_path):
    path = tmp_path / "failures.html"
    found = find_failures(explainer, collection, 3)
    worst = tuple(replace(each, query=EVIL) for each in found.worst)
    write_failures_page(replace(found, worst=worst), collection, path)
    check_markup(path.read_text())
    browser.open(path, width=PHONE)
    assert errors(browser) == [] and outside(browser) == []
    assert browser.run("return document.querySelectorAll('section').length") == len(found.worst)
    assert browser.run("return document.images.length") == 6 * len(found.worst)
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE


def test_the_page_of_a_calibration(browser, explainer, collection, tmp_path):
    path = tmp_path / "calibration.html"
    write_calibration_page(calibrate(explainer, collection), path)
    check_markup(path.read_text())
    browser.open(path, width=PHONE)
    assert errors(browser) == [] and outside(browser) == []
    assert browser.run("return document.querySelectorAll('svg').length") == 8
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE


def test_one_call_writes_a_page(explainer, seen, tmp_path):
    path = tmp_path / "out" / "page.html"
    found = explain(explainer, seen, "a red circle")
    write_pair_page(found, path)
    assert path.read_text() == pair_page(found)


def test_control_characters_are_shown():
    assert visible("a\x1b[2J\nb\u202ec é") == "a\\x1b[2J\\nb\\u202ec é"
