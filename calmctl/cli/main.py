"""The application: its subcommands, and how errors reach a person."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress

import typer

# Modules of commands import neither torch, numpy nor pydantic at their top, so that a help comes at once.
from calmctl.cli import anchors, caption, data, diagnose, explain, extract, options, reproduce, score, train
from calmctl.cli import eval as evaluation
from calmctl.cli.artifacts import runs, share, weights
from calmctl.cli.console import ReaderLeft, printable, secure_streams, stderr
from calmctl.cli.search import search, serve
from calmctl.errors import MACHINE_ERRORS, CalmError

app = typer.Typer(
    name="calmctl",
    cls=options.Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # Errors are sentences; who wants the traceback says --debug.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: calmctl demo\nAny command takes --debug to show the traceback of an error.",
)

# The order of the help: what a newcomer does first stands first.
_DATA, _TRAIN, _NUMBERS, _USE = "Data", "Training", "Numbers", "Use"
app.command(cls=options.RecipeCommand, rich_help_panel=_TRAIN, epilog=reproduce.DEMO_EXAMPLES)(reproduce.demo)
app.add_typer(train.recipes, name="recipes", rich_help_panel=_TRAIN)
app.command(cls=options.RecipeCommand, rich_help_panel=_TRAIN, epilog=train.EXAMPLES)(train.train)
app.command(cls=options.RecipeCommand, rich_help_panel=_TRAIN, epilog=reproduce.EXAMPLES)(reproduce.reproduce)
app.add_typer(runs.app, name="runs", rich_help_panel=_TRAIN)
app.add_typer(data.app, name="data", rich_help_panel=_DATA)
app.command(rich_help_panel=_DATA, epilog=extract.EXAMPLES)(extract.extract)
app.add_typer(anchors.app, name="anchors", rich_help_panel=_DATA)
app.add_typer(weights.app, name="weights", rich_help_panel=_DATA)
app.command("eval", rich_help_panel=_NUMBERS, epilog=evaluation.EXAMPLES)(evaluation.evaluate)
app.command(rich_help_panel=_NUMBERS, epilog=runs.COMPARE_EXAMPLES)(runs.compare)
app.command(rich_help_panel=_NUMBERS, epilog=runs.REPORT_EXAMPLES)(runs.report)
app.add_typer(score.app, name="score", rich_help_panel=_NUMBERS)
app.command(rich_help_panel=_NUMBERS, epilog=score.CARD_EXAMPLES)(score.card)
app.add_typer(diagnose.app, name="diagnose", rich_help_panel=_NUMBERS)
app.command(rich_help_panel=_USE, epilog=search.SEARCH_EXAMPLES)(search.search)
# Names of two words, which `options.Group` resolves.
app.command("search similar", rich_help_panel=_USE, epilog=search.SIMILAR_EXAMPLES)(search.similar)
app.command("search captions", rich_help_panel=_USE, epilog=search.CAPTIONS_EXAMPLES)(search.captions)
app.command("search moments", rich_help_panel=_USE, epilog=search.MOMENTS_EXAMPLES)(search.moments)
app.command("search recall", rich_help_panel=_USE, epilog=search.RECALL_EXAMPLES)(search.recall)
app.command(rich_help_panel=_USE, epilog=serve.EXAMPLES)(serve.serve)
app.command(rich_help_panel=_USE, epilog=caption.EXAMPLES)(caption.caption)
app.command(rich_help_panel=_USE, epilog=explain.EXAMPLES)(explain.explain)
app.command(rich_help_panel=_USE, epilog=share.EXPORT_EXAMPLES)(share.export)
app.command(rich_help_panel=_USE, epilog=share.PUSH_EXAMPLES)(share.push)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Show the version and leave.")) -> None:
    """CALM: class-anchor-aligned generative modeling for video-text retrieval and captioning."""
    if version:
        from importlib.metadata import version as installed

        print(f"calmctl {installed('calmctl')}")
        raise typer.Exit

    # Here, because any command may find that a file of a hub is not there yet.
    from calmctl.cli.artifacts.downloads import DownloadBar
    from calmctl.hub import watch_downloads

    watch_downloads(DownloadBar())


def main() -> None:
    """Run the command line; the process ends with 0 (fine), 1 (a failed run) or 2 (bad usage or bad input)."""
    fault: BaseException
    debug = "--debug" in sys.argv or bool(os.environ.get("CALMCTL_DEBUG"))
    # Taken out by hand: every command takes it, at any place, and none declares it.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    out = secure_streams()
    try:
        try:
            app()
        except SystemExit:
            # Typer ends every command so, a successful one too: now it can still be said that what was printed is
            # lost.
            out.require_whole()
            raise
    except CalmError as error:
        fault, code, text = error, error.exit_code, str(error)
    except KeyboardInterrupt as error:  # before the command, or behind it
        fault, code, text = error, 1, "interrupted"
    except ReaderLeft:
        sys.exit(0)
    except Exception as error:
        # The one place that catches everything: who meets a fault of ours gets a sentence, too.
        fault, code = error, 1
        text = f"unexpected {type(error).__name__}: {error}; run again with --debug and report the traceback"
        # A full disk or a limit of the machine may also end what libraries do, and is no fault to report.
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            place = f"{error.filename}: " if error.filename else ""
            text = f"{place}{error.strerror} (a full disk, rights, or a limit of this machine); mend that and run again"
    if debug:
        traceback.print_exception(fault)
    # Plain text: a message may quote input that looks like markup or carries terminal controls.
    for line in text.splitlines() or [""]:
        stderr().print(f"[bold red]error:[/] {printable(line)}", soft_wrap=True, highlight=False)
    with suppress(ReaderLeft):
        out.flush()
    sys.exit(code)
