"""Whatever bytes an annotation file holds: a dataset or one of our errors, and no path outside."""

import importlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
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

BENCHMARKS_FOLDER = str(Path(__file__).parents[2] / "benchmarks")
sys.path.append(BENCHMARKS_FOLDER)  # at the end, and for the import alone: names of benchmarks are short
fuzz = importlib.import_module("fuzz")
fuzz_base, fuzz_files, fuzz_runs, fuzz_videos = (
    sys.modules[f"fuzz_{each}"] for each in ("base", "files", "runs", "videos")
)
sys.path.remove(BENCHMARKS_FOLDER)
CLIPS, PIECES, well_formed = fuzz_files.CLIPS, fuzz_base.PIECES, fuzz_files.well_formed
READERS = {**fuzz_files.readers(), **fuzz_runs.readers()}
CASES = [
    *((name, protocol) for name, benchmark in BENCHMARKS.items() for protocol in benchmark.protocols),
    ("folder", ""),
]


def file_names(name: str, protocol: str) -> list[str]:
    if name == "folder":
        return ["captions.csv", "captions.json", "captions.jsonl", "train.txt", "test.txt"]
    names: list[str] = fuzz_files.file_names(name, protocol)
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
def limit() -> Iterator[None]:
    """What the benchmark does about a reader that hangs."""
    former = signal.signal(signal.SIGPROF, fuzz.out_of_time)
    yield
    signal.signal(signal.SIGPROF, former)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer of the processor's time on this system")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:`torch.jit")
@pytest.mark.parametrize("name", READERS)
def test_the_benchmark_reaches_results_and_errors_and_nothing_else(name: str, limit: None) -> None:
    tally = fuzz.fuzz(READERS[name], 60, seed=1)
    outcomes = tally.outcomes
    assert not tally.faults and outcomes.total() == 60 and outcomes["results"] > 2
    if name == "lengths of videos":  # a memory that is no use is done without
        assert outcomes["our errors"] == 0
    elif name != "search index":
        assert outcomes["our errors"] > 3 and len(tally.kinds) > 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer of the processor's time on this system")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:`torch.jit")
@pytest.mark.parametrize("name", READERS)
def test_every_bomb_is_refused_within_its_limits(name: str, limit: None, tmp_path: Path) -> None:
    """Whatever is claimed: a result or one of our errors, and in two seconds at most."""
    reader = READERS[name]
    (tmp_path / "clips").mkdir()
    for file in reader.files:
        for bomb in reader.bombs(file):
            root = tmp_path / "annotations"
            shutil.rmtree(root, ignore_errors=True)
            fuzz.write_input(root, {**{each: reader.content(each) for each in reader.files}, file: bomb})
            tally = fuzz_base.Tally()
            fuzz.read_one(reader, root, tmp_path / "clips", tally, 0, None)
            assert not tally.faults and tally.slowest_s < 5


def test_what_a_reader_must_not_do_is_noted(tmp_path: Path) -> None:
    """In a process of its own: a hook cannot be taken away."""
    program = """
import os, pathlib, socket, subprocess, sys
from fuzz_base import Watch
watch = Watch(pathlib.Path(sys.argv[1]))
watch.install()
inside = pathlib.Path(sys.argv[1], "a")
def tried(act):
    watch.seen.clear()
    watch.armed = True
    try:
        act()
    except OSError:
        pass
    watch.armed = False
    print(*[each.partition(":")[0] for each in watch.seen] or ["nothing"])
tried(lambda: inside.write_text("x"))
tried(lambda: inside.read_text())
tried(lambda: inside.unlink())
tried(lambda: open("/etc/passwd").read())
tried(lambda: open(inside.parent.parent / "b", "w"))
tried(lambda: os.listdir("/"))
tried(lambda: subprocess.run(["true"]))
tried(lambda: exec("1"))
tried(lambda: socket.create_connection(("127.0.0.1", 9)))
tried(lambda: os.rename(inside, inside.parent.parent / "c"))
"""
    (tmp_path / "in").mkdir()
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "in")],
        env={**os.environ, "PYTHONPATH": BENCHMARKS_FOLDER},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert told[:6] == ["nothing"] * 3 + ["escape"] * 3
    assert "execution" in told[6] and told[7] == "execution" and "connection" in told[8] and told[9] == "escape"


def test_a_corpus_grows_and_is_begun_with(tmp_path: Path) -> None:
    reader = READERS["recipe"]
    first = fuzz_base.Corpus(tmp_path, "recipe")
    fuzz.fuzz(reader, 40, 0, corpus=first)
    again = fuzz_base.Corpus(tmp_path, "recipe")
    assert len(first.inputs) > 3
    assert {each.get("recipe.yaml") for each in again.inputs} == {each.get("recipe.yaml") for each in first.inputs}


def test_containers_are_taken_apart_by_their_rules() -> None:
    """Every part of a seed lies in the file, its length says so, and removing one leaves the others."""
    known = 0
    for seed in fuzz_videos.seeds():
        for part in fuzz_videos._parts(seed):
            assert 0 <= part.start < part.end <= len(seed) and part.size_at + part.size_length <= len(seed)
            known += 1
        if seed[4:8] == b"ftyp":
            moov = next(part for part in fuzz_videos._parts(seed) if seed[part.start + 4 : part.end][:4] == b"moov")
            assert int.from_bytes(seed[moov.size_at : moov.size_at + 4], "big") == moov.end - moov.start
    assert known > 300


def test_damaged_videos_give_frames_or_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, BENCHMARKS_FOLDER])  # workers look where their parent does
    corpus = fuzz_base.Corpus(None, "")
    tally = fuzz_videos.fuzz(fuzz_videos.Way(), 40, 1, corpus, float("inf"), tmp_path)
    assert not tally.faults and tally.outcomes.total() == 40
    assert tally.outcomes["results"] > 3 and tally.outcomes["our errors"] > 3
    assert not [path for path in tmp_path.iterdir() if path.name != fuzz_videos.BAIT]


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
