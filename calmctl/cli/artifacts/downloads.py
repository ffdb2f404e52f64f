"""How a download is told: what, how large, from where and into which folder, then a bar."""

from __future__ import annotations

import sys

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from calmctl.cli.console import note, printable, stderr
from calmctl.hub import Download, DownloadWatcher


def size_in_words(size: int | None) -> str:
    """Such as "605 MB", in millions of bytes as hubs and disks count."""
    if size is None:
        return "of unknown size"
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


class DownloadBar(DownloadWatcher):
    """A line before each large download, and a bar where stderr is a terminal."""

    LEAST = 10_000_000
    """Bytes from which on a download is worth a line: a config file comes without a word (our choice)."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def wait(self, name: str, repository: str) -> None:
        """Say why nothing moves."""
        note(printable(f"another process downloads {name} of {repository}; waiting for it"))

    def begin(self, download: Download) -> None:
        """Say what comes from where, before its first byte."""
        if download.size is not None and download.size < self.LEAST:
            return
        here = f" ({size_in_words(download.have)} are here)" if download.have else ""
        note(
            printable(
                f"downloading {download.name}, {size_in_words(download.size)}{here}, from {download.endpoint}/"
                f"{download.repository} at {download.revision[:12]} into {download.folder}"
            )
        )
        if not sys.stderr.isatty():
            return
        columns = (BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=stderr(), transient=True)
        self._task = self._bar.add_task(printable(download.name), total=download.size, completed=download.have)
        self._bar.start()

    def progress(self, done: int, total: int | None) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
