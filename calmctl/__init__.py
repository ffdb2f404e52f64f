"""calmctl: class-anchor-aligned generative modeling (CALM) for video-text retrieval and captioning.

The names below are the public Python API (docs/python.md); everything else may change without notice. Each is
imported when it is first asked for, so `import calmctl` costs nothing and does not bring torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calmctl.anchors.distribution import AnchorBank, anchor_log_probabilities, mean_frame_feature
    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.anchors.vocabulary import Vocabulary
    from calmctl.api import Captioner, Searcher, evaluate, list_runs, load, train
    from calmctl.captions.score import score_captions
    from calmctl.data.registry import load_dataset
    from calmctl.errors import CalmError
    from calmctl.evaluation.metrics import retrieval_metrics, text_to_video, video_to_text
    from calmctl.evaluation.retrieval import score_all, score_dense
    from calmctl.model.heads.emcl import EMCLHead
    from calmctl.model.heads.meanp import MeanPoolHead, SeqLSTMHead, SeqTransfHead
    from calmctl.model.heads.tmass import TMassHead
    from calmctl.model.heads.wti import TokenInteractionHead
    from calmctl.model.heads.xpool import XPoolHead
    from calmctl.model.losses import (
        contrastive_loss,
        direct_alignment_loss,
        kl_to_standard_normal,
        reconstruction_loss,
        task_loss,
    )
    from calmctl.model.vae import CrossModalVAE
    from calmctl.model.weights import load_backbone
    from calmctl.recipe import Recipe, load_recipe
    from calmctl.runs.checkpoint import load_run
    from calmctl.runs.run import find_run
    from calmctl.store.extract import extract
    from calmctl.store.store import FeatureStore

    __version__: str

__all__ = [
    "AnchorBank", "CalmError", "Captioner", "CrossModalVAE", "EMCLHead", "FeatureStore", "MeanPoolHead", "Recipe",
    "Searcher", "SeqLSTMHead", "SeqTransfHead", "TMassHead", "TokenInteractionHead", "Vocabulary", "XPoolHead",
    "__version__", "anchor_log_probabilities", "contrastive_loss", "direct_alignment_loss", "evaluate", "extract",
    "find_run", "kl_to_standard_normal", "list_runs", "load", "load_backbone", "load_dataset", "load_recipe",
    "load_run", "mean_frame_feature", "reconstruction_loss", "resolve_vocabulary", "retrieval_metrics", "score_all",
    "score_captions", "score_dense", "task_loss", "text_to_video", "train", "video_to_text",
]  # fmt: skip

# Where each name is defined: the imports above once more, for the time when the program runs.
_HOMES = {
    "anchors.distribution": "AnchorBank anchor_log_probabilities mean_frame_feature",
    "anchors.shipped": "resolve_vocabulary",
    "anchors.vocabulary": "Vocabulary",
    "api": "Captioner Searcher evaluate list_runs load train",
    "captions.score": "score_captions",
    "data.registry": "load_dataset",
    "errors": "CalmError",
    "evaluation.metrics": "retrieval_metrics text_to_video video_to_text",
    "evaluation.retrieval": "score_all score_dense",
    "model.heads.emcl": "EMCLHead",
    "model.heads.meanp": "MeanPoolHead SeqLSTMHead SeqTransfHead",
    "model.heads.tmass": "TMassHead",
    "model.heads.wti": "TokenInteractionHead",
    "model.heads.xpool": "XPoolHead",
    "model.losses": "contrastive_loss direct_alignment_loss kl_to_standard_normal reconstruction_loss task_loss",
    "model.vae": "CrossModalVAE",
    "model.weights": "load_backbone",
    "recipe": "Recipe load_recipe",
    "runs.checkpoint": "load_run",
    "runs.run": "find_run",
    "store.extract": "extract",
    "store.store": "FeatureStore",
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names.split()}

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
