"""What weights have seen: the datasets a checkpoint was trained on, and those that it started from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calmctl.data.registry import DATASETS
from calmctl.errors import CheckpointError
from calmctl.files import read_json
from calmctl.tensorfiles import read_metadata

_HOLDS_TEST_CLIPS_OF = {"msrvtt 9k": "msrvtt full"}
"""Training lists that hold clips of another protocol's test split: 1,990 of 2,990 here (docs/data.md)."""


def weights_lineage(weights: str | None) -> tuple[str, ...]:
    """The datasets behind `backbone.weights`, such as ("msrvtt 9k",); none known for weights that are not ours."""
    path = Path(weights or "")
    if path.suffix != ".safetensors" or not path.is_file():
        return ()
    metadata = read_metadata(path, what="backbone.weights")
    if "trained_on" in metadata:
        seen = metadata["trained_on"]
        if not isinstance(seen, list) or not all(isinstance(name, str) for name in seen):
            raise CheckpointError(f"backbone.weights: {path} does not say in plain words what it was trained on")
        return tuple(seen)
    recipe = path.parent / "recipe.json"
    if "backbone" in metadata and recipe.is_file():  # a run of ours from before weights told
        data = read_json(recipe, what="backbone.weights")["data"]
        info = DATASETS.get(data["dataset"])
        return (dataset_name(data["dataset"], data["protocol"] or (info.default_protocol if info else "")),)
    return ()


def dataset_name(dataset: str, protocol: str) -> str:
    """A dataset under a protocol, as a lineage lists it."""
    return f"{dataset} {protocol}".strip()


def require_unseen(trained_on: Sequence[str], dataset: str, protocol: str, *, what: str) -> None:
    """Refuse to test on clips that the weights were trained on.

    Args:
        trained_on: A lineage.
        dataset: What is tested on.
        protocol: Its protocol.
        what: What has that lineage, for the message.

    Raises:
        CheckpointError: The lineage holds test clips of the protocol.
    """
    for seen in trained_on:
        if _HOLDS_TEST_CLIPS_OF.get(seen) == dataset_name(dataset, protocol):
            raise CheckpointError(
                f"{what} was trained on {seen}, whose training list holds 1,990 of the 2,990 test clips of "
                f"{dataset_name(dataset, protocol)}: captions of them would be no test; start from the original "
                "weights, or from a run trained with data.protocol=7k"
            )
