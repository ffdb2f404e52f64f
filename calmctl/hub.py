"""Files of a hub of models: from its cache, or downloaded, with an answer in seconds where the network is blocked.

The hub, its cache and its variables are Hugging Face's: HF_ENDPOINT (a mirror), HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE.
What is downloaded lies in the cache as their own client puts it there, so both find each other's files.

The client library's own download is not used: it tries again for up to a minute where a firewall swallows what is
sent, it checks no digest, and a download that was cut begins anew. Here one request decides within `ANSWER_S` seconds,
nothing is asked twice without a byte in between, and each way to fail is one sentence that names the ways out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from calmctl.errors import HubError
from calmctl.files import parse_json, sha256_file
from calmctl.hub_faults import Asked, leads_out
from calmctl.locks import locked

ANSWER_S = 5.0
"""Seconds for the answer to a request, all of it: name, connection, certificate, redirects, headers (our choice)."""
STALL_S = 5.0
"""Seconds without a byte after which a download counts as cut (our choice)."""
_MOST_CUTS = 5
"""How often one download is taken up again; the next run goes on (our choice)."""
_SHA256 = re.compile("[0-9a-f]{64}")
_SHA1 = re.compile("[0-9a-f]{40}")
_MOST_LISTING = 1 << 24
"""Bytes of a repository's list of files (our choice)."""


@dataclass(frozen=True, slots=True)
class Download:
    """What is about to be downloaded.

    Attributes:
        name: The file.
        repository: Where it is from, OWNER/NAME.
        revision: The commit.
        size: Bytes of the whole file; None where the hub does not say.
        have: Bytes of it that are here from a download that was cut.
        endpoint: The hub's address.
        folder: Where it goes.
    """

    name: str
    repository: str
    revision: str
    size: int | None
    have: int
    endpoint: str
    folder: Path


class DownloadWatcher:
    """Is told of downloads; the command line has one with a bar. The methods here do nothing."""

    def wait(self, name: str, repository: str) -> None:
        """Another process is downloading from this repository, and this one waits for it."""

    def begin(self, download: Download) -> None:
        """Before the first byte."""

    def progress(self, done: int, total: int | None) -> None:
        """Bytes that are here, and bytes of the whole."""

    def end(self) -> None:
        """After the last byte, or when it was cut."""


# A variable of the context, because whoever needs a file is far from whoever shows a bar.
_watcher: ContextVar[DownloadWatcher | None] = ContextVar("calmctl_downloads", default=None)


def watch_downloads(watcher: DownloadWatcher) -> None:
    """Tell `watcher` of every download of this context from now on."""
    _watcher.set(watcher)


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def cache_folder() -> Path:
    """The folder of the hub's cache: HF_HUB_CACHE, or where the hub's client has it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def cached(repository: str, name: str, *, revision: str | None = None) -> Path | None:
    """The file where it lies in the cache, None where it does not; nobody is asked."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, None, revision)
    return Path(path) if isinstance(path, str) else None


def is_absent(repository: str, name: str, *, revision: str | None = None) -> bool:
    """Whether the cache knows that a repository has no such file; nobody is asked."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repository, name, None, revision) is _CACHED_NO_EXIST


def note_absent(repository: str, name: str, commit: str) -> None:
    """Let the cache know, as the hub's client does, that a repository has no such file at a commit."""
    marker = cache_folder() / f"models--{repository.replace('/', '--')}" / ".no_exist" / commit / name
    with suppress(OSError):  # a cache that cannot be written is asked again
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def revision_of(path: Path) -> str | None:
    """The commit that a file of the cache is of."""
    return next((folder.name for folder in path.parents if _SHA1.fullmatch(folder.name)), None)


def fetch(
    repository: str, name: str, *, revision: str | None = None, sha256: str | None = None, what: str | None = None
) -> Path:
    """A file of a repository: from the cache, else downloaded into it.

    A download that was cut goes on where it was; whichever way it came, the whole is compared with the digest that the
    hub names and with `sha256`, and is in the cache only afterwards.

    Args:
        repository: OWNER/NAME.
        name: The file's path in it.
        revision: A branch, a tag or a commit; None for the main branch.
        sha256: What the file must be.
        what: What an error begins with, such as "backbone.weights: ViT-B-32 'openai'"; None for repository and file.

    Raises:
        HubError: It cannot be had: one sentence with the reason, after at most twice `STALL_S`.
    """
    file = _Fetch(repository, name, revision or "main", sha256, what or f"{repository}/{name}")
    return cached(repository, name, revision=revision) or file.run()


@dataclass(frozen=True, slots=True)
class RepositoryFiles:
    """The files of a repository at a commit."""

    revision: str
    names: tuple[str, ...]


def list_files(repository: str, *, revision: str | None = None, what: str | None = None) -> RepositoryFiles:
    """The names of a repository's files.

    Raises:
        HubError: The hub does not say, see `fetch`.
    """
    asked = _Fetch(repository, None, revision or "main", None, what or repository)
    return asked.listing()


@contextmanager
def translated(what: str, repository: str) -> Iterator[None]:
    """Errors of the hub's own client in the block, as an upload uses it, become a `HubError` with its sentences."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    asked = _Fetch(repository, None, "main", None, what)
    asked.uploads = True
    # The client itself would wait for ever where a firewall swallows what is sent.
    response = asked._open(f"{asked.endpoint}/api/models/{repository}", refuse=False)
    response.close()
    if response.status_code < 400 and "json" not in response.headers.get("content-type", ""):
        raise asked.no_hub(response)
    try:
        yield
    except HfHubHTTPError as fault:
        raise asked.refused(fault.response) from fault
    except (HTTPError, OSError) as fault:
        raise asked.unreachable(fault) from fault


class _Fetch(Asked):
    """One file, or the listing, of a repository."""

    def __init__(self, repository: str, name: str | None, revision: str, sha256: str | None, what: str) -> None:
        places: dict[str, Any] = {"endpoint": endpoint(), "cache": cache_folder()}
        super().__init__(repository, name, revision, what, **places, seconds=ANSWER_S)
        self.sha256 = sha256

    def listing(self) -> RepositoryFiles:
        """See `list_files`."""
        url = f"{self.endpoint}/api/models/{self.repository}/revision/{quote(self.revision, safe='')}"
        response = self._open(url)
        try:
            content = b""
            for piece in response.iter_bytes():
                content += piece
                if len(content) > _MOST_LISTING:
                    raise ValueError
            value = parse_json(content)
            names = tuple(str(each["rfilename"]) for each in value["siblings"])
            commit = str(value["sha"])
        except self._client_faults() as fault:
            raise self.unreachable(fault) from fault
        except (ValueError, KeyError, TypeError) as fault:
            raise self.no_hub(response) from fault
        finally:
            response.close()
        if not _SHA1.fullmatch(commit) or any(leads_out(name) for name in names):
            raise self.no_hub(response)
        return RepositoryFiles(commit, names)

    def run(self) -> Path:
        """See `fetch`."""
        assert self.name is not None
        if is_offline():
            raise self.error("HF_HUB_OFFLINE forbids to ask", offline=True)
        blobs = self.folder / "blobs"
        locks = self.folder.parent / ".locks" / self.folder.name
        try:
            # Before anything is asked: what cannot be kept need not be fetched.
            for folder in (blobs, locks):
                folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(blobs, os.W_OK)
        except OSError as fault:
            raise self.cannot_write(fault) from fault
        if not writable:
            raise self.cannot_write(PermissionError(errno.EACCES, "it is read-only"))
        watcher = _watcher.get() or DownloadWatcher()
        busy = HubError(f"{self.what} is being downloaded by another process")
        with locked(locks, busy, on_wait=lambda: watcher.wait(self.name or "", self.repository)):
            # Another process may have brought it while this one waited.
            path = cached(self.repository, self.name, revision=self.revision)
            return path or self._download(blobs, watcher)

    def _download(self, blobs: Path, watcher: DownloadWatcher) -> Path:
        url = f"{self.endpoint}/{self.repository}/resolve/{quote(self.revision, safe='')}/{quote(self.name or '')}"
        response = self._open(url)
        try:
            commit, digest, size = self._version_of(response)
            if self.sha256 and _SHA256.fullmatch(digest) and digest != self.sha256:
                raise self.wrong(f"the hub has another file (SHA-256 {digest[:12]}, expected {self.sha256[:12]})")
            # Named by its digest: what is left of another version of the file is never gone on with.
            part = blobs / f"{digest}.calmctl.incomplete"
            have = part.stat().st_size if part.exists() else 0
            if size is not None and shutil.disk_usage(blobs).free < size - have:
                raise self.cannot_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), size)
            watcher.begin(Download(self.name or "", self.repository, commit, size, have, self.endpoint, self.folder))
            try:
                self._receive(response, url, part, size, watcher)
            finally:
                watcher.end()
        finally:
            response.close()
        if not _is(part, digest, self.sha256):
            with suppress(OSError):
                part.unlink()
            raise self.wrong("what came is not the file that the hub names: its digest is another")
        try:
            return self._keep(part, blobs / digest, commit)
        except OSError as fault:
            raise self.cannot_write(fault, size) from fault

    def _receive(self, response: Any, url: str, part: Path, size: int | None, watcher: DownloadWatcher) -> None:
        """Add to `part` until it is whole; asks again after a cut, as long as each time brought something."""
        have = part.stat().st_size if part.exists() else 0
        if size is not None and have > size:
            have = 0
        if have and have != size:  # the first answer begins at the first byte
            response.close()
            response = self._open(url, start=have)
        fault: Exception | None = None
        cuts = stalls = 0
        try:
            while have != size:
                if have and response.status_code != 206:  # a server that gives no parts gives it all again
                    have = 0
                begun = have
                try:
                    with open(part, "r+b" if have else "wb") as handle:
                        handle.seek(have)
                        for piece in response.iter_bytes():
                            handle.write(piece)
                            have += len(piece)
                            watcher.progress(have, size)
                        handle.flush()
                        os.fsync(handle.fileno())
                    if size is None:
                        return
                except OSError as reason:
                    raise self.cannot_write(reason, size) from reason
                except self._client_faults() as reason:
                    fault = reason
                    cuts, stalls = cuts + 1, stalls + ("Timeout" in type(reason).__name__)
                if have == size:
                    return
                if size is not None and have > size:
                    raise self.wrong(f"{have:,} bytes came for a file of {size:,}")
                if have == begun or cuts > _MOST_CUTS or stalls > 1:
                    raise self.cut(have, size, fault) from fault
                response.close()
                try:
                    response = self._open(url, start=have)
                except HubError as reason:
                    raise self.cut(have, size, fault or reason) from reason
        finally:
            response.close()

    def _keep(self, part: Path, blob: Path, commit: str) -> Path:
        """Put a whole file where the hub's client looks for it."""
        assert self.name is not None
        part.replace(blob)
        path = self.folder / "snapshots" / commit / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            try:
                path.symlink_to(os.path.relpath(blob, path.parent))
            except OSError:  # Windows, unless its owner allows links
                blob.replace(path)
        if self.revision != commit:
            ref = self.folder / "refs" / self.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="utf-8")
        return path

    def _version_of(self, response: Any) -> tuple[str, str, int | None]:
        """Commit, digest and size that an answer names; a redirect names them before it leads away."""
        from huggingface_hub import constants

        answers = (*response.history, response)
        names = (
            constants.HUGGINGFACE_HEADER_X_REPO_COMMIT,
            constants.HUGGINGFACE_HEADER_X_LINKED_ETAG,
            constants.HUGGINGFACE_HEADER_X_LINKED_SIZE,
        )
        values = [next((each.headers[name] for each in answers if name in each.headers), None) for name in names]
        commit, digest, size = values
        digest = (digest or response.headers.get("etag") or "").removeprefix("W/").strip('"')
        size = size or response.headers.get("content-length")
        if commit is None or not _SHA1.fullmatch(commit) or not re.fullmatch(r"[\w-]+", digest):
            raise self.no_hub(response)
        return commit, digest, int(size) if size is not None and size.isdigit() else None

    def _open(self, url: str, start: int = 0, *, refuse: bool = True) -> Any:
        """The answer to a GET, its body unread, within `ANSWER_S`; raises `HubError`, for 401, 403 and 404 if asked."""
        from huggingface_hub import constants, get_token
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        if is_offline():
            raise self.error("HF_HUB_OFFLINE forbids to ask", offline=True)
        session: Any = get_session()
        # As it is: a length and a place in the file mean nothing in a compressed answer.
        headers = {"accept-encoding": "identity", "user-agent": "calmctl"}
        # Said here and not by the client's own headers, which ask the hub for a list of programs first.
        if (token := get_token()) and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            headers["authorization"] = f"Bearer {token}"
        if start:
            headers["range"] = f"bytes={start}-"
        answer: queue.Queue[Any] = queue.Queue()
        given_up = threading.Event()

        def ask() -> None:
            try:
                request = session.build_request("GET", url, headers=headers, timeout=min(ANSWER_S, STALL_S))
                late = session.send(request, stream=True, follow_redirects=True)
                answer.put(late)
                if given_up.is_set():
                    late.close()
            except Exception as fault:  # for the thread that waits, which says what it was
                answer.put(fault)

        # A thread of its own, because a client's limits leave out what the system does: a name server that does not
        # answer takes half a minute, and each address of a host has its own limit.
        threading.Thread(target=ask, daemon=True, name="calmctl-hub").start()
        try:
            response = answer.get(timeout=ANSWER_S)
        except queue.Empty:
            given_up.set()
            raise self.silent() from None
        if isinstance(response, Exception):
            raise self.unreachable(response) from response
        if response.status_code >= 400 and (refuse or response.status_code not in (401, 403, 404)):
            response.close()
            raise self.refused(response)
        return response

    @staticmethod
    def _client_faults() -> tuple[type[Exception], ...]:
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        return (HTTPError,)


def _is(path: Path, digest: str, sha256: str | None) -> bool:
    """Whether a file is what its hub's digest says: SHA-256 of large files, git's SHA-1 of small ones."""
    wanted = sha256 or (digest if _SHA256.fullmatch(digest) else None)
    if wanted:
        return sha256_file(path) == wanted
    if _SHA1.fullmatch(digest):
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
    return True
