"""The demo: the whole of calmctl on a drawn world, in minutes, with nothing to download.

A small CLIP is trained from nothing on the demo world; from it, the same recipe is trained twice, without and
with CALM's loss; all three are evaluated in and out of domain. Given again it goes on where it was: what is finished is
recognised by its recipe and its weights, as `reproduce` does, and what was interrupted is resumed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calmctl.captions.evaluate import CaptionEvaluation, Captioning
from calmctl.data.demo import generate_demo, load_demo
from calmctl.device import choose_device
from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.result import RetrievalResult
from calmctl.evaluation.retrieval import Retrieval
from calmctl.evaluation.runs import evaluate_run
from calmctl.evaluation.statistics import PairedDifference, paired_differences
from calmctl.explain.pages import explain_page
from calmctl.files import read_json, unused, write_json
from calmctl.recipe import load_recipe, resolve_recipe
from calmctl.reproduce.work import Ledger
from calmctl.runs.run import Run
from calmctl.runtime import environment
from calmctl.samples import Clip
from calmctl.source.base import SourceSpec
from calmctl.training.train import train
from calmctl.words import SILENT, Watcher

TESTS = ("demo", "demo-shifted")


@dataclass(frozen=True, slots=True)
class System:
    """One trained system of the demo: its name, run, and results on `TESTS`."""

    name: str
    run: Run
    results: tuple[RetrievalResult, ...]


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo found.

    Attributes:
        systems: Backbone alone, without CALM's loss, with it.
        differences: R@1 with minus without CALM's loss on each of `TESTS`, paired over clips.
        captioner: The captioning run.
        captions: What it says of the test clips, and its scores.
        report: The JSON file with everything.
        page: The page that explains one clip of the test split and its caption.
        clip, sentence: That clip and caption.
    """

    systems: tuple[System, ...]
    differences: tuple[PairedDifference, ...]
    captioner: Run
    captions: CaptionEvaluation
    report: Path
    page: Path
    clip: Clip
    sentence: str


def run_demo(root: Path, runs: Path, *, seed: int, overrides: list[str], watcher: Watcher) -> Demo:
    """Draw the world, train what is not trained yet, evaluate, and write `runs/demo-report.json`.

    A report of other runs stays, and the new one gets a number: written over, it would name the numbers of others.

    Raises:
        CalmError: As training does.
    """
    watcher.stage("drawing the world: captioned H.264 clips, and a shifted domain")
    generate_demo(root, progress=watcher.reading)
    shared = [f"data.root={root}", f"seed={seed}", *overrides]
    backbone = _train("demo-backbone", shared, runs, watcher, "training a small CLIP on it, from nothing")
    # Both systems go on from the same weights and differ in one key: a difference between them is that of the loss.
    # One seed is no verdict all the same, so the demo prints the difference with its interval and draws no conclusion.
    start = f"backbone.weights={backbone.weights('slim')}"
    plain = [*shared, start, "name=demo-without", "alignment.kind=none"]
    without = _train("demo", plain, runs, watcher, "training on from there without CALM's loss")
    with_calm = _train("demo", [*shared, start], runs, watcher, "the same with CALM's loss")
    watcher.stage("evaluating in and out of domain")
    named = (("backbone alone", backbone), ("without CALM", without), ("with CALM", with_calm))
    tests = [SourceSpec(name, root) for name in TESTS]
    device = choose_device("auto")
    evaluated = [(name, run, evaluate_run(run, tests, Retrieval(), device=device)) for name, run in named]
    systems = tuple(System(name, run, tuple(e.result for e in evaluations)) for name, run, evaluations in evaluated)
    without_ranks, with_ranks = (
        [evaluation.ranks["text_to_video"] for evaluation in evaluations] for _, _, evaluations in evaluated[1:]
    )
    differences = tuple(paired_differences(a, b)["r1"] for a, b in zip(without_ranks, with_ranks, strict=True))
    captioner, captions = caption_demo(
        root,
        runs,
        backbone,
        seed=seed,
        overrides=overrides,
        watcher=watcher,
    )
    clip, sentence = _example(root)
    watcher.stage("explaining one clip and its caption on a page")
    # A report is replaced only by one of the same runs: the older numbers belong to runs that are still there.
    report = unused(runs / "demo-report.json", lambda path: path.exists() and not _reports(path, systems))
    page = report.with_name(report.name.replace("report", "explained")).with_suffix(".html")
    explain_page(with_calm, clip, sentence, page)
    write_json(report, _record(systems, differences) | {"captioner": captions.to_json()})
    return Demo(systems, differences, captioner, captions, report, page, clip, sentence)


def _train(name: str, overrides: list[str], runs: Path, watcher: Watcher, stage: str) -> Run:
    recipe = load_recipe(resolve_recipe(name), overrides)
    ledger = Ledger(runs)
    if (run := ledger.finished(recipe)) is not None:
        watcher.stage(f"{stage}: done before, {run.folder}")
        return run
    begun = ledger.unfinished(recipe)
    watcher.stage(stage if begun is None else f"{stage}: going on with {begun.folder}")
    try:
        run = train(recipe, runs, resume=begun, watcher=watcher).run
    except RunFailed as error:
        # `train` advises a resume of this one run, which would finish one of four trainings and leave the rest undone.
        raise RunFailed(f"{error}. Or give the same calmctl demo again: it goes on here and does the rest") from error
    run.drop_state()
    return run


def _example(root: Path) -> tuple[Clip, str]:
    """A test clip and its caption: of something that blinks where there is one, so that the timeline has a story."""
    split = load_demo(root, shifted=False).splits["test"]
    chosen = next((i for i, caption in enumerate(split.captions) if "blinking" in caption), 0)
    return split.clips[split.owners[chosen]], split.captions[chosen]


def _reports(path: Path, systems: tuple[System, ...]) -> bool:
    """Whether a report is of the same runs."""
    try:
        earlier = read_json(path, what="report")["systems"]
        return {name: system["run"] for name, system in earlier.items()} == {s.name: str(s.run.folder) for s in systems}
    # A report that is damaged or was edited is not ours to replace: it counts as one of other runs and stays.
    except (BadInput, KeyError, TypeError, AttributeError):
        return False


def _record(systems: tuple[System, ...], differences: tuple[PairedDifference, ...]) -> dict[str, Any]:
    return {
        **environment(),
        "systems": {
            system.name: {"run": str(system.run.folder), "results": [r.to_json() for r in system.results]}
            for system in systems
        },
        "calm_minus_without": dict(zip(TESTS, map(asdict, differences), strict=True)),
    }


# The demo's captioner: trained in a minute on the drawn world, shown beside the true sentences.


def caption_demo(
    root: Path,
    runs: Path,
    backbone: Run,
    *,
    seed: int,
    overrides: list[str],
    watcher: Watcher = SILENT,
) -> tuple[Run, CaptionEvaluation]:
    """Train recipes/demo-caption.yaml on the drawn world, unless that is done, and test it.

    Args:
        root: The drawn world.
        runs: Folder of runs.
        backbone: The demo's trained CLIP, which stays as it is.
        seed: Of the training.
        overrides: More recipe keys, such as those a person gave to `calmctl demo`.
        watcher: Told what is done, and what was done before.

    Returns:
        The run, and captions and scores of the test clips with the best epoch on validation.

    Raises:
        CalmError: As `train`.
    """
    start = [f"data.root={root}", f"backbone.weights={backbone.weights('slim')}", f"seed={seed}"]
    recipe = load_recipe(resolve_recipe("demo-caption"), [*start, *overrides])
    ledger, what = Ledger(runs), "training a captioner on the same backbone, with CALM's loss"
    if (run := ledger.finished(recipe)) is not None:
        watcher.stage(f"{what}: done before, {run.folder}")
        demo, device = SourceSpec("demo", root), choose_device(recipe.device)
        (again,) = evaluate_run(run, [demo], Captioning(), device=device, progress=watcher.reading)
        return run, again
    begun = ledger.unfinished(recipe)
    watcher.stage(what if begun is None else f"{what}: going on with {begun.folder}")
    trained = train(recipe, runs, resume=begun, watcher=watcher)
    trained.run.drop_state()
    # Results come best first (`training.train`): the first captioning result is that of the best epoch.
    best = next((result for result in trained.results if isinstance(result, CaptionEvaluation)), None)
    if best is None:
        raise RunFailed(f"{root}: the test split has no captions, so there is nothing to show")
    return trained.run, best
