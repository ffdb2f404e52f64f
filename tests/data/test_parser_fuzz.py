"""Whatever bytes an annotation file holds: a dataset or one of our errors, and no path outside."""

import importlib.util
import io
import json
import os
import pickle
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.data.registry import BENCHMARKS, load_dataset
from calmctl.errors import CalmError, DatasetError, RecipeError, VocabularyError
from calmctl.recipe.load import load_recipe

FUZZ = Path(__file__).parents[2] / "benchmarks/fuzz.py"
_spec = importlib.util.spec_from_file_location("benchmark_fuzz", FUZZ)
assert _spec is not None and _spec.loader is not None
fuzz = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = fuzz  # dataclasses look their module up there
_spec.loader.exec_module(fuzz)
CLIPS, PIECES, well_formed = fuzz.CLIPS, fuzz.PIECES, fuzz.well_formed
CASES = [
    *((name, protocol) for name, benchmark in BENCHMARKS.items() for protocol in benchmark.protocols),
    ("folder", ""),
]


def file_names(name: str, protocol: str) -> list[str]:
    if name == "folder":
        return ["captions.csv", "captions.json", "captions.jsonl", "train.txt", "test.txt"]
    names: list[str] = fuzz.file_names(name, protocol)
    return names


@st.composite
def contents(draw: st.DrawFn, file: str) -> bytes | None:
    """Well-formed, with pieces put in or cut out, or anything; None for no such file."""
    kind = draw(st.sampled_from(["whole", "whole", "spliced", "spliced", "spliced", "any", "none"]))
    if kind == "none":
        return None
    if kind == "any":
        return draw(st.binary(max_size=100))
    content: bytes = well_formed(file)
    for _ in range(draw(st.integers(1, 3)) if kind == "spliced" else 0):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 12))
        content = content[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=3)) + content[end:]
    return content


@pytest.mark.parametrize(("name", "protocol"), CASES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_bytes_give_a_dataset_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, protocol: str
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    videos = root / "clips"
    videos.mkdir()
    for clip in CLIPS:
        (videos / f"{clip}.mp4").touch()
    files = file_names(name, protocol)
    if name == "folder":  # two captions files are an error, and no more is read
        files = [data.draw(st.sampled_from(files[:3])), *files[3:]]
    for file in files:
        content = data.draw(contents(file), label=file)
        if content is not None:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content)
    try:
        dataset = load_dataset(name, None, protocol=protocol, annotations=root, videos=videos)
    except CalmError as error:
        event("one of our errors")
        assert str(error).strip() and len(str(error)) < 2000
        return
    event("a dataset")
    for split in dataset.splits.values():
        assert len(split.captions) == len(split.owners)
        assert all(0 <= owner < len(split.clips) for owner in split.owners)
        assert len({clip.id for clip in split.clips}) == len(split.clips)
        assert all(Path(os.path.normpath(clip.path)).is_relative_to(videos) for clip in split.clips)
        json.dumps([split.captions, [left.id for left in split.left_out]], ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    ("file", "read", "error"),
    [("vocabulary.yaml", load_vocabulary, VocabularyError), ("recipe.yaml", load_recipe, RecipeError)],
)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_bytes_give_a_vocabulary_or_a_recipe_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, file: str, read: Any, error: type[CalmError]
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / file
    path.write_bytes(data.draw(contents(file).filter(lambda content: content is not None)))
    try:
        assert read(path)
    except error as fault:
        assert str(fault).strip() and len(str(fault)) < 10_000


@pytest.fixture
def alarm() -> Iterator[None]:
    """What the benchmark does about a reader that hangs."""
    former = signal.signal(signal.SIGALRM, fuzz.out_of_time)
    yield
    signal.signal(signal.SIGALRM, former)


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="no alarm on this system")
@pytest.mark.parametrize("name", fuzz.readers())
def test_the_benchmark_reaches_results_and_errors_and_nothing_else(name: str, alarm: None) -> None:
    outcomes, _, faults = fuzz.fuzz(fuzz.readers()[name], 60, seed=1)
    assert not faults and outcomes["anything else"] == 0
    assert outcomes["results"] > 3 and outcomes["our errors"] > 3 and outcomes.total() == 60


@pytest.mark.parametrize("bad", ["../a", "/etc/passwd", "a/../../a", "..", ".", "a\\..\\a", "x\0y", ""])
@pytest.mark.parametrize(("name", "protocol"), CASES)
def test_no_annotation_leads_out_of_the_folder_of_clips(tmp_path: Path, name: str, protocol: str, bad: str) -> None:
    """The name of a clip in each file in turn is one that leads elsewhere: refused, or no clip."""
    videos = tmp_path / "clips"
    videos.mkdir()
    (tmp_path / "a.mp4").touch()  # what "../a" would lead to
    for clip in CLIPS:
        (videos / f"{clip}.mp4").touch()
    every = file_names(name, protocol)
    for file in every:
        if file.endswith(".parquet") or not any(clip.encode() in well_formed(file) for clip in CLIPS):
            continue
        root = tmp_path / f"with {file.replace('/', ' ')}"
        root.mkdir()
        for other in every:
            content = well_formed(other)
            if other == file:
                content = _renamed(content, bad.encode(), other)
                assert content != well_formed(other)
            if file.endswith(".npy") and other.endswith(".txt"):  # lists as text are read before arrays
                continue
            if name != "folder" or other == file or (other.endswith(".txt") and not file.endswith(".txt")):
                (root / other).parent.mkdir(parents=True, exist_ok=True)
                (root / other).write_bytes(content)
        try:
            dataset = load_dataset(name, None, protocol=protocol, annotations=root, videos=videos)
        except DatasetError:
            continue
        for split in dataset.splits.values():
            assert bad not in {clip.id for clip in split.clips}
            assert all(Path(os.path.normpath(clip.path)).is_relative_to(videos) for clip in split.clips)


def _renamed(content: bytes, bad: bytes, file: str) -> bytes:
    """Clip `a` under another name, wherever it is named (its id, or a file's name or path)."""
    if file.endswith(".pkl"):
        tokens = pickle.loads(content)  # our own, written above
        return pickle.dumps({bad.decode() if clip == "a" else clip: said for clip, said in tokens.items()}, 2)
    if file.endswith(".npy"):
        names, file_again = np.load(io.BytesIO(content)), io.BytesIO()
        np.save(file_again, np.array([bad.decode() if clip == "a" else clip for clip in names]))
        return file_again.getvalue()
    escaped = json.dumps(bad.decode())[1:-1].encode() if "json" in file else bad
    return re.sub(rb'(?<![\w.])(?:a|video0)(?=(\.mp4)?(["\n\t, ]|$))', lambda _: escaped, content)
