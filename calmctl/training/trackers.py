"""Where numbers of a run go besides its own log: TensorBoard, when that extra is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from calmctl.errors import BadInput, RunFailed
from calmctl.files import make_folder

Record = Mapping[str, Any]
"""A line of the run's log: "step", "time" and named numbers, or those of a validation under "validation"."""


class Tracker(Protocol):
    """Receives the lines of a run's log."""

    def restart(self, records: Iterable[Record]) -> None:
        """Hold these lines and no others: those that a run which goes on keeps."""
        ...

    def log(self, record: Record) -> None:
        """Take one more line."""
        ...


class NoTracker:
    """Keeps nothing: the run's own log.jsonl has everything."""

    def restart(self, records: Iterable[Record]) -> None:
        """Do nothing."""

    def log(self, record: Record) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Writes scalars for TensorBoard into `folder`. Raises `BadInput` where the extra is not installed.

    A killed run leaves events of steps that will be done again. So a run that goes on writes its events anew,
    from its log and with their former times: every step is there once, for any reader.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput("--tensorboard needs the extra of that name: pip install 'calmctl[tensorboard]'") from None
        make_folder(folder)  # at once: a run that is killed before its first step must know what it was asked for
        self._folder = folder
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None

    def restart(self, records: Iterable[Record]) -> None:
        """Write the events of `records` in place of those that are there."""
        self._writer = None
        for former in self._folder.glob("events.out.tfevents.*"):
            former.unlink()
        for record in records:
            self._write(record)
        self._flush()

    def log(self, record: Record) -> None:
        """Write one scalar a number; those of a validation are under val/. Raises `RunFailed` when it cannot."""
        self._write(record)
        self._flush()

    def _write(self, record: Record) -> None:
        named = {name: value for name, value in record.items() if name not in ("step", "time", "epoch", "validation")}
        named |= {f"val/{name}": value for name, value in record.get("validation", {}).items()}
        try:
            if self._writer is None:
                self._writer = self._open(str(self._folder))
            for name, value in named.items():
                self._writer.add_scalar(name, value, record["step"], walltime=record["time"])
        except OSError as fault:
            raise self._failed(fault) from fault

    def _flush(self) -> None:
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as fault:
            raise self._failed(fault) from fault

    def _failed(self, fault: OSError) -> RunFailed:
        return RunFailed(
            f"cannot write {self._folder}: {fault.strerror or fault}; free space, or go on without it after removing "
            "that folder"
        )
