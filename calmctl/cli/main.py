"""The application: its subcommands, and how errors reach a person."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from calmctl.cli import options
from calmctl.cli.console import ReaderLeft, printable, secure_streams, stderr
from calmctl.errors import MACHINE_ERRORS, CalmError


@dataclass(frozen=True, slots=True)
class Later:
    """A command whose module is imported when it is named, and not to list it.

    Attributes:
        place: "module:name" below calmctl.cli: a function, or the `options.Commands` of a group.
        panel: The frame of the help that it stands in.
        help: The first paragraph of its own help (tests/cli/test_help.py compares them).
        examples: The module's constant that the help of a function ends in; a group has its own.
        parser: How the arguments of a function are read.
    """

    place: str
    panel: str
    help: str
    examples: str = "EXAMPLES"
    parser: type[TyperCommand] = TyperCommand

    def listed(self, name: str) -> TyperCommand:
        """What a list of commands says of it."""
        return TyperCommand(name, help=self.help, rich_help_panel=self.panel)

    def load(self, name: str) -> Any:
        """The command itself."""
        module_name, _, attribute = self.place.partition(":")
        module = import_module(f"calmctl.cli.{module_name}")
        declared = getattr(module, attribute)
        # Typer makes the commands of a group, all of them: this one has a group of its own.
        group = typer.Typer(rich_markup_mode="rich")
        if isinstance(declared, typer.Typer):
            group.add_typer(declared, name=name)
        else:
            group.command(name, cls=self.parser, epilog=getattr(module, self.examples))(declared)
        return typer.main.get_group(group).commands[name]


_DATA, _TRAIN, _NUMBERS, _USE = "Data", "Training", "Numbers", "Use"
COMMANDS = {
    # In the order of the help: what a newcomer does first stands first. `options.Group` resolves names of two words.
    "demo": Later(
        "reproduce:demo",
        _TRAIN,
        "Draw a world of captioned clips, fine-tune a small CLIP on it.",
        "DEMO_EXAMPLES",
        options.RecipeCommand,
    ),
    "train": Later("train:train", _TRAIN, "Train a recipe and test the result.", parser=options.RecipeCommand),
    "reproduce": Later(
        "reproduce:reproduce",
        _TRAIN,
        "Run a table of the paper, beside the paper's numbers.",
        parser=options.RecipeCommand,
    ),
    "extract": Later("extract:extract", _DATA, "Decode and encode clips once, into a feature store."),
    "eval": Later("eval:evaluate", _NUMBERS, "Evaluate a run, in and out of its domain."),
    "compare": Later(
        "artifacts.runs:compare", _NUMBERS, "Compare runs on one test set, paired over its clips.", "COMPARE_EXAMPLES"
    ),
    "report": Later("artifacts.runs:report", _NUMBERS, "Write one page about a run.", "REPORT_EXAMPLES"),
    "card": Later(
        "score:card",
        _NUMBERS,
        "Show the protocol card of numbers: list, queries, frames, reader, scorer, selection, weights, seeds.",
        "CARD_EXAMPLES",
    ),
    "search": Later("search.search:search", _USE, "Search videos with sentences.", "SEARCH_EXAMPLES"),
    "search similar": Later("search.search:similar", _USE, "Find the clips that look like one.", "SIMILAR_EXAMPLES"),
    "search captions": Later(
        "search.search:captions", _USE, "Rank the sentences of a file for one clip.", "CAPTIONS_EXAMPLES"
    ),
    "search moments": Later(
        "search.search:moments",
        _USE,
        "Ask timed sentences of their own videos, window by window, and score where the answers are.",
        "MOMENTS_EXAMPLES",
    ),
    "search recall": Later(
        "search.search:recall", _USE, "Measure what a search with --approximate loses.", "RECALL_EXAMPLES"
    ),
    "serve": Later("search.serve:serve", _USE, "Search a folder on a page that answers as you type."),
    "caption": Later("caption:caption", _USE, "Write a sentence for each video, with a trained captioner."),
    "explain": Later("explain:explain", _USE, "Explain a video and a sentence by their anchors."),
    "export": Later(
        "artifacts.share:export", _USE, "Write what others need of a run into a folder.", "EXPORT_EXAMPLES"
    ),
    "push": Later("artifacts.share:push", _USE, "Export a run to a hub of models.", "PUSH_EXAMPLES"),
    "recipes": Later("train:recipes", _TRAIN, "List, show and copy the shipped recipes."),
    "runs": Later("artifacts.runs:app", _TRAIN, "List runs, look into one, find the best, free space."),
    "data": Later("data:app", _DATA, "Check what a data set needs and where it is looked for."),
    "anchors": Later("anchors:app", _DATA, "Build, inspect, merge and check anchor vocabularies."),
    "weights": Later("artifacts.weights:app", _DATA, "List, fetch, check and convert the weights of backbones."),
    "score": Later("score:app", _NUMBERS, "Score any system's results, from files."),
    "diagnose": Later("diagnose:app", _NUMBERS, "Ask of a run what its numbers do not tell."),
}


class Loaded(Mapping[str, Any]):
    """The commands themselves by name, each imported when it is first asked for."""

    def __init__(self) -> None:
        self._commands: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._commands:
            self._commands[name] = COMMANDS[name].load(name)
        return self._commands[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Program(options.Group):
    """All commands. To make every one of them at each start took longer than what most quick commands do."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Loaded()  # type: ignore[assignment]  # nobody adds to it

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What a list says of a command; who runs it takes it from `commands`."""
        return COMMANDS[cmd_name].listed(cmd_name) if cmd_name in COMMANDS else None


app = typer.Typer(
    name="calmctl",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode="rich",
    # Errors are sentences; who wants the traceback says --debug.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: calmctl demo\nAny command takes --debug to show the traceback of an error.",
)


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
