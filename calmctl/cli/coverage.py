"""`calmctl anchors coverage`: which anchors of a run carry mass on its dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calmctl.cli.console import Sheet, loading, note, print_json, printable, stdout
from calmctl.files import VOCABULARY, require_output

if TYPE_CHECKING:
    from calmctl.explaining.coverage import Coverage

_SHOWN = 12


def coverage(
    run: Annotated[str | None, typer.Option(help="A run folder; the newest run by default.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    vocabulary: Annotated[str | None, typer.Option(help="Other anchors than the run's.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the suggested subset here, as a vocabulary.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show which anchors a dataset uses, which it never does, and which say the same."""
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.runs.folder import find_run

    chosen = find_run(run, runs, task="retrieval")
    if vocabulary is not None:
        resolve_vocabulary(vocabulary)  # a wrong name is told before a model is loaded
    if out is not None:
        require_output(out, VOCABULARY)
    loading(str(chosen.folder))
    from calmctl.cli.explain import open_with_progress
    from calmctl.device import choose_device
    from calmctl.explaining.coverage import coverage as measure
    from calmctl.explaining.coverage import suggested_vocabulary
    from calmctl.explaining.explainer import explain_with_run

    explainer = explain_with_run(chosen, choose_device(device), vocabulary=vocabulary)
    found = measure(explainer, open_with_progress(explainer, split))
    if split == "test":
        note("[yellow]this is the test split: anchors chosen by it have seen the answers[/]")
    if as_json:
        print_json(found.to_json())
    else:
        print_coverage(found)
    if out is not None:
        from calmctl.anchors.publish import publish

        subset = suggested_vocabulary(found, explainer.vocabulary)
        status = publish(subset, out)
        note(f"{status} {printable(str(out))} ({subset.reference}, {len(subset)} labels)")


def print_coverage(found: Coverage) -> None:
    """Print a coverage within 80 columns."""
    console = stdout()
    console.print(
        f"[bold]{printable(found.vocabulary)}[/], {len(found.anchors)} anchors, by {printable(found.run)}",
        soft_wrap=True,
    )
    console.print(f"{found.clips} clips and {found.captions} captions of {found.dataset}, {found.split} split")
    console.print(f"The mass is as on {found.effective:z.1f} anchors with equal shares.\n")
    table = Sheet(header_style="dim")
    table.add_column("anchor", ratio=1)
    for heading in ("mass in V_p", "in S_p", "clips", "captions"):
        table.add_column(heading, justify="right", no_wrap=True)
    for use in found.anchors[:_SHOWN]:
        masses = (f"{100 * use.video_mass:z.1f} %", f"{100 * use.text_mass:z.1f} %")
        table.add_row(printable(use.label), *masses, str(use.clips), str(use.captions))
    console.print(table)
    if len(found.anchors) > _SHOWN:
        console.print(f"[dim]and {len(found.anchors) - _SHOWN} more (--json lists all)[/]")
    console.print("[dim]clips, captions: those that need it among the fewest anchors that hold 90 % of their mass[/]")
    if found.never:
        console.print(f"\n[bold]Never needed[/] ({len(found.never)}): {', '.join(map(printable, found.never))}")
    if found.twins:
        console.print(f"\n[bold]Near-duplicates[/] ({len(found.twins)}), which rise and fall together")
        like: dict[str, list[str]] = {}
        for twins in found.twins:
            like.setdefault(twins.kept, []).append(f"{printable(twins.dropped)} [dim]{twins.correlation:z.2f}[/]")
        for kept, dropped in like.items():
            console.print(f"  {printable(kept)} = {', '.join(dropped)}")
    console.print(
        f"\nSuggested: the {len(found.suggested)} others, which carry {100 * found.kept_mass:z.1f} % of the mass; "
        "--out FILE writes them as a vocabulary."
    )
