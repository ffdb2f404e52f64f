"""How large every system of the paper's tables is with its recipe's settings, over CLIP ViT-B/32's sizes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from calmctl.model.build import build_head
from calmctl.model.captioner import Captioner
from calmctl.recipe import load_recipe, resolve_recipe

WTI, DENOISERS = 13_142_018, 5_250_050
HEADS = {
    "msrvtt-meanp": 0,
    "msrvtt-seqlstm": 2_101_248,
    "msrvtt-seqtransf": 12_615_680,
    "msrvtt-xpool": 1_316_352,
    "msrvtt-tmass": 1_323_008,
    "msrvtt-emcl": 12_615_680,
    "msrvtt-wti": WTI,
    "msrvtt-uatvr": 15_286_786,
    "msrvtt-diffusionret": 13_668_354,
    "msrvtt-diffusionret-2": 13_668_354 + DENOISERS,
}
TOKENS = 49_408


@pytest.fixture(autouse=True)
def without_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is only sizes that count: memory is asked for, and none of it written."""
    for name in ("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "normal_", "uniform_", "zeros_", "ones_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    clip: Any = SimpleNamespace(dim=512, spec=SimpleNamespace(activation="quick_gelu", context_length=77))
    recipe = load_recipe(resolve_recipe(name), ["head.init=random"])
    head: Any = build_head(recipe, clip)
    assert parameters(head) == HEADS[name]


@pytest.mark.parametrize(("name", "frames"), [("msrvtt-clip4caption", 20), ("msvd-clip4caption", 20)])
def test_clip4caption(name: str, frames: int) -> None:
    class Words:
        ids = torch.arange(TOKENS)

        def __len__(self) -> int:
            return TOKENS

    recipe = load_recipe(resolve_recipe(name), [])
    assert recipe.data.frames == frames
    captioner = Captioner(recipe.caption, 512, frames, Words())  # type: ignore[arg-type]
    square, norm, ffn = 768 * 768 + 768, 2 * 768, 768 * 3072 + 3072 + 3072 * 768 + 768
    expected = {
        "input": 2 * 512 + 512 * 768 + 768 + frames * 768 + norm,
        "encoder": 2 * (4 * square + ffn + 2 * norm) + norm,
        "decoder": 2 * (8 * square + ffn + 3 * norm) + norm,
        "words": TOKENS * 768 + recipe.caption.max_tokens * 768,
        "output": square + norm + TOKENS,
    }
    assert parameters(captioner) == sum(expected.values()) == 72_118_016
