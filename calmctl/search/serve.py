"""A search that stays warm: a page and its JSON interface on this machine alone, and tools for a language model.

Who can reach it: programs of this machine. The socket is bound to the loopback address, and a request whose Host is
another name is refused, because a page of a stranger can have its own name point here (DNS rebinding). So is one whose
Origin is another page. Clips are numbers, looked up in the collection; no part of an address becomes a path. The page
loads nothing from elsewhere, and its policy forbids what is not its own file.
"""

from __future__ import annotations

import mimetypes
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from pathlib import Path, PurePosixPath
from queue import Empty, Queue
from threading import Lock
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from calmctl.errors import BadInput, CalmError, VideoError
from calmctl.files import parse_json
from calmctl.runtime import installed_version
from calmctl.samples import Clip
from calmctl.search.collection import Wanted
from calmctl.search.confidence import Rule
from calmctl.search.results import Found, Hit, Term
from calmctl.search.search import Search
from calmctl.video.pixels import jpeg, shrink
from calmctl.video.pool import available_cores, decode_clips

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = Path(__file__).parents[1] / "explain" / "templates" / "style.css"  # the look of all our pages

MOST_HITS = 200
MOST_TERMS = 8
MOST_PICTURES = 4096
"""JPEG files held in memory, of some 10 KB each."""
MOST_FOLDERS = 1000
"""Folders that a page is told of, to choose from."""
_MOST_FILTERS = 16  # remembered, each with a number a clip
_GATHER_S = 0.03  # a page asks for its pictures at once: they are decoded by workers that start once for all of them


# What a question may be.


class AskedTerm(BaseModel):
    """A sentence or a clip, and what it counts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, Field(max_length=2000)] | None = None
    clip: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0

    @model_validator(mode="after")
    def _one_of_both(self) -> AskedTerm:
        if (self.text is None) == (self.clip is None):
            raise ValueError("a term has either a text or a clip")
        if self.text is not None and not self.text.strip():
            raise ValueError("a sentence is empty")
        return self


class AskedFilter(BaseModel):
    """Which clips may be found, as an address says it; what is empty is not asked."""

    model_config = ConfigDict(extra="forbid")

    below: Annotated[str, Field(max_length=4000)] = ""
    after: date | None = None
    before: date | None = None
    longer: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    shorter: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    def wanted(self) -> Wanted:
        """The same for a search."""
        return Wanted(self.below.strip("/") or None, self.after, self.before, self.longer, self.shorter)


_TERMS = TypeAdapter(Annotated[list[AskedTerm], Field(min_length=1, max_length=MOST_TERMS)])


class Engine:
    """A warm search for many clients: one question at a time, so that each gets the answer that it would get alone."""

    def __init__(self, search: Search, rule: Rule | None = None) -> None:
        """Serve `search`; with a rule, after `open_bank`, it is said whether anything matches."""
        self._search, self._rule = search, rule
        self._lock = Lock()
        self._pictures = Pictures()
        self._among: OrderedDict[Wanted, np.ndarray] = OrderedDict()
        self._sentence = search.open_bank().sentences.says if rule is not None else None

    def about(self) -> dict[str, Any]:
        """Who answers, and about what."""
        collection = self._search.collection
        # Names first, which are many; then the folders that they are in.
        inner = {key.rpartition("#t=")[0].rpartition("/")[0] or key.rpartition("/")[0] for key in self._search.ids}
        folders = {str(place) for each in inner for place in (PurePosixPath(each), *PurePosixPath(each).parents)}
        return {
            "by": self._search.seeker.name,
            "collection": str(collection.name),
            "clips": len(self._search),
            "unit": collection.unit,
            "left_out": {clip.id: clip.reason for clip in collection.left_out},
            "folders": sorted(folders - {".", "/"})[:MOST_FOLDERS],
            "files": bool(collection.clips),
            "rule": None if self._rule is None else str(self._rule),
            "measured_with": self._sentence,
        }

    def ask(self, terms: list[AskedTerm], top: int, wanted: Wanted = Wanted()) -> dict[str, Any]:  # noqa: B008
        """The best of the wanted clips. Raises `BadInput` for a clip that there is not, and where none is wanted."""
        started = time.perf_counter()
        for term in terms:
            if term.clip is not None:
                self.clip(term.clip)
        with self._lock:
            (only,) = terms if len(terms) == 1 else (None,)
            among = self._positions(wanted)
            if only is not None and only.text is not None and only.weight > 0:
                found = self._search.sentences([only.text], top, rule=self._rule, among=among)
            elif only is not None and only.clip is not None and only.weight > 0:
                found = self._search.like(only.clip, top, among)
            else:
                parts = [Term(term.text, term.clip, term.weight) for term in terms]
                found = self._search.combined(parts, top, among)
        searched = len(self._search) if among is None else len(among)
        return {**self._answer(found), "clips": searched, "took_ms": round(1000 * (time.perf_counter() - started), 1)}

    def _positions(self, wanted: Wanted) -> np.ndarray | None:
        """The positions of wanted clips, None for all; remembered, for who types asks about the same ones again."""
        if wanted == Wanted():
            return None
        if wanted not in self._among:
            self._among[wanted] = self._search.only(wanted)
        self._among.move_to_end(wanted)
        while len(self._among) > _MOST_FILTERS:
            self._among.popitem(last=False)
        return self._among[wanted]

    def line(self, number: int, text: str) -> list[dict[str, Any]]:
        """The windows of a clip's file with their scores under a sentence."""
        self.clip(number)
        with self._lock:
            line = [(n, score, *self._search.when(n)) for n, score in self._search.line(number, text)]
        return [{"clip": n, "start_s": start, "end_s": end, "score": score} for n, score, start, end, _ in line]

    def why(self, number: int, text: str) -> dict[str, Any]:
        """The anchors that a clip and a sentence share, and the windows of its file under it."""
        with self._lock:
            shared = self._search.shared(number, text)
        anchors = None if shared is None else [{"anchor": each.anchor, "share": each.share} for each in shared]
        return {"id": self.clip(number), "shared": anchors, "windows": self.line(number, text)}

    def clip(self, number: int) -> str:
        """The id of a clip. Raises `BadInput` where there is none of this number."""
        if not 0 <= number < len(self._search):
            raise BadInput(f"there is no clip {number}; there are {len(self._search):,}, counted from 0")
        return self._search.ids[number]

    def number(self, clip: str) -> int:
        """The number of a clip by its id. Raises `BadInput` where there is none."""
        if clip not in self._search.ids:
            raise BadInput(f"there is no clip {clip!r}; take an id of a search's answer")
        return self._search.ids.index(clip)

    def sample(self, number: int) -> Clip | None:
        """A clip with its file; None where that is not known or gone."""
        clip = self._search.collection.clips.get(self.clip(number))
        return clip if clip is not None and clip.path.is_file() else None

    def picture(self, number: int) -> bytes | None:
        """A JPEG file of the middle of a clip; None where it has none."""
        clip = self.sample(number)
        return None if clip is None else self._pictures.of(number, clip)

    def _answer(self, found: Found) -> dict[str, Any]:
        (answer,) = found.answers
        return {
            "query": answer.query,
            "method": found.method,
            "matches": answer.matches,
            "hits": [self._hit(hit) for hit in answer.hits],
        }

    def _hit(self, hit: Hit) -> dict[str, Any]:
        plain = hit.to_json()
        plain["name"] = hit.clip.rpartition("#t=")[0] if self._search.collection.unit != "clip" else hit.clip
        return {"clip": hit.position, "id": plain.pop("clip"), **plain}


class Pictures:
    """Pictures of clips: those that are asked for at once are decoded together, and each once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._waiting: dict[int, Future[bytes | None]] = {}
        self._queue: Queue[tuple[int, Clip]] = Queue()
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(1, "pictures")

    def of(self, number: int, clip: Clip) -> bytes | None:
        """The picture of a clip; None where it does not decode."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            future = self._waiting.get(number)
            if future is None:
                future = self._waiting[number] = Future()
                self._queue.put((number, clip))
                self._worker.submit(self._decode)
        return future.result()

    def _decode(self) -> None:
        """Decode what waits, and what joins it within a moment."""
        asked: list[tuple[int, Clip]] = []
        until = time.monotonic() + _GATHER_S
        while len(asked) < MOST_HITS:
            try:
                asked.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
            except Empty:
                break
        if not asked:  # the picture went with the ones before
            return
        pictures: dict[str, bytes] = {}
        try:
            clips = [clip for _, clip in asked]
            for clip, frames in decode_clips(clips, 1, workers=min(len(clips), available_cores()), transform=shrink):
                if not isinstance(frames, VideoError):
                    pictures[clip.id] = jpeg(frames[0])
        finally:  # whatever happens to the decoder, nobody waits for ever
            with self._lock:
                for number, clip in asked:
                    self._waiting.pop(number).set_result(pictures.get(clip.id))
                    # What did not decode is tried again when it is asked for again: a limit may have stopped it.
                    if clip.id in pictures:
                        self._kept[number] = pictures[clip.id]
                while len(self._kept) > MOST_PICTURES:
                    self._kept.popitem(last=False)


# The page and its interface over HTTP.


_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_Scope = dict[str, Any]
_Asgi = Callable[[_Scope, Any, Any], Awaitable[None]]


class Guard:
    """Lets through what comes by a loopback name and from no other page, and adds the headers of every answer."""

    def __init__(self, app: _Asgi, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """One request."""

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope.get("headers", [])]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value.removeprefix("http://") for name, value in headers if name == b"origin"]
        if len(hosts) == 1 and {*hosts, *origins} <= self._hosts:
            await self._app(scope, receive, send_with_headers)
            return
        refused = JSONResponse({"error": "this address answers its own page on this machine alone"}, status_code=403)
        await refused(scope, receive, send_with_headers)


def web_app(engine: Engine, port: int) -> _Asgi:
    """The page at /, its files, and the interface below /api/ and /media/ (docs/search.md)."""

    def search(request: Request) -> Response:
        asked = request.query_params
        terms = parse_json(asked["terms"]) if "terms" in asked else [{"text": text} for text in asked.getlist("q")]
        given = {name: asked[name] for name in AskedFilter.model_fields if asked.get(name)}
        wanted = AskedFilter.model_validate(given).wanted()
        top = _number(asked.get("top", "24"), 1, MOST_HITS)
        return JSONResponse(engine.ask(_TERMS.validate_python(terms), top, wanted))

    def line(request: Request) -> Response:
        text = request.query_params.get("q", "").strip()
        if not text:
            raise BadInput("a timeline needs a sentence, as q=")
        return JSONResponse({"windows": engine.line(request.path_params["clip"], text)})

    def picture(request: Request) -> Response:
        content = engine.picture(request.path_params["clip"])
        if content is None:
            return _no("there is no picture: the file is not at hand, or does not decode", 404)
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    def media(request: Request) -> Response:
        clip = engine.sample(request.path_params["clip"])
        if clip is None:
            return _no("the file of this clip is not at hand", 404)
        kind = mimetypes.guess_type(clip.path.name)[0] or ""
        # A name decides the type, and a type decides what a browser does: nothing here is ever a document.
        return FileResponse(clip.path, media_type=kind if kind.startswith("video/") else "application/octet-stream")

    def text(name: str, kind: str) -> Callable[[Request], Response]:
        content = (_TEMPLATES / name).read_text(encoding="utf-8")
        if name.endswith(".css"):
            content = _STYLE.read_text(encoding="utf-8") + content
        return lambda _: Response(content, media_type=kind)

    def fault(_: Request, error: Exception) -> Response:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "terms"
            return _no(f"{where}: {first['msg']}; give q=SENTENCE, or terms=[...], as docs/search.md has it", 400)
        return _no(str(error), 400)

    app = Starlette(
        routes=[
            Route("/", text("serve.html", "text/html")),
            Route("/serve.css", text("serve.css", "text/css")),
            Route("/serve.js", text("serve.js", "text/javascript")),
            Route("/api/about", lambda _: JSONResponse(engine.about())),
            Route("/api/search", search),
            Route("/api/clips/{clip:int}/line", line),
            Route("/api/clips/{clip:int}/picture", picture),
            Route("/media/{clip:int}", media),
        ],
        exception_handlers={CalmError: fault, ValidationError: fault, ValueError: fault},
    )
    return Guard(app, port)


def _number(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        raise BadInput(f"top={text[:20]!r} is no number from {least} to {most}")
    return int(text)


def _no(reason: str, status: int) -> Response:
    return JSONResponse({"error": reason}, status_code=status)


# Tools for a language model, over the Model Context Protocol.


def tool_server(engine: Engine, describe: Callable[[Clip], str] | None = None) -> Any:
    """A server of the official SDK with the tools `search`, `similar` and `explain`; `.run("stdio")` serves them.

    Args:
        engine: What answers.
        describe: Writes a sentence for a clip; with it there is a tool `caption`.

    Raises:
        BadInput: The SDK is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError:
        raise BadInput("--mcp needs the official SDK: pip install 'calmctl[mcp]'") from None

    def answered(terms: list[AskedTerm], top: int) -> dict[str, Any]:
        if not 1 <= top <= MOST_HITS:
            raise ToolError(f"top must be from 1 to {MOST_HITS}")
        return engine.ask(terms, top)

    def term(**values: Any) -> AskedTerm:
        try:
            return AskedTerm(**values)
        except ValidationError as fault:
            raise ToolError(fault.errors()[0]["msg"]) from None

    def number(clip: str) -> int:
        try:
            return engine.number(clip)
        except BadInput as fault:
            raise ToolError(str(fault)) from None

    def search(sentence: str, top: int = 10) -> dict[str, Any]:
        """Find the video clips that show what a sentence says, the best first.

        `matches` is how many of the hits really match; with 0 the hits are only the nearest clips, and no answer.
        """
        return answered([term(text=sentence)], top)

    def similar(clip: str, top: int = 10) -> dict[str, Any]:
        """Find the clips that look like one, which is given by its id in the answer of a search."""
        return answered([term(clip=number(clip))], top)

    def explain(clip: str, sentence: str) -> dict[str, Any]:
        """Why a clip fits a sentence or not: the class anchors that both have, and its windows over time."""
        return engine.why(number(clip), str(term(text=sentence).text))

    def caption(clip: str) -> dict[str, Any]:
        """A sentence that a trained captioner writes for a clip, which is given by its id in the answer of a search."""
        sample = engine.sample(number(clip))
        if sample is None or describe is None:
            raise ToolError(f"the file of {clip} is not at hand")
        try:
            return {"id": clip, "caption": describe(sample)}
        except CalmError as fault:
            raise ToolError(str(fault)) from None

    about = f"Searches {engine.about()['clips']:,} video clips of one collection."
    server = MCPServer("calmctl", instructions=about, version=installed_version("calmctl") or "")
    for tool in (search, similar, explain, *([caption] if describe is not None else [])):
        server.add_tool(tool)
    return server
