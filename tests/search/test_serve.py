"""The page and the interface of `calmctl serve`: over real HTTP, and in a real browser."""

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import torch

from calmctl.data.demo_drawing import encode
from calmctl.model.calm import AlignedParts, CalmModel
from calmctl.model.heads.meanp import MeanPoolHead
from calmctl.model.weights import load_backbone
from calmctl.recipe.schema import AlignmentSection, AnchorsSection
from calmctl.search.collection import open_collection
from calmctl.search.confidence import Rule, sentences_of_others
from calmctl.search.model import SearchModel
from calmctl.search.search import Search

starlette = pytest.importorskip("starlette", reason="pip install 'calmctl[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="pip install 'calmctl[serve]'")

HOSTILE = "<img src=x onerror=alert(1)>"
TINY = Path(__file__).parents[1] / "tiny-clip.json"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from calmctl.search.serve import Engine

    root = tmp_path_factory.mktemp("serve")
    folder = root / "videos"
    (folder / HOSTILE.replace("/", "")).mkdir(parents=True)
    for number, name in enumerate(["b", "c", f"{HOSTILE}/d", "e"]):
        frames = np.random.default_rng(number).integers(0, 256, (30, 6, 8, 3), dtype=np.uint8)
        (folder / f"{name}.mp4").write_bytes(encode(frames.repeat(8, 1).repeat(8, 2)))
    torch.manual_seed(0)
    parts = AlignedParts(anchor_keys=AnchorsSection(), alignment_keys=AlignmentSection(kind="none"), frozen=True)
    model = CalmModel(load_backbone(str(TINY), None), MeanPoolHead(), parts).eval()
    search_model = SearchModel(f"a model {HOSTILE}", model, 2, torch.device("cpu"), None)
    found = open_collection(folder, search_model, window_s=1.0, stride_s=0.5, stores=root / "features")
    search = Search(search_model, found)
    search.open_bank(sentences_of_others([f"thing number {n}" for n in range(40)], "a list"))
    return Engine(search, Rule())


@pytest.fixture(scope="module")
def site(engine: Any) -> Iterator[str]:
    from calmctl.search.serve import web_app

    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    place.listen()  # who asks before the server runs waits
    port = place.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(web_app(engine, port), log_level="warning", lifespan="off", ws="none"))
    thread = Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    place.close()


def get(address: str, **headers: str) -> SimpleNamespace:
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return SimpleNamespace(status=answer.status, body=answer.read(), headers=answer.headers)
    except urllib.error.HTTPError as fault:
        with fault:
            return SimpleNamespace(status=fault.code, body=fault.read(), headers=fault.headers)


def ask(site: str, *terms: dict[str, Any], top: int = 24) -> Any:
    return json.loads(get(f"{site}/api/search?{urlencode({'terms': json.dumps(terms), 'top': top})}").body)


def test_the_interface_answers_as_the_search_does(site: str, engine: Any) -> None:
    found = json.loads(get(f"{site}/api/search?q=a+dog&top=3").body)
    (answer,) = engine._search.sentences(["a dog"], 3, rule=Rule()).answers
    assert [hit["id"] for hit in found["hits"]] == [hit.clip for hit in answer.hits]
    assert [hit["score"] for hit in found["hits"]] == [hit.score for hit in answer.hits]
    assert found["matches"] == answer.matches and found["hits"][0]["confidence"]["chance"] > 0
    assert json.loads(get(f"{site}/api/about").body)["unit"] == "window"


def test_ten_clients_get_what_one_gets(site: str) -> None:
    questions = [f"thing number {n}" for n in range(10)]
    alone = [ask(site, {"text": text})["hits"] for text in questions]
    with ThreadPoolExecutor(10) as clients:
        together = list(clients.map(lambda text: ask(site, {"text": text})["hits"], questions))
    assert together == alone


def test_parts_of_a_question_are_weighed(site: str, engine: Any) -> None:
    found = ask(site, {"text": "a dog", "weight": 2.0}, {"clip": 0}, {"text": "a cat", "weight": -0.5}, top=99)
    search = engine._search
    whole = len(search)

    def unit(scores: dict[int, float]) -> np.ndarray:
        row = np.array([scores[n] for n in range(whole)])
        return (row - row.mean()) / row.std()

    frames = search._index.frames.rows(np.arange(whole)).double().numpy()
    means = (frames / np.linalg.norm(frames, axis=-1, keepdims=True)).mean(1)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    rows = []
    for text in ("a dog", "a cat"):
        sentence = search._texts([text])[0].double().numpy()
        rows.append(unit(dict(enumerate(means @ (sentence / np.linalg.norm(sentence))))))
    expected = 2 * rows[0] + unit(dict(enumerate(means @ means[0]))) - 0.5 * rows[1]
    # The windows that begin at 0 and 0.5 s, and the one that adjoins, are the moment of clip 0.
    moment = {n for n in range(whole) if search.ids[n].split("#")[0] == search.ids[0].split("#")[0]}
    beside = {n for n in moment if search.when(n)[0] <= search.when(0)[1]}
    assert 1 < len(beside) < len(moment)
    assert found["hits"][0]["clip"] == max(set(range(whole)) - beside, key=lambda n: expected[n])
    for hit in found["hits"]:
        assert hit["score"] == pytest.approx(expected[hit["clip"]], abs=2e-3)
    assert not beside & {hit["clip"] for hit in found["hits"]} and found["matches"] is None


def test_what_looks_like_a_window_is_none_beside_it(site: str, engine: Any) -> None:
    hits = ask(site, {"clip": 0}, top=99)["hits"]
    start, end, _ = engine._search.when(0)
    same = [hit for hit in hits if hit["name"] == engine.clip(0).split("#")[0]]
    assert hits and all(hit["start_s"] > end or hit["end_s"] < start for hit in same)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def test_a_range_of_a_video_is_the_bytes_of_its_file(site: str, engine: Any) -> None:
    content = engine.sample(0).path.read_bytes()
    part = get(f"{site}/media/0", Range="bytes=10-19")
    assert (part.status, part.body) == (206, content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    whole = get(f"{site}/media/0")
    assert whole.body == content and whole.headers["Content-Type"] == "video/mp4"
    assert get(f"{site}/media/0", Range=f"bytes={len(content)}-").status == 416


def test_pictures_are_made_once_and_are_jpeg(site: str) -> None:
    with ThreadPoolExecutor(4) as clients:
        found = list(clients.map(lambda n: get(f"{site}/api/clips/{n}/picture"), [0, 1, 2, 0]))
    assert all(each.status == 200 and each.body.startswith(b"\xff\xd8") for each in found)
    assert found[0].body == found[3].body != found[1].body


def test_a_decoder_that_fails_keeps_nobody_waiting(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from calmctl.search import serve

    pictures, clip = serve.Pictures(), engine._search.collection.clips[engine.clip(0)]

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("no process can be started")

    with monkeypatch.context() as patch:
        patch.setattr(serve, "decode_clips", fails)
        assert pictures.of(0, clip) is None
    found = pictures.of(0, clip)
    assert found is not None and found.startswith(b"\xff\xd8"), "and it is tried again"


def test_the_port_is_of_this_machine_alone_and_a_taken_one_is_told() -> None:
    from calmctl.cli.search.serve import bound
    from calmctl.errors import BadInput

    with bound(0) as place:
        place.listen()
        assert place.getsockname()[0] == "127.0.0.1"
        with pytest.raises(BadInput, match=r"port \d+ cannot be taken .* --port"):
            bound(place.getsockname()[1])


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1:1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/api/about", "/media/0"])
def test_other_names_and_other_pages_are_refused(site: str, headers: dict[str, str], path: str) -> None:
    found = get(site + path, **headers)
    assert found.status == 403 and b"this machine alone" in found.body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/media/99", 400),
        ("/media/..%2f..%2fetc%2fpasswd", 404),
        ("/media/-1", 404),
        ("/api/clips/99/picture", 400),
        ("/api/search?q=", 400),
        ("/api/search", 400),
        ("/api/search?q=x&top=0", 400),
        ("/api/search?q=x&top=1e9", 400),
        ("/api/search?terms=[", 400),
        ("/api/search?terms=[{}]", 400),
        ('/api/search?terms=[{"clip":99}]', 400),
        ('/api/search?terms=[{"text":"x","weight":NaN}]', 400),
        ('/api/search?terms=[{"text":"x","weight":1e9}]', 400),
        ('/api/search?terms=[{"text":"x","file":"/etc/passwd"}]', 400),
        ("/api/clips/0/line", 400),
        ("/../pyproject.toml", 404),
    ],
)
def test_what_is_no_question_is_refused_with_a_sentence(site: str, path: str, status: int) -> None:
    found = get(site + path.replace('"', "%22").replace("{", "%7B").replace("}", "%7D"))
    assert found.status == status
    assert status == 404 or len(json.loads(found.body)["error"]) > 10


def test_conditions_leave_what_they_say(site: str, engine: Any) -> None:
    import os
    from datetime import date, datetime

    clips = engine._search.collection.clips
    whole = {hit["id"] for hit in ask(site, {"text": "a dog"}, top=99)["hits"]}
    folder = next(key.rpartition("/")[0] for key in clips if "/" in key)
    about = json.loads(get(f"{site}/api/about").body)
    assert folder in about["folders"] and about["files"] is True

    def found(**only: object) -> set[str]:
        terms = json.dumps([{"text": "a dog"}])
        return {
            hit["id"]
            for hit in json.loads(get(f"{site}/api/search?{urlencode({'terms': terms, 'top': 99} | only)}").body)[
                "hits"
            ]
        }

    in_folder = {key for key in whole if key.startswith(f"{folder}/")}
    assert found(below=folder) == found(below=f"/{folder}/", after="") == in_folder and 0 < len(in_folder) < len(whole)
    day = date(2001, 2, 3)
    old = next(path for path in {clip.path for clip in clips.values()} if path.stem == "b")
    kept = old.stat()
    os.utime(old, (datetime(2001, 2, 3, 12).timestamp(),) * 2)
    try:
        assert (
            {key.partition("#")[0] for key in found(before=day)}
            == {"b"}
            == {key.partition("#")[0] for key in found(after=day, before=day)}
        )
    finally:
        os.utime(old, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert found(longer=0.5, shorter=1.01) == whole
    only = json.loads(get(f"{site}/api/search?{urlencode({'q': 'a dog', 'below': folder})}").body)
    assert only["clips"] == sum(key.startswith(f"{folder}/") for key in clips) < len(clips) == about["clips"]
    for only in ({"longer": 2}, {"below": "nowhere"}, {"after": "2001-13-01"}, {"longer": "nan"}, {"shorter": -1}):
        answer = get(f"{site}/api/search?{urlencode({'q': 'a dog'} | only)}")
        assert answer.status == 400 and len(json.loads(answer.body)["error"]) > 10, only


def test_a_line_has_every_window_of_the_file(site: str, engine: Any) -> None:
    line = json.loads(get(f"{site}/api/clips/0/line?q=a+dog").body)["windows"]
    ids = [engine.clip(each["clip"]) for each in line]
    assert len({each.partition("#")[0] for each in ids}) == 1 and len(ids) == len(set(ids)) > 2
    assert [each["start_s"] for each in line] == sorted(each["start_s"] for each in line)
    scores = {hit["id"]: hit["score"] for hit in ask(site, {"text": "a dog"}, top=99)["hits"]}
    for each, key in zip(line, ids, strict=True):
        assert key not in scores or each["score"] == pytest.approx(scores[key], abs=1e-9)


def test_tools_answer_the_official_client(engine: Any) -> None:
    mcp = pytest.importorskip("mcp", reason="pip install 'calmctl[mcp]'")
    from calmctl.search.serve import tool_server

    async def talk() -> None:
        async with mcp.Client(tool_server(engine)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"search", "similar", "explain"}
            found = (await client.call_tool("search", {"sentence": "a dog", "top": 2})).structured_content
            assert len(found["hits"]) == 2 and "matches" in found
            clip = found["hits"][0]["id"]
            alike = (await client.call_tool("similar", {"clip": clip})).structured_content
            assert clip not in [hit["id"] for hit in alike["hits"]] and alike["hits"]
            why = (await client.call_tool("explain", {"clip": clip, "sentence": "a dog"})).structured_content
            assert why["id"] == clip and why["windows"]
            wrong = await client.call_tool("similar", {"clip": "../../etc/passwd"})
            assert wrong.is_error and "there is no clip" in wrong.content[0].text

    asyncio.run(talk())


def test_a_captioner_is_a_tool_where_there_is_one(engine: Any) -> None:
    mcp = pytest.importorskip("mcp", reason="pip install 'calmctl[mcp]'")
    from calmctl.errors import DatasetError
    from calmctl.search.serve import tool_server

    def describe(clip: Any) -> str:
        if clip.path.stem == "c":
            raise DatasetError("it cannot be decoded")
        return f"a sentence on {clip.id}, from {clip.start_s}"

    async def talk() -> None:
        async with mcp.Client(tool_server(engine, describe)) as client:
            assert "caption" in {tool.name for tool in (await client.list_tools()).tools}
            clip = next(key for key in engine._search.ids if key.startswith("b#t=0.5"))
            written = (await client.call_tool("caption", {"clip": clip})).structured_content
            assert written == {"id": clip, "caption": f"a sentence on {clip}, from 0.5"}
            broken = next(key for key in engine._search.ids if key.startswith("c#"))
            for wrong, says in ((broken, "cannot be decoded"), ("/etc/passwd", "there is no clip")):
                answer = await client.call_tool("caption", {"clip": wrong})
                assert answer.is_error and says in answer.content[0].text

    asyncio.run(talk())


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    spec = spec_from_file_location("browser", Path(__file__).parents[1] / "explain" / "browser.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if (reason := module.missing()) is not None:
        pytest.skip(reason)
    with module.chromium(tmp_path_factory.mktemp("browser") / "chromedriver.log") as started:
        yield started


def wait(browser: Any, condition: str) -> Any:
    """What a condition in the page becomes, once it is true."""
    script = f"""const until = Date.now() + 30000;
    return (async () => {{ for (;;) {{ const found = (() => {condition})(); if (found) return found;
      if (Date.now() > until) return null; await new Promise((go) => setTimeout(go, 30)); }} }})();"""
    found = browser.run(script)
    assert found, condition
    return found


def type_in(browser: Any, text: str) -> None:
    browser.run("document.getElementById('q').value = ''")
    browser.press("#q", text)
    wait(browser, "document.querySelector('#hits .card') && document.getElementById('says').textContent")


def test_typing_answers_and_hostile_names_stay_text(browser: Any, site: str) -> None:
    browser.visit(site)
    type_in(browser, HOSTILE)
    assert [entry["message"] for entry in browser.logs("browser")] == []
    names = browser.run("return [...document.querySelectorAll('.name')].map((each) => each.textContent)")
    assert any(HOSTILE in name for name in names)
    assert HOSTILE in browser.run("return document.getElementById('by').textContent")
    assert browser.run("return document.querySelectorAll('img[src=x]').length") == 0
    assert all(url.startswith((site, "data:")) for url in browser.requests())
    assert "window" in browser.run("return document.getElementById('says').textContent")
    wait(browser, "[...document.querySelectorAll('.play img')].some((each) => each.naturalWidth > 0)")


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1100, False)])
def test_it_fits_a_phone_and_a_screen(browser: Any, site: str, width: int, dark: bool) -> None:
    browser.visit(site, width=width, dark=dark)
    type_in(browser, "a dog")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 3 * 128) == dark


def test_a_click_plays_the_moment_and_keys_lead_through_the_hits(browser: Any, site: str) -> None:
    browser.visit(site)
    type_in(browser, "a dog")
    browser.press("#q", "\ue015")  # arrow down
    assert browser.run("return document.activeElement.className") == "play"
    first = browser.run("return document.activeElement.getAttribute('aria-label')")
    browser.press(".card .play", "\ue014")  # arrow right
    assert browser.run("return document.activeElement.getAttribute('aria-label')") != first
    browser.click(".card .play")
    wait(browser, "document.getElementById('player').open && document.getElementById('video').readyState >= 1")
    start = browser.run("return Number(document.getElementById('video').src.split('#t=')[1])")
    assert browser.run("return document.getElementById('video').currentTime") >= start
    wait(browser, "document.querySelectorAll('#line button').length > 2")
    assert browser.run("return document.querySelectorAll('#line [aria-current]').length") == 1
    browser.press("body", "\ue00c")  # escape
    wait(browser, "!document.getElementById('player').open")


def test_conditions_are_kept_in_the_address(browser: Any, site: str) -> None:
    browser.visit(f"{site}/#q=a+dog")
    wait(browser, "document.querySelectorAll('#hits .card').length > 3")
    browser.click("#only summary")
    browser.press("#filters [name=below]", HOSTILE.partition("/")[0])
    names = "[...document.querySelectorAll('.name')]"
    wait(browser, f"{names}.length && {names}.every((each) => each.textContent.startsWith('<img'))")
    assert browser.run("return document.getElementById('active').textContent") == " (1 condition)"
    assert "below=" in browser.run("return location.hash")
    browser.visit(f"{site}/#q=a+dog&longer=99")
    wait(browser, "document.getElementById('says').textContent.startsWith('none of')")
    assert browser.run("return document.getElementById('only').open")
    assert browser.run("return document.querySelectorAll('#hits li').length") == 0
    browser.click("#filters button")
    wait(browser, "document.querySelectorAll('#hits .card').length > 3")


def test_parts_are_added_and_taken_away(browser: Any, site: str) -> None:
    browser.visit(f"{site}/#q=a+dog")  # the address keeps the sentence
    wait(browser, "document.querySelector('#hits .card')")
    browser.click(".card .more")
    wait(browser, "document.querySelectorAll('#terms li').length === 1")
    browser.click("#minus")
    wait(browser, "document.querySelectorAll('#terms li').length === 2")
    wait(browser, "document.getElementById('says').textContent.includes('not measured')")
    assert browser.run("return document.querySelectorAll('#terms input')[1].value") == "-1"
    browser.click("#terms li button")
    browser.click("#terms li button")
    wait(browser, "!document.querySelector('#terms li') && !document.querySelector('#hits li')")
