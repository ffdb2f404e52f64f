"""Dot products of every frame of a collection with a few directions: all that probes need of the frames.

Probes are the vectors that a sentence becomes, once for all clips: a head that has them scores a clip from their dot
products with its frames (docs/search.md).

Frames lie on disk in float16. torch multiplies them once they are float32, so they pass through the processor's cache
in blocks. numkong, which comes with the extra `index`, multiplies float16 rows where they lie and adds up in float32.
For a few directions on a CPU memory is the bottleneck, and numkong is faster; for many torch's matrix product is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calmctl.errors import RunFailed
from calmctl.files import write_atomic
from calmctl.model.backbone import FeatureAdapter, full_precision
from calmctl.model.heads.base import FusionHead, ProbedHead, Probes, VideoTable
from calmctl.search.rows import (
    About,
    MappedFrames,
    ShardRows,
    cache_folder,
    file_stat,
    generation,
    read_about,
    remove_stale,
    require_whole,
    shard_version,
    trusted_file,
    write_about,
)
from calmctl.store.store import FeatureStore
from calmctl.words import Progress

FRAMES_PER_BLOCK = 6144
"""Frames converted at once: 12 MB in float32 at D = 512 (our choice, measured)."""
MOST_DIRECTIONS = 8
"""Directions up to which float16 rows are multiplied where they lie (our choice; measured with two)."""
CLIPS_AT_ONCE = 1 << 16
"""Clips multiplied where they lie before anybody is told: threads that take turns with torch's get in their way."""
MOST_ERROR = 1e-6
"""What a product may be off, by the lengths of its factors; the margin of `calmctl.search.exact` is larger."""
_LOW = 2.0**11  # a float16 has 11 bits: what it leaves of a number is multiplied by this, and is one again

Tell = Callable[[int], None]
Products = Callable[[int, int, Tell], Tensor]
"""Clips `start` to `stop` -> [m, n, F]; told the clip up to which it has come."""


def products_with(frames: MappedFrames, directions: Tensor, block: int | None = None) -> Products:
    """What computes the dot products of clips with `directions` [m, D], in float32 on their device.

    Args:
        frames: The clips.
        directions: float32.
        block: Clips converted at once; None for what suits the cache.
    """
    few = len(directions) <= MOST_DIRECTIONS and directions.device.type == "cpu"
    numkong = usable_numkong() if few and block is None and frames.dtype == torch.float16 else None
    if numkong is not None:
        return _in_place(frames, HalfProducts(numkong, directions))
    return _converted(frames, directions, block or max(1, FRAMES_PER_BLOCK // frames.n_frames))


def products(frames: Tensor, directions: Tensor) -> Tensor:
    """Dot products [m, n, F] of frames [n, F, D] with directions [m, D]."""
    with full_precision(frames.device):
        # Not directions @ frames.T: a CPU's product of few rows with many columns takes up to four times as long.
        return F.linear(frames, directions).permute(2, 0, 1)


class HalfProducts:
    """Dot products of float16 rows with float32 directions.

    numkong multiplies numbers of one type. A direction is the sum of two float16 vectors here, 22 bits of each number.
    """

    def __init__(self, numkong: Any, directions: Tensor) -> None:
        self._numkong = numkong
        # To at most 1: float16 ends at 65,504 and loses digits below 6e-5.
        self._scale = directions.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        unit = directions / self._scale[:, None]
        high = unit.half()
        low = ((unit - high.float()) * _LOW).half()
        self._packed = numkong.dots_pack(torch.cat([high, low]).numpy())

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of rows, each [n, D] float16 -> all of them, [m, N] float32."""
        # numkong computes in the thread that calls it, without Python's lock; each gets a share, and not part by part.
        share = -(-len(parts) // torch.get_num_threads())
        shares = [parts[start : start + share] for start in range(0, len(parts), share)]
        with ThreadPoolExecutor(len(shares)) as threads:
            both = torch.cat([torch.from_numpy(part) for outputs in threads.map(self._raw, shares) for part in outputs])
        high, low = both.T.contiguous().chunk(2)
        return high.add_(low, alpha=1 / _LOW).mul_(self._scale[:, None])

    def _raw(self, parts: Sequence[Tensor]) -> list[np.ndarray]:
        return [np.asarray(self._numkong.dots_packed(part.numpy(), self._packed)) for part in parts]


def _in_place(frames: MappedFrames, multiply: HalfProducts) -> Products:
    def compute(start: int, stop: int, tell: Tell) -> Tensor:
        parts = []
        for low in range(start, stop, CLIPS_AT_ONCE):
            high = min(low + CLIPS_AT_ONCE, stop)
            rows = [part.reshape(-1, frames.dim) for part in frames.stored(low, high)]
            parts.append(multiply(rows).view(-1, high - low, frames.n_frames))
            tell(high)
        return torch.cat(parts, 1)

    return compute


def _converted(frames: MappedFrames, directions: Tensor, at_once: int) -> Products:
    buffer = frames.empty(min(at_once, len(frames)))

    def parts(start: int, stop: int, tell: Tell) -> Iterator[Tensor]:
        for low in range(start, stop, at_once):
            high = min(low + at_once, stop)
            yield products(frames.block(low, high, buffer).to(directions.device), directions)
            tell(high)

    return lambda start, stop, tell: torch.cat(list(parts(start, stop, tell)), 1)


@cache
def usable_numkong() -> Any | None:
    """The package; None where it is not installed, has no packed products, or does not add up in float32.

    Which instructions multiply is numkong's choice, by processor, and some add up in float16: that is measured here,
    once, on rows and directions of known products.
    """
    try:
        numkong = import_module("numkong")
    except ImportError:
        return None
    if not (hasattr(numkong, "dots_pack") and hasattr(numkong, "dots_packed")):
        return None
    generator = torch.Generator().manual_seed(0)
    rows, directions = torch.randn(64, 512, generator=generator).half(), torch.randn(2, 512, generator=generator)
    error = HalfProducts(numkong, directions)([rows]).double() - directions.double() @ rows.double().T
    size = directions.norm(dim=1)[:, None] * rows.float().norm(dim=1)
    return numkong if bool((error.abs() <= MOST_ERROR * size).all()) else None


# How a head scores a whole collection: from its table, kept on disk, or from probes and the frames.


_TABLE_VERSION = 1  # to be raised whenever a head's table comes to mean something else


class Scorer(Protocol):
    """A head with the adapter before it, as a search uses them.

    Attributes:
        key: What its table depends on: the weights of head and adapter, and the way of scoring.
        device: Where head and adapter are.
    """

    device: torch.device
    key: str

    def table(self, frames: Tensor) -> VideoTable:
        """What is kept on disk of clips [n, F, D], float32, as the store has them."""
        ...

    def prepare(self, texts: Tensor) -> Any:
        """The text side, once for all clips; texts as `AlignedModel.encode_texts` gives them."""
        ...

    def score(self, prepared: Any, products: Tensor | None, table: VideoTable) -> Tensor:
        """Scores [N_t, n]; `products` is for a `FrameScorer`, None for all others."""
        ...


@runtime_checkable
class FrameScorer(Protocol):
    """What a scorer is as well that needs the frames, beside the table."""

    def directions(self, prepared: Any) -> Tensor:
        """What frames are multiplied with, [m, D]; the products are [m, n, F]."""
        ...


def choose_scorer(
    head: FusionHead, adapter: FeatureAdapter | None, device: torch.device, shape: tuple[int, int]
) -> Scorer:
    """The way that reads the least: the head's own table, or probes where they are to be had and it is larger.

    Args:
        head: The head.
        adapter: What frames pass before it.
        device: Where both are.
        shape: (F, D) of a clip.
    """
    if isinstance(head, ProbedHead):
        # A table larger than the features themselves would be slower to read than they are. Its size does not depend
        # on the clip.
        table = head.video_table(torch.ones(1, *shape, device=device))
        if sum(part[0].numel() for part in table.values()) > prod(shape):
            return ProbeScorer(head, adapter, device)
    return TableScorer(head, adapter, device)


class TableScorer:
    """The head's own `video_table`, kept on disk."""

    def __init__(self, head: FusionHead, adapter: FeatureAdapter | None, device: torch.device) -> None:
        self.head, self.adapter, self.device = head, adapter, device
        self.key = table_key("table", head, adapter)

    @torch.inference_mode()
    def table(self, frames: Tensor) -> VideoTable:
        """The head's `video_table`."""
        return self.head.video_table(adapted(frames, self.adapter))

    def prepare(self, texts: Tensor) -> Tensor:
        """The texts as they are."""
        return texts

    @torch.inference_mode()
    def score(self, prepared: Tensor, products: Tensor | None, table: VideoTable) -> Tensor:
        """The head's `score`."""
        return self.head.score(prepared, table)


class ProbeScorer:
    """A head that scores from dot products with the frames; the adapter, which is linear, moves into the probes."""

    def __init__(self, head: ProbedHead, adapter: FeatureAdapter | None, device: torch.device) -> None:
        self.head, self.adapter, self.device = head, adapter, device
        self.key = table_key("probes", head, adapter)

    @torch.inference_mode()
    def table(self, frames: Tensor) -> VideoTable:
        """The head's `probe_table`."""
        return self.head.probe_table(adapted(frames, self.adapter))

    @torch.inference_mode()
    def prepare(self, texts: Tensor) -> tuple[Probes, Tensor, Tensor]:
        """The head's probes, and what stands for them on frames before the adapter: [N_t P, D] and [N_t, P]."""
        probes = self.head.text_probes(texts)
        directions, constant = probes.directions, probes.directions.new_zeros(probes.directions.shape[:2])
        if self.adapter is not None:  # d.(f + Wf + b) = (d + dW).f + d.b
            layer = self.adapter.frames
            constant = directions @ layer.bias
            directions = directions + directions @ layer.weight
        return probes, directions.flatten(0, 1).contiguous(), constant

    def directions(self, prepared: tuple[Probes, Tensor, Tensor]) -> Tensor:
        """The probes of all texts, [N_t P, D]."""
        return prepared[1]

    @torch.inference_mode()
    def score(self, prepared: tuple[Probes, Tensor, Tensor], products: Tensor | None, table: VideoTable) -> Tensor:
        """The head's `score_probed`."""
        assert products is not None
        probes, _, constant = prepared
        dots = products.reshape(*constant.shape, *products.shape[1:])
        return self.head.score_probed(probes, dots if self.adapter is None else dots + constant[..., None, None], table)


def adapted(frames: Tensor, adapter: FeatureAdapter | None) -> Tensor:
    """Frame features [..., F, D] behind the adapter, if there is one."""
    if adapter is None:
        return frames
    moved: Tensor = adapter.frames(frames)
    return moved


def table_key(way: str, head: object, adapter: FeatureAdapter | None) -> str:
    """A digest of all that a table depends on beside the features."""
    # By weights, not by run or name: runs that share a head share its tables, and one trained further has others.
    digest = hashlib.sha256(f"{_TABLE_VERSION} {way} {type(head).__qualname__}\n".encode())
    for module in (head, adapter):
        state = module.state_dict() if isinstance(module, nn.Module) else {}
        for name, tensor in sorted(state.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digest.update(b"--\n")
    return digest.hexdigest()


# What a search keeps beside a feature store: tables that follow from the features and one head's weights.
#
#     STORE/search/KEY/
#       about.json                   digests: of the file below, and of the shards that it is made of
#       GENERATION.npy               the scorer's table, [N, W] float32: one row per clip, its part of every tensor
#
# Nothing here is more than a cache: it follows from the store, is brought up to date shard by shard, and may be
# deleted.
# KEY is a digest of the weights it depends on, so that another head has another index over the same features; the
# backbone is the store's affair, which refuses features of another one.


_TABLE = "table"


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """Clips that a scorer can score.

    Attributes:
        frames: Their features.
        columns: The tensors of the table, [N, ...] float32: views of one memory map.
        folder: Where the index lies.
        made: Clips whose table was made by this opening; the others were there.
        not_kept: Why the table could not be kept there, or None.
    """

    frames: MappedFrames
    columns: Mapping[str, np.ndarray]
    folder: Path
    made: int
    not_kept: str | None = None

    def table(self, where: slice | np.ndarray, device: torch.device) -> VideoTable:
        """The scorer's table of some clips; of a slice of a table of one tensor nothing is copied."""
        some = {name: np.ascontiguousarray(column[where]) for name, column in self.columns.items()}
        return {name: torch.from_numpy(each).to(device) for name, each in some.items()}


def open_index(
    store: FeatureStore,
    shards: Sequence[ShardRows],
    scorer: Scorer,
    progress: Progress | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> SearchIndex:
    """Open the index of a scorer over a store, made or brought up to date first where that is needed.

    Args:
        store: The features.
        shards: The clips of it that are searched.
        scorer: Whose table it is.
        progress: Told of the clips.
        on_wait: Called before waiting for another process that makes the same index.

    Raises:
        StoreError: A shard is damaged.
    """
    # The table's width, asked of the head itself: no head has to declare it.
    sample = scorer.table(torch.ones(store.shape("frames", 1), device=scorer.device))
    shapes = {name: tuple(part.shape[1:]) for name, part in sample.items()}
    with cache_folder(store, scorer.key, on_wait) as (folder, not_kept):
        old = read_about(folder, scorer.key)
        stats = require_whole(store, shards, old.shards if old else {})
        frames = MappedFrames(store, shards)
        width = sum(map(prod, shapes.values()))
        kept = _kept_rows(folder, old, width)
        new = {shard.name for shard in shards if kept.get(shard.name, (None,))[0] != shard_version(shard)}
        made = sum(len(shard.rows) for shard in shards if shard.name in new)
        file = folder / f"{generation(shards)}.npy"

        def rows() -> Iterator[np.ndarray]:
            done = 0
            for shard, (start, stop) in zip(shards, pairwise(frames.starts.tolist()), strict=True):
                if shard.name not in new:
                    yield kept[shard.name][1]
                    continue
                table = scorer.table(frames.block(start, stop).to(scorer.device)).values()
                yield torch.cat([part.float().reshape(stop - start, -1) for part in table], dim=1).cpu().numpy()
                done += stop - start
                if progress is not None:
                    progress("indexing clips", done, made)

        def write(handle: BinaryIO) -> None:
            # NumPy's own header, and then row by row: the table of a million clips has 1.9 GB and is never in memory.
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(frames), width)}
            np.lib.format.write_array_header_1_0(handle, header)
            for some in rows():
                handle.write(np.ascontiguousarray(some, dtype="<f4").data)

        def keep() -> None:
            # The file first: about.json never speaks of what is not there whole.
            write_atomic(file, write)
            write_about(folder, About(key=scorer.key, shards=stats, files={_TABLE: file_stat(file)}))
            remove_stale(folder, "*.npy", {file})

        whole = not new and old is not None and [each.name for each in old.files.values()] == [file.name]
        if not whole and not_kept is None:
            not_kept = _try(keep)
            whole = not_kept is None
        elif old is not None and not_kept is None and old.shards != stats:  # the same content in other files
            _try(lambda: write_about(folder, old.model_copy(update={"shards": stats})))
        if whole:
            # Copy on write, though nothing writes: torch warns of arrays that are read-only.
            table = np.load(file, mmap_mode="c", allow_pickle=False)
        else:  # for this search alone, in memory
            table = np.empty((len(frames), width), np.float32)
            for some, (start, stop) in zip(rows(), pairwise(frames.starts.tolist()), strict=True):
                table[start:stop] = some
        ends = np.cumsum([prod(shape) for shape in shapes.values()])
        columns = {
            name: part.reshape(len(table), *shape)
            for (name, shape), part in zip(shapes.items(), np.split(table, ends[:-1], axis=1), strict=True)
        }
        return SearchIndex(frames, columns, folder, made, None if whole else not_kept)


def _try(write: Callable[[], object]) -> str | None:
    try:
        write()
    except RunFailed as fault:
        return str(fault)
    return None


def _kept_rows(folder: Path, about: About | None, width: int) -> dict[str, tuple[str, np.ndarray]]:
    """The rows of each shard in the table of before, with the mark of what they were made of."""
    file = trusted_file(folder, about, _TABLE)
    if about is None or file is None:
        return {}
    starts = np.cumsum([0, *(stat.rows for stat in about.shards.values())])
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return {}
    if table.shape != (starts[-1], width) or table.dtype != np.dtype("<f4"):
        return {}
    return {
        name: (stat.mark, table[start:stop])
        for (name, stat), (start, stop) in zip(about.shards.items(), pairwise(starts.tolist()), strict=True)
    }
