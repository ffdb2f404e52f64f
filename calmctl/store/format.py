"""What the files of a feature store say: `index.json`, `catalogue.json`, and the names of its shards.

    STORE/
      index.json                  what the features are, and the digest of every shard that is complete
      catalogue.json              which clip and which sentence belongs to which shard; splits and captions
      frames-00000.safetensors    features of one group of clips     `frames` [n, F, D]
      texts-00000.safetensors     features of one group of sentences `texts` [n, D]

The index is written again after every shard and therefore small; the catalogue once for a dataset, before
the index. Both carry the digest of their own content. Neither holds a time, a host or a path, so that stores
made on several machines merge into the one that a single machine would have made.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from calmctl.errors import StoreError
from calmctl.files import read_json, sha256_bytes, write_text

SCHEMA_VERSION = 1
INDEX = "index.json"
CATALOGUE = "catalogue.json"
SAMPLING = "centres of equal intervals"

Kind = Literal["frames", "texts"]


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A name and no path: an index from a stranger cannot point outside its folder.
ShardFile = Annotated[str, Field(pattern=r"^(frames|texts)-\d{5,}\.safetensors$")]
Row = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LeftOutClip(_Part):
    """A clip whose features do not exist, and why; `limit_s` as in `LeftOut`, and absent where it is None."""

    id: str
    reason: str
    limit_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Stores of earlier versions have no such key, and equal stores are to be equal bytes.
        return {key: value for key, value in fields(self).items() if value is not None}


class ShardEntry(_Part):
    """One complete shard: the digest of its file, and the clips of its group that could not be decoded."""

    sha256: Digest
    left_out: list[LeftOutClip] = []


class Header(_Part):
    """What the features of a store are; all of it must agree before anything is added or merged.

    Attributes:
        dataset: The dataset's name, or "folder".
        backbone: `calmctl.model.backbone.fingerprint` of the backbone.
        n_frames: Frames per clip, F.
        sampling: How the frames are chosen.
        dtype: Number format on disk.
    """

    dataset: str
    backbone: dict[str, Any]
    n_frames: Annotated[int, Field(gt=0)]
    # Recorded though there is one way today: features sampled in another must never be mixed in.
    sampling: str = SAMPLING
    dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _has_a_width(self) -> Header:
        # Everything else of a backbone is compared; its width sizes memory, so it must be a number first.
        width = self.backbone.get("dim")
        if type(width) is not int or width < 1:
            raise ValueError(f"backbone.dim is {width!r}, which is no width of features")
        return self


class Index(_Part):
    """`index.json`."""

    schema_version: Literal[1] = 1
    header: Header
    protocol: str = ""
    shards: dict[ShardFile, ShardEntry] = {}


class CatalogueSplit(_Part):
    """A split: `captions[i]` numbers a sentence of the catalogue, which describes `clips[owners[i]]`.

    `differs` is as in `samples.Split`; None in stores that were made before it was recorded.
    """

    clips: list[str]
    # By number: a sentence that describes several clips stands, and is encoded, once.
    captions: list[Row]
    owners: list[Row]
    left_out: list[LeftOutClip]
    differs: list[str] | None = None

    @model_validator(mode="after")
    def _numbers_exist(self) -> CatalogueSplit:
        _require_once(self.clips, "clip")
        if len(self.captions) != len(self.owners):
            raise ValueError(f"{len(self.captions)} captions have {len(self.owners)} owners")
        if max(self.owners, default=0) >= max(1, len(self.clips)):
            raise ValueError(f"an owner is number {max(self.owners)} of {len(self.clips)} clips")
        return self


class Catalogue(_Part):
    """`catalogue.json`: the groups that become shards, in order, and the splits."""

    schema_version: Literal[1] = 1
    clips: list[list[str]] = []
    sentences: list[list[str]] = []
    splits: dict[str, CatalogueSplit] = {}

    @model_validator(mode="after")
    def _keys_are_unique(self) -> Catalogue:
        _require_once([key for group in self.clips for key in group], "clip")
        _require_once([sentence for group in self.sentences for sentence in group], "sentence")
        known = sum(len(group) for group in self.sentences)
        for name, split in self.splits.items():
            if split.captions and max(split.captions) >= known:
                raise ValueError(f"a caption of {name} is number {max(split.captions)} of {known} sentences")
        return self


def _require_once(keys: list[str], what: str) -> None:
    if len(set(keys)) != len(keys):
        raise ValueError(f"the {what} {next(key for key, n in Counter(keys).items() if n > 1)!r} is there twice")


Document = TypeVar("Document", Index, Catalogue)


def shard_file(kind: Kind, group: int) -> str:
    """The name of the shard that holds a group."""
    return f"{kind}-{group:05d}.safetensors"


def read_document(path: Path, form: type[Document]) -> Document:
    """Read one of the two JSON files.

    Raises:
        StoreError: It is missing, damaged, changed by hand or of another version; names the file.
    """
    value = read_json(path, what="feature store", error=StoreError)
    # Before anything else is looked at, because another version may have other keys.
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} is not of schema {SCHEMA_VERSION} (it says {repr(version)[:80]}); "
            "extract again, into another folder, with this version of calmctl"
        )
    digest = value.pop("sha256", None)
    try:
        document = form.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise StoreError(f"{path}: {place}: {first['msg']}; extract again, into another folder") from None
    if digest != _digest(value):  # of what the file says: keys that it lacks are those of later versions
        raise StoreError(
            f"{path} is damaged or was changed by hand (its own SHA-256 does not fit); "
            "extract again, into another folder"
        )
    return document


def write_document(path: Path, document: Index | Catalogue) -> None:
    """Write one of the two JSON files atomically, with the digest of its own content."""
    value = document.model_dump()
    content = {**value, "sha256": _digest(value)}
    indent = 1 if isinstance(document, Index) else None  # people read the index; the catalogue is long
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def _digest(value: dict[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256_bytes(canonical.encode("ascii"))
