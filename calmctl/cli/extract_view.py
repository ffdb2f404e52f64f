"""What `calmctl extract` shows: a bar while it works, a table when it is done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calmctl.cli.console import Sheet, note, print_next, printable, progress_bar, stdout

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from calmctl.data.samples import Dataset, LeftOut
    from calmctl.data.store_merge import MergeReport
    from calmctl.extraction.report import ExtractReport
    from calmctl.extraction.report import Progress as Step


class Bar:
    """One progress bar after the other: clips, then captions."""

    def __init__(self) -> None:
        self._unit: str | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, step: Step) -> None:
        """Show how far the work is."""
        if step.unit != self._unit and step.total:
            self.stop()
            self._unit = step.unit
            self._bar = progress_bar(step.unit)
            self._bar.start()
            self._task = self._bar.add_task(step.unit, total=step.total, note="")
        if self._bar is not None and self._task is not None and step.total:
            left_out = f"{step.left_out} left out" if step.left_out else ""
            self._bar.update(self._task, completed=step.done, note=left_out)

    def stop(self) -> None:
        """Clear the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_extracted(report: ExtractReport, dataset: Dataset, keys: Sequence[str]) -> None:
    """Print what an extraction did, notes on its data, what was left out, and what its features are for.

    `keys` name their backbone.
    """
    from rich.markup import escape

    from calmctl.cli.console import print_left_out

    table = Sheet(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    name = " ".join(word for word in (report.dataset, report.protocol) if word)
    part = f", part {report.shard[0]} of {report.shard[1]}" if report.shard != (1, 1) else ""
    table.add_row("store", escape(str(report.store)))
    table.add_row("dataset", f"{name}{part}: " + ", ".join(dataset.splits))
    table.add_row("clips", _counts(report.clips_extracted, report.clips_kept))
    table.add_row("captions", _counts(report.texts_extracted, report.texts_kept))
    table.add_row("left out", f"{len(report.undecodable)} not decodable, {len(report.missing)} missing")
    if report.clips_per_s is not None:
        table.add_row("speed", f"{report.clips_per_s:.1f} clips/s")
    for reason in report.redone:
        table.add_row("redone", escape(reason))
    for text in report.notes:
        table.add_row("note", printable(text))
    if report.shard != (1, 1):
        table.add_row("next", "when all parts are there: calmctl extract --merge PARTS --out STORE")
    stdout().print(table)
    print_left_out({"not read": _listed(report.unread)}, noun="place")
    print_left_out({"not decodable": _listed(report.undecodable), "missing": _listed(report.missing)})
    if report.shard == (1, 1):
        store = shlex.quote(str(report.store))
        if dataset.splits.keys() >= {"train", "val"}:
            words = [f"data.features={store}", "backbone.adapter=linear", *map(shlex.quote, keys)]
            print_next(f"calmctl train recipes/{dataset.name}.yaml {' '.join(words)}")
        else:
            print_next(f'calmctl search "a man talking" --in {store}')


def _counts(extracted: int, kept: int) -> str:
    return f"{extracted} extracted, {kept} there already"


def _listed(left_out: tuple[LeftOut, ...]) -> dict[str, str]:
    return {clip.id: clip.reason for clip in left_out}


def print_merged(report: MergeReport) -> None:
    """Print what a merge did, and what is missing for a whole store."""
    stdout().print(
        f"{report.store}: {report.clips} clips, {report.sentences} captions ({report.shards_taken} shards taken over)",
        markup=False,
        soft_wrap=True,
    )
    if report.incomplete:
        note(f"[yellow]not complete: {len(report.incomplete)} shards are in none of the parts[/]")
        for line in report.incomplete[:10]:
            note(f"  {printable(line)}")
        note("extract those parts, then merge again with the same command")
