"""The demo: the whole of calmctl on a drawn world, in minutes, with nothing to download.

It starts where people start: from a pretrained CLIP, the small one that ships. That is evaluated as it is; then the
same recipe fine-tunes it twice, without and with CALM's loss; all three meet the test sets in and out of domain. Given
again it goes on where it was: what is finished is recognised by its recipe and its weights, as `reproduce` does, and
what was interrupted is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from calmctl.anchors.distribution import anchor_log_probabilities, kl_divergence, mean_frame_feature
from calmctl.captions.evaluate import CaptionEvaluation, Captioning
from calmctl.data.demo import generate_demo, load_demo
from calmctl.device import choose_device
from calmctl.errors import BadInput, RunFailed
from calmctl.evaluation.result import RetrievalResult
from calmctl.evaluation.retrieval import Evaluation, Retrieval
from calmctl.evaluation.runs import evaluate_run, labels_of_start
from calmctl.evaluation.statistics import PairedDifference, paired_differences
from calmctl.explain.explainer import explain_with_run, see_video
from calmctl.explain.pages import DemoClip, write_demo_page
from calmctl.explain.pair import explain
from calmctl.files import read_json, unused, write_json
from calmctl.model.build import bare_model, recipe_backbone
from calmctl.model.calm import CalmModel
from calmctl.recipe import Recipe, load_recipe, resolve_recipe
from calmctl.reproduce.effect_result import many_seeds
from calmctl.reproduce.work import Ledger
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import Run
from calmctl.runtime import environment
from calmctl.source.base import SourceSpec
from calmctl.source.source import open_source
from calmctl.training.train import Trained, train
from calmctl.words import SILENT, Watcher

TESTS = ("demo", "demo-shifted")
_SHORT = ("optim.epochs=1",)
"""Half of what the recipes and the study train, so that everything is over in three minutes."""
_SHOWN = ("blinking", "spinning", "bouncing", "sliding")
"""Motions of the clips on the page: the timeline of each has a story of its own."""


@dataclass(frozen=True, slots=True)
class DemoSystem:
    """One system of the demo.

    Attributes:
        run: None for the shipped CLIP as it is.
        divergences: Mean KL(S_p || V_p) of true pairs in nats on each, over bare prompts, at the tau that
            `anchors.temperature: auto` gave: one measure for all systems.
    """

    name: str
    run: Run | None
    results: tuple[RetrievalResult, ...]
    divergences: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo found.

    Attributes:
        systems: The shipped CLIP as it is, fine-tuned without CALM's loss, and with it.
        differences: R@1 with minus without CALM's loss on each of `TESTS`, paired over clips; of one seed.
        captions: What it says of the test clips, and its scores.
        report: The JSON file with everything.
        page: The page of all this, with four clips explained.
        commands: What to try next, to be pasted.
        verdict: What many seeds have shown, because one shows nothing.
    """

    systems: tuple[DemoSystem, ...]
    differences: tuple[PairedDifference, ...]
    captioner: Run
    captions: CaptionEvaluation
    report: Path
    page: Path
    commands: tuple[str, ...]
    verdict: str


def run_demo(root: Path, runs: Path, *, seed: int, overrides: list[str], watcher: Watcher) -> Demo:
    """Draw the world, train what is not trained yet, evaluate, and write `runs/demo-report.json` and its page.

    A report of other runs stays, and the new one gets a number: written over, it would name the numbers of others.

    Raises:
        CalmError: As training does.
    """
    watcher.stage("drawing the world: captioned H.264 clips, and a shifted domain")
    generate_demo(root, progress=watcher.reading)
    shared = [f"data.root={root}", f"seed={seed}", *_SHORT, *overrides]
    # Both start from the same weights and differ in one key: a difference between them is that of the loss. One seed is
    # no verdict all the same, so the demo draws no conclusion; the study with many is in docs/results.md.
    plain = [*shared, "name=demo-without", "alignment.kind=none"]
    without, _ = _train("demo", plain, runs, watcher, "fine-tuning the small CLIP without CALM's loss")
    with_calm, _ = _train("demo", shared, runs, watcher, "the same with CALM's loss")
    watcher.stage("evaluating in and out of domain: the CLIP as it ships, and both trainings")
    recipe = with_calm.recipe()
    device, tests = choose_device(recipe.device), [SourceSpec(name, root) for name in TESTS]
    best = load_run(with_calm, "best", device)
    bare = bare_model(recipe_backbone(recipe), recipe.anchors).to(device)
    evaluated: list[tuple[str, Run | None, CalmModel, Sequence[Evaluation]]] = [
        ("zero-shot", None, bare, _evaluate_bare(bare, recipe, tests))
    ]
    for name, run in (("without CALM", without), ("with CALM", with_calm)):
        model = best if run is with_calm else load_run(run, "best", device)
        evaluated.append((name, run, model, evaluate_run(run, tests, Retrieval(), device=device)))
    tau = float(best.temperature())
    systems = tuple(
        DemoSystem(
            name,
            run,
            tuple(each.result for each in evaluations),
            tuple(_divergence(model, each, with_calm, tau) for each in evaluations),
        )
        for name, run, model, evaluations in evaluated
    )
    without_ranks, with_ranks = (
        [evaluation.ranks["text_to_video"] for evaluation in evaluations] for *_, evaluations in evaluated[1:]
    )
    differences = tuple(paired_differences(a, b)["r1"] for a, b in zip(without_ranks, with_ranks, strict=True))
    captioner, captions = caption_demo(root, runs, seed=seed, overrides=overrides, watcher=watcher)
    watcher.stage("explaining four clips and their captions on a page")
    # A report is replaced only by one of the same runs: the older numbers belong to runs that are still there.
    report = unused(runs / "demo-report.json", lambda path: path.exists() and not _reports(path, systems))
    page = report.with_name(report.name.replace("-report", "")).with_suffix(".html")
    clips = _explained(root, with_calm, captions, evaluated[-1][-1][0], device)
    rows = [(system.name, system.results, system.divergences) for system in systems]
    commands = _next(root, systems, clips)
    write_demo_page(page, rows, clips, commands, verdict := many_seeds())
    write_json(report, _record(systems, differences) | {"captioner": captions.to_json()})
    return Demo(systems, differences, captioner, captions, report, page, commands, verdict)


def _train(name: str, overrides: list[str], runs: Path, watcher: Watcher, stage: str) -> tuple[Run, Trained | None]:
    """The run of a recipe, and what its training came to; None where that was done before."""
    recipe = load_recipe(resolve_recipe(name), overrides)
    ledger = Ledger(runs)
    if (run := ledger.finished(recipe)) is not None:
        watcher.stage(f"{stage}: done before, {run.folder}")
        return run, None
    begun = ledger.unfinished(recipe)
    watcher.stage(stage if begun is None else f"{stage}: going on with {begun.folder}")
    try:
        trained = train(recipe, runs, resume=begun, watcher=watcher)
    except RunFailed as error:
        # `train` advises a resume of this one run, which would finish one of several trainings and leave the rest
        # undone.
        raise RunFailed(f"{error}. Or give the same calmctl demo again: it goes on here and does the rest") from error
    trained.run.drop_state()
    return trained.run, trained


def _evaluate_bare(model: CalmModel, recipe: Recipe, tests: Sequence[SourceSpec]) -> list[Evaluation]:
    evaluations, task = [], Retrieval()
    for test in tests:
        source = open_source(test, recipe, val=False)
        labels = labels_of_start(recipe, source.record("test"))
        evaluations.append(task.evaluate(model, source.encode(model, "test"), labels))
    return evaluations


@torch.inference_mode()
def _divergence(model: CalmModel, evaluation: Evaluation, run: Run, tau: float) -> float:
    """Mean KL(S_p || V_p) of the sentences of a test set and their own clips."""
    prompts, encoded = model.prompt_features(run.anchors().prompts).cpu(), evaluation.encoded
    log_s = anchor_log_probabilities(model.sentences(encoded.texts), prompts, tau)
    clips = mean_frame_feature(encoded.frames, model.keys.frame_mean)[torch.from_numpy(encoded.owners)]
    return float(kl_divergence(log_s, anchor_log_probabilities(clips, prompts, tau)).mean())


def _explained(
    root: Path, run: Run, captions: CaptionEvaluation, evaluation: Evaluation, device: torch.device
) -> list[DemoClip]:
    """Test clips of several motions, each with its caption, the captioner's, its rank, and an explanation."""
    split, explainer = load_demo(root, shifted=False).splits["test"], explain_with_run(run, device)
    ranks = evaluation.ranks["text_to_video"].ranks()
    chosen = [next((i for i, caption in enumerate(split.captions) if word in caption), None) for word in _SHOWN]
    # A small world may lack a motion: its first clips stand in.
    places = dict.fromkeys([each for each in chosen if each is not None] + list(range(len(split.captions))))
    shown = []
    for place in list(places)[: len(_SHOWN)]:
        clip, sentence = split.clips[split.owners[place]], split.captions[place]
        explanation = explain(explainer, see_video(explainer, clip, pictures=True), sentence)
        written = captions.captions.get(clip.id)
        shown.append(DemoClip(explanation, "" if written is None else written.text, float(ranks[place]), len(ranks)))
    return shown


def _next(root: Path, systems: Sequence[DemoSystem], clips: Sequence[DemoClip]) -> tuple[str, ...]:
    without, run = (quote(str(system.run.folder)) for system in systems if system.run is not None)
    where = "" if root == Path("data/demo") else f" --root {quote(str(root))}"
    first = clips[0].explanation
    clip = first.seen.clip.path
    return (
        f"calmctl eval {run} --cross demo-shifted{where}",
        f"calmctl eval {run} --against {without}{where}",
        f"calmctl explain {quote(str(clip))} {quote(first.sentence)} --run {run}",
        f'calmctl search "a red circle" --in {quote(str(clip.parent))} --run {run}',
        "calmctl train recipes/demo.yaml --dry-run" + (f" data.root={quote(str(root))}" if where else ""),
    )


def _reports(path: Path, systems: tuple[DemoSystem, ...]) -> bool:
    """Whether a report is of the same runs."""
    try:
        earlier = read_json(path, what="report")["systems"]
        return {name: system["run"] for name, system in earlier.items()} == {s.name: _folder(s) for s in systems}
    # A report that is damaged or was edited is not ours to replace: it counts as one of other runs and stays.
    except (BadInput, KeyError, TypeError, AttributeError):
        return False


def _folder(system: DemoSystem) -> str | None:
    return None if system.run is None else str(system.run.folder)


def _record(systems: tuple[DemoSystem, ...], differences: tuple[PairedDifference, ...]) -> dict[str, Any]:
    return {
        **environment(),
        "systems": {
            system.name: {
                "run": _folder(system),
                "results": [r.to_json() for r in system.results],
                "kl_of_true_pairs": dict(zip(TESTS, system.divergences, strict=True)),
            }
            for system in systems
        },
        "calm_minus_without": dict(zip(TESTS, map(asdict, differences), strict=True)),
    }


def caption_demo(
    root: Path, runs: Path, *, seed: int, overrides: list[str], watcher: Watcher = SILENT
) -> tuple[Run, CaptionEvaluation]:
    """Train recipes/demo-caption.yaml on the drawn world `root`, unless that is done, and test it.

    Returns:
        The run, and captions and scores of the test clips with the best epoch on validation.

    Raises:
        CalmError: As `train`.
    """
    keys = [f"data.root={root}", f"seed={seed}", *_SHORT, *overrides]
    what = "training a captioner on the same CLIP, with CALM's loss"
    run, trained = _train("demo-caption", keys, runs, watcher, what)
    if trained is None:
        demo, device = SourceSpec("demo", root), choose_device(run.recipe().device)
        (again,) = evaluate_run(run, [demo], Captioning(), device=device, progress=watcher.reading)
        return run, again
    # Results come best first (`training.train`): the first captioning result is that of the best epoch.
    best = next((result for result in trained.results if isinstance(result, CaptionEvaluation)), None)
    if best is None:
        raise RunFailed(f"{root}: the test split has no captions, so there is nothing to show")
    return run, best
