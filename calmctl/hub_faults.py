"""Why a file of a hub cannot be had: one sentence for each way to fail, with the ways out that apply.

Clients of the hub raise a class of their own for most of them, and say little. What the system said is found behind
those classes, and is never dropped.
"""

from __future__ import annotations

import errno
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from calmctl.errors import HubError


class Asked:
    """What is asked of a hub, and the errors that can come of it.

    Attributes:
        repository: OWNER/NAME.
        name: The file; None for the listing, or for an upload.
        revision: Branch, tag or commit.
        what: What a sentence begins with.
        endpoint: The hub's address.
        host: Of it.
        folder: Where the repository lies in the cache.
        seconds: How long an answer was waited for.
        uploads: Whether something is sent there: what helps with a download is then no way out.

    Raises:
        HubError: These are no names of a repository, a file and a revision.
    """

    def __init__(
        self, repository: str, name: str | None, revision: str, what: str, *, endpoint: str, cache: Path, seconds: float
    ) -> None:
        self.seconds, self.uploads = seconds, False
        self.repository, self.name, self.revision, self.what = repository, name, revision, what
        self.endpoint = endpoint
        self.host = urlsplit(endpoint).netloc
        self.folder = cache / f"models--{repository.replace('/', '--')}"
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository) or ".." in repository:
            raise HubError(f"{what}: {repository!r} is no name of a repository, which is OWNER/NAME")
        if name is not None and leads_out(name):
            raise HubError(f"{what}: {name!r} is no name of a file in a repository")
        if leads_out(revision):
            raise HubError(f"{what}: {revision!r} is no branch, tag or commit")

    def unreachable(self, fault: BaseException) -> HubError:
        """Where no answer came."""
        reasons = list(_chain(fault))
        text = " ".join(str(reason) for reason in reasons)
        if re.search(r"\b407\b", text) and "proxy" in text.lower():
            return self.proxy()
        for reason in reasons:
            if isinstance(reason, socket.gaierror):
                return self.error(f"the name of {self.host} does not resolve ({reason.strerror})", network=True)
            if isinstance(reason, ssl.SSLError):
                why = getattr(reason, "verify_message", None) or reason.reason or str(reason)
                return self.error(
                    f"the certificate of {self.host} is not accepted ({why}): where a proxy opens encrypted traffic, "
                    "set SSL_CERT_FILE to its certificate",
                    network=True,
                )
            if isinstance(reason, ConnectionRefusedError):
                return self.error(f"{self.host} refuses the connection", network=True)
        if any("Timeout" in type(reason).__name__ for reason in reasons):
            return self.silent()
        if "OfflineModeIsEnabled" in {type(reason).__name__ for reason in reasons}:
            return self.error("HF_HUB_OFFLINE forbids to ask", offline=True)
        last = reasons[-1]
        why = (last.strerror if isinstance(last, OSError) else None) or str(last) or type(last).__name__
        return self.error(f"{self.host} cannot be reached ({why})", network=True)

    def refused(self, response: Any) -> HubError:
        """Where the answer was no."""
        code, page = response.status_code, f"{self.endpoint}/{self.repository}"
        answers = f"{self.host} answers {code}"
        match code:
            case 407:
                return self.proxy()
            case 401 | 403:
                gate = response.headers.get("x-error-code", "")
                if gate == "RepoNotFound":
                    return self.error(
                        f"there is no {self.repository} at {self.host}, or it is private ({code}): " + _LOGIN
                    )
                return self.error(f"{answers}: it is gated or private; accept its conditions at {page}, and " + _LOGIN)
            case 404:
                missing = f"{self.name} at revision {self.revision}" if self.name else f"revision {self.revision}"
                return self.error(f"{self.repository} has no {missing}, or is not there ({answers}); look at {page}")
            case 429:
                wait = response.headers.get("retry-after", "")
                after = f" in {wait} s" if wait.isdigit() else " in some minutes"
                return self.error(
                    f"{answers}: too many requests from this address; again{after}, or with HF_TOKEN set", mirror=True
                )
            case code if code >= 500:
                return self.error(f"{answers}: the hub is out of order; again later", network=True)
            case _:
                return self.error(f"{answers} to the request; look at {page}")

    def silent(self) -> HubError:
        """Where nothing came in time."""
        return self.error(
            f"{self.host} did not answer within {self.seconds:g} s: a firewall may swallow it", network=True
        )

    def proxy(self) -> HubError:
        """Where a proxy wants to know who asks."""
        return self.error(
            "the proxy wants a name and a password (407): HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT", network=True
        )

    def no_hub(self, response: Any) -> HubError:
        """Where somebody else answered."""
        kind = response.headers.get("content-type", "").partition(";")[0]
        page = "a web page" if kind == "text/html" else "something"
        return self.error(
            f"{response.url.host} answers with {page} that is no file of a hub: a login page of this network, "
            "a filter, or an HF_ENDPOINT that is no hub",
            network=True,
        )

    def wrong(self, why: str) -> HubError:
        """Where another file came."""
        return self.error(
            f"{why}; nothing of it was kept. Run again, and if that helps not, without HF_ENDPOINT", came=True
        )

    def cut(self, have: int, size: int | None, fault: Exception | None) -> HubError:
        """Where not all of it came."""
        why = f" ({fault})" if fault and str(fault) else ""
        whole = f" of {size:,}" if size is not None else ""
        return self.error(
            f"the download was cut after {have:,}{whole} bytes{why}; run again: it goes on from there", came=True
        )

    def cannot_write(self, fault: OSError, size: int | None = None) -> HubError:
        """Where it cannot be kept."""
        if fault.errno == errno.ENOSPC:
            need = f"{size / 1e6:,.0f} MB are needed" if size else "more is needed"
            free = shutil.disk_usage(self.folder.parent).free / 1e6
            why = f"the disk is full: {need}, {free:,.0f} MB are free in {self.folder}"
        else:
            why = f"the cache {self.folder.parent} cannot be written ({fault.strerror or fault})"
        return self.error(f"{why}; set HF_HUB_CACHE to another folder", came=True)

    def error(
        self, reason: str, *, network: bool = False, offline: bool = False, mirror: bool = False, came: bool = False
    ) -> HubError:
        """The sentence: what, why, and the ways out that apply; `came` where the file, or a part of it, did."""
        what = f"{self.what}: " if came or self.name is None else f"{self.what} is not in the local cache, and "
        file = self.name or "[FILE]"
        ways = []
        if network or mirror:
            ways.append("name a mirror that this machine reaches (HF_ENDPOINT=https://MIRROR)")
        if (network or offline) and not self.uploads:
            at = "" if self.revision == "main" else f" --revision {self.revision}"
            ways.append(
                f"where there is a network, run: hf download {self.repository} {file}{at}, and copy its folder "
                f"{self.folder.name} into {self.folder.parent} here"
            )
        if offline:
            ways.append("or unset HF_HUB_OFFLINE")
        elif network and not self.uploads:
            ways.append("with HF_HUB_OFFLINE=1 nobody is asked again")
        return HubError("; ".join([f"{what}{reason}", *ways]))


_LOGIN = "log in with 'hf auth login' or set HF_TOKEN"


def leads_out(name: str) -> bool:
    """Whether a name from elsewhere is none of a file below a folder."""
    parts = PurePosixPath(name).parts
    return not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or ":" in name


def _chain(fault: BaseException) -> Iterator[BaseException]:
    """A fault and what led to it: clients wrap what the system said."""
    passed: set[int] = set()
    reason: BaseException | None = fault
    while reason is not None and id(reason) not in passed:
        passed.add(id(reason))
        yield reason
        reason = reason.__cause__ or reason.__context__
