"""What explanations say in sentences, and how numbers are printed."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calmctl.explain.anchors import Reconstruction, compare
from calmctl.explain.collection import Standing
from calmctl.explain.words import explain_terms, fixed, percent, points, summary

PACKAGE = Path(__file__).parents[2] / "calmctl"
RECONSTRUCTION = Reconstruction(torch.tensor([0.5, 0.5]), 0.1, 0.9, 1.0, 1.0, 0.0, 0.0, 1, 4, 0.1)


def said(
    video: list[float],
    text: list[float],
    *,
    reconstruction: Reconstruction | None = None,
    standing: Standing | None = None,
) -> list[str]:
    comparison = compare(torch.tensor(video).log(), torch.tensor(text).log())
    x: Any = SimpleNamespace(
        comparison=comparison,
        labels=("a", "b", "c", "d")[: len(video)],
        reconstruction=reconstruction,
        standing=standing,
        pair=SimpleNamespace(score=0.25),
    )
    assert "0.69 nats" in explain_terms(x)["short"]
    return summary(x)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [([0.7, 0.1, 0.1, 0.1], "agree:"), ([0.4, 0.2, 0.2, 0.2], "agree:"), ([0.1, 0.7, 0.1, 0.1], "agree in part:"),
     ([0.001, 0.997, 0.001, 0.001], "disagree:")],
)  # fmt: skip
def test_the_verdict_comes_first(text: list[float], verdict: str) -> None:
    first = said([0.7, 0.1, 0.1, 0.1], text)[0]
    assert f"video and sentence {verdict}" in first and "0.250 is high, only other clips" in first


def test_with_other_clips_the_verdict_is_the_rank() -> None:
    standing = Standing(200, 2.0, 5.0)
    first = said([0.7, 0.3], [0.7, 0.3], standing=standing)[0]
    assert first.startswith("By score the video is 2nd of 200 clips")
    assert "at rank 2.5 of 200" in said([0.7, 0.3], [0.7, 0.3], standing=replace(standing, by_score=2.5))[0]


def test_a_vae_that_is_no_nearer_than_a_blind_decoder_closes_nothing() -> None:
    """0.931 of the divergence would be closed, and a decoder that knows nothing closes as much."""
    near = " ".join(said([0.7, 0.3], [0.3, 0.7], reconstruction=RECONSTRUCTION))
    assert "closes 90.0 %" in near
    blind = replace(RECONSTRUCTION, closed=0.931, divergence=0.0691, prior_divergence=0.0700)
    assert not blind.sees_the_clip
    text = " ".join(said([0.7, 0.3], [0.3, 0.7], reconstruction=blind))
    assert "93.1" not in text and "says nothing of this clip" in text


def test_what_rounds_to_nothing_is_not_negative() -> None:
    tiny = torch.tensor(-1e-9)
    assert fixed(tiny, 2) == "0.00" and fixed(-1e-9, 3, signed=True) == "+0.000" and fixed(-0.5, 1) == "-0.5"
    assert percent(-0.0) == "0 %" and percent(-1e-9) == "0.0 %" and points(-1e-9) == "+0 points"
    assert "-0.00" not in " ".join(said([0.7, 0.3], [0.7, 0.3]))


def test_numbers_are_printed_in_a_way_that_knows_no_minus_zero() -> None:
    """In Python the z of a format, in pages the filter `fixed`: where a number may be negative, both are used."""
    rooms = ("evaluation", "explain", "reproduce", "search")
    sources = [path for room in rooms for path in (PACKAGE / room).rglob("*.py")]
    plain = [f"{path.name}: {found}" for path in sources for found in re.findall(r":\+?\.\df\}", path.read_text())]
    pages = [path for room in rooms for path in (PACKAGE / room).rglob("*.j2")]
    plain += [f"{path.name}: {found}" for path in pages for found in re.findall(r"'%\+?\.\df' %", path.read_text())]
    assert pages and not [each for each in plain if not each.startswith("sheet.py")]  # times in an address are from 0
