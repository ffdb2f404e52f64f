"""V_p and S_p of a pair: what they share, what only one of them says, and what the VAE makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmctl.anchors.distribution import entropy, kl_divergence
from calmctl.model.vae import CrossModalVAE

ACTIVE_NATS = 0.01
"""A latent unit says something about a clip where its KL to the prior exceeds this (our choice)."""
LEAST_SHARE = 0.001
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class AnchorComparison:
    """Two distributions over the same K anchors; all divergences and entropies in nats.

    Attributes:
        video: V_p, [K].
        text: S_p, [K].
        shared: min(V_p, S_p) of each anchor, [K].
        overlap: Their sum, in [0, 1]: 1 minus the total variation distance.
        parts: S_p log(S_p / V_p) of each anchor, [K]; they add up to the divergence.
        divergence: KL(S_p || V_p).
        video_entropy: H(V_p), at most log K.
        text_entropy: H(S_p).
    """

    video: Tensor
    text: Tensor
    shared: Tensor
    overlap: float
    parts: Tensor
    divergence: float
    video_entropy: float
    text_entropy: float


def compare(log_v: Tensor, log_s: Tensor) -> AnchorComparison:
    """Compare log V_p [K] with log S_p [K]."""
    log_v, log_s = log_v.double(), log_s.double()
    # In float64, so that the parts of all anchors add up to the divergence that stands above them.
    video, text = log_v.exp(), log_s.exp()
    shared = torch.minimum(video, text)
    # An anchor that the sentence gives no mass at all costs nothing, whatever the video says: 0 log 0 = 0.
    parts = torch.where(text > 0, text * (log_s - log_v), torch.zeros_like(text))
    return AnchorComparison(
        video=video,
        text=text,
        shared=shared,
        overlap=float(shared.sum()),
        parts=parts,
        divergence=float(parts.sum()),
        video_entropy=float(entropy(log_v)),
        text_entropy=float(entropy(log_s)),
    )


def without(log_p: Tensor, removed: list[int]) -> Tensor:
    """Log probabilities [..., K - n] over the other anchors when the n `removed` are not in the vocabulary."""
    # A softmax over the rest: what a vocabulary without these anchors would have given from the start.
    kept = [k for k in range(log_p.shape[-1]) if k not in set(removed)]
    return log_p[..., kept].log_softmax(dim=-1)


def worth_saying(probabilities: Tensor, count: int) -> list[int]:
    """The anchors with the largest shares, at most `count` and none below `LEAST_SHARE`."""
    # Stable: of equal shares the first label stands first, on every machine.
    order = probabilities.argsort(descending=True, stable=True)[:count].tolist()
    return [int(k) for k in order if float(probabilities[k]) >= LEAST_SHARE]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What the VAE makes of a pair: S_hat from the posterior's mean (docs/science.md, reading 15).

    Attributes:
        text: S_hat, [K].
        divergence: KL(S_p || S_hat) in nats, what training pushes down.
        closed: The share of KL(S_p || V_p) that is gone; negative where S_hat is farther off than V_p was.
        prior_divergence: KL(S_p || S_hat at z = 0): what a decoder that knows nothing of this clip gets.
        sigma: Mean standard deviation of the posterior over the d latent units.
        posterior_entropy: Entropy of q(z | V_p) in nats, relative to the prior's: 0 knows nothing.
        kl: KL(q || N(0, I)) in nats.
        active: Units whose part of that exceeds `ACTIVE_NATS`.
        units: d.
        spread: Mean total variation distance between S_hat of a sampled z and their mean, in [0, 1].
    """

    text: Tensor
    divergence: float
    closed: float | None
    prior_divergence: float
    sigma: float
    posterior_entropy: float
    kl: float
    active: int
    units: int
    spread: float

    @property
    def sees_the_clip(self) -> bool:
        """Whether S_hat is nearer than what a decoder that knows nothing of the clip gets, by more than a twentieth."""
        return self.divergence < 0.95 * self.prior_divergence


@torch.inference_mode()
def reconstruct(vae: CrossModalVAE, log_v: Tensor, log_s: Tensor) -> Reconstruction:
    """Run the VAE on log V_p [K] and hold the result against log S_p [K]."""
    device = next(vae.parameters()).device
    posterior = vae.posterior(log_v[None].to(device).float())
    mean, logvar = posterior.mean[0], posterior.logvar[0]
    log_hat = vae.decode(mean[None])[0].cpu().double()
    # A decoder that knows nothing of the clip. Where S_hat is no nearer than this, the VAE ignores its input.
    log_prior = vae.decode(torch.zeros_like(mean)[None])[0].cpu().double()
    log_s, log_v = log_s.double(), log_v.double()
    before, after = float(kl_divergence(log_s, log_v)), float(kl_divergence(log_s, log_hat))
    # KL of N(mean, sigma^2) from N(0, 1), unit by unit, so that the active ones can be counted.
    kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1)
    # Drawn on the CPU: the same samples on every device.
    noise = torch.randn(_SAMPLES, len(mean), generator=torch.Generator().manual_seed(0)).to(device)
    drawn = vae.decode(mean + (0.5 * logvar).exp() * noise).exp().cpu().double()
    return Reconstruction(
        text=log_hat.exp(),
        divergence=after,
        # Two equal distributions leave nothing to close, and the share would be 0 / 0.
        closed=None if before < 1e-9 else 1 - after / before,
        prior_divergence=float(kl_divergence(log_s, log_prior)),
        sigma=float((0.5 * logvar).exp().mean()),
        # The prior's logvar is 0 in every unit, so this is the difference of the two entropies.
        posterior_entropy=float(0.5 * logvar.sum()),
        kl=float(kl.sum()),
        active=int((kl > ACTIVE_NATS).sum()),
        units=len(mean),
        spread=float((drawn - drawn.mean(0)).abs().sum(-1).mean() / 2),
    )
