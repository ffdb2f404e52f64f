"""Warnings in words: each sign is told once, and only when it lasts."""

import json
import math

import pytest

from calmctl.training import trackers as collapse
from calmctl.training.trackers import PATIENCE, CollapseWatch
from calmctl.training.train import train
from calmctl.words import Watcher

HEALTHY = {"loss": 1.0, "entropy_s": 1.0, "entropy_v": 1.2, "active_units": 3.0}


def watch_of(recipe, anchors=5):
    """A watch behind its first line, which is looked at for what is wrong at the start."""
    watch = CollapseWatch(recipe, anchors)
    assert watch.update(HEALTHY) == []
    return watch


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"entropy_s": 0.49}, "S_p, the sentences' distribution over anchors, is nearly one-hot at the start"),
        (
            {"entropy_v": 0.96 * math.log(5)},
            "V_p, the videos' distribution over anchors, is nearly uniform at",
        ),
    ],
)
def test_a_temperature_that_does_not_fit_is_told_at_the_first_step_alone(numbers, words, tiny_recipe):
    watch = CollapseWatch(tiny_recipe(), 5)
    (warning,) = watch.update(HEALTHY | numbers)
    assert words in warning and "anchors.temperature=auto" in warning
    assert watch.update(HEALTHY | numbers) == []
    watch = CollapseWatch(tiny_recipe(), 5)
    watch.catch_up([HEALTHY | numbers])
    assert watch.update(HEALTHY | numbers) == []  # a run that goes on has told it
    # A tau that was fitted already is no way out: it knows sentences alone.
    (warning,) = CollapseWatch(tiny_recipe("anchors.temperature=auto"), 5).update(HEALTHY | numbers)
    assert words in warning and "anchors.video_temperature" in warning and "temperature=auto" not in warning


def told(watch, numbers, times=PATIENCE):
    return [warning for _ in range(times) for warning in watch.update(HEALTHY | numbers)]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"entropy_s": 0.04}, "S_p, the sentences' distribution over anchors, has all but collapsed onto one anchor"),
        ({"entropy_v": 0.0}, "try a lower anchors.video_temperature"),
        ({"entropy_s": math.log(5)}, "all but uniform"),
        ({"entropy_v": 0.995 * math.log(5)}, "try a higher anchors.video_temperature"),
        ({"active_units": 0.0}, "none of the VAE's 256 latent units depends on its input"),
    ],
)
def test_a_sign_that_lasts_is_told_once(numbers, words, tiny_recipe):
    watch = watch_of(tiny_recipe())
    assert told(watch, numbers, PATIENCE - 1) == []
    assert told(watch, {}, 1) == []  # a good line starts the count anew
    (warning,) = told(watch, numbers)
    assert words in warning
    assert told(watch, numbers, 3 * PATIENCE) == []


def test_what_is_healthy_or_not_there_is_not_told(tiny_recipe):
    assert told(watch_of(tiny_recipe()), {}) == []
    dead = {"entropy_s": 0.0, "entropy_v": 0.0, "active_units": 0.0}
    assert told(CollapseWatch(tiny_recipe("alignment.kind=none"), 0), dead) == []
    assert len(told(watch_of(tiny_recipe("alignment.kind=kl")), dead)) == 2  # it has no latent units


def test_a_resumed_run_knows_what_was_told(tiny_recipe):
    dead = HEALTHY | {"active_units": 0.0}
    log = [dead] * PATIENCE + [{"step": 20, "warning": "told"}, {"step": 20, "validation": {}, "epoch": 1}]
    watch = CollapseWatch(tiny_recipe(), 5)
    watch.catch_up(log)
    assert told(watch, dead) == []
    watch = CollapseWatch(tiny_recipe(), 5)
    watch.catch_up(log[: PATIENCE - 1])
    assert len(told(watch, dead, 1)) == 1


class Ears(Watcher):
    def __init__(self):
        self.heard = []

    def warn(self, text):
        self.heard.append(text)


def test_a_training_tells_its_watcher_and_its_log(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(collapse, "PATIENCE", 2)
    ears = Ears()
    # At this temperature cosines cannot tell anchors apart.
    recipe = tiny_recipe("anchors.temperature=0.001", "anchors.video_temperature=0.001", "alignment.kind=kl")
    run = train(recipe, tmp_path, watcher=ears, track=("tensorboard",)).run
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [line["warning"] for line in lines if "warning" in line] == ears.heard
    assert [text.split(",")[0] for text in ears.heard] == ["S_p", "V_p"] * 2 and "all but uniform" in ears.heard[2]
    assert "nearly uniform at the start" in ears.heard[0]
    assert [line["step"] for line in lines if "warning" in line] == [1, 1, 2, 2]
