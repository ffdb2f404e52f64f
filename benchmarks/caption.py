"""Caption decoding with the key-value cache and without: the same captions, tokens a second.

    python benchmarks/caption.py

The decoder has the size of recipes/msrvtt-caption.yaml (3 layers of 768, 49,408 tokens, 12 frames) and random
weights, which end captions late: every caption is as long as may be, as is the work. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.captions.generate import Caption, CaptionSearch, caption_features
from calmctl.device import choose_device
from calmctl.model.build import build_caption_model
from calmctl.model.captioner import CaptionModel, whole_vocabulary
from calmctl.model.weights import load_backbone
from calmctl.recipe import recipe_from_dict


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    model = build().to(device).eval()
    frames = torch.randn(arguments.clips, 12, model.backbone.dim)
    table = Table("search", "cache", "seconds", "tokens / s", "times", "same captions", box=None, pad_edge=False)
    for beam in (1, 5):
        slow, without = measure(model, frames, CaptionSearch(beam, cached=False))
        fast, cached = measure(model, frames, CaptionSearch(beam))
        n_tokens = sum(caption.n_tokens for caption in without)
        same = [a.text for a in without] == [b.text for b in cached]
        name = str(CaptionSearch(beam))
        table.add_row(name, "no", f"{slow:.2f}", f"{n_tokens / slow:.0f}", "1.0", "")
        table.add_row(name, "yes", f"{fast:.2f}", f"{n_tokens / fast:.0f}", f"{slow / fast:.1f}", str(same))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console = Console(width=100)
    console.print(f"{arguments.clips} clips, {device} ({where}), torch {torch.__version__}\n")
    console.print(table)


def build() -> CaptionModel:
    """A captioner of full size over the demo's small towers, which take no part in decoding."""
    values = {"name": "x", "task": "caption", "data": {"dataset": "demo"}, "alignment": {"kind": "none"}}
    values["backbone"] = {"model": "demo-clip", "weights": None}
    values["caption"] = {"init_tokens": "random"}
    backbone = load_backbone("demo-clip", None)
    recipe = recipe_from_dict(values)
    return build_caption_model(recipe, resolve_vocabulary("shapes@1"), whole_vocabulary(backbone), backbone)


def measure(model: CaptionModel, frames: torch.Tensor, search: CaptionSearch) -> tuple[float, list[Caption]]:
    """Seconds and captions, after one warm-up on two clips; captions are on the CPU, so nothing is still running."""
    caption_features(model, frames[:2], search)
    started = time.perf_counter()
    captions = caption_features(model, frames, search)
    return time.perf_counter() - started, captions


if __name__ == "__main__":
    main()
