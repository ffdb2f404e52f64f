"""open_clip, imported in a third of the time.

    from calmctl.model.openclip import open_clip

Two packages make `import open_clip` wait that no model of CLIP's kind needs: torch's compiler, which torchvision's box
operators load to ask one question of it, and timm, whose towers a few configs name. Both stay out until somebody uses
them. The rest of open_clip is as it is; a program that has imported one of the three before keeps what it has.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


@contextmanager
def _left_out() -> Iterator[None]:
    """While open_clip is imported: no timm, and a stand-in for the compiler that loads the real one when asked."""
    import torch  # noqa: F401  (whole, before its compiler's name is taken)

    compiler, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")

    def is_compile_supported(device_type: str) -> Any:
        return importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device_type)

    compiler.__path__ = []
    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {_COMPILER: compiler, f"{_COMPILER}.utils": utils} if _COMPILER not in sys.modules else {}
    # None makes `import timm` an ImportError, which open_clip answers by doing without.
    absent: dict[str, Any] = {} if "timm" in sys.modules else {"timm": None}
    sys.modules.update(stand_ins | absent)
    try:
        yield
    finally:
        for name in stand_ins | absent:
            del sys.modules[name]


def _import() -> Any:
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"]
    with _left_out():
        return importlib.import_module("open_clip")


open_clip: Any = _import()


def load_timm() -> None:
    """Give open_clip the timm it was imported without. Call it before a config with `timm_model_name` is built.

    open_clip's classes read timm from their module's namespace, which a reload fills in place.
    """
    if open_clip.timm_model.timm is None:
        importlib.reload(open_clip.timm_model)
