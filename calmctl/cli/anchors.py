"""`calmctl anchors`: build, list, show, merge and check anchor vocabularies."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.columns import Columns
from rich.table import Table
from rich.text import Text

from calmctl.cli import options
from calmctl.cli.console import Sheet, print_json, print_plain, stdout
from calmctl.errors import VocabularyError

if TYPE_CHECKING:  # the vocabularies' schema is pydantic's, which no `--help` needs
    from calmctl.anchors.shipped import Checked
    from calmctl.anchors.vocabulary import Vocabulary

app = options.Commands(
    "Build, inspect, merge and check anchor vocabularies.",
    "calmctl anchors list",
    "calmctl anchors build labels.txt --name mine",
)

Name = Annotated[str | None, typer.Option(help="Name of the result, if not the input's.", show_default=False)]
Note = Annotated[str | None, typer.Option(help="What a reader should know.", show_default=False)]
Prompt = Annotated[str | None, typer.Option(help="Prompt with one {label}.", show_default=False)]
Version = Annotated[int | None, options.COUNT(help="Version of the result; 1.")]


@app.verb(
    "calmctl anchors build",
    "calmctl anchors build charades",
    "calmctl anchors build kinetics400.txt --licence 'CC BY 4.0'",
    "calmctl anchors build ucf101.txt --spell-out --name ucf",
    "calmctl anchors build imagenet.txt --keep-first",
)
def build(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A label list (.txt .csv .tsv .json), an edited vocabulary (.yaml), or a shipped one's name.",
            show_default=False,
        ),
    ] = None,
    name: Name = None,
    version: Version = None,
    prompt: Prompt = None,
    origin: Annotated[str | None, typer.Option("--source", help="Where the labels are from.")] = None,
    licence: options.Licence = None,
    note: Note = None,
    column: Annotated[str | None, typer.Option(help="Label column of a CSV: header, or number.")] = None,
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="Keep the first of repeated labels, and say which.")
    ] = False,
    spell_out: Annotated[
        bool, typer.Option("--spell-out", help="Part joined words: brush_hair, ApplyLipstick.")
    ] = False,
    out: options.VocabularyFile = None,
) -> None:
    """Make a vocabulary from a label list, ./NAME@VERSION.yaml unless --out says otherwise.

    Without SOURCE the shipped vocabularies are checked: each must be what its own label list gives.
    """
    from calmctl.anchors.label_lists import build_vocabulary
    from calmctl.anchors.shipped import check_shipped, shipped_path, shipped_vocabularies

    if source is None:
        given = (name, version, prompt, origin, licence, note, column, out)
        if keep_first or spell_out or any(value is not None for value in given):
            # Without a source they would be passed over in silence.
            raise VocabularyError("options need a SOURCE: a label list, or the name of a shipped vocabulary")
        checked = check_shipped()
        _print_checked(checked)
        print_plain(
            f"The {len(checked)} shipped vocabularies are what their label lists give; nothing was written.\n"
            "One of your own: calmctl anchors build labels.txt"
        )
        return
    # A shipped name means its newest version.
    known = shipped_vocabularies()
    path = shipped_path(source, known[source][-1]) if source in known else Path(source)
    built = build_vocabulary(
        path, name=name, version=version, source=origin, licence=licence, note=note, prompt=prompt,
        column=column, keep_first=keep_first, spell_out=spell_out,
    )  # fmt: skip
    for label in built.dropped:
        print_plain(f"left out   repeat of {label}")
    for hint in built.hints:
        print_plain(f"note       {hint}")
    _publish(built.vocabulary, out)


def _publish(vocabulary: Vocabulary, out: Path | None) -> None:
    from calmctl.anchors.shipped import publish

    path = out or Path(f"{vocabulary.reference}.yaml")
    status = publish(vocabulary, path)
    print_plain(f"{status:<10} {path}  ({vocabulary.reference}, {len(vocabulary)} labels, {vocabulary.digest[:19]})")


@app.verb("calmctl anchors list", "calmctl anchors list --json", name="list")
def list_(as_json: options.Json = False) -> None:
    """List the shipped vocabularies."""
    from calmctl.anchors.shipped import load_shipped, shipped_vocabularies

    shipped = [load_shipped(name, version) for name, known in shipped_vocabularies().items() for version in known]
    if as_json:
        rows = [{key: value for key, value in each.to_json().items() if key != "labels"}
                | {"n_labels": len(each)} for each in shipped]  # fmt: skip
        print_json(rows)
        return
    table = Sheet()
    table.add_column("vocabulary", no_wrap=True)
    table.add_column("labels", justify="right")
    table.add_column("digest", no_wrap=True)
    table.add_column("licence")
    for each in shipped:
        # Behind "sha256:", twelve digits tell any two vocabularies apart.
        table.add_row(each.reference, str(len(each)), each.digest[7:19], Text(each.licence))
    stdout().print(table)


@app.verb(
    "calmctl anchors show charades",
    "calmctl anchors show charades --count 50 --seed 1",
    "calmctl anchors show ./kinetics400.txt --json",
)
def show(
    vocabulary: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE", help="A shipped name, or a file.", autocompletion=options.complete_vocabulary
        ),
    ],
    count: Annotated[int | None, options.COUNT(help="Show the seeded subset of so many labels.")] = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Show a vocabulary: where it is from, its digest, its labels."""
    from calmctl.anchors.shipped import resolve_vocabulary, subset

    shown = resolve_vocabulary(vocabulary)
    if count is not None:
        shown = subset(shown, count, seed)
    if as_json:
        print_json(shown.to_json())
        return
    facts = Table.grid(padding=(0, 2))
    for key, value in (
        ("vocabulary", f"{shown.reference}, {len(shown)} labels"),
        ("prompt", shown.prompt),
        ("digest", shown.digest),
        ("source", shown.source),
        ("licence", shown.licence),
        *((("note", shown.note),) if shown.note else ()),
    ):
        facts.add_row(Text(key, style="bold"), Text(value, overflow="fold"))
    labels = Columns([Text(f"{label.id}  {label.text}") for label in shown.labels], column_first=True)
    stdout().print(facts, "", labels)


@app.verb("calmctl anchors merge charades coco", "calmctl anchors merge charades ./kinetics400.txt --name actions")
def merge(
    vocabularies: Annotated[
        list[str], typer.Argument(metavar="NAME|FILE", help="Two or more: shipped names, or files.")
    ],
    name: Name = None,
    version: Version = None,
    prompt: Prompt = None,
    note: Note = None,
    out: options.VocabularyFile = None,
) -> None:
    """Concatenate vocabularies; of exactly equal labels the first stays."""
    from calmctl.anchors.label_lists import case_twins
    from calmctl.anchors.shipped import merge as merge_vocabularies
    from calmctl.anchors.shipped import resolve_vocabulary

    parts = [resolve_vocabulary(each) for each in vocabularies]
    merged = merge_vocabularies(parts, name=name, version=version or 1, note=note or "", prompt=prompt)
    for label in merged.removed:
        print_plain(f"left out   {label}")
    # Two anchors with the same tokens share one feature, and the mass of one label is divided.
    for twins in case_twins(merged.vocabulary.texts):
        print_plain(f"note       CLIP reads {', '.join(map(repr, twins))} alike: it ignores capitals")
    print_plain(f"merged     {' + '.join(str(len(part)) for part in parts)} labels, "
           f"{len(merged.removed)} duplicates removed: {len(merged.vocabulary)}")  # fmt: skip
    _publish(merged.vocabulary, out)


@app.verb("calmctl anchors check", "calmctl anchors check ./actions@1.yaml ./kinetics400.txt")
def check(
    vocabularies: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|FILE", help="All that are shipped, if none is named.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Verify vocabularies: schema, repeats, digests, and that the shipped ones follow from their sources."""
    from calmctl.anchors.shipped import check as check_one
    from calmctl.anchors.shipped import check_shipped

    checked = [check_one(each) for each in vocabularies] if vocabularies else check_shipped()
    if as_json:
        print_json([asdict(each) for each in checked])
    # After the JSON, so that a script gets the whole list and the status.
    _print_checked(checked, silent=as_json)


def _print_checked(checked: list[Checked], *, silent: bool = False) -> None:
    """One line per vocabulary; raises `VocabularyError` where one has a fault."""
    for each in [] if silent else checked:
        print_plain(f"{'FAULT' if each.fault else 'ok':<6} {each.name}  {each.fault or f'({each.n_labels})'}")
    if faults := sum(each.fault is not None for each in checked):
        raise VocabularyError(f"{faults} of {len(checked)} vocabularies have faults; they are listed above")
