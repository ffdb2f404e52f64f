"""Evaluating a finished captioning run, in and out of its domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calmctl.captioning.generate import Search
from calmctl.evaluation.captioning import CaptionEvaluation, evaluate_captions
from calmctl.evaluation.captions.scorer import TokenizerChoice
from calmctl.evaluation.runs import (
    Progress,
    TestSet,
    check_complete,
    encode_test_set,
    load_test_set,
    trained_protocol_of,
)
from calmctl.runs.folder import WEIGHTS, Run
from calmctl.runs.lineage import require_unseen, weights_lineage
from calmctl.runs.load import load_captioner


def evaluate_caption_run(
    run: Run,
    tests: Sequence[TestSet],
    *,
    which: str = "best",
    split: str = "test",
    tokenizer: TokenizerChoice = "ptb",
    device: torch.device,
    require_complete: bool = False,
    progress: Progress | None = None,
) -> list[CaptionEvaluation]:
    """Caption the `split` of each test set with the weights `which` of `run` and its recipe's beam search, and score.

    Args:
        run: A captioning run.
        tests: What to evaluate on; a protocol of None is the dataset's captioning protocol.
        which: "best", "last" or "slim".
        split: "test" or "val".
        tokenizer: As for `score_captions`.
        device: Where to compute.
        require_complete: Any clip left out is an error.
        progress: Called with what is read, how many clips are done, and of how many.

    Raises:
        CalmError: A test set is missing, has no usable clip, or was trained on; see also `score_captions`.
    """
    recipe = run.recipe()
    datasets = [None if test.features else load_test_set(test, recipe) for test in tests]
    model = load_captioner(run, which, device)
    trained_on = weights_lineage(str(run.trained_weights(which)))
    evaluations = []
    for test, dataset in zip(tests, datasets, strict=True):
        encoded, protocol = encode_test_set(model, recipe, test, split, device, progress, dataset)
        require_unseen(trained_on, test.dataset, protocol, what=str(run.folder))
        if require_complete:
            check_complete(encoded, test.dataset, split)
        if progress:
            progress("writing captions and scoring them", 0, 0)
        evaluations.append(
            evaluate_captions(
                model,
                encoded,
                Search.of(recipe.caption),
                dataset=test.dataset,
                protocol=protocol,
                trained_on=recipe.data.dataset,
                trained_protocol=trained_protocol_of(recipe),
                system=WEIGHTS[which],
                split=split,
                tokenizer=tokenizer,
            )
        )
    return evaluations
