"""Where a table's data lies, and what of it is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.errors import BadInput, CalmError
from calmctl.model.spec import SHIPPED_TAGS
from calmctl.recipe import Recipe
from calmctl.recipe.schema import is_published
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
        recipe = row.resolved(seed, overrides)
        dataset = recipe.data.dataset
        own = self.overrides.get(dataset, ())
        if (videos := self._reencoded(dataset, recipe)) is not None:
            own = (*own, f"data.videos={videos}")
        # The later of two wins: a row may ask for other data than the world has, and a person for other keys than the
        # row.
        here = replace(row, overrides=(*own, *row.overrides))
        return here.resolved(seed, overrides)

    def _reencoded(self, dataset: str, recipe: Recipe) -> Path | None:
        """Where a dataset's clips are that `calmctl data reencode` has made; None for a row that does without."""
        test = self.tests.get(dataset)
        if test is None or test.root is None or not reads_reencoded(recipe):
            return None
        return test.root / "reencoded"

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
                test = test if recipe.data.features else replace(test, features=None)
                tests.append(replace(test, videos=self._reencoded(name, recipe) or test.videos))
        return tests


def reads_reencoded(recipe: Recipe) -> bool:
    """Whether a recipe needs clips that `calmctl data reencode` has made."""
    return recipe.reads_compressed and not recipe.data.compressed.reencode


def clips_of(dataset: str, recipe: Recipe) -> str:
    """The clips of a dataset that a recipe reads, by the name that `look` gives them."""
    return f"{dataset}, re-encoded" if reads_reencoded(recipe) else dataset


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


_TAGGER = "textblob"
"""The package that tells SemSynAN what kind of word each is; an extra."""


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


Look = Callable[[Recipe], Requirement]
"""Looks for one thing that a row of this recipe needs."""


def look(world: TableData, table: Table, recipes: Mapping[RecipeKey, Recipe]) -> dict[str, Requirement]:
    """Look for everything that the rows of `table` need, by name; nothing is decoded or downloaded."""
    requirements: dict[str, Requirement] = {}
    for row in table.rows:
        recipe = recipes[table.name, row.key, 0]
        tests = {clips_of(each.dataset, recipe): partial(_dataset, each) for each in world.tests_of(row, recipe)}
        looks: dict[str, Look] = {**tests, **_needs(recipe)}
        for name, find in looks.items():
            # Once each, however many rows need it: reading a data set takes seconds.
            if name not in requirements:
                requirements[name] = find(recipe)
    return requirements


def needs(recipe: Recipe) -> tuple[str, ...]:
    """What a row of this recipe needs, by the names of `look`, the datasets that it is only tested on left aside."""
    return tuple(_needs(recipe))


def _needs(recipe: Recipe) -> dict[str, Look]:
    """The same, each with how it is looked for."""
    wanted: dict[str, Look] = {
        clips_of(recipe.data.dataset, recipe): partial(_dataset, SourceSpec.of(recipe.data)),
        recipe.anchors.vocabulary: _vocabulary,
        f"{recipe.backbone.model} {recipe.backbone.weights}": _weights,
    }
    # Without it the rows would stop a table after hours, when their turn comes.
    return {_TAGGER: _tagger} | wanted if recipe.task == "caption" and recipe.caption.system == "semsynan" else wanted


def _tagger(recipe: Recipe) -> Requirement:
    there = find_spec(_TAGGER) is not None
    return Requirement(_TAGGER, there, "" if there else "pip install 'calmctl[syntax]'")


def _dataset(test: SourceSpec, recipe: Recipe) -> Requirement:
    requirement = _looked_up(test, recipe)
    if not reads_reencoded(recipe):
        return requirement
    says = requirement.says if requirement.present else f"'calmctl data reencode VIDEOS {test.videos}' makes them"
    return replace(requirement, what=clips_of(test.dataset, recipe), says=says)


def _looked_up(test: SourceSpec, recipe: Recipe) -> Requirement:
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
    if not source.is_complete:
        return Requirement(
            test.dataset, False, f"{test.features} is not complete; run the same 'calmctl extract' again"
        )
    return Requirement(test.dataset, True, f"features in {test.features}")


def _vocabulary(recipe: Recipe) -> Requirement:
    name = recipe.anchors.vocabulary
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
    from calmctl.model.spec import read_architecture
    from calmctl.model.weights import cached_tag, repository_of, tag_of

    if is_published(model):
        return Requirement(what, True, "its own; the first run downloads what is not here", online=True)
    tag = tag_of(read_architecture(model), weights)
    if not tag:
        return Requirement(what, False, f"neither a file nor a pretrained tag of {model}")
    # The cache alone is asked: looking reaches no network.
    if cached_tag(model, weights, repository_of(model, weights, tag)) is not None:
        return Requirement(what, True, "in the local cache")
    # There all the same, because the first run fetches it: missing is what a person has to bring.
    return Requirement(what, True, "not in the local cache: the first run downloads them", online=True)
