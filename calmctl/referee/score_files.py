"""Other people's scores, embeddings, ids and pairs, from files, without running or believing anything in them.

Nothing is unpickled: arrays of Python objects are refused. A shape that a header claims is held against the size of its
file before a byte is set aside for it. `.npy` is mapped and never read whole; everything else is read into memory.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmctl.data.annotations import (
    check_header,
    csv_rows,
    expect,
    open_parquet,
    read_json_file,
    read_lines,
    read_names,
    read_text,
    shown,
)
from calmctl.data.benchmark import Annotated, read_splits
from calmctl.data.locate import places
from calmctl.data.registry import BENCHMARKS, load_dataset, resolve
from calmctl.errors import BadInput, DatasetError
from calmctl.evaluation.card import Card
from calmctl.files import NotJson, npy_header, npy_texts, open_regular, parse_json
from calmctl.words import counted

Array = NDArray[Any]

SUFFIXES = (".npy", ".npz", ".safetensors", ".csv", ".tsv", ".parquet")
_TEXT_IDS = ("text_id", "text_ids", "caption_id", "query_id", "sen_id", "text", "caption", "query", "row")
_VIDEO_IDS = ("video_id", "video_ids", "clip_id", "image_id", "video", "clip", "column")
_IDS = ("", "id", "ids", *_TEXT_IDS, *_VIDEO_IDS)
_PLAIN_BYTES = 1 << 30
"""What unpacks to no more is read, however small its file (our choice)."""
_GROWTH = 20
"""What unpacks to more may not be more than so many times its file (our choice)."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a file holds.

    Attributes:
        path: The file.
        arrays: Its arrays of numbers, by name; "" where the file has no names.
        ids: Its lists of ids, by name: "ids", "text_ids", "video_ids", and "columns" of a table's header.
        owners: For each text the column of its video, where the file says it (`calmctl eval --save-scores`).
        sentences: Of each text, where the file has them beside `owners`.
        card: How the scores were made, where the file says it.
    """

    path: Path
    arrays: Mapping[str, Array]
    ids: Mapping[str, tuple[str, ...]]
    owners: Array | None = None
    sentences: tuple[str, ...] | None = None
    card: Card | None = None

    def array(self, names: Sequence[str], dimensions: Sequence[int], what: str) -> Array:
        """The array of one of `names`, or the only one; raises `BadInput` where it has other `dimensions`."""
        fitting = {name: each for name, each in self.arrays.items() if each.ndim in dimensions}
        named = next((each for each in names if each in fitting), None)
        if named is None and len(fitting) != 1:
            held = ", ".join(f"{name or 'one'} {list(each.shape)}" for name, each in self.arrays.items()) or "none"
            raise BadInput(
                f"{self.path}: which array is {what}? It holds {held}; keep one of "
                f"{' or '.join(map(str, dimensions))} dimensions, or call it {names[0]}"
            )
        array = fitting[named] if named is not None else next(iter(fitting.values()))
        if 0 in array.shape:
            raise BadInput(f"{self.path}: {what} is empty, {list(array.shape)}")
        return array


def read_stored(path: Path, what: str) -> Stored:
    """Read a file of scores or embeddings.

    Raises:
        BadInput: It is missing, damaged, of another kind, larger than it can be, or holds Python objects.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"{what}: {path} is none of {', '.join(SUFFIXES)}; save it as one of them (numpy.save: .npy)")
    try:
        if suffix == ".npy":
            return _sorted_out(path, {"": _map_npy(path)})
        if suffix == ".npz":
            return _sorted_out(path, _read_npz(path))
        if suffix == ".safetensors":
            return _sorted_out(path, _read_safetensors(path, what))
        if suffix == ".parquet":
            return _read_parquet(path)
        return _read_table(path, "\t" if suffix == ".tsv" else ",")
    except FileNotFoundError:
        raise BadInput(f"{what}: {path} does not exist") from None
    except OSError as fault:
        raise BadInput(f"{what}: cannot read {path}: {fault.strerror or fault}") from None


def _sorted_out(path: Path, arrays: Mapping[str, Array]) -> Stored:
    """Numbers, ids and owners told apart by name and kind."""
    numbers: dict[str, Array] = {}
    ids: dict[str, tuple[str, ...]] = {}
    owners, sentences, card = None, None, None
    for name, each in arrays.items():
        if name == "card" and each.ndim == 0 and each.dtype.kind == "U":
            card = _card_of(npy_texts(each.reshape(1), f"{path}: card")[0], f"{path}: card")
        elif name == "sentences" and each.dtype.kind in "US":
            sentences = _as_ids(each, f"{path}: {name}")
        elif name in ("ids", "text_ids", "video_ids") and each.dtype.kind in "USiu":
            ids[name] = _as_ids(each, f"{path}: {name}")
        elif each.ndim == 0 or each.dtype.kind in "US":
            continue  # what a program writes beside its arrays: a date, a name, sentences
        elif name == "owners" and each.ndim == 1 and each.dtype.kind in "iu":
            owners = each
        elif each.dtype.kind in "fiu":
            numbers[name] = each
        else:
            raise BadInput(f"{path}: {name or 'its array'} is of type {each.dtype}; real numbers are needed")
    return Stored(path, numbers, ids, owners, sentences, card)


def _card_of(text: str, place: str) -> Card:
    try:
        return Card.from_json(expect(parse_json(text), dict, place), place)
    except NotJson as fault:
        raise BadInput(f"{place} {fault}") from None


def _as_ids(values: Array, place: str) -> tuple[str, ...]:
    if values.ndim != 1:
        raise BadInput(f"{place} must be a list of ids, not {list(values.shape)}")
    return tuple(npy_texts(values, place) if values.dtype.kind in "US" else map(str, values.tolist()))


# NumPy's files.


def _map_npy(path: Path) -> Array:
    with open_regular(path) as handle:
        shape, fortran, dtype = npy_header(handle, str(path), path.stat().st_size)
        if 0 in shape or not shape:
            return np.zeros(shape, dtype)
        return np.memmap(handle, dtype, "r", handle.tell(), shape, "F" if fortran else "C")


_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError, EOFError, ValueError, OSError),
)


def _read_npz(path: Path) -> dict[str, Array]:
    arrays = {}
    with open_regular(path) as handle:
        try:
            archive = zipfile.ZipFile(handle)
            members = archive.infolist()
            _check_growth(path, sum(each.file_size for each in members), path.stat().st_size)
            for member in members:
                if not member.filename.endswith(".npy") or member.filename[:-4] in arrays:
                    raise BadInput(f"{path}: it holds {shown(member.filename)}; a .npz holds arrays alone, each once")
                with archive.open(member) as inner:
                    shape, fortran, dtype = npy_header(inner, f"{path}: {member.filename}", member.file_size)  # type: ignore[arg-type]
                    content = inner.read()
                if len(content) != math.prod(shape) * dtype.itemsize:
                    raise BadInput(f"{path}: {shown(member.filename)} is cut short; write it again")
                flat = np.frombuffer(content, dtype)
                arrays[member.filename[:-4]] = flat.reshape(shape, order="F" if fortran else "C")
        except _DAMAGED_ZIP as f:
            raise BadInput(f"{path} is not a .npz file that can be read ({str(f)[:80]}); write it again") from None
    return arrays


def _check_growth(path: Path, unpacked: int, held: int) -> None:
    if unpacked > max(_PLAIN_BYTES, _GROWTH * held):
        raise BadInput(
            f"{path}: its {held / 1e6:,.1f} MB would unpack to {unpacked / 1e6:,.0f} MB; if they do mean that much, "
            "save the array with numpy.save, as .npy, which is never unpacked"
        )


def _read_safetensors(path: Path, what: str) -> dict[str, Array]:
    from calmctl.tensors import load_tensors

    tensors, _ = load_tensors(path, what=what, error=BadInput, ours=False)
    return {
        name: (each.float() if each.is_floating_point() and each.itemsize < 4 else each).numpy()
        for name, each in tensors.items()
    }


# Tables: ids in the first column, or under a name; a number in every other cell.


def _read_table(path: Path, delimiter: str) -> Stored:
    header: list[str] | None = None
    named: bool | None = None
    names: list[str] = []
    numbers: list[Array] = []
    for place, row in csv_rows(path, delimiter):
        if not row:
            continue
        first = row[0].strip().lower()
        if header is None and not numbers and (first in _IDS or any(_number(cell) is None for cell in row[1:])):
            header = [cell.strip() for cell in row]
            continue
        if named is None:
            named = _number(first) is None or (header is not None and header[0].lower() in _IDS)
        width = len(header) if header is not None else len(numbers[0]) + named if numbers else len(row)
        if len(row) != width:
            raise BadInput(f"{place}: {len(row)} fields, {width} in the lines above")
        values = [_number(cell) for cell in row[named:]]
        if None in values:
            raise BadInput(f"{place}: {shown(row[named:][values.index(None)])} is no number")
        names += [row[0].strip()] * named
        numbers.append(np.array(values, dtype=np.float64))
    if not numbers:
        raise BadInput(f"{path}: there are no numbers in it")
    ids: dict[str, tuple[str, ...]] = {"ids": tuple(names)} if named else {}
    if header is not None:
        ids["columns"] = tuple(header[bool(named) :])
    return Stored(path, {"": np.stack(numbers)}, ids)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _read_parquet(path: Path) -> Stored:
    held = path.stat().st_size
    with open_parquet(path, ", or save it as .npy or .csv") as file:
        meta = file.metadata
        unpacked = sum(meta.row_group(each).total_byte_size for each in range(meta.num_row_groups))
        _check_growth(path, max(unpacked, 8 * meta.num_rows * meta.num_columns), held)
        table = file.read()
        table.validate(full=True)  # that text is UTF-8, among others
    from pyarrow import types

    ids: dict[str, tuple[str, ...]] = {}
    columns: dict[str, Array] = {}
    for name in table.column_names:
        column = table.column(name)
        kind = column.type
        if column.null_count:
            raise BadInput(f"{path}: {column.null_count:,} cells of the column {shown(name)} are empty")
        if types.is_string(kind) or types.is_large_string(kind) or name.lower() in _IDS[1:]:
            ids.setdefault("ids", tuple(map(str, column.to_pylist())))
        elif types.is_list(kind) or types.is_fixed_size_list(kind):
            lengths = {len(each) for each in column.to_pylist()}
            if len(lengths) != 1:
                raise BadInput(f"{path}: the vectors of the column {shown(name)} are of {len(lengths)} lengths")
            columns[name] = np.array(column.to_pylist(), dtype=np.float64)
        elif types.is_floating(kind) or types.is_integer(kind):
            columns[name] = column.to_numpy()
        else:
            raise BadInput(f"{path}: the column {shown(name)} is of type {kind}; numbers or text are needed")
    vectors = [each for each in columns.values() if each.ndim > 1]
    if vectors:
        return Stored(path, {name: each for name, each in columns.items() if each.ndim > 1}, ids)
    if not columns:
        raise BadInput(f"{path}: there are no numbers in it")
    ids["columns"] = tuple(columns)
    return Stored(path, {"": np.stack(list(columns.values()), axis=1)}, ids)


# Who is who: ids of rows and columns, and which text describes which video.


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which text describes which video, and what is ranked.

    Attributes:
        name: Where it is from.
        videos: For each text id its video's.
        candidates: The videos of the protocol, where one says it; None: those that the scores have.
        also: Other names that texts go by (clip ids, sentences), to the id in `videos`.
        sentences: Of each text id, where they are known.
    """

    name: str
    videos: Mapping[str, str]
    candidates: tuple[str, ...] | None = None
    also: Mapping[str, str] | None = None
    sentences: Mapping[str, str] | None = None


def ids_of(
    stored: Stored, names: Sequence[str], count: int, sidecar: Path | None, option: str
) -> tuple[str, ...] | None:
    """The ids of one side: of a file beside it, or of its own; None where it has none.

    Raises:
        BadInput: There are more or fewer than `count`, one is empty or stands twice.
    """
    place = str(sidecar) if sidecar is not None else str(stored.path)
    ids = read_names(sidecar) if sidecar is not None else next((stored.ids[n] for n in names if n in stored.ids), None)
    if ids is None:
        return None
    if len(ids) != count:
        raise BadInput(f"{place}: {counted(len(ids), 'id')} for {count:,}; each needs one ({option} FILE, one a line)")
    first: dict[str, int] = {}
    for number, each in enumerate(ids):
        if not each or each.lower() in ("nan", "none", "null"):
            raise BadInput(f"{place}: id {number} is {shown(each) if each else 'empty'}, which names nothing")
        if first.setdefault(each, number) != number:
            raise BadInput(f"{place}: the id {shown(each)} stands twice, as number {first[each]} and as {number}")
    return tuple(ids)


def read_pairs(path: Path) -> Pairs:
    """Pairs of a text and its video: .csv or .tsv with two columns, .json {text: video} or a list, or .jsonl.

    Raises:
        DatasetError: It is malformed, or a text has two videos.
    """
    suffix = path.suffix.lower()
    rows: list[tuple[str, Any]]
    if suffix in SUFFIXES and suffix not in (".csv", ".tsv"):
        raise DatasetError(f"{path}: pairs are read from .csv, .tsv, .json and .jsonl: a text id and its video's a row")
    if suffix in (".csv", ".tsv", ".txt"):
        table = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="," if suffix == ".csv" else "\t")
        try:
            rows = [(f"{path}:{table.line_num}", row) for row in table if row]
        except csv.Error as fault:
            raise DatasetError(f"{path}:{table.line_num}: {fault}") from None
        if rows:
            check_header([cell.strip() for cell in rows[0][1]] if len(rows[0][1]) == 1 else [], path)
            low = [cell.strip().lower() for cell in rows[0][1]]
            text, video = (next((low.index(n) for n in names if n in low), None) for names in (_TEXT_IDS, _VIDEO_IDS))
            if text is not None and video is not None:
                rows = [(p, [row[text], row[video]] if max(text, video) < len(row) else row[:1]) for p, row in rows[1:]]
    elif suffix == ".jsonl":
        try:
            rows = [(f"{path}:{number}", parse_json(line)) for number, line in read_lines(path)]
        except NotJson as fault:
            raise DatasetError(f"{path} {fault}") from None
    else:
        content = read_json_file(path)
        listed = list(content.items()) if isinstance(content, dict) else expect(content, list, str(path))
        rows = [(f"{path}: pair {number}", each) for number, each in enumerate(listed)]
    videos: dict[str, str] = {}
    for place, row in rows:
        text_id, video_id = _pair(row, place)
        if videos.setdefault(text_id, video_id) != video_id:
            raise DatasetError(
                f"{place}: the text {shown(text_id)} has two videos, {shown(videos[text_id])} and {shown(video_id)}; a "
                "query has one right answer here: give each pair a text id of its own, or, where the columns are the "
                "other way round, say so in a header: video_id,text_id"
            )
    if not videos:
        raise DatasetError(f"{path}: there are no pairs in it")
    return Pairs(path.name, videos)


def _pair(row: Any, place: str) -> tuple[str, str]:
    if isinstance(row, dict):
        cells = [next((row[n] for n in names if n in row), None) for names in (_TEXT_IDS, _VIDEO_IDS)]
    else:
        cells = list(row) if isinstance(row, list | tuple) else []
    plain = [str(each).strip() for each in cells if isinstance(each, str | int) and not isinstance(each, bool)]
    if len(cells) < 2 or len(plain) < 2 or not all(plain[:2]):
        raise DatasetError(
            f"{place}: expected a text id and a video id, found {shown(json.dumps(row, ensure_ascii=False))}"
        )
    return plain[0], plain[1]


def own_pairs(
    stored: Stored, shape: tuple[int, int], text_ids: Sequence[str] | None, video_ids: Sequence[str] | None
) -> Pairs:
    """The pairs that a file of scores holds itself. Raises `BadInput` where it holds none."""
    owners = stored.owners
    if owners is None:
        raise BadInput(f"{stored.path} does not say which text is of which video; give --pairs FILE or --dataset NAME")
    if len(owners) != shape[0] or (owners < 0).any() or (owners >= shape[1]).any():
        raise BadInput(
            f"{stored.path}: owners must be a column for each of {shape[0]:,} texts, from 0 to {shape[1] - 1:,}"
        )
    texts = text_ids if text_ids is not None else [*map(str, range(shape[0]))]
    videos = video_ids if video_ids is not None else [*map(str, range(shape[1]))]
    listed = stored.sentences
    if listed is not None and len(listed) != shape[0]:
        raise BadInput(f"{stored.path}: {counted(len(listed), 'sentence')} for {shape[0]:,} texts; leave sentences out")
    pairs = {text: videos[owner] for text, owner in zip(texts, owners.tolist(), strict=True)}
    sentences = None if listed is None else dict(zip(texts, listed, strict=True))
    return Pairs(stored.path.name, pairs, sentences=sentences)


def protocol_pairs(name: str, protocol: str | None, root: Path | None, annotations: Path | None) -> Pairs:
    """The pairs and candidates of a data set's test split: texts are numbered in its order; no video is needed.

    Raises:
        DatasetError: As `load_dataset`.
    """
    protocol = resolve(name, protocol)
    if name in BENCHMARKS:
        where = places(name, root, annotations, annotations)
        test = next(each for split, _, each in read_splits(BENCHMARKS[name], protocol, where) if split == "test")
        if not isinstance(test, Annotated):
            raise test
        clips, pairs = tuple(dict.fromkeys(test.clip_ids)), [each for each in test.captions if each[1].strip()]
        known = set(clips)
        pairs = [each for each in pairs if each[0] in known]
    else:
        split = load_dataset(name, root, protocol=protocol, annotations=annotations).splits["test"]
        clips = (*split.ids, *(each.id for each in split.left_out))
        pairs = [(split.ids[o], caption) for caption, o in zip(split.captions, split.owners, strict=True)]
    also: dict[str, str] = {}
    for position in (0, 1):  # a clip's id, a sentence
        called = [pair[position] for pair in pairs]
        if len(set(called)) == len(called):  # else it does not say which of them is meant
            also |= {each: str(number) for number, each in enumerate(called)}
    videos = {str(n): clip for n, (clip, _) in enumerate(pairs)}
    sentences = {str(n): sentence for n, (_, sentence) in enumerate(pairs)}
    return Pairs(f"{name} {protocol}".strip(), videos, clips, also, sentences)
