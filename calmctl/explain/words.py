"""An explanation in plain sentences, for the terminal and the page alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from calmctl.words import counted

if TYPE_CHECKING:  # the command line has these words before it has torch
    import torch

    from calmctl.explain.pair import Explanation

_WORTH_SAYING = 0.05  # a difference of mass that a reader should hear of
_FLAT = 0.95  # of the largest possible entropy


def summary(explanation: Explanation) -> list[str]:
    """What a reader should take away, in order; anchors in quotes."""
    c, labels = explanation.comparison, explanation.labels
    # The verdict first: who reads one sentence has read the right one.
    sentences = [_verdict(explanation)]
    most = math.log(len(labels))
    flat = [name for name, h in (("video", c.video_entropy), ("sentence", c.text_entropy)) if h > _FLAT * most]
    # Near the largest entropy no anchor stands out, so what is said of single ones below would mislead.
    if flat:
        sentences.append(
            f"The {' and the '.join(flat)} hardly {'tell' if len(flat) > 1 else 'tells'} the anchors apart: "
            f"the mass is spread almost evenly over all {len(labels)}."
        )
    both = int(c.shared.argmax())
    if float(c.shared[both]) >= _WORTH_SAYING:
        sentences.append(
            f"Both say “{labels[both]}”: {percent(c.video[both])} of the video, "
            f"{percent(c.text[both])} of the sentence."
        )
    for one, other, more in (("video", "sentence", c.video - c.text), ("sentence", "video", c.text - c.video)):
        k = int(more.argmax())
        if float(more[k]) >= _WORTH_SAYING:
            sentences.append(f"The {one} says “{labels[k]}” more than the {other} does ({points(float(more[k]))}).")
    sentences.append(f"The sentence is {c.divergence:z.2f} nats away from the video; 0 would be the same.")
    return sentences + _vae_sentences(explanation)


def _verdict(explanation: Explanation) -> str:
    """In one sentence whether the two fit: by rank where there are other clips, and else by the anchors alone."""
    c, standing = explanation.comparison, explanation.standing
    # Half of the mass, and a quarter: our choice, as docs/explain.md says.
    same = int(c.video.argmax()) == int(c.text.argmax())
    if c.overlap >= 0.5 and same:
        word = "agree"
    elif c.overlap >= 0.25 or same:
        word = "agree in part"
    else:
        word = "disagree"
    by_anchors = f"By their anchors, video and sentence {word}: they share {percent(c.overlap)} of their mass."
    if standing is None:
        score = f"Whether a score of {explanation.pair.score:z.3f} is high, only other clips can tell (--collection)."
        return f"{by_anchors} {score}"
    # A rank between two whole ones is shared with equals.
    place = ordinal(int(standing.by_score)) if standing.by_score % 1 == 0 else f"at rank {standing.by_score:g}"
    return f"By score the video is {place} of {counted(standing.clips, 'clip')} for this sentence. {by_anchors}"


def explain_terms(explanation: Explanation) -> dict[str, str]:
    """A sentence for each of the terms that numbers stand under, by the section that has them."""
    from calmctl.explain.anchors import ACTIVE_NATS

    most = math.log(len(explanation.labels))
    return {
        "short": (
            "A nat measures information: 0.69 nats are one yes-or-no question, and 0 nats between two distributions "
            f"means that they are the same. Entropy is 0 where one anchor has all the mass, and {most:z.2f} where all "
            f"{len(explanation.labels)} have equally much."
        ),
        "distributions": (
            "V_p is how the video's mass spreads over the anchors, S_p how the sentence's does; each adds up to 100 %."
        ),
        "vae": (
            "S_hat is what the VAE makes of S_p from the video alone, through its latent units z; a unit is active "
            f"where it says more than {ACTIVE_NATS:g} nats about this video, and z = 0 knows nothing of it."
        ),
    }


def _vae_sentences(explanation: Explanation) -> list[str]:
    vae, c = explanation.reconstruction, explanation.comparison
    if vae is None:
        return []
    if vae.closed is None:
        sentences = ["The two are equal, so there is nothing for the VAE to close."]
    elif not vae.sees_the_clip:
        return [
            f"The VAE says nothing of this clip: its reconstruction is {vae.divergence:z.2f} nats away, and a "
            f"decoder that knows nothing (z = 0) is {vae.prior_divergence:z.2f} away."
        ]
    elif vae.closed > 0:
        sentences = [
            f"The VAE closes {percent(vae.closed)} of that: its reconstruction is {vae.divergence:z.2f} nats away."
        ]
    else:
        sentences = [
            f"The VAE makes it worse: its reconstruction is {vae.divergence:z.2f} nats away, "
            f"the video itself was {c.divergence:z.2f}."
        ]
    return sentences


def fixed(value: float | torch.Tensor, digits: int, *, signed: bool = False) -> str:
    """A number with so many decimals; what rounds to nothing is 0, never -0."""
    return f"{float(value):{'+' if signed else ''}z.{digits}f}"


def percent(value: float | torch.Tensor) -> str:
    """A share as "12.3 %", with "<0.1 %" for what would round to nothing."""
    share = 100 * float(value)
    # "0.0 %" would say that there is none.
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
