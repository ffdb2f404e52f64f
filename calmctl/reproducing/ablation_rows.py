"""The choices that the paper leaves open, each as one change to a recipe (docs/science.md, Readings of the paper)."""

from __future__ import annotations

CHOICES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("tau-10", "tau 10", ("anchors.temperature=10",)),
    ("tau-20", "tau 20", ("anchors.temperature=20",)),
    ("tau-clip", "tau of CLIP", ("anchors.temperature=clip",)),
    ("tau-learned", "tau learned", ("anchors.temperature=learned",)),
    ("latent-64", "latent 64", ("alignment.latent=64",)),
    ("latent-512", "latent 512", ("alignment.latent=512",)),
    ("attached", "gradient through S_p", ("alignment.detach_target=false",)),
    ("log-input", "VAE sees log V_p", ("alignment.input=log",)),
    ("alpha-0", "no L_KL", ("alignment.kl_weight=0",)),
    ("alpha-1", "alpha 1", ("alignment.kl_weight=1",)),
    ("frame-anchors", "V_p frame by frame", ("anchors.video=frames",)),
    ("weight-0.1", "weight 0.1", ("alignment.weight=0.1",)),
    ("weight-10", "weight 10", ("alignment.weight=10",)),
    ("warmup", "weight warmed up", ("alignment.warmup=0.5",)),
    ("both-ways", "both directions", ("alignment.direction=both",)),
)
"""Key, label and overrides of the rows that any world can run."""

TRAINED_TOWERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("anchors-frozen", "anchors frozen", ("anchors.encode=frozen",)),
    ("anchors-no-grad", "anchors, no gradient", ("anchors.encode=no-gradient",)),
)
"""Rows that need towers which train: frozen ones give the same prompts in every step anyway."""

LARGE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("vae-lr-1e-4", "VAE at 1e-4", ("optim.lr_alignment=1e-4",)),
    ("vit-l14", "ViT-L/14", ("backbone.model=ViT-L-14-quickgelu",)),
    ("kinetics", "Kinetics labels", ("anchors.vocabulary=kinetics@1.yaml",)),
    ("imagenet", "ImageNet labels", ("anchors.vocabulary=imagenet@1.yaml",)),
)
"""Rows for the real data sets only."""
