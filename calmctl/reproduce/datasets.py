"""Where a table's data lies, and what of it is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.errors import BadInput, CalmError
from calmctl.model.spec import SHIPPED_TAGS
from calmctl.recipe import Recipe
from calmctl.reproduce.rows import Row, Table
from calmctl.source.base import SourceSpec
from calmctl.source.source import StoredSource, open_source
from calmctl.store.format import INDEX
from calmctl.words import counted

RecipeKey = tuple[str, str, int]
"""A table's name, a row's key, and the number of a seed: each has its recipe, which is read once, in the plan."""


@dataclass(frozen=True, slots=True)
class TableData:
    """The data that a table is made on.

    Attributes:
        name: "demo", or the folder.
        tests: Where each dataset is tested.
        overrides: Recipe keys by the dataset trained on.
    """

    name: str
    tests: Mapping[str, SourceSpec]
    overrides: Mapping[str, tuple[str, ...]]

    def recipe(self, row: Row, seed: int, overrides: tuple[str, ...] = ()) -> Recipe:
        """The recipe of `row` for the seed number `seed`: the world's data, the row's own keys, then `overrides`."""
        dataset = row.resolved(seed, overrides).data.dataset
        # The later of two wins: a row may ask for other data than the world has, and a person for other keys than the
        # row.
        here = replace(row, overrides=(*self.overrides.get(dataset, ()), *row.overrides))
        return here.resolved(seed, overrides)

    def tests_of(self, row: Row, recipe: Recipe) -> list[SourceSpec]:
        """Where `row` is tested: on the dataset of its own recipe as that says, elsewhere as this world says.

        A run that was not trained on features is tested on videos, because its head reads what a store lacks.
        """
        tests = []
        for name in row.tests:
            if name == recipe.data.dataset:
                tests.append(SourceSpec.of(recipe.data))
            else:
                test = self.tests[name]
                tests.append(test if recipe.data.features else replace(test, features=None))
        return tests


def folder_world(root: Path, tables: Sequence[Table]) -> TableData:
    """The world of the datasets in `root`: each in a folder of its name, or all in one."""
    trained = [row.resolved(0).data.dataset for table in tables for row in table.rows]
    names = dict.fromkeys([*trained, *(name for table in tables for name in table.datasets)])
    places = {name: root / name if (root / name).is_dir() else root for name in names}
    return TableData(
        str(root),
        {name: SourceSpec(name, place) for name, place in places.items()},
        {name: (f"data.root={place}",) for name, place in places.items()},
    )


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a table needs, and whether it is there.

    Attributes:
        what: The dataset, vocabulary or weights.
        present: Whether it is there, or will be fetched.
        says: Counts, or what is missing and how to get it.
        online: Whether it is not there yet and the first run downloads it.
    """

    what: str
    present: bool
    says: str
    online: bool = False


def look(world: TableData, table: Table, recipes: Mapping[RecipeKey, Recipe]) -> dict[str, Requirement]:
    """Look for everything that the rows of `table` need, by name; nothing is decoded or downloaded."""
    requirements: dict[str, Requirement] = {}
    for row in table.rows:
        recipe = recipes[table.name, row.key, 0]
        # Once each, however many rows need it: reading a data set takes seconds.
        for test in world.tests_of(row, recipe):
            requirements.setdefault(test.dataset, _dataset(test, recipe))
        if recipe.data.dataset not in requirements:
            requirements[recipe.data.dataset] = _dataset(SourceSpec.of(recipe.data), recipe)
        vocabulary = recipe.anchors.vocabulary
        if vocabulary not in requirements:
            requirements[vocabulary] = _vocabulary(vocabulary)
        weights = f"{recipe.backbone.model} {recipe.backbone.weights}"
        if weights not in requirements:
            requirements[weights] = _weights(recipe)
    return requirements


def needs(recipe: Recipe) -> tuple[str, ...]:
    """What a row of this recipe needs, by the names of `look`, the datasets that it is only tested on left aside."""
    return (
        recipe.data.dataset,
        recipe.anchors.vocabulary,
        f"{recipe.backbone.model} {recipe.backbone.weights}",
    )


def _dataset(test: SourceSpec, recipe: Recipe) -> Requirement:
    if test.features is not None and not (test.features / INDEX).is_file():
        return Requirement(test.dataset, False, f"no feature store in {test.features}")
    own = test.dataset == recipe.data.dataset
    try:
        # Only what is trained on needs a validation split.
        source = open_source(test, recipe, val=own)
        if isinstance(source, StoredSource):
            return _stored(source, test)
        splits = {name: source.split(name) for name in (("train", "val", "test") if own else ("test",))}
    except CalmError as fault:
        return Requirement(test.dataset, False, str(fault).removeprefix(f"{test.dataset}: "))
    counts = ", ".join(f"{name} {counted(len(split.ids), 'clip')}" for name, split in splits.items())
    left_out = sum(len(split.left_out) for split in splits.values())
    # A split without captions trains nothing and tests nothing, however many clips it has.
    empty = [name for name, split in splits.items() if not split.captions]
    if empty:
        return Requirement(test.dataset, False, f"not one clip of {', '.join(empty)} is in {test.root}")
    return Requirement(test.dataset, True, counts + (f"; {left_out:,} clips missing" if left_out else ""))


def _stored(source: StoredSource, test: SourceSpec) -> Requirement:
    # Training would refuse it, but only when its row's turn comes.
    if source.pending:
        return Requirement(
            test.dataset, False, f"{test.features} is not complete; run the same 'calmctl extract' again"
        )
    return Requirement(test.dataset, True, f"features in {test.features}")


def _vocabulary(name: str) -> Requirement:
    try:
        vocabulary = resolve_vocabulary(name)
    except BadInput as fault:
        label_list = Path(name).name.partition("@")[0]
        return Requirement(name, False, f"{fault}; make it with 'calmctl anchors build {label_list}.txt'")
    return Requirement(name, True, f"{len(vocabulary)} anchors")


def _weights(recipe: Recipe) -> Requirement:
    model, weights = recipe.backbone.model, recipe.backbone.weights
    what = f"{model} {weights}"
    if weights is None or Path(weights).is_file():
        return Requirement(what, True, "random" if weights is None else "a file")
    if SHIPPED_TAGS.get(model) == weights:
        return Requirement(what, True, "ships with calmctl")
    from huggingface_hub import try_to_load_from_cache

    from calmctl.model.openclip import open_clip

    repository = str((open_clip.get_pretrained_cfg(model, weights) or {}).get("hf_hub", "")).rpartition("/")[0]
    if not repository:
        return Requirement(what, False, f"neither a file nor a pretrained tag of {model}")
    # The cache alone is asked: looking reaches no network.
    cached = isinstance(try_to_load_from_cache(repository, "open_clip_model.safetensors"), str)
    if cached:
        return Requirement(what, True, "in the local cache")
    # There all the same, because the first run fetches it: missing is what a person has to bring.
    return Requirement(what, True, "not in the local cache: the first run downloads them", online=True)
