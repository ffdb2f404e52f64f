"""Commands of calmctl in forks of one warm process, on a small world, and what they leave.

For failing.py and signals.py, which disturb them.

A fork has torch and all of calmctl in memory, so that a command costs its work and not ten seconds of imports. It runs
`calmctl.__main__.main` in a folder of its own, with a home and a folder for temporary files in it, and ends as the
interpreter would: threads are waited for, and exit handlers run. What it started and left behind is found, because
this process adopts the orphans of its children.
"""

from __future__ import annotations

import atexit
import csv
import ctypes
import fcntl
import fnmatch
import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any

import calmctl
from calmctl.files import sha256_bytes

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "commands.py"
SENTENCE = "two big blue circles are moving left"
TOWERS = ("backbone.model=tiny-clip.json", "backbone.weights=tiny.safetensors")
GRACE_S = 5.0
"""How long what a command started may outlive it: a busy machine takes a while to take a killed process down."""
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER


def warm(*, fork_workers: bool = False) -> None:
    """Import what any command may need, make shards small, and adopt orphans from now on.

    With `fork_workers` decoding workers are forks, too: each costs 0.02 s and not a second.
    """
    import torch

    torch.set_num_threads(1)  # forks follow, and threads do not survive them
    for module in pkgutil.walk_packages(calmctl.__path__, "calmctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "torch.utils.tensorboard", "open_clip", "av", "usearch.index", "pyarrow.parquet", "matplotlib.pyplot",
        "matplotlib.backends.backend_svg", "matplotlib.backends.backend_agg",
    ):  # fmt: skip
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    keep_command()
    fork_pools()
    if fork_workers:
        from calmctl.video import worker

        worker.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": _ForkedWorker})
    from calmctl.captions import score as scorer
    from calmctl.captions.java import JavaUnavailable
    from calmctl.data.demo_world import DemoCounts
    from calmctl.model.weights import load_backbone
    from calmctl.store import writer

    load_backbone("demo-clip", None)
    writer.CLIPS_PER_SHARD, writer.SENTENCES_PER_SHARD = 3, 20
    # A world of 15 clips instead of 2,000, and towers of 16 dimensions: `demo` and `reproduce` draw what they train on.
    small = DemoCounts(train=6, val=3, test=3, shifted=3)
    demo = importlib.import_module("calmctl.data.demo")
    demo.DemoCounts = lambda: small
    stand_in = importlib.import_module("calmctl.reproduce.stand_in")
    load_recipe = stand_in.load_recipe
    stand_in.load_recipe = lambda path, _: load_recipe(path, list(TOWERS))
    write_bytes = demo.write_bytes

    def undated(path: Path, content: bytes) -> None:
        write_bytes(path, content)
        os.utime(path, (1e9, 1e9))  # a store remembers when a clip was changed

    demo.write_bytes = undated

    importlib.import_module("calmctl.runtime").git_revision = lambda: None  # three programs a training

    def without_java() -> None:
        raise JavaUnavailable("METEOR takes ten seconds")

    scorer.find_java = without_java
    ctypes.CDLL(None, use_errno=True).prctl(_ADOPT, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()  # or every fork looks through all of it for garbage, and copies it


def keep_command() -> None:
    """Read every option of every command once: it is a third of what a quick command does."""
    import typer

    from calmctl.cli.main import app

    command: Any = typer.main.get_command(app)
    list(command.commands.values())  # or each fork would import what it names
    typer.main.get_command = lambda _: command


def fork_pools() -> None:
    """Processes that train several runs at once are forks, too, and do without ten seconds of imports."""
    at_once = importlib.import_module("calmctl.reproduce.at_once")
    at_once.multiprocessing = types.SimpleNamespace(**vars(multiprocessing) | {"get_context": lambda _: _ForkedPool()})


class _LikeSpawned(ForkProcess):
    """A process of a pool in a fork, which hears signals as one that was spawned does."""

    def _bootstrap(self, *arguments: Any, **named: Any) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return super()._bootstrap(*arguments, **named)  # type: ignore[misc]


class _ForkedPool(ForkContext):
    Process = _LikeSpawned


class _ForkedWorker(subprocess.Popen[bytes]):
    """A decoding worker in a fork of the command that starts it: the same code on the same pipes, without imports."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        environment: Mapping[str, str] = rest[5]
        pipes = rest[9:15]  # standard input, output and error, each as read end and write end
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            self._close_pipe_fds(*pipes)
            return
        from calmctl.video import worker

        code = 1
        try:
            os.setsid()
            for number, pipe in enumerate((pipes[0], pipes[3], pipes[5])):
                os.dup2(pipe, number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            os.environ |= environment
            # Address space, of which a fork of torch has some gigabytes from the beginning.
            has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            worker.MEMORY_BYTES += has
            sys.argv = list(args[-3:])
            worker.main()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)


# --- a command --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; minus the signal that ended it.
        out: What it printed.
        notes: What it said on standard error.
        left: Processes that it started and that outlived it by `GRACE_S`.
        seconds: How long it took, from when it was waited for.
        cpu_s: Its processor time.
    """

    code: int
    out: str
    notes: str
    left: tuple[str, ...]
    seconds: float
    cpu_s: float

    @property
    def errors(self) -> list[str]:
        """The sentences that tell what went wrong."""
        return [line for line in self.notes.splitlines() if line.startswith("error:")]

    @property
    def is_told(self) -> bool:
        """Whether a person was shown nothing that is meant for programmers."""
        return not any(word in self.notes for word in ("Traceback", "unexpected", "Exception ignored"))


def start(
    words: Sequence[str],
    place: Path,
    before: Callable[[], object],
    notes: Path,
    terminal: tuple[int, int] | None = None,
) -> int:
    """Run `calmctl WORDS...` in `place`, in a process and a session of its own, or at a `terminal`; returns its number.

    `before` is called right before the command; `notes` takes standard error where there is no terminal, which is given
    as its two ends.
    """
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        os.chdir(place)
        # A shell's `&` and nohup have them ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]  (the temporary folders of the parent)
        _redirect(place, notes, terminal)
        before()
        from calmctl.__main__ import main

        sys.argv = ["calmctl", *words]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        os._exit(code)


def _redirect(place: Path, notes: Path, terminal: tuple[int, int] | None) -> None:
    for name in ("home", "tmp"):
        (place / name).mkdir(exist_ok=True)
    home = place / "home"
    os.environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(place / "tmp")}
    os.environ["COLUMNS"] = "100"
    tempfile.tempdir = None
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(place / "printed"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, str(notes), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    if terminal is not None:
        os.close(terminal[0])
        fcntl.ioctl(terminal[1], termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(terminal[1], number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115


def finish(child: int, place: Path, notes: Path, limit_s: float = 600.0) -> Ended:
    """Wait for a command, and end what it left behind."""
    begun = time.perf_counter()
    while not is_over(child):
        if time.perf_counter() - begun > limit_s:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    seconds, used_s = time.perf_counter() - begun, cpu_s(child)
    status = os.waitpid(child, 0)[1]
    left = _orphans(GRACE_S)
    printed_ = place / "printed"
    out = printed_.read_bytes().decode("utf-8", "replace") if printed_.exists() else ""  # ended before it began
    notes_ = notes.read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), out, notes_, left, seconds, used_s)


def is_over(child: int) -> bool:
    """Whether a child has ended; it is not taken from the list of processes yet."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def cpu_s(child: int) -> float:
    """Processor time of a child so far, without that of the processes that it started."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(words: Sequence[str], place: Path, before: Callable[[], object] = lambda: None) -> Ended:
    """Run a command to its end."""
    notes = place.with_name("notes")
    return finish(start(words, place, before, notes), place, notes)


def _orphans(grace_s: float) -> tuple[str, ...]:
    """The children of this process that do not end by themselves within `grace_s`: their command lines."""
    until = time.perf_counter() + grace_s
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) != (0, 0):
                continue
        except ChildProcessError:
            return ()
        if time.perf_counter() > until:
            break
        time.sleep(0.005)
    found = []
    for number in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        found.append(Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        os.kill(int(number), signal.SIGKILL)
        os.waitpid(int(number), 0)
    return tuple(found)


# --- the commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command that writes.

    Attributes:
        name: For people.
        words: Its arguments.
        needs: What of the stage it is given.
        next: The arguments with which a person goes on after a fault; None: there is nothing to do.
        caches: Patterns of files without which it may end well.
        counts: Whether what it prints depends on what was there before.
        lists: Whether it tells in a list what it could not do, and ends with 1.
        writes: Whether there is anything that a fault of the disk could spoil, and no other job writes the same.
        ends: Whether it ends by itself.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    next: Callable[[Path], Sequence[str] | None] | None = None
    caches: tuple[str, ...] = ()
    counts: bool = False
    lists: bool = False
    writes: bool = True
    ends: bool = True


def jobs() -> list[Job]:
    """Every command that writes, and those that take long, on the stage of `make_stage`."""
    clip, tiny, told = "clips/test0000.mp4", ("--run", "runs/tiny-001"), ("--run", "runs/told-001")
    train = ("train", "tiny.yaml", "data.root=world", "optim.epochs=1", "optim.save_every=2", "optim.log_every=3")
    made, on_disk = ("--runs", "made"), ("data.cache=disk", "data.cache_folder=frames")
    words = ("caption.width=16", "caption.heads=2", "caption.ffn=32", "caption.decoder_layers=1")
    frozen = ("backbone.freeze=true", "backbone.adapter=linear", "anchors.encode=frozen", "init_from=runs/tiny-001")
    small = (*TOWERS, "optim.epochs=1", "optim.batch_size=20", "optim.save_every=2")
    clips, videos, world = ("runs", "clips", "tiny-clip.json"), ("tiny.yaml", "tiny-clip.json", "world"), "world"
    towers = ("tiny-clip.json", "tiny.safetensors")
    tokens, index, parts = ("home/cache/**",), ("**/search/**",), ("part1", "part2")
    in_folder = ("data.dataset=folder", "data.root=mine", "data.protocol=null", "anchors.vocabulary=shapes@1")
    kept = ("runs/*/evals/*",)  # numbers are printed, and a note says that they could not be kept
    return [
        Job("anchors build", ("anchors", "build", "labels.txt", "--out", "mine.yaml"), ("labels.txt",)),
        Job("extract", ("extract", "clips", *tiny, "--workers", "1", "--out", "store"), clips, counts=True),
        Job("extract, a folder", ("extract", "mine", *tiny, "--workers", "1", "--out", "store"), (*clips, "mine"),
            counts=True, writes=False),
        Job("extract --merge", ("extract", "--merge", "part1", "part2", "--out", "store"), parts, counts=True),
        Job("train", (*train, *made), videos, go_on_training, counts=True),
        Job("train, frames kept", (*train, *on_disk, *made), videos, go_on_training, ("frames/**",), counts=True),
        Job("train, on features",
            ("train", "tiny.yaml", "name=frozen", "data.features=store", *frozen, "optim.epochs=2", "optim.log_every=4",
             "--track", "tensorboard", *made), (*clips, "tiny.yaml", "store"), go_on_training, counts=True),
        Job("train, a folder", (*train, *in_folder, *made), ("tiny.yaml", "tiny-clip.json", "mine"), go_on_training,
            counts=True, writes=False),
        Job("train, captioner", (*train, "task=caption", *words, *made), videos, go_on_training, tokens, counts=True),
        Job("eval", ("eval", "runs/tiny-001", "--root", world, "--save-scores", "s.npz", "--json"), (*clips, world),
            caches=kept),
        Job("eval, captions", ("eval", "runs/told-001", "--root", "world", "--json"), (*clips, world),
            caches=(*tokens, *kept)),
        Job("caption --srt", ("caption", clip, *told, "--srt", "said.srt", "--segment-s", "0.5"), clips),
        Job("caption --out", ("caption", "clips", *told, "--out", "said.csv"), clips, go_on_captioning),
        Job("explain --html", ("explain", clip, SENTENCE, *tiny, "--html", "page.html"), (*clips, world)),
        Job("diagnose --html", ("diagnose", "failures", "runs/tiny-001", "--html", "page.html"), (*clips, world)),
        Job("search",
            ("search", SENTENCE, "--in", "clips", *tiny, "--html", "sheet.html", "--cut", "hits", "--window", "0.5",
             "--top", "2"), clips, go_on_searching, ("home/**", *index, "features/**"), counts=True),
        Job("search, an index",
            ("search", SENTENCE, "--in", "store", *tiny, "--approximate", "--candidates", "3", "--top", "2"),
            (*clips, "store", world), caches=index),
        Job("reproduce",
            ("reproduce", "table7", "--data", "demo", "--demo-root", "drawn", "--rows", "t-mass+ce", "--seeds", "1",
             *made, *small), towers, caches=(*tokens, "*/timing.json"), counts=True),
        Job("reproduce --jobs",
            ("reproduce", "table7", "--data", "demo", "--demo-root", "drawn", "--rows", "t-mass+ce", "--seeds", "1",
             "--jobs", "2", *made, *small), towers, caches=(*tokens, "*/timing.json"), counts=True, writes=False),
        Job("demo", ("demo", "--root", "drawn", *made, *small, "data.frames=2"), towers, caches=tokens,
            counts=True),
        Job("export", ("export", "runs/tiny-001", "published"), ("runs",), go_on_exporting),
        Job("report", ("report", "runs/tiny-001"), ("runs",)),
        Job("data unpack", ("data", "unpack", "clips.zip", "--out", "unpacked"), ("clips.zip",)),
        Job("data reencode", ("data", "reencode", "clips", "out", "--workers", "1"), clips, counts=True),
        Job("data frames", ("data", "frames", *train[1:], *on_disk), videos, counts=True, lists=True),
        Job("runs prune", ("runs", "prune", "--yes"), ("runs",), counts=True),
        Job("runs rm", ("runs", "rm", "tiny-001", "--yes"), ("runs",), go_on_removing, counts=True),
        Job("recipes cp", ("recipes", "cp", "msrvtt", "mine.yaml"), (), go_on_copying),
        Job("score matrix", ("score", "matrix", "scores.npz", "--ranks", "ranks.json"), ("scores.npz",)),
        Job("data check", ("data", "check", "clips", "--decode"), clips, writes=False),
        Job("serve", ("serve", "clips", *tiny, "--port", "0"), clips, writes=False, ends=False),
    ]  # fmt: skip


def go_on_training(place: Path) -> Sequence[str] | None:
    """Resume; remove the checkpoint of a finished run; or begin where nothing was begun."""
    for recipe in (place / "made").glob("*/recipe.json"):
        if (recipe.parent / "results.json").exists():
            return ("runs", "prune", "--yes", "--runs", "made")
        return ("train", "--resume", str(recipe.parent.relative_to(place)))
    return None


def go_on_searching(place: Path) -> Sequence[str] | None:
    """The same once more; hits that were cut before are not cut again beside themselves."""
    shutil.rmtree(place / "hits", ignore_errors=True)
    return None


def go_on_removing(place: Path) -> Sequence[str] | None:
    """Once more, where there is still a run."""
    return None if (place / "runs" / "tiny-001" / "recipe.json").exists() else ("runs", "ls")


def go_on_captioning(place: Path) -> Sequence[str] | None:
    """Once more, where there is no file yet: one that is there is not replaced."""
    return ("recipes", "list") if (place / "said.csv").exists() else None


def go_on_exporting(place: Path) -> Sequence[str] | None:
    """Once more, where there is no folder yet."""
    return ("recipes", "list") if (place / "published").exists() else None


def go_on_copying(place: Path) -> Sequence[str] | None:
    """Once more, where there is no copy."""
    return ("recipes", "list") if (place / "mine.yaml").exists() else None


def save_tiny_towers(config: Path, file: Path) -> None:
    """Weights for the model of a config, drawn: where there are none in a file, each command draws others."""
    from calmctl.model.weights import load_backbone
    from calmctl.tensors import save_tensors

    towers = load_backbone(str(config), None).state_dict()
    save_tensors(file, {name.removeprefix("clip."): weights for name, weights in towers.items()}, {})


def make_folder_of_videos(folder: Path, world: Path) -> None:
    """Somebody's own videos with a captions.csv, of the clips of a drawn world."""
    from calmctl.data.demo import load_demo

    (folder / "clips").mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("video", "caption", "split"))
        for name, split in load_demo(world, shifted=False, protocol="retrieval").splits.items():
            for clip in split.clips:
                shutil.copy2(clip.path, folder / "clips" / clip.path.name)
            paths = [f"clips/{clip.path.name}" for clip in split.clips]
            table.writerows((paths[o], text, name) for o, text in zip(split.owners, split.captions, strict=True))


def make_stage(folder: Path) -> Path:
    """What the jobs start from: a drawn world, committed runs, a store in two parts and whole, an archive, scores."""
    from calmctl.data.demo import generate_demo

    world = folder / "drawn-world"
    generate_demo(world)
    spec = importlib.util.spec_from_file_location("golden_commands", GOLDEN)
    assert spec is not None and spec.loader is not None
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    stage = folder / "stage"
    stage.mkdir()
    golden.make_place(stage, world)
    save_tiny_towers(stage / "tiny-clip.json", stage / "tiny.safetensors")
    (stage / "labels.txt").write_text("a red circle\na blue square\na green triangle\n")
    shutil.make_archive(str(stage / "clips"), "zip", stage, "clips")
    make_folder_of_videos(stage / "mine", world)
    # A finished training that still has its checkpoint, and what a killed process was writing.
    shutil.copy(stage / "runs" / "told-001" / "best.safetensors", stage / "runs" / "told-001" / "state.safetensors")
    (stage / "runs" / "told-001" / ".best.safetensors.x.tmp").write_bytes(b"half")
    run_ = ("--run", "runs/tiny-001", "--workers", "1")
    for words in (
        ("extract", "demo", "--root", "world", *run_, "--out", "store"),
        ("extract", "demo", "--root", "world", *run_, "--shard", "1/2", "--out", "part1"),
        ("extract", "demo", "--root", "world", *run_, "--shard", "2/2", "--out", "part2"),
        ("eval", "runs/tiny-001", "--root", "world", "--save-scores", "scores.npz"),
    ):
        if (ended := run(words, stage)).code:
            raise SystemExit(f"calmctl {' '.join(words)}: {ended.notes}")
    shutil.rmtree(stage / "home")
    return stage


def fresh(job: Job, stage: Path, place: Path) -> None:
    """Make `place` anew, with what the job needs: always under the same name, because some results have paths."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in job.needs:
        source = stage / name
        shutil.copytree(source, place / name) if source.is_dir() else shutil.copy2(source, place / name)


# --- what they leave --------------------------------------------------------------------------------------

_TIMES = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?( UTC)?|\d+(\.\d+)? (s|ms|min|MB|GB|GiB|clips/s)\b|\d+ \w+ 20\d\d"
)
_OF_A_MOMENT = {
    "created", "time", "duration_s", "clips_per_s", "seconds", "memory_bytes", "stamp", "command", "kept_frames",
    "measured_s", "git",
}  # fmt: skip


def files(place: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a place by name, but locks and what was printed."""
    for path in sorted(place.rglob("*")):
        # In the folder for temporary files: what could not be removed there is the system's to clear away.
        if path.is_file() and path.name not in (".lock", "printed") and not path.is_relative_to(place / "tmp"):
            yield path.relative_to(place).as_posix(), path


def outcome(place: Path) -> dict[str, str]:
    """All that must not depend on faults: every file by name, times and stamps apart, as a digest or a text."""
    found = {}
    for name, path in files(place):
        if "tfevents" in name:
            from outcomes import events_of

            found["tensorboard"] = repr(events_of(path.parent))
        elif path.name != "extractions.jsonl":
            found[name] = content_of(path)
    return found


def content_of(path: Path) -> str:
    """A file without times and stamps. Raises where it does not load."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        from calmctl.tensors import load_tensors

        _, metadata = load_tensors(path, what="what was left")
        header = json.dumps(steady(metadata), sort_keys=True)
        return sha256_bytes(header.encode() + content[8 + int.from_bytes(content[:8], "little") :])
    if path.suffix == ".json":
        if path.name == ".durations.json":  # stamps, and behind them what was measured
            return json.dumps({name: told[-2:] for name, told in json.loads(content).items()}, sort_keys=True)
        of_index = path.name in ("index.json", "about.json")
        return json.dumps(steady(json.loads(content), of_index=of_index), sort_keys=True)
    if path.suffix == ".jsonl":
        return json.dumps([steady(json.loads(line)) for line in content.splitlines()], sort_keys=True)
    if path.suffix == ".usearch":  # its edges depend on the threads that add clips at once
        from usearch.index import Index

        graph = Index.restore(content)
        if graph is None:
            raise ValueError("it is no graph")
        return repr(sorted(int(key) for key in graph.keys))
    if path.suffix == ".frames":
        return sha256_bytes(content.partition(b"\n")[2])
    if path.suffix in (".html", ".md", ".svg", ".csv", ".srt", ".txt", ".yaml", ""):
        return _TIMES.sub("...", content.decode())
    return sha256_bytes(content)


def steady(value: Any, *, of_index: bool = False) -> Any:
    """A JSON value without what is of a moment; of an index without the digests of files that hold such things."""
    if isinstance(value, dict):
        drop = {*_OF_A_MOMENT, "sources", "index_sha256", *(["sha256"] if of_index else [])}
        return {key: steady(each, of_index=of_index) for key, each in value.items() if key not in drop}
    if isinstance(value, list):
        return [steady(each, of_index=of_index) for each in value]
    return _TIMES.sub("...", value) if isinstance(value, str) else value


def printed(ended: Ended) -> str:
    """What a command printed, times apart."""
    try:
        return json.dumps(steady(json.loads(ended.out)))
    except ValueError:
        return _TIMES.sub("...", ended.out)


def _ended_when_ready(job: Job, place: Path) -> Ended:
    """Run a server until it prints its address, and end it as a person would."""
    notes, begun = place.with_name("notes"), time.perf_counter()
    child = start(job.words, place, lambda: None, notes)
    said = place / "printed"
    while not is_over(child) and not (said.exists() and b"http" in said.read_bytes()):
        time.sleep(0.01)
    seconds = time.perf_counter() - begun
    os.kill(child, signal.SIGINT)
    return replace(finish(child, place, notes), seconds=seconds)


class Unbroken:
    """A command as it is where nothing disturbs it: what every disturbed one must come to.

    Attributes:
        printed: What it printed.
        seconds: How long it took.
    """

    def __init__(self, job: Job, stage: Path, place: Path, before: Callable[[], object] = lambda: None) -> None:
        """Run `job`, and note what it leaves."""
        self.job, self.stage, self.place = job, stage, place
        fresh(job, stage, place)
        self._before = outcome(place)
        ended = run(job.words, place, before) if job.ends else _ended_when_ready(job, place)
        if ended.code or ended.left:
            raise SystemExit(f"{job.name} fails by itself: {ended.notes} {ended.left}")
        self.printed, self.seconds, self._whole = printed(ended), ended.seconds, outcome(place)

    def half_written(self) -> list[str]:
        """The files that are neither as before, nor as they will be, nor whole."""
        half = []
        for name, path in files(self.place):
            if any(each.startswith(".") and (".tmp" in each or each.endswith(".part")) for each in name.split("/")):
                continue
            if path.suffix == ".jsonl" and not path.read_bytes().endswith(b"\n"):  # a log, cut in its last line
                continue
            try:
                content = content_of(path)
            except Exception as fault:
                half.append(f"{name} ({str(fault)[:100]})")
                continue
            loads = path.suffix in (".safetensors", ".json", ".jsonl") or "tfevents" in name
            if not loads and content not in (self._before.get(name), self._whole.get(name)):
                half.append(name)
        return half

    def goes_on(self) -> list[str]:
        """Run the command again, as a person would; returns all that is wrong with what it comes to."""
        again = run((self.job.next(self.place) if self.job.next else None) or self.job.words, self.place)
        if again.code:
            return [f"the next run fails ({again.code}): {again.notes[-300:]}"]
        return [f"after the next run: {each}" for each in self.differences()]

    def differences(self) -> list[str]:
        """In what the files that lie there differ from those that should."""
        try:
            now = outcome(self.place)
        except Exception as fault:
            return [f"what is there does not load: {str(fault)[:200]}"]
        names = {*now, *self._whole}
        optional = {name for name in names for each in self.job.caches if fnmatch.fnmatch(name, each)}
        found = [f"{name} is missing" for name in self._whole if name not in now and name not in optional]
        found += [f"{name} should not be there" for name in now if name not in self._whole and name not in optional]
        return found + [f"{name} differs" for name in now if name in self._whole and now[name] != self._whole[name]]
