"""Which runs are there already: recognised by what their recipe says, not by their folder's name."""

from __future__ import annotations

import json
from pathlib import Path

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.errors import CalmError
from calmctl.files import sha256_bytes
from calmctl.recipe import Recipe
from calmctl.runs.folder import Run
from calmctl.training.prepare import recipe_vocabulary

_NOT_THE_RESULT = {
    "name": None,
    "device": None,
    "data": ("workers", "timeout_s"),
    "optim": ("log_every", "save_every"),
}
"""Keys that say where and how often, and change no number of a run."""


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of every key that can change a run's numbers; paths count as they are written."""
    values = recipe.model_dump(mode="json")
    for key, inner in _NOT_THE_RESULT.items():
        if inner is None:
            values.pop(key)
        else:
            for name in inner:
                values[key].pop(name)
    return sha256_bytes(json.dumps(values, sort_keys=True).encode())


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
            if _began_after_its_weights(run, recipe) and _has_its_anchors(run, recipe):
                self._runs.setdefault(recipe_digest(recipe), []).append(run)

    def finished(self, recipe: Recipe) -> Run | None:
        """A run of `recipe` with results and its best weights, or None."""
        whole = (run for run in self._of(recipe) if run.results.is_file() and run.weights("best").is_file())
        return next(whole, None)

    def unfinished(self, recipe: Recipe) -> Run | None:
        """A run of `recipe` that was interrupted and can go on, or None."""
        return next((run for run in self._of(recipe) if not run.results.exists()), None)

    def _of(self, recipe: Recipe) -> list[Run]:
        return self._runs.get(recipe_digest(recipe), [])


def _began_after_its_weights(run: Run, recipe: Recipe) -> bool:
    """Whether the weights file that a run started from is the one that lies there now.

    A digest knows the file's path only. One that was written after the run began holds other weights.
    """
    weights = Path(recipe.backbone.weights or "")
    if not recipe.backbone.weights or not weights.is_file():
        return True
    return run.recipe_file.stat().st_mtime >= weights.stat().st_mtime


def _has_its_anchors(run: Run, recipe: Recipe) -> bool:
    """Whether the anchors that a run was begun with are those in the file that its recipe names, if it is a file."""
    if not (Path(recipe.anchors.vocabulary).is_file() and run.vocabulary.is_file()):
        return True
    try:
        return load_vocabulary(run.vocabulary) == recipe_vocabulary(recipe)
    except CalmError:
        return False
