"""What a table is: rows of recipes, the test sets of each, and what the paper prints there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calmctl.recipe import Recipe, load_recipe, resolve_recipe

FIRST_SEED = 24
"""Seeds count from the one that recipes have by default, so that a plain training of a recipe is the first of them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a system that is trained once a seed and tested on every one of `tests`.

    Attributes:
        key: Names it on the command line and in files, "t-mass+calm".
        label: What the table prints, at most 20 characters.
        recipe: Name of a shipped recipe.
        overrides: Of that recipe.
        tests: Datasets tested on.
        baseline: Key of the row it is compared with, "" for none.
        paper: The paper's numbers by dataset and metric; empty where it has none.
        varies: Keys that get the number of the seed, counted from 0, as in "anchors.subset_seed".
        note: What a reader must know of this row.
    """

    key: str
    label: str
    recipe: str
    overrides: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    baseline: str = ""
    paper: Mapping[str, Mapping[str, float]] | None = None
    varies: tuple[str, ...] = ()
    note: str = ""

    def resolved(self, seed: int, overrides: tuple[str, ...] = ()) -> Recipe:
        """The recipe of the seed number `seed` (0, 1, ...), with more overrides behind the row's own.

        Raises:
            RecipeError: An override that the recipe does not know, or that does not fit the others.
        """
        own = [f"seed={FIRST_SEED + seed}", *(f"{key}={seed}" for key in self.varies)]
        recipe = load_recipe(resolve_recipe(self.recipe), [*self.overrides, *own, *overrides])
        return recipe.model_copy(update={"name": f"{recipe.name}-{self.key}-seed{recipe.seed}"})

    def paper_on(self, dataset: str) -> Mapping[str, float]:
        """The paper's numbers on `dataset` by metric, empty where it has none."""
        return (self.paper or {}).get(dataset, {})


@dataclass(frozen=True, slots=True)
class Table:
    """A table to reproduce.

    Attributes:
        name: "table1" to "table7", or "ablations".
        title: What it shows.
        rows: Its systems.
        stand_in: Whether the drawn demo world stands in for the paper's data, so that its numbers can be compared
            with one another and not with the paper's.
        left_out: Systems of the paper, or of the list, that this table does not run, with the reason.
        notes: What a reader must know.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    stand_in: bool = False
    left_out: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """Every dataset that is trained or tested on."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.tests))
