"""`calmctl export`, `calmctl push`: a run for others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from calmctl.cli import options
from calmctl.cli.console import Sheet, ask, loading, note, print_json, print_next, printable, stdout
from calmctl.hub import endpoint
from calmctl.words import counted

EXPORT_EXAMPLES = options.examples(
    "calmctl export demo-001 my-model",
    "calmctl export msrvtt-001 my-model --licence 'CC BY-NC 4.0'",
)
PUSH_EXAMPLES = options.examples(
    "calmctl push demo-001 me/my-model",
    "calmctl push demo-001 me/my-model --public --licence apache-2.0",
    "calmctl push my-model/slim.safetensors me/my-model --yes",
)


def export(
    run: options.RunName,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    licence: options.Licence = None,
    as_json: options.Json = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Write what others need of a run into a folder.

    Slim weights that are a run by themselves, recipe, anchors, results, digests, and a model card made from them.

    No path, name or token of this machine is in it, and no caption of a data set.
    """
    from calmctl.runs.run import find_run

    chosen = find_run(run, runs)
    loading(chosen.name)
    from calmctl.runs.publish import export_run

    made = export_run(chosen, folder, licence=licence)
    if as_json:
        print_json({"folder": str(made.folder), "files": dict(made.files)})
        return
    table = Sheet(printable(str(made.folder)), numbers=["bytes"])
    for name, size in made.files.items():
        table.add_row(name, f"{size:,}")
    stdout().print(table)
    if licence is None:
        note("[yellow]the card names no licence[/]; --licence says what may be done with it")
    print_next(f"calmctl eval {shlex.quote(str(folder))}")


def push(
    run: options.RunName,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository; made where there is none.")],
    licence: options.Licence = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository is for everybody to see.")] = False,
    yes: options.Yes = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Export a run to a hub of models.

    It says what goes where, and asks. HF_TOKEN, or 'hf auth login', says who you are. Others then take it as --run hf://OWNER/NAME.
    """
    from calmctl.runs.run import find_run

    chosen = find_run(run, runs)
    seen = "public" if public else "private"
    note(f"weights, recipe, anchors, results and card of {printable(chosen.name)} go to {endpoint()}/{repository}")
    note(f"a repository that is not there yet is made, {seen}; trained on {printable(str(chosen.trained_on))[11:]}")
    ask("Publish this?", yes)
    from calmctl.runs.publish import push_run

    commit = push_run(chosen, repository, licence=licence, private=not public)
    note(f"pushed as {commit[:12]}, {counted(6, 'file')}")
    print_next(f"calmctl runs show hf://{shlex.quote(repository)}")
