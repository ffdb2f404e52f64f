"""open_clip without what it does not use: what stays out, what comes when it is asked for, and the same towers."""

import subprocess
import sys

FRESH = """
import sys
from calmctl.model.openclip import load_timm, open_clip
assert not {"timm", "torch._dynamo", "torch._inductor"} & set(sys.modules), "the import is the slow one"
"""


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", FRESH + code], check=True, timeout=300)


def test_neither_the_compiler_nor_timm_is_imported_until_asked_for() -> None:
    _python(
        """
import torch, torchvision
config = {"embed_dim": 16, "text_cfg": {"width": 16, "heads": 2, "layers": 1, "context_length": 8, "vocab_size": 49408}}
vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"}
try:
    open_clip.CLIP(**config, vision_cfg=vision)
except RuntimeError as fault:
    assert "timm" in str(fault)
else:
    raise AssertionError("a tower of timm without timm")
load_timm()
open_clip.CLIP(**config, vision_cfg=vision)(torch.zeros(1, 3, 224, 224))
# The stand-in asks the real compiler, and leaves nothing behind for whoever compiles.
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False)
assert torch._dynamo.__spec__ is not None and hasattr(torch._dynamo, "optimize")
"""
    )


def test_who_has_open_clip_keeps_it() -> None:
    """A stand-in for the package is enough to see that it is taken as it is, and that its timm is."""
    code = """
import sys, types
theirs, tower = types.ModuleType("open_clip"), types.ModuleType("open_clip.timm_model")
theirs.timm_model, tower.timm = tower, object()
sys.modules["open_clip"], timm = theirs, tower.timm
from calmctl.model.openclip import load_timm, open_clip
load_timm()
assert open_clip is theirs and tower.timm is timm and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
