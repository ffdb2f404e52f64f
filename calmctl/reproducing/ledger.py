"""Which runs are there already: recognised by what they were made of, not by a name, a place or a date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.data.identity import SplitRecord, changes
from calmctl.errors import CalmError
from calmctl.files import sha256_file
from calmctl.recipe import Recipe
from calmctl.runs.folder import Run
from calmctl.runs.identity import RunIdentity, is_weights_file, recipe_digest, run_identity
from calmctl.training.prepare import own_records, recipe_vocabulary


class Ledger:
    """The runs under a folder, by the digest of their recipes."""

    def __init__(self, root: Path) -> None:
        """Read the recipes of all runs under `root`; folders that hold none that can be read are no runs."""
        self._runs: dict[str, list[Run]] = {}
        for path in sorted(root.glob("*/recipe.json")):
            run = Run(path.parent)
            try:
                recipe = run.recipe()
            except CalmError:  # of another version, or half a folder: it stays, and a new run is made beside it
                continue
            self._runs.setdefault(digest_of(recipe), []).append(run)
        self._splits: dict[str, dict[str, SplitRecord] | None] = {}
        self._files: dict[str, str] = {}

    def finished(self, recipe: Recipe) -> Run | None:
        """A run of `recipe` with results and its best weights, or None."""
        return next((run for run in self._of(recipe) if run.results.is_file()), None)

    def unfinished(self, recipe: Recipe) -> Run | None:
        """A run of `recipe` that was interrupted and can go on, or None."""
        return next((run for run in self._of(recipe, ("train", "val", "test")) if not run.results.exists()), None)

    def _of(self, recipe: Recipe, splits: tuple[str, ...] = ("train", "val")) -> Iterator[Run]:
        """The runs that are of this recipe, wherever they and their data lie now.

        A finished run does not depend on its test split: one that was completed since is measured again.
        """
        for run in self._runs.get(digest_of(recipe), []):
            try:
                identity = run_identity(run)
                if not (self._has_its_anchors(run, recipe) and _complete(run)):
                    continue
            except CalmError:  # half a folder
                continue
            if self._from_before(run, recipe) if identity is None else self._same(identity, recipe, splits):
                yield run

    def _same(self, identity: RunIdentity, recipe: Recipe, names: tuple[str, ...]) -> bool:
        weights, now = recipe.backbone.weights, self._records(recipe)
        if now is None or (is_weights_file(weights) and identity.start_file != self._digest(str(weights))):
            return False
        known = [name for name in names if name in now or name in identity.splits]
        return all(
            name in now and name in identity.splits and not changes(identity.splits[name], now[name]) for name in known
        )

    @staticmethod
    def _from_before(run: Run, recipe: Recipe) -> bool:
        """Whether a run that did not record its data names the same places; what its weights file held is not known."""
        then = run.recipe()
        return not run.about.exists() or (
            not is_weights_file(recipe.backbone.weights)
            and [_place(then.data.root), _place(then.data.features)]
            == [_place(recipe.data.root), _place(recipe.data.features)]
        )

    @staticmethod
    def _has_its_anchors(run: Run, recipe: Recipe) -> bool:
        """Whether the anchors that a run was begun with are those that the recipe names now."""
        return not run.vocabulary.is_file() or load_vocabulary(run.vocabulary) == recipe_vocabulary(recipe)

    def _records(self, recipe: Recipe) -> dict[str, SplitRecord] | None:
        """What the data of a recipe is now; None where it is missing."""
        key = json.dumps([recipe.task, recipe.data.model_dump(mode="json")])
        if key not in self._splits:
            try:
                self._splits[key] = own_records(recipe)
            except CalmError:
                self._splits[key] = None
        return self._splits[key]

    def _digest(self, weights: str) -> str:
        if weights not in self._files:
            self._files[weights] = sha256_file(Path(weights)) if Path(weights).is_file() else ""
        return self._files[weights]


def digest_of(recipe: Recipe) -> str:
    """`recipe_digest` of a recipe that is not written down yet."""
    return recipe_digest(recipe.model_dump(mode="json"))


def _complete(run: Run) -> bool:
    """Whether a run that says it is finished has the weights that it was finished with."""
    return run.weights("best").is_file() or not run.results.exists()


def _place(path: str | None) -> Path | None:
    return None if path is None else Path(path).resolve()
