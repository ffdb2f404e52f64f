"""`calmctl diagnose gap` on runs of a tiny world."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.cli.main import app
from calmctl.errors import BadInput
from calmctl.evaluation.gap import _untrained, gaps_of_runs
from calmctl.recipe import Recipe, recipe_from_dict
from calmctl.runs.checkpoint import load_run
from calmctl.runs.run import Run
from calmctl.source.base import SourceSpec
from calmctl.source.source import recipe_source
from calmctl.training.prepare import prepare, recipe_vocabulary
from calmctl.training.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_world: Path,
    tiny_recipe_values: Callable[[Path], dict[str, Any]],
) -> tuple[Run, Run]:
    """A run with CALM's loss and one without, both from the weights of a third."""
    folder = tmp_path_factory.mktemp("runs")
    values = tiny_recipe_values(tiny_world)
    start = train(recipe_from_dict(values, overrides=["optim.epochs=1", "head.kind=meanp"]), folder).run
    weights = f"backbone.weights={start.weights('slim')}"
    made = [
        train(recipe_from_dict(values, overrides=[weights, f"alignment.kind={kind}", f"name={kind}"]), folder).run
        for kind in ("vae", "none")
    ]
    return made[0], made[1]


def test_before_and_after_with_and_without(pair: tuple[Run, Run]) -> None:
    tests = [SourceSpec.of(pair[0].recipe().data)]
    found = gaps_of_runs(pair, tests, split="train", device=CPU)
    assert [(each.system, each.loss) for each in found] == [
        ("before training", ""),
        (str(pair[0].folder), "vae"),
        (str(pair[1].folder), "none"),
    ]
    assert all(each.gap.n_clips == 12 and each.gap.n_anchors == 5 for each in found)
    model = load_run(pair[0], "best", CPU)
    recipe = pair[0].recipe()
    encoded = recipe_source(recipe).encode(model, "train")
    assert any("12 of 12 train clips were trained on" in caveat for caveat in found[1].caveats)
    texts = np.stack([encoded.texts[list(encoded.owners).index(clip)].numpy() for clip in range(12)]).astype(float)
    videos = encoded.frames.double().mean(1).numpy()
    tokens = model.backbone.tokenize(load_vocabulary(pair[0].vocabulary).prompts)
    with torch.inference_mode():
        anchors = model.backbone.encode_text(tokens).double().numpy()
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (texts, videos, anchors)]
    assert found[1].gap.alignment.value == pytest.approx(((unit[0] - unit[1]) ** 2).sum(1).mean(), abs=1e-6)
    share = [np.exp(100 * each @ unit[2].T) for each in unit[:2]]
    s, v = (each / each.sum(1, keepdims=True) for each in share)
    kl = (s * np.log(s / v)).sum(1).mean()
    assert found[1].gap.divergence_matched.value == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("seed", [24, 5])
def test_a_start_without_weights_is_the_draw_that_training_began_with(
    tiny_recipe: Callable[..., Recipe], seed: int
) -> None:
    recipe = tiny_recipe(f"seed={seed}")
    began = prepare(recipe).model.backbone.state_dict()
    torch.manual_seed(99)
    untrained = _untrained(recipe, recipe_vocabulary(recipe), CPU).backbone.state_dict()
    assert all(torch.equal(untrained[key], began[key]) for key in began)
    assert torch.initial_seed() == 99, "the caller's generator is left alone"


def test_the_command(pair: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [str(run.folder) for run in pair]
    arguments = ["diagnose", "gap", runs[0], "--against", runs[1], "--split", "train"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert all(words in shown.stdout for words in ("before training", "separability", "KL, other pairs", "12 clips"))
    record = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [each["trained_with"] for each in record["gaps"]] == ["", "vae", "none"]
    gap = record["gaps"][0]["separability"]
    assert gap["low"] <= gap["value"] <= gap["high"] and record["packages"]["torch"]
    for mistake, message in (
        (["diagnose", "gap", runs[0]], "at least 10"),  # the tiny test split has 6 clips
        (["eval", runs[0], "--split", "train"], "use one of test, val"),
        (["diagnose", "gap", runs[0], "--split", "all"], "use one of test, val, train"),
        (["diagnose", "gap", runs[0], "--weights", "worst"], "use one of best, last, slim"),
        (["diagnose", "gap", runs[0], "--device", "gpu"], "there is no 'gpu'"),
    ):
        result = CliRunner().invoke(app, mistake)
        assert isinstance(result.exception, BadInput) and message in str(result.exception)
