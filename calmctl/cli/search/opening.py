"""How every verb of search opens what it asks: which model answers, over which clips, and what is said of both."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calmctl.cli import options
from calmctl.cli.console import loading, note, print_left_out, printable, readings
from calmctl.cli.results import run_or_backbone
from calmctl.data.locate import Listing, drawn
from calmctl.device import choose_device
from calmctl.errors import DatasetError, StoreError
from calmctl.files import read_json
from calmctl.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from calmctl.search.model import SearchModel
    from calmctl.search.search import Search


def note_cut(search_model: SearchModel, sentences: Sequence[str]) -> None:
    """Say which sentences are longer than the model reads."""
    if cut := search_model.model.backbone.tokens.cut(sentences, "sentence"):
        note(f"[yellow]{cut}[/]")


def are_drawn(where: Path) -> bool:
    """Whether what lies in a folder or store are the demo's drawn shapes.

    Raises:
        DatasetError: There is nothing to search, which is said before a model is asked for.
    """
    from calmctl.data.folder import FolderClips
    from calmctl.store.format import CATALOGUE, INDEX

    # Before a model is asked for: which one answers depends on what lies here.
    if (where / INDEX).is_file():
        index = read_json(where / INDEX, what="feature store", error=StoreError)
        header = index.get("header") if isinstance(index, dict) else None
        dataset = str(header.get("dataset")) if isinstance(header, dict) else ""
        if dataset != "folder":  # a store says whose it is; a folder, and its store, are known by the names in it
            return dataset.startswith("demo")
        catalogue = read_json(where / CATALOGUE, what="feature store", error=StoreError)
        groups = catalogue.get("clips") if isinstance(catalogue, dict) else None
        ids = [key for group in groups if isinstance(group, list) for key in group] if isinstance(groups, list) else []
        return drawn([Path(str(key).partition("#t=")[0]).name for key in ids])
    names = [os.path.basename(stem) for stem in Listing(where, follow_outside=False).videos.values()]
    if not names:
        what = FolderClips(where).no_video()
        raise DatasetError(f"{where}: {what}; name another folder or a feature store with --in")
    return drawn(names)


def choose_model(
    name: str | None, runs: Path, backbone: str | None, weights: str | None, device: str, why: bool, drawn: bool
) -> SearchModel:
    """The run that was named, else the bare backbone that was, else a run that knows such clips, else the backbone."""
    # Named things first: a guess is made only where nobody said what shall answer.
    bare = backbone is not None or weights is not None
    run = None if bare else run_or_backbone(name, runs, drawn, "searching")
    if run is None:
        options.check_bare(backbone, weights)
    loading(str(run.folder) if run else backbone or "the bare backbone")
    # From here on torch is needed, which takes seconds: the mistakes above are found before.
    from calmctl.search.model import bare_search_model, search_model_of_run

    chosen = choose_device(device)
    if run is not None:
        search_model = search_model_of_run(run, chosen, why=why)
        warning = run.trained_on.warning(drawn)
        return replace(search_model, name=f"{search_model.name} !! {warning}") if warning else search_model
    search_model = bare_search_model(chosen, backbone=backbone, weights=weights, why=why)
    for text in search_model.model.backbone.notes:
        note(printable(text))
    return search_model


def open_search(
    search_model: SearchModel,
    where: Path,
    window: float | None,
    stride: float | None,
    videos: Path | None,
    cache: Path,
    bar: Progress,
    shots: bool = False,
) -> Search:
    """The search of a folder or store; damaged features of a folder are made again."""
    from calmctl.search.collection import open_collection
    from calmctl.search.search import Search

    tell = readings(bar)
    opened = partial(
        open_collection, where, search_model, window_s=window, stride_s=stride, shots=shots, stores=cache, progress=tell
    )
    collection = opened(videos=videos)
    try:
        return Search(search_model, collection, tell)
    except StoreError:
        if collection.is_store:
            raise
    # Features of a folder are ours to make again; of a store they are not.
    note("a file of the extracted features is damaged: making it again")
    return Search(search_model, opened(verify=True), tell)


def note_left_out(engine: Search) -> None:
    """Say what was extracted, what cannot be found, and why."""
    from calmctl.store.store import NOT_EXTRACTED

    collection = engine.collection
    if collection.extracted:
        note(f"extracted {counted(collection.extracted, collection.unit)} into {printable(str(collection.store.path))}")
    if pending := sum(clip.reason == NOT_EXTRACTED for clip in collection.left_out):
        whole = counted(sum(len(shard.ids) for shard in collection.shards) + pending, "clip")
        note(f"[bold red]!! {pending:,} of {whole} are not extracted yet and cannot be found[/]")
    if engine.not_kept is not None:
        note(f"tables for the next search are not kept: {printable(engine.not_kept)}")
    # A file that could not be cut has no windows or shots, and counts as a clip.
    for unit in dict.fromkeys(("clip", collection.unit)):
        reasons = {each.id: each.reason for each in collection.left_out if ("#t=" in each.id) == (unit != "clip")}
        print_left_out({str(collection.name): reasons}, noun=unit)
    not_read = {each.id: each.reason for each in collection.unread}
    print_left_out({f"{collection.name}, not read": not_read}, noun="place")
    if collection.passed_over is not None:
        note(f"[dim]{printable(collection.passed_over)}[/]")
