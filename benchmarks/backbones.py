"""What each recommended backbone costs: numbers of its towers, and operations a frame and a sentence.

    python benchmarks/backbones.py

Towers are built without their numbers (torch's device "meta"), so nothing is downloaded and nothing is timed: counts
are exact, and the same on every machine. An operation is a multiplication or an addition, as torch counts them.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

from calmctl.model.openclip import load_timm, open_clip
from calmctl.model.published import RECOMMENDED


def main() -> None:
    """Print a line a backbone."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    load_timm()
    print("| backbone | parameters | frame | D | 10^9 operations a frame | a sentence |\n|---|---|---|---|---|---|")
    for each in RECOMMENDED:
        with torch.device("meta"), torch.no_grad():
            model = open_clip.create_model(each.model, load_weights=False, device="meta", pretrained_text=False)
            model.eval().requires_grad_(False)
            text = open_clip.get_model_config(each.model)["text_cfg"]
            frame, sentence = FlopCounterMode(display=False), FlopCounterMode(display=False)
            with frame:
                model.encode_image(torch.empty(1, 3, each.image_size, each.image_size))
            with sentence:
                model.encode_text(torch.zeros(1, text.get("context_length", 77), dtype=torch.long))
        parameters = sum(value.numel() for value in model.parameters())
        costs = (f"{counter.get_total_flops() / 1e9:.1f}" for counter in (frame, sentence))
        print(f"| `{each.model}` | {parameters:,} | {each.image_size} | {each.dim} | {' | '.join(costs)} |")


if __name__ == "__main__":
    main()
