"""Where numbers of a run go besides its own log: TensorBoard, when that extra is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from calmctl.errors import BadInput


class Tracker(Protocol):
    """Receives named numbers at steps."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Take the numbers of one step."""
        ...


class NoTracker:
    """Keeps nothing: the run's own log.jsonl has everything."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Writes scalars for TensorBoard into `folder`. Raises `BadInput` where the extra is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput("--tensorboard needs the extra of that name: pip install 'calmctl[tensorboard]'") from None
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Write one scalar a number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
