"""Small stores of drawn features, and a small backbone with random weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calmctl.samples import Clip, Dataset, LeftOut, Split
from calmctl.store import writer as store_writer
from calmctl.store.format import Header
from calmctl.store.store import FeatureStore
from calmctl.store.writer import StoreWriter

FRAMES, DIM = 4, 16


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "CLIPS_PER_SHARD", 5)


@pytest.fixture
def write_store(tmp_path: Path) -> Callable[..., FeatureStore]:
    """Plans clips in a store and writes the shards that are not there yet, or those named."""

    def write(
        features: dict[str, Tensor],
        *,
        again: Sequence[int] = (),
        broken: Sequence[str] = (),
        captions: Sequence[str] = (),
        dtype: str = "float16",
    ) -> FeatureStore:
        path = tmp_path / "store"
        split = Split("test", tuple(Clip(key, Path(key)) for key in features), tuple(captions), (0,) * len(captions))
        header = Header(dataset="folder", backbone={"dim": DIM}, n_frames=FRAMES, dtype=dtype)
        with StoreWriter.create(path, header) as store:
            store.plan(Dataset("folder", "", {"test": split}))
            for group, keys in enumerate(store.groups("frames")):
                if store.entry("frames", group) is None or group in again:
                    kept = [key for key in keys if key in features and key not in broken]
                    left_out = [LeftOut(key, "gone") for key in keys if key not in kept]
                    stacked = torch.stack([features[key] for key in kept]) if kept else torch.empty(0, FRAMES, DIM)
                    sources = {key: [1, 1, 0.0, None] for key in keys}
                    store.add_frames(group, stacked, sources, left_out)
        return FeatureStore.open(path)

    return write


@pytest.fixture
def drawn() -> Callable[..., dict[str, Tensor]]:
    """Features of n clips, exact in float16; the same clip always has the same ones."""

    def draw(n: int, first: int = 0) -> dict[str, Tensor]:
        found = {}
        for number in range(first, first + n):
            torch.manual_seed(1000 + number)
            found[f"clip{number:03d}"] = (torch.randn(1, DIM) + 0.5 * torch.randn(FRAMES, DIM)).half().float()
        return found

    return draw
