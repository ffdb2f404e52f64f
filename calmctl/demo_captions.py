"""The demo's captioner: trained in a minute on the drawn world, shown beside the true sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from calmctl.device import choose_device
from calmctl.errors import RunFailed
from calmctl.evaluation.caption_runs import evaluate_caption_run
from calmctl.evaluation.captioning import CaptionEvaluation
from calmctl.evaluation.runs import TestSet
from calmctl.recipe import load_recipe, resolve_recipe
from calmctl.reproducing.ledger import Ledger
from calmctl.runs.folder import Run
from calmctl.training.job import Watcher
from calmctl.training.prepared import Progress
from calmctl.training.train import train


def caption_demo(
    root: Path,
    runs: Path,
    backbone: Run,
    *,
    seed: int,
    overrides: list[str],
    watcher: Watcher | None = None,
    progress: Progress | None = None,
    stage: Callable[[str], None] = lambda text: None,
) -> tuple[Run, CaptionEvaluation]:
    """Train recipes/demo-caption.yaml on the drawn world, unless that is done, and test it.

    Args:
        root: The drawn world.
        runs: Folder of runs.
        backbone: The demo's trained CLIP, which stays as it is.
        seed: Of the training.
        overrides: More recipe keys, such as those a person gave to `calmctl demo`.
        watcher: Told about steps and epochs.
        progress: Told about reading.
        stage: Told what is done, and what was done before.

    Returns:
        The run, and captions and scores of the test clips with the best epoch on validation.

    Raises:
        CalmError: As `train`.
    """
    start = [f"data.root={root}", f"backbone.weights={backbone.weights('slim')}", f"seed={seed}"]
    recipe = load_recipe(resolve_recipe("demo-caption"), [*start, *overrides])
    ledger, what = Ledger(runs), "training a captioner on the same backbone, with CALM's loss"
    if (run := ledger.finished(recipe)) is not None:
        stage(f"{what}: done before, {run.folder}")
        (again,) = evaluate_caption_run(
            run, [TestSet("demo", root)], device=choose_device(recipe.device), progress=progress
        )
        return run, again
    begun = ledger.unfinished(recipe)
    stage(what if begun is None else f"{what}: going on with {begun.folder}")
    trained = train(recipe, runs, resume=begun, watcher=watcher, progress=progress)
    trained.run.drop_state()
    best = next((result for result in trained.results if isinstance(result, CaptionEvaluation)), None)
    if best is None:
        raise RunFailed(f"{root}: the test split has no captions, so there is nothing to show")
    return trained.run, best
