"""The application: its subcommands, and how errors reach a person."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress

import typer

from calmctl.cli.anchors import app as anchors_app
from calmctl.cli.caption import EXAMPLES as CAPTION_EXAMPLES
from calmctl.cli.caption import caption
from calmctl.cli.console import Group, ReaderLeft, RecipeCommand, printable, secure_streams, stderr
from calmctl.cli.data import app as data_app
from calmctl.cli.demo import EXAMPLES as DEMO_EXAMPLES
from calmctl.cli.demo import demo
from calmctl.cli.eval import EXAMPLES as EVAL_EXAMPLES
from calmctl.cli.eval import evaluate
from calmctl.cli.explain import EXAMPLES as EXPLAIN_EXAMPLES
from calmctl.cli.explain import explain
from calmctl.cli.extract import EXAMPLES as EXTRACT_EXAMPLES
from calmctl.cli.extract import extract
from calmctl.cli.recipes import app as recipes_app
from calmctl.cli.reproduce import EXAMPLES as REPRODUCE_EXAMPLES
from calmctl.cli.reproduce import reproduce
from calmctl.cli.search import EXAMPLES as SEARCH_EXAMPLES
from calmctl.cli.search import search
from calmctl.cli.train import EXAMPLES as TRAIN_EXAMPLES
from calmctl.cli.train import train
from calmctl.errors import CalmError

app = typer.Typer(
    name="calmctl",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: calmctl demo    Any command takes --debug to show the traceback of an error.",
)
app.command(cls=RecipeCommand, epilog=DEMO_EXAMPLES)(demo)
app.add_typer(anchors_app, name="anchors")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.command(epilog=EXTRACT_EXAMPLES)(extract)
app.command(cls=RecipeCommand, epilog=TRAIN_EXAMPLES)(train)
app.command(name="eval", epilog=EVAL_EXAMPLES)(evaluate)
app.command(epilog=CAPTION_EXAMPLES)(caption)
app.command(epilog=EXPLAIN_EXAMPLES)(explain)
app.command(epilog=SEARCH_EXAMPLES)(search)
app.command(cls=RecipeCommand, epilog=REPRODUCE_EXAMPLES)(reproduce)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Show the version and leave.")) -> None:
    """CALM: class-anchor-aligned generative modeling for video-text retrieval and captioning."""
    if version:
        from importlib.metadata import version as installed

        print(f"calmctl {installed('calmctl')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; the process ends with 0 (fine), 1 (a failed run) or 2 (bad usage or bad input)."""
    fault: BaseException
    debug = "--debug" in sys.argv or bool(os.environ.get("CALMCTL_DEBUG"))
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    out = secure_streams()
    try:
        try:
            app()
        except SystemExit:
            out.require_whole()
            raise
    except CalmError as error:
        fault, code, text = error, error.exit_code, str(error)
    except KeyboardInterrupt as error:
        fault, code, text = error, 130, "interrupted"
    except ReaderLeft:
        sys.exit(0)
    except Exception as error:
        fault, code = error, 1
        text = f"unexpected {type(error).__name__}: {error}; run again with --debug and report the traceback"
    if debug:
        traceback.print_exception(fault)
    # Plain text: a message may quote input that looks like markup or carries terminal controls.
    for line in text.splitlines() or [""]:
        stderr().print(f"[bold red]error:[/] {printable(line)}", soft_wrap=True, highlight=False)
    with suppress(ReaderLeft):
        out.flush()
    sys.exit(code)
