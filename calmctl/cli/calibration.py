"""`calmctl eval --calibration`: whether a run's uncertainty knows its errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.bar import Bar

from calmctl.cli.console import Sheet, note, print_json, printable, stdout
from calmctl.files import PAGE, require_output

if TYPE_CHECKING:
    from calmctl.explaining.calibration import Calibration, Signal
    from calmctl.runs.folder import Run


def show_calibration(run: Run, *, which: str, split: str, device: str, html: Path | None, as_json: bool) -> None:
    """Calibrate a run on a split of its own dataset and print, or write, what was found."""
    if html is not None:
        require_output(html, PAGE)
    from calmctl.cli.explain import open_with_progress
    from calmctl.device import choose_device
    from calmctl.explaining.calibration import calibrate
    from calmctl.explaining.explainer import explain_with_run

    explainer = explain_with_run(run, choose_device(device), which=which)
    found = calibrate(explainer, open_with_progress(explainer, split))
    if html is not None:
        from calmctl.explaining.pages import write_calibration_page

        write_calibration_page(found, html)
    if as_json:
        print_json(found.to_json())
    else:
        print_calibration(found)
    if html is not None:
        note(f"wrote {printable(str(html))}")


def print_calibration(found: Calibration) -> None:
    """Print a calibration within 80 columns."""
    out = stdout()
    out.print(f"[bold]{printable(found.run)}[/], {found.split} split of {found.dataset}", soft_wrap=True)
    out.print(f"{found.queries} sentences among {found.clips} clips, R@1 {100 * found.accuracy:z.1f} %\n")
    out.print(f"[bold]{printable(found.conclusion)}[/]\n")
    table = Sheet(header_style="dim")
    table.add_column("confidence")
    for heading in ("AUROC", "95 %", "AURC", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for signal in found.signals:
        interval = "" if signal.interval is None else f"{signal.interval[0]:z.2f}-{signal.interval[1]:z.2f}"
        auroc = "" if signal.separation is None else f"{signal.separation:z.3f}"
        area, error = f"{signal.risk_coverage.area:z.3f}", f"{signal.reliability.error:z.3f}"
        table.add_row(signal.name, auroc, interval, area, error, signal.verdict)
    out.print(table)
    best = found.signals[0].risk_coverage.best
    out.print(
        f"\n[dim]AURC: area under risk-coverage, lower is better; knowing nothing {1 - found.accuracy:z.3f}, "
        f"knowing all {best:z.3f}.[/]"
    )
    for signal in found.signals[:2]:
        _print_diagrams(signal)


def _print_diagrams(signal: Signal) -> None:
    out = stdout()
    rel, curve = signal.reliability, signal.risk_coverage
    table = Sheet(header_style="dim", title=f"\n[bold]{signal.name}[/]", title_justify="left")
    table.title_style = ""
    for heading in ("predicted", "sentences"):
        table.add_column(heading, justify="right")
    table.add_column("observed")
    table.add_column("", justify="right")
    for predicted, observed, count in zip(rel.predicted, rel.observed, rel.counts, strict=True):
        bar = Bar(1.0, 0.0, float(observed), width=30, color="cyan")
        table.add_row(f"{100 * predicted:z.0f} %", str(count), bar, f"{100 * observed:z.0f} %")
    out.print(table)
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    places = [max(0, round(share * len(curve.risk)) - 1) for share in shares]
    at = ", ".join(f"{100 * curve.risk[i]:z.0f} % at {100 * s:z.0f} %" for s, i in zip(shares, places, strict=True))
    out.print(f"errors among the most trusted: {at}")
