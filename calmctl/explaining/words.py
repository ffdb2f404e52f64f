"""An explanation in plain sentences, for the terminal and the page alike."""

from __future__ import annotations

import math

import torch

from calmctl.explaining.explanation import Explanation

_WORTH_SAYING = 0.05  # a difference of mass that a reader should hear of
_FLAT = 0.95  # of the largest possible entropy


def summary(explanation: Explanation) -> list[str]:
    """What a reader should take away, in order; anchors in quotes."""
    c, labels = explanation.comparison, explanation.labels
    said = []
    most = math.log(len(labels))
    flat = [name for name, h in (("video", c.video_entropy), ("sentence", c.text_entropy)) if h > _FLAT * most]
    if flat:
        said.append(
            f"The {' and the '.join(flat)} hardly {'tell' if len(flat) > 1 else 'tells'} the anchors apart: "
            f"the mass is spread almost evenly over all {len(labels)}."
        )
    both = int(c.shared.argmax())
    if float(c.shared[both]) >= _WORTH_SAYING:
        said.append(
            f"Both say “{labels[both]}”: {percent(c.video[both])} of the video, "
            f"{percent(c.text[both])} of the sentence."
        )
    for one, other, more in (("video", "sentence", c.video - c.text), ("sentence", "video", c.text - c.video)):
        k = int(more.argmax())
        if float(more[k]) >= _WORTH_SAYING:
            said.append(f"The {one} says “{labels[k]}” more than the {other} does ({points(float(more[k]))}).")
    said.append(
        f"They share {percent(c.overlap)} of their mass; the sentence is {c.divergence:z.2f} nats away from the video."
    )
    return said + _vae_says(explanation)


def _vae_says(explanation: Explanation) -> list[str]:
    found, c = explanation.reconstruction, explanation.comparison
    if found is None:
        return []
    if found.closed is None:
        said = ["The two are equal, so there is nothing for the VAE to close."]
    elif found.closed > 0:
        said = [
            f"The VAE closes {percent(found.closed)} of that: its reconstruction is {found.divergence:z.2f} nats away."
        ]
    else:
        said = [
            f"The VAE makes it worse: its reconstruction is {found.divergence:z.2f} nats away, "
            f"the video itself was {c.divergence:z.2f}."
        ]
    if found.divergence > _FLAT * found.prior_divergence:
        said.append(
            f"It hardly looks at this clip: a decoder that knows nothing (z = 0) is {found.prior_divergence:z.2f} away."
        )
    return said


def fixed(value: float | torch.Tensor, digits: int, *, signed: bool = False) -> str:
    """A number with so many decimals; what rounds to nothing is 0, never -0."""
    return f"{float(value):{'+' if signed else ''}z.{digits}f}"


def percent(value: float | torch.Tensor) -> str:
    """A share as "12.3 %", with "<0.1 %" for what would round to nothing."""
    share = 100 * float(value)
    if 0 < share < 0.05:
        return "<0.1 %"
    return f"{share:z.0f} %" if share >= 99.95 or share == 0 else f"{share:z.1f} %"


def points(value: float) -> str:
    """A difference of shares as "+12 points"."""
    return f"{100 * value:+z.0f} points"


def seconds(value: float) -> str:
    """A time as "4.2 s", "1:02" or "1:02:03"."""
    if value < 60:
        return f"{value:z.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ordinal(rank: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, ..."""
    suffix = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{suffix}"
