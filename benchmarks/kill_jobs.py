"""What `kill.py` kills and `pairs.py` starts together: commands on a drawn world of 30 clips, with tiny towers.

Everything lies below one folder that has the same name in every round, so that paths cannot make two outcomes differ.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from forked import fork_pools, keep_command, save_tiny_towers
from forks import GRACE_S, Job, Tell, warm

from calmctl.data.demo import generate_demo, load_demo
from calmctl.data.demo_world import DemoCounts
from calmctl.errors import RunFailed
from calmctl.recipe import Recipe, load_recipe, recipe_from_dict
from calmctl.runs.run import Run, find_run
from calmctl.words import Watcher

COUNTS = DemoCounts(train=12, val=6, test=6, shifted=6)
FEWER = DemoCounts(train=6, val=3, test=3, shifted=3)
SAVE_EVERY, EPOCHS = 2, 2
TINY = Path(__file__).parents[1] / "tests" / "tiny-clip.json"
QUESTION = "a red circle"


@dataclass(frozen=True, slots=True)
class Killed:
    """A command that is killed, and taken up again.

    Attributes:
        name: What it is.
        job: The command, on the world, to be done in a fork.
        share: How many of a hundred kills it gets.
        prepare: What lies in the folder before it begins.
        grace_s: How long what it started may outlive it.
        prints: Whether its standard output is part of its outcome.
        trains: Whether it tells its steps, and its run has checkpoints.
    """

    name: str
    job: Job
    share: int
    prepare: Callable[[], None] = lambda: None
    grace_s: float = GRACE_S
    prints: bool = False
    trains: bool = False


class Bench:
    """A drawn world, and what commands need of it: a finished run, the parts of a store, captions.

    Attributes:
        at: The folder that a command writes into.
        given: What it reads, which no command changes.
    """

    def __init__(self, root: Path) -> None:
        """Draw the world; `need` makes all else."""
        self.root, self.at, self.given = root, root / "at", root / "given"
        self.world, self.out = self.given / "world", root / "said"
        self.given.mkdir(parents=True)
        keep_command()
        fork_pools()
        generate_demo(self.world, counts=COUNTS)
        generate_demo(self.given / "small", counts=FEWER)  # a reproduction would draw the other one anew
        self.empty()
        split = load_demo(self.world, shifted=False, protocol="captioning").splits["test"]
        references = {clip.id: [] for clip in split.clips}
        for owner, caption in zip(split.owners, split.captions, strict=True):
            references[split.clips[owner].id].append(caption)
        weights = self.given / "tiny.safetensors"
        save_tiny_towers(TINY, weights)
        self.towers = (f"backbone.model={TINY}", f"backbone.weights={weights}")
        self._write("references.json", references)
        self._write("captions.json", {key: captions[-1] for key, captions in references.items()})
        (self.given / "labels.txt").write_text("red\ngreen\nblue\n")
        (self.given / "others.txt").write_text("one\ntwo\n")
        for name, cache in (("tiny", "memory"), ("frames", "disk")):
            recipe = yaml.safe_dump(self.values(name, cache), sort_keys=False)
            (self.given / f"{name}.yaml").write_text(recipe)
        self.clips = self.given / "clips"
        self.clips.mkdir()
        for number, path in enumerate(sorted((self.world / "clips").iterdir())[:8]):
            shutil.copy2(path, self.clips / f"{number}.mp4")

    def need(self, *names: str) -> None:
        """Make what commands read, where it is not there yet, in forks: who has trained cannot fork any more.

        That is "tiny-001", a finished run; "half", the same after 8 of 12 steps; "1" and "2", the parts of a store.
        """
        for name in names:
            if (self.given / name).exists():
                continue
            if name in ("1", "2"):
                self.need("tiny-001")
                job, made = self.extraction("--shard", f"{name}/2"), "store"
            else:
                job, made = partial(self._training("memory"), stops_at=8 if name == "half" else 0), "tiny-001"
            self.empty()
            done = warm(job, self.at, self.out)
            if done.status != 0:
                raise SystemExit(f"what the commands need cannot be made:\n{done.said}")
            shutil.move(self.at / made, self.given / name)
            self.empty()

    def _write(self, name: str, value: object) -> None:
        (self.given / name).write_text(json.dumps(value))

    def empty(self) -> None:
        """Make the folder of the command new."""
        shutil.rmtree(self.at, ignore_errors=True)
        self.at.mkdir()

    # --- commands -------------------------------------------------------------------------------------------

    def values(self, name: str, cache: str) -> dict[str, object]:
        """A recipe that trains in a second and uses all that has a state: dropout, noise, samples of the VAE."""
        data = {"dataset": "demo", "root": str(self.world), "frames": 2, "augment": "none", "workers": 1}
        return {
            "name": name,
            "device": "cpu",
            "data": {**data, "cache": cache, "cache_folder": str(self.at / "frames")},
            "backbone": {"model": str(TINY), "weights": None},
            "anchors": {"vocabulary": "shapes@1", "subset": 5},
            "head": {"kind": "t-mass"},
            "optim": {
                "epochs": EPOCHS,
                "batch_size": 10,
                "lr_backbone": 1e-3,
                "lr_head": 1e-3,
                "log_every": 1,
                "save_every": SAVE_EVERY,
            },
        }

    def command(self, *arguments: str) -> Job:
        """A command of calmctl, as its program does it."""
        return partial(_command, arguments)

    def reproduction(self, *more: str, rows: str = "t-mass") -> Job:
        """A row of a table, from features to Markdown; `more` options.

        On the world that is there: of clips that are drawn anew a store would keep other dates.
        """
        runs, drawn = f"--runs={self.at}/runs", f"--demo-root={self.given}/small"
        asked = ("reproduce", "table7", "--data=demo", drawn, runs, f"--rows={rows}", "--seeds=1", "--device=cpu")
        return self.small_world(*asked, *self.towers, "head.trials=2", "optim.epochs=1", *more)

    def demonstration(self) -> Job:
        """The demo, with its world, three trainings, a report and a page."""
        where = ("--root", f"{self.at}/drawn", "--runs", f"{self.at}/runs")
        few = ("optim.epochs=1", "data.frames=2", "data.workers=1", "device=cpu")
        return self.small_world("demo", *where, *self.towers, *few)

    def small_world(self, *arguments: str) -> Job:
        """A command that draws a world of its own and loads a shipped CLIP; both are tiny here."""
        return partial(_command, arguments, towers=self.towers)

    def _extract(self, *more: str) -> tuple[str, ...]:
        usual = ("--workers", "1", "--device", "cpu")
        return ("extract", "demo", "--root", str(self.world), "--run", str(self.given / "tiny-001"), *usual, *more)

    def extraction(self, *more: str) -> Job:
        """The world's features into a store."""
        return self.command(*self._extract("--out", f"{self.at}/store", *more))

    def searching(self, *more: str) -> Job:
        """A search in the folder of eight clips."""
        where = ("--in", str(self.clips), "--cache", f"{self.at}/cache", "--device", "cpu")
        return self.command("search", QUESTION, *where, "--run", str(self.given / "tiny-001"), "--json", *more)

    def _training(self, cache: str, *overrides: str) -> Job:
        return partial(_train, recipe_from_dict(self.values("tiny", cache), overrides=overrides), self.at)

    # --- what is killed -------------------------------------------------------------------------------------

    def killed(self) -> list[Killed]:
        """All that `kill.py` kills."""
        parts = [str(self.given / part) for part in "12"]
        run = self.at / "tiny-001"
        told = [str(self.given / name) for name in ("captions.json", "references.json")]
        with_run, needs_run = partial(self.with_run, "tiny-001"), partial(self.need, "tiny-001")
        on_ray = self.extraction("--ray", "1")
        return [
            Killed("train, frames in memory", self._training("memory"), 12, trains=True),
            Killed("train, decoding", self._training("none", "data.augment=crop-flip"), 6, trains=True),
            Killed("train, frames on disk", self._training("disk"), 6, trains=True),
            Killed("data frames", self.command("data", "frames", str(self.given / "frames.yaml")), 6),
            Killed("extract", self.extraction(), 8, needs_run),
            Killed(
                "extract --merge",
                self.command("extract", "--merge", *parts, "--out", f"{self.at}/store"),
                22,
                partial(self.need, "1", "2"),
            ),
            Killed("eval", self.command("eval", str(run), "--device", "cpu"), 8, with_run),
            Killed("score captions", self.command("score", "captions", *told, "--json"), 2, prints=True),
            Killed("search --in FOLDER", self.searching(), 8, needs_run, prints=True),
            Killed("search --window", self.searching("--window", "0.5"), 4, needs_run, prints=True),
            Killed("reproduce", self.reproduction(), 2),
            Killed("reproduce --jobs", self.reproduction("--jobs=2", rows="t-mass+ce"), 2),  # with its baseline
            Killed("export", partial(_export, run, self.at / "given-away"), 10, with_run),
            Killed("runs rm", partial(_remove, run, self.command("runs", "rm", str(run), "--yes")), 4, with_run),
            Killed("demo", self.demonstration(), 1),
            Killed("extract --ray", on_ray, 1, needs_run, grace_s=60.0),
        ]

    def with_run(self, which: str) -> None:
        """Put a run into the folder of the command: "tiny-001", which is finished, or "half"."""
        self.need(which)
        shutil.copytree(self.given / which, self.at / "tiny-001")

    def with_half_store(self) -> None:
        """Put a store there of which half is extracted."""
        self.need("1")
        shutil.copytree(self.given / "1", self.at / "store")


def _command(arguments: Sequence[str], tell: Tell, *, towers: tuple[str, ...] = ()) -> None:
    from calmctl.cli.main import main
    from calmctl.reproduce import demo, stand_in
    from calmctl.store import writer

    writer.CLIPS_PER_SHARD, writer.SENTENCES_PER_SHARD = 3, 20  # many shards of few clips
    if towers:
        demo.generate_demo = stand_in.generate_demo = partial(generate_demo, counts=FEWER)
        stand_in.load_recipe = lambda path, _: load_recipe(path, list(towers))
    sys.argv = ["calmctl", *arguments]
    main()


def _export(run: Path, folder: Path, tell: Tell) -> None:
    """Export a run, unless that was done when a kill came: what is there is not replaced, and must be whole."""
    if not folder.exists():
        _command(("export", str(run), str(folder)), tell)


def _remove(run: Path, command: Job, tell: Tell) -> None:
    """Remove a run, unless that was done when a kill came."""
    if (run / "recipe.json").exists():
        command(tell)
    shutil.rmtree(run, ignore_errors=True)  # an empty folder is left by a kill behind its last file


def _train(recipe: Recipe, folder: Path, tell: Tell, *, stops_at: int = 0) -> None:
    """Begin the run in `folder`, or go on with it; tells its steps."""
    from calmctl.training.train import train

    class Steps(Watcher):
        def step(self, done: int, total: int, loss: float) -> None:
            tell(f"step {done}")
            if done == stops_at:
                os.kill(os.getpid(), signal.SIGTERM)

    run = folder / f"{recipe.name}-001"
    begun: Run | None = find_run(run.name, folder) if run.exists() else None
    if begun is not None and begun.results.exists():
        return
    try:
        train(recipe, folder, resume=begun, track=() if begun else ("tensorboard",), watcher=Steps())
    except RunFailed:
        if not stops_at:
            raise
