"""A hub of models on the loopback address: it serves and takes files as Hugging Face's does, and plays its faults.

    hub = Hub(); hub.add("owner/name", {"config.json": b"{}"}); hub.fault = "gated"; hub.close()

Use the fixture `hub` of tests/conftest.py, which points the client library's variables at it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

LARGE = 1 << 10
"""From so many bytes on a file is named by its SHA-256 and lies behind a redirect, as large ones of the real hub."""


class Hub:
    """The hub.

    Attributes:
        endpoint: Its address.
        fault: What it plays, None for nothing: a status ("404", "429", "503", "407"), "gated", "private", "portal",
            "silent" (takes the connection and says nothing), "stalls" (half the body, then nothing), "short" (half the
            body, then the end), "cut" (half the body once, then all), "wrong" (other bytes than the digest's),
            "no ranges" (as "cut", but always from the first byte), "store refused" (the host that large files lie on).
        requests: What was asked for: method, path and Range.
        repositories: Files by repository; the last version only, and its commit.
        tokens: What was sent as authorisation.
        store: The address that large files lie at, where it is another.
    """

    def __init__(self) -> None:
        self.fault: str | None = None
        self.requests: list[tuple[str, str, str]] = []
        self.tokens: list[str | None] = []
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.store: str | None = None
        self.lets_go = threading.Event()
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server = server
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.lets_go.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """Add files to a repository; returns its commit."""
        self.repositories.setdefault(repository, {}).update(files)
        return self.commit(repository)

    def commit(self, repository: str) -> str:
        """The commit of a repository as it is: a digest of its files."""
        digest = hashlib.sha1(repository.encode())
        for name, content in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        return digest.hexdigest()


def refused_endpoint() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that leave in the middle are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_CONNECT(self) -> None:
        """Asked as a proxy."""
        if not self._plays("CONNECT"):
            self._send(502, b"")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self._plays("POST"):
            self._post(content)

    def _plays(self, method: str) -> bool:
        """Note the request, and play a fault that answers it whole."""
        hub = self.hub
        hub.requests.append((method, self.path, self.headers.get("range", "")))
        hub.tokens.append(self.headers.get("authorization"))
        match hub.fault:
            case str(code) if code.isdigit():
                extra = {"429": {"retry-after": "30"}, "407": {"proxy-authenticate": "Basic"}}.get(code, {})
                self._send(int(code), b"no", extra)
            case "gated":
                self._send(403, b"no", {"x-error-code": "GatedRepo"})
            case "private":
                self._send(401, b"no", {"x-error-code": "RepoNotFound"})
            case "portal":
                self._send(200, b"<html>Log in, please</html>", {"content-type": "text/html"})
            case "silent":
                hub.lets_go.wait(20)
                self.close_connection = True
            case _:
                return False
        return True

    def _answer(self, body: bool) -> None:
        if self._plays(self.command):
            return
        path = unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            self._listing(found[1], found[2])
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], body)
        elif found := re.fullmatch(r"/cdn/(.+?)/-/(.+)", path):
            self._bytes(self.hub.repositories[found[1]][found[2]], {}, body)
        else:
            self._send(404, b"no such page")

    def _has(self, repository: str, revision: str | None) -> bool:
        return repository in self.hub.repositories and (
            revision in (None, "main", self.hub.commit(repository)) or f"rev:{revision}" in self.hub.private
        )

    def _listing(self, repository: str, revision: str | None) -> None:
        if not self._has(repository, revision):
            return self._send(404, b"{}", {"x-error-code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in sorted(self.hub.repositories[repository])]
        value = {"id": repository, "modelId": repository, "sha": self.hub.commit(repository), "siblings": siblings}
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _file(self, repository: str, revision: str, name: str, body: bool) -> None:
        content = self.hub.repositories.get(repository, {}).get(name)
        if not self._has(repository, revision) or content is None:
            return self._send(404, b"no", {"x-error-code": "EntryNotFound"})
        headers = {"x-repo-commit": self.hub.commit(repository)}
        if len(content) < LARGE:
            blob = b"blob %d\0" % len(content) + content
            self._bytes(content, headers | {"etag": f'"{hashlib.sha1(blob).hexdigest()}"'}, body)
        else:
            headers |= {
                "x-linked-etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "x-linked-size": str(len(content)),
                "location": f"{self._store()}/cdn/{repository}/-/{name}",
            }
            self._send(302, b"", headers)

    def _store(self) -> str:
        return refused_endpoint() if self.hub.fault == "store refused" else self.hub.store or self.hub.endpoint

    def _bytes(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        fault = self.hub.fault
        if fault == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(re.sub(r"\D", "", self.headers.get("range", "") or "0"))
        if fault in ("no ranges", "ranges off"):
            start = 0
        status = 206 if start else 200
        rest = content[start:]
        self.send_response(status)
        for key, value in (headers | {"content-length": str(len(rest))}).items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if fault in ("short", "cut", "stalls", "no ranges") and len(rest) > 1 and not (fault == "short" and start):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            if fault == "stalls":
                self.hub.lets_go.wait(20)
            if fault in ("cut", "no ranges"):
                self.hub.fault = "ranges off" if fault == "no ranges" else None
            self.close_connection = True
            return
        if fault == "short":
            self.close_connection = True
            return
        self.wfile.write(rest)

    def _post(self, content: bytes) -> None:
        """Creating a repository, and a commit whose files are all sent inside of it."""
        path = unquote(self.path)
        if path == "/api/repos/create":
            value = json.loads(content)
            owner = value.get("organization") or "me"
            repository = f"{owner}/{value['name']}"
            self.hub.repositories.setdefault(repository, {})
            return self._json({"url": f"{self.hub.endpoint}/{repository}", "name": repository, "id": repository})
        if path.startswith("/api/validate-yaml"):
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+?)/preupload/(.+)", path):
            files = json.loads(content)["files"]
            return self._json(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}
            )
        if found := re.fullmatch(r"/api/models/(.+?)/commit/(.+)", path):
            lines = [json.loads(line) for line in content.decode().splitlines()]
            files = self.hub.repositories[found[1]]
            for line in lines:
                match line["key"], line["value"]:
                    case "file", value:
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "deletedFile", value:
                        files.pop(value["path"], None)
            oid = self.hub.commit(found[1])
            return self._json({"commitUrl": f"{self.hub.endpoint}/{found[1]}/commit/{oid}", "commitOid": oid})
        self._send(404, b"no such page")

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait until `condition()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
