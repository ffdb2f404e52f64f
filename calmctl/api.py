"""Python one level above tensors: train a recipe, evaluate a run, search and caption with it, list what there is.

What the command line does, without printing. Each takes a run by name, by folder, or as a `Run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmctl.captions.evaluate import CaptionEvaluation, task_of
from calmctl.captions.generate import Caption, CaptionSearch, caption_clip
from calmctl.device import choose_device
from calmctl.errors import BadInput
from calmctl.evaluation.retrieval import Evaluation
from calmctl.evaluation.runs import evaluate_run, keep
from calmctl.model.calm import CalmModel
from calmctl.model.captioner import CaptionModel
from calmctl.recipe import Recipe, load_recipe, resolve_recipe
from calmctl.runs.catalogue import run_records
from calmctl.runs.checkpoint import load_captioner, load_run
from calmctl.runs.run import RUNS, Run, find_run
from calmctl.samples import Clip
from calmctl.source.base import SourceSpec
from calmctl.words import SILENT, Progress, Watcher

if TYPE_CHECKING:
    from calmctl.search.results import Found
    from calmctl.training.train import Trained


def list_runs(root: str | Path = RUNS) -> list[dict[str, Any]]:
    """Every run of a folder as a flat record, the newest first: `pandas.DataFrame(calmctl.list_runs())`.

    The keys are those of `runs.catalogue.RunRecord`.
    """
    return [record.to_json() for record in run_records(Path(root))]


def load(
    run: str | Path | Run, weights: str = "best", *, device: str = "auto", root: str | Path = RUNS
) -> CalmModel | CaptionModel:
    """The model of a run of either task, in evaluation mode.

    Args:
        run: A run, its name, its folder or an exported file.
        weights: "best" (on validation), "last" or "slim".
        device: "auto", "cpu", "cuda" or "mps".
        root: Folder of runs.

    Raises:
        RunNotFound: There is no such run.
        CheckpointError: Its weights cannot be used.
    """
    run = _find(run, root)
    return (load_captioner if run.task == "caption" else load_run)(run, weights, choose_device(device))


def train(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    runs: str | Path = RUNS,
    watcher: Watcher = SILENT,
) -> Trained:
    """Train a recipe into a new folder under `runs`, and test the result.

    Args:
        recipe: A recipe, a file, or a shipped recipe's name.
        overrides: Such as "optim.epochs=2"; only for a recipe that is read.
        runs: Folder of runs.
        watcher: Told how far it is.

    Raises:
        BadInput: Whatever the recipe names that is not there or does not fit, before the first step.
        RunFailed: During training; the message says how to resume.
    """
    from calmctl.training.train import train as run_training

    if isinstance(recipe, Recipe):
        if overrides:
            raise BadInput("overrides are for a recipe that is read from a file; change this one's keys instead")
    else:
        recipe = load_recipe(resolve_recipe(str(recipe)), overrides)
    trained = run_training(recipe, Path(runs), watcher=watcher)
    trained.run.drop_state()
    return trained


def evaluate(
    run: str | Path | Run,
    on: SourceSpec | None = None,
    *,
    weights: str = "best",
    split: str = "test",
    device: str = "auto",
    kept: bool = True,
    root: str | Path = RUNS,
    progress: Progress | None = None,
) -> Evaluation | CaptionEvaluation:
    """Evaluate a run on its own test set or on another, and keep the result with it.

    Args:
        run: A run, its name, its folder or an exported file.
        on: What to test on, such as `SourceSpec("lsmdc", Path("/data"))`; None: what its recipe names.
        weights: "best", "last" or "slim".
        split: "test" or "val".
        device: Where to compute.
        kept: Whether the numbers, with each query's rank, are written into the run's folder.
        root: Folder of runs.
        progress: Told of clips.

    Returns:
        An `Evaluation`, or for a captioning run a `CaptionEvaluation`; `.result` has the numbers.
    """
    run = _find(run, root)
    recipe = run.recipe()
    spec = SourceSpec.of(recipe.data) if on is None else on
    (evaluation,) = evaluate_run(
        run, [spec], task_of(recipe), which=weights, split=split, device=choose_device(device), progress=progress
    )
    if kept:
        keep(run, weights, evaluation)
    made: Evaluation | CaptionEvaluation = evaluation
    return made


class Searcher:
    """A trained run that searches videos: read once, asked often."""

    def __init__(self, run: str | Path | Run, *, device: str = "auto", root: str | Path = RUNS) -> None:
        from calmctl.search.model import search_model_of_run

        self.model = search_model_of_run(_find(run, root), choose_device(device))

    def search(
        self,
        sentences: str | Sequence[str],
        where: str | Path,
        *,
        top: int = 10,
        cache: str | Path = Path("features/search"),
        progress: Progress | None = None,
    ) -> Found:
        """The clips that fit sentences best.

        Args:
            sentences: One, or several.
            where: A folder of videos or a feature store.
            top: Hits a sentence.
            cache: Where features of folders are kept for the next search.
            progress: Told of clips.

        Returns:
            `.answers`, one a sentence, each with `.hits`.
        """
        from calmctl.search.collection import open_collection
        from calmctl.search.search import Search as Engine

        queries = [sentences] if isinstance(sentences, str) else list(sentences)
        collection = open_collection(Path(where), self.model, stores=Path(cache), progress=progress)
        return Engine(self.model, collection, progress).sentences(queries, top)


class Captioner:
    """A captioning run that describes videos: read once, asked often."""

    def __init__(self, run: str | Path | Run, *, device: str = "auto", root: str | Path = RUNS) -> None:
        run = _find(run, root)
        self._recipe = run.recipe()
        self.model = load_captioner(run, "best", choose_device(device))

    def caption(self, video: str | Path, search: CaptionSearch | None = None) -> Caption:
        """The caption of a video file.

        Args:
            video: A file.
            search: How it is searched for; None: as the run's recipe says.

        Raises:
            DatasetError: The file cannot be decoded; the message says why.
        """
        path = Path(video)
        return caption_clip(self.model, self._recipe.data, Clip(path.stem, path), search)


def _find(run: str | Path | Run, root: str | Path) -> Run:
    return run if isinstance(run, Run) else find_run(str(run), Path(root))
