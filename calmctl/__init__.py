"""calmctl: class-anchor-aligned generative modeling (CALM) for video-text retrieval and captioning.

The names below are the public Python API (docs/python.md); everything else may change without notice. Each is
imported when it is first asked for, so `import calmctl` costs nothing and does not bring torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calmctl.anchors.bank import AnchorBank
    from calmctl.anchors.distribution import anchor_log_probabilities, mean_frame_feature
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.anchors.vocabulary import Vocabulary
    from calmctl.data.registry import load_dataset
    from calmctl.data.store import FeatureStore
    from calmctl.errors import CalmError
    from calmctl.evaluation.captions.scorer import score_captions
    from calmctl.evaluation.dense import score_dense
    from calmctl.evaluation.metrics import retrieval_metrics, text_to_video, video_to_text
    from calmctl.evaluation.scoring import score_all
    from calmctl.extraction.extract import extract
    from calmctl.model.heads.emcl import EMCLHead
    from calmctl.model.heads.meanp import MeanPoolHead
    from calmctl.model.heads.seqlstm import SeqLSTMHead
    from calmctl.model.heads.seqtransf import SeqTransfHead
    from calmctl.model.heads.tmass import TMassHead
    from calmctl.model.heads.wti import TokenInteractionHead
    from calmctl.model.heads.xpool import XPoolHead
    from calmctl.model.vae import CrossModalVAE
    from calmctl.model.weights import load_backbone
    from calmctl.objectives.alignment import direct_alignment_loss, kl_to_standard_normal, reconstruction_loss
    from calmctl.objectives.contrastive import contrastive_loss, task_loss
    from calmctl.recipe import Recipe, load_recipe
    from calmctl.runs.folder import find_run
    from calmctl.runs.load import load_run

    __version__: str

__all__ = [
    "AnchorBank",
    "CalmError",
    "CrossModalVAE",
    "EMCLHead",
    "FeatureStore",
    "MeanPoolHead",
    "Recipe",
    "SeqLSTMHead",
    "SeqTransfHead",
    "TMassHead",
    "TokenInteractionHead",
    "Vocabulary",
    "XPoolHead",
    "__version__",
    "anchor_log_probabilities",
    "contrastive_loss",
    "direct_alignment_loss",
    "extract",
    "find_run",
    "kl_to_standard_normal",
    "load_backbone",
    "load_dataset",
    "load_recipe",
    "load_run",
    "mean_frame_feature",
    "reconstruction_loss",
    "resolve_vocabulary",
    "retrieval_metrics",
    "score_all",
    "score_captions",
    "score_dense",
    "task_loss",
    "text_to_video",
    "video_to_text",
]

# Where each name is defined: the imports above once more, for the time when the program runs.
_HOMES = {
    "anchors.bank": ("AnchorBank",),
    "anchors.distribution": ("anchor_log_probabilities", "mean_frame_feature"),
    "anchors.shipped": ("resolve_vocabulary",),
    "anchors.vocabulary": ("Vocabulary",),
    "data.registry": ("load_dataset",),
    "data.store": ("FeatureStore",),
    "errors": ("CalmError",),
    "evaluation.captions.scorer": ("score_captions",),
    "evaluation.dense": ("score_dense",),
    "evaluation.metrics": ("retrieval_metrics", "text_to_video", "video_to_text"),
    "evaluation.scoring": ("score_all",),
    "extraction.extract": ("extract",),
    "model.heads.emcl": ("EMCLHead",),
    "model.heads.meanp": ("MeanPoolHead",),
    "model.heads.seqlstm": ("SeqLSTMHead",),
    "model.heads.seqtransf": ("SeqTransfHead",),
    "model.heads.tmass": ("TMassHead",),
    "model.heads.wti": ("TokenInteractionHead",),
    "model.heads.xpool": ("XPoolHead",),
    "model.vae": ("CrossModalVAE",),
    "model.weights": ("load_backbone",),
    "objectives.alignment": ("direct_alignment_loss", "kl_to_standard_normal", "reconstruction_loss"),
    "objectives.contrastive": ("contrastive_loss", "task_loss"),
    "recipe": ("Recipe", "load_recipe"),
    "runs.folder": ("find_run",),
    "runs.load": ("load_run",),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker that saw this would take any misspelt name for Any

    def __getattr__(name: str) -> Any:
        """Import a public name, once."""
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("calmctl")
        elif name in _HOME_OF:
            value = getattr(import_module(_HOME_OF[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
