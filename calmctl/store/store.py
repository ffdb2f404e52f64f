"""The feature store: frame features of clips and text features of captions, extracted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from calmctl.data.identity import SplitRecord, record_split, windowed
from calmctl.errors import StoreError
from calmctl.files import read_regular, sha256_bytes
from calmctl.samples import LeftOut, StoredSplit
from calmctl.store import format as fmt
from calmctl.store.format import Catalogue, Header, Index, Kind, ShardEntry, shard_file
from calmctl.tensors import read_metadata

ClipSource = list[float | int | str | None]
"""What tells a clip's file from a changed one: size, time of change, window, digests (`writer.source_of`)."""

NOT_EXTRACTED = "not extracted yet"
_MOST_BYTES = 1 << 32
"""Of a shard's features (our choice): 64 clips of 12 frames in 1,024 dimensions take 3 MB."""
_MOST_HEADER_BYTES = 100_000_000  # what safetensors allows
_NOUNS: dict[Kind, str] = {"frames": "clips", "texts": "sentences"}


class FeatureStore:
    """A folder of features, keyed by clip id and by sentence; `writer.StoreWriter` adds to it.

    Features are float32 unless asked otherwise: they are then exactly what the backbone gave, evaluation
    from a store equals evaluation from videos, and a clip of 12 frames in 512 dimensions takes 24 KB, nothing
    beside its video. float16 halves that and rounds (relative error up to 2^-11), which can swap near ties.
    """

    def __init__(self, path: Path, index: Index, catalogue: Catalogue) -> None:
        """Use `open`."""
        self.path = path
        self._index = index
        self._catalogue = catalogue
        self._rows: dict[Kind, dict[str, tuple[int, int]]] = {"frames": {}, "texts": {}}
        for kind in self._rows:
            for group in range(len(self.groups(kind))):
                self._locate(kind, group)

    def _locate(self, kind: Kind, group: int) -> None:
        """Note in which row of which shard the features of a group's keys are."""
        for key in self.groups(kind)[group]:
            # A shard that was made again may have left out a clip that it had before.
            self._rows[kind].pop(key, None)
        if self.entry(kind, group) is not None:
            rows = enumerate(self.present(kind, group))
            self._rows[kind].update((key, (group, row)) for row, key in rows)

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """Open an existing store. Raises `StoreError` when there is none or its index is damaged."""
        if not (path / fmt.INDEX).is_file():
            raise StoreError(f"{path} is not a feature store (no {fmt.INDEX}); make one with `calmctl extract`")
        index = fmt.read_document(path / fmt.INDEX, Index)
        # In this order: a writer extends the catalogue before the index, so what the index names is in the catalogue.
        return cls(path, index, fmt.read_document(path / fmt.CATALOGUE, Catalogue))

    @property
    def header(self) -> Header:
        """What the features are: dataset, backbone, frames per clip, number format."""
        return self._index.header

    @property
    def protocol(self) -> str:
        """The dataset's protocol at the latest extraction."""
        return self._index.protocol

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return int(self.header.backbone["dim"])

    @property
    def ids(self) -> tuple[str, ...]:
        """The clips that have features, in order."""
        return self._held("frames")

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences that have features, in order."""
        return self._held("texts")

    def _held(self, kind: Kind) -> tuple[str, ...]:
        rows = self._rows[kind]
        return tuple(key for group in self.groups(kind) for key in group if key in rows)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Clips that could not be decoded, with reasons."""
        return tuple(clip for group in range(len(self.groups("frames"))) for clip in self.left_out_of(group))

    def left_out_of(self, group: int) -> tuple[LeftOut, ...]:
        """The clips of one group that could not be decoded, with reasons."""
        entry = self.entry("frames", group)
        return tuple(LeftOut(clip.id, clip.reason, clip.limit_s) for clip in entry.left_out) if entry else ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._catalogue.splits)

    def split(self, name: str) -> StoredSplit:
        """One split, restricted to the clips that have features. Raises `StoreError` when there is none."""
        if name not in self._catalogue.splits:
            raise StoreError(f"{self.path} has no split {name!r}; it has {', '.join(self.splits) or 'none'}")
        split = self._catalogue.splits[name]
        ids = tuple(key for key in split.clips if key in self._rows["frames"])
        position = {key: place for place, key in enumerate(ids)}
        sentences = [sentence for group in self._catalogue.sentences for sentence in group]
        described = [
            (sentences[caption], position[split.clips[owner]])
            for caption, owner in zip(split.captions, split.owners, strict=True)
            if split.clips[owner] in position
        ]
        reasons = {clip.id: clip.reason for clip in self.left_out}
        absent = [LeftOut(key, reasons.get(key, NOT_EXTRACTED)) for key in split.clips if key not in position]
        return StoredSplit(
            name=name,
            ids=ids,
            captions=tuple(caption for caption, _ in described),
            owners=tuple(owner for _, owner in described),
            left_out=(*(LeftOut(clip.id, clip.reason) for clip in split.left_out), *absent),
            differs=None if split.differs is None else tuple(split.differs),
        )

    def record(self, name: str) -> SplitRecord:
        """What a split is: of the data that was extracted, whatever it is asked for as."""
        split = self.split(name)
        sources: dict[str, ClipSource | None] = {}
        groups = sorted({self._rows["frames"][key][0] for key in split.ids})
        for group in groups:
            sources |= read_sources(self.path / shard_file("frames", group))[0]
        texts = {self._rows["texts"][caption][0] for caption in split.captions if caption in self._rows["texts"]}
        shards = [shard_file("frames", group) for group in groups]
        shards += [shard_file("texts", group) for group in sorted(texts)]
        # Of the features themselves: a store that was made again from other files has other shards under the same
        # names.
        made_of = [self.header.model_dump_json(), *(self._index.shards[shard].sha256 for shard in shards)]
        contents = {key: _content(sources.get(key)) for key in split.ids}
        return record_split(
            self.header.dataset,
            self.protocol,
            split,
            {key: content for key, content in contents.items() if content},
            dtype=self.header.dtype,
            features=sha256_bytes("\n".join(made_of).encode()),
        )

    @property
    def pending(self) -> int:
        """How many clips and sentences are planned and not extracted yet."""
        kinds: tuple[Kind, ...] = ("frames", "texts")
        return sum(
            len(keys) for kind in kinds for group, keys in enumerate(self.groups(kind)) if not self.entry(kind, group)
        )

    @property
    def is_complete(self) -> bool:
        """Whether a data set was planned, and all of it is extracted: an extraction may end before it plans one."""
        return bool(self._catalogue.splits) and not self.pending

    def frames(self, ids: Sequence[str]) -> Tensor:
        """Frame features [n, F, D] float32 of the clips `ids`, in that order.

        Ask for many at once: every shard is read, and checked against its digest, once a call.

        Raises:
            StoreError: A clip has no features here, or a shard is damaged.
        """
        return self._read("frames", ids)

    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Text features [n, D] float32 of `sentences`, in that order; raises as `frames`."""
        return self._read("texts", sentences)

    def _read(self, kind: Kind, keys: Sequence[str]) -> Tensor:
        rows = self._rows[kind]
        absent = [key for key in keys if key not in rows]
        if absent:
            raise StoreError(
                f"{self.path} has no features of {len(absent)} of {len(keys)} {_NOUNS[kind]} "
                f"(first: {absent[0]!r}); extract them with `calmctl extract`"
            )
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, key in enumerate(keys):
            group, row = rows[key]
            wanted.setdefault(group, []).append((place, row))
        result = torch.empty(0)
        for group, pairs in wanted.items():
            places, positions = zip(*pairs, strict=True)
            features = self._load(kind, group)[list(positions)].float()
            if not result.numel():  # only now: a shard has shown that features are as wide as the header says
                result = features.new_empty(self.shape(kind, len(keys)))
            result[list(places)] = features
        return result.reshape(self.shape(kind, len(keys)))

    def _load(self, kind: Kind, group: int) -> Tensor:
        content, fault = self.shard(kind, group)
        if fault is None:
            try:
                features: Tensor = load(content)[kind]
                # Whoever can write a shard can write its digest as well; rows and numbers must fit the header all the
                # same.
                expected = self.shape(kind, len(self.present(kind, group))), getattr(torch, self.header.dtype)
                if (features.shape, features.dtype) == expected:
                    return features
            except (SafetensorError, KeyError):
                pass
            fault = "does not hold what the index promises"
        way = "start again" if "anew" in fault else "run the same `calmctl extract` again to replace this shard"
        raise StoreError(f"{self.path / shard_file(kind, group)} {fault}; {way}")

    def shape(self, kind: Kind, rows: int) -> tuple[int, ...]:
        """[rows, F, D] for frames, [rows, D] for texts."""
        return (rows, self.header.n_frames, self.dim) if kind == "frames" else (rows, self.dim)

    def groups(self, kind: Kind) -> Sequence[Sequence[str]]:
        """The keys (clip ids or sentences) of every shard that is there or planned, in order."""
        return self._catalogue.clips if kind == "frames" else self._catalogue.sentences

    def entry(self, kind: Kind, group: int) -> ShardEntry | None:
        """What the index says about a group's shard; None while it is not complete."""
        return self._index.shards.get(shard_file(kind, group))

    def present(self, kind: Kind, group: int) -> list[str]:
        """The keys of a group that have a row in its shard, in order."""
        entry = self.entry(kind, group)
        missing = {clip.id for clip in entry.left_out} if entry else set()
        return [key for key in self.groups(kind)[group] if key not in missing]

    def shard(self, kind: Kind, group: int) -> tuple[bytes, str | None]:
        """A shard's file, and why it cannot be used ("is missing", "is damaged ...") or None."""
        entry = self.entry(kind, group)
        if entry is None:
            return b"", "is not extracted yet"
        try:
            # No larger than what the index promises, with room for the names of its clips and where they are from.
            most = min(4 * prod(self.shape(kind, len(self.groups(kind)[group]))), _MOST_BYTES) + _MOST_HEADER_BYTES
            content = read_regular(self.path / shard_file(kind, group), most)
        except FileNotFoundError:
            return b"", "is missing"
        except OSError as error:
            return b"", f"cannot be read ({error.strerror or error})"
        # Read whole, and digested at every reading: a digest of parts promises nothing about the rest.
        digest = sha256_bytes(content)
        if digest == entry.sha256:
            return content, None
        # No damage where another process has just made the shard again, and no use either: old features and new would
        # mix.
        now = fmt.read_document(self.path / fmt.INDEX, Index).shards.get(shard_file(kind, group))
        if now is not None and now.sha256 == digest:
            return content, "was extracted anew since this process opened the store, which holds other features now"
        return content, "is damaged (its SHA-256 is not the one in the index)"

    def verify(self) -> tuple[str, ...]:
        """Check every planned shard against its digest; returns a line for each faulty one."""
        return tuple(
            f"{shard_file(kind, group)} {fault}"
            for kind in self._rows
            for group in range(len(self.groups(kind)))
            if (fault := self.shard(kind, group)[1])
        )

    def require_dataset(self, dataset: str, protocol: str | None) -> None:
        """Raise `StoreError`, naming both, unless the features are of `dataset` under `protocol`, None being any."""
        # Compared with what was extracted, never with what the folder is called.
        ours, theirs = f"{self.header.dataset} {self.protocol}".strip(), f"{dataset} {protocol or ''}".strip()
        if self.header.dataset != dataset or protocol not in (None, self.protocol):
            raise StoreError(
                f"{self.path} holds features of {ours}, not of {theirs}: numbers on it "
                "would stand under a false name; name the store of that data set, or the data set of this store"
            )

    def require(self, header: Header) -> None:
        """Raise `StoreError`, naming both, unless the features of this store are those of `header`."""
        for name in ("dataset", "n_frames", "sampling", "dtype"):
            ours, theirs = getattr(self.header, name), getattr(header, name)
            if ours != theirs:
                raise StoreError(
                    f"{self.path} holds features with {name} {ours}, not {theirs}: they cannot be mixed; "
                    "choose another store"
                )
        self.require_backbone(header.backbone)

    def require_backbone(self, backbone: Mapping[str, Any]) -> None:
        """Raise `StoreError`, naming both, unless the features were made by `backbone`.

        Args:
            backbone: `calmctl.model.backbone.fingerprint` of a backbone.
        """
        ours, theirs = _decisive(self.header.backbone), _decisive(backbone)
        different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if different:
            raise StoreError(
                f"{self.path} holds features of {describe_backbone(self.header.backbone)}, "
                f"not of {describe_backbone(backbone)} (different: {', '.join(different)}): they cannot be mixed; "
                "choose another store, or make one that fits: calmctl extract ... --run RUN, or with --backbone "
                "and --backbone-weights"
            )


def read_sources(shard: Path) -> tuple[dict[str, ClipSource | None], int]:
    """`source_of` the clips of a shard, and when it was written, in ns."""
    sources = read_metadata(shard, what="feature store", error=StoreError).get("sources")
    return sources if isinstance(sources, dict) else {}, shard.stat().st_mtime_ns


def _content(source: ClipSource | None) -> str | None:
    """The content of a clip among its `sources`; None in stores that were made before it was recorded."""
    match source:
        case [_, _, float() | int() as start_s, float() | int() | None as end_s, str() as content, *_]:
            # The window is part of it: two windows of one film are not copies of one another.
            return windowed(content, start_s, end_s)
        case _:
            return None


def _decisive(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What of a fingerprint decides the features, also of stores from before fingerprints had all of it.

    Where the weights came from is for people; the digest of the parameters is what counts.
    """
    origin = ("weights", "tag", "source", "revision", "weights_sha256", "architecture")
    old: dict[str, Any] = {"tokenizer": None, "fill": 0}
    size = backbone.get("image_size")
    now = {**old, **backbone, "image_size": [size, size] if isinstance(size, int) else size}
    return {key: value for key, value in now.items() if key not in origin}


def describe_backbone(backbone: Mapping[str, Any]) -> str:
    """A fingerprint in a few words: model, weights, the digest's beginning."""
    weights = backbone.get("weights") or "random weights"
    return f"{backbone.get('model')} with {weights} [{str(backbone.get('parameters_sha256'))[:12]}]"
