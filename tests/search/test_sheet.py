"""The contact sheet: pictures where there are some, and other people's text as text."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from calmctl.data.demo_drawing import encode
from calmctl.samples import LeftOut
from calmctl.search.confidence import Confidence
from calmctl.search.results import Answer, Found, Hit, Shared
from calmctl.search.sheet import address, moment, write_sheet

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted" \x1b[31m\u202eback'


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_hostile_names_and_queries_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "<i>clip&.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    path.write_bytes(encode(frames))
    hits = (
        Hit(1, 0.5, EVIL, path, 0.0, 1.0, (Shared(EVIL, 0.25),)),
        Hit(2, 0.25, "b", None, 60.0, None, ()),
        Hit(3, 0.125, "c", tmp_path / "gone.mp4", 0.0, None),
    )
    left_out = (LeftOut(EVIL, EVIL),)
    found = Found(EVIL, Path(EVIL), 3, "clip", EVIL, (Answer(EVIL, hits), Answer("none", ())), left_out)
    write_sheet(found, tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(page)
    assert parser.tags.count("script") == 1 and parser.tags.count("img") == 3 and not parser.handlers
    files = [url for url in parser.urls if not url.startswith(("data:", "#"))]
    assert files == ["./%3Ci%3Eclip%26.mp4#t=0,1"] * 2 + ["./gone.mp4#t=0"]  # the picture and the name; nowhere else
    assert "\x1b" not in page and "\u202e" not in page and "<i>" not in page
    assert "its file is not known here" in page and "its file does not decode any more" in page
    assert "25.0 %" in page and "1 file left out" in page and page.count("nothing</li>") == 1


def test_a_windows_times_stand_beside_its_name_once(tmp_path: Path) -> None:
    hit = Hit(1, 0.5, "a/b#t=9.013,13.013", None, 9.013, 13.013)
    for unit, name in (("window", "1. a/b</p>"), ("clip", "1. a/b#t=9.013,13.013</p>")):
        write_sheet(Found("s", Path("c"), 1, unit, "m", (Answer("q", (hit,)),), ()), tmp_path / "sheet.html")
        page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
        assert name in page and "9.0 s to 13.0 s" in page and f"1 {unit} " in page


def test_pictures_lead_to_the_moment_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    for name, end, expected in (
        ("a b#1.mp4", 6.5, "../films/a%20b%231.mp4#t=61.25,6.5"),
        ("a:b.mp4", None, "../films/a%3Ab.mp4#t=61.25"),
        ("caf\udce9.mp4", None, "../films/caf%E9.mp4#t=61.25"),
    ):
        hit = Hit(1, 0.5, "id", tmp_path / "films" / name, 61.25, end)
        assert address(hit, tmp_path / "pages") == expected
    assert address(Hit(1, 0.5, "id", tmp_path / "a:b.mp4", 0.0, None), tmp_path) == "./a%3Ab.mp4#t=0"
    file = tmp_path / "films" / "a.b.mp4"
    found = Found(
        "s", Path("c"), 1, "window", "m", (Answer("q", (Hit(1, 0.5, "a.b#t=0,4", file, 0.0, 4.0, None, 2),)),), ()
    )
    write_sheet(found, tmp_path / "pages" / "sheet.html")
    page = (tmp_path / "pages" / "sheet.html").read_text(encoding="utf-8")
    assert "../films/a.b.mp4#t=0,4" in page and str(file) in page and ">a.b.mp4</a>" in page
    assert "and 2 windows beside it" in page


def test_moments() -> None:
    assert moment(Hit(1, 0.0, "a", None, 61.0, 75.0)) == "1:01 to 1:15"
    assert moment(Hit(1, 0.0, "a", None, 0.0, None)) == "0.0 s to its end"


def test_a_sheet_says_that_nothing_matches(tmp_path):
    near = Hit(1, 0.5, "a", None, 0.0, None, confidence=Confidence(False, 0.4, 0.1))
    found = Found("s", Path("c"), 7, "clip", "m", (Answer("q", (near,)),), (), "measured with 20 captions")
    write_sheet(found, tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "No clip of 7 matches" in page and "no match, only near: 40.0 %" in page
    assert "Measured with 20 captions" in page
    sure = Hit(1, 0.5, "a", None, 0.0, None, confidence=Confidence(True, 0.01, 0.01))
    write_sheet(Found("s", Path("c"), 7, "clip", "m", (Answer("q", (sure,)),), (), "x"), tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "matches: 1.0 %" in page and "No clip" not in page
