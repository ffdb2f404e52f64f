"""What the golden tests run, and the world, the runs and the store that they run it on.

    python tests/golden/commands.py        makes runs/, features/ and expected/ anew

The runs and the store are committed as the package of that day wrote them: a later package must read them, and
must answer as that one did. Making them anew is a decision, told in CHANGELOG under "Numbers".
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parent
WORLD = "world"
SENTENCE = "two big blue circles are moving left"

COMMANDS: dict[str, list[str]] = {
    "eval": ["eval", "runs/tiny-001", "--root", WORLD, "--json"],
    "eval-cross": ["eval", "runs/tiny-001", "--cross", "demo-shifted", "--root", WORLD, "--json"],
    "eval-slim": ["eval", "runs/tiny-001", "--weights", "slim", "--root", WORLD, "--json"],
    "eval-store": ["eval", "runs/frozen-001", "--features", "features/demo", "--json"],
    "eval-caption": ["eval", "runs/told-001", "--root", WORLD, "--json"],
    "search": ["search", SENTENCE, "--in", "CLIPS", "--run", "runs/tiny-001", "--json", "--why"],
    "explain": ["explain", "CLIP", SENTENCE, "--run", "runs/tiny-001", "--json"],
    "caption": ["caption", "CLIP", "--run", "runs/told-001", "--json"],
    "dry-run": ["train", "tiny.yaml", f"data.root={WORLD}", "--dry-run", "--json"],
    "reproduce": ["reproduce", "table7", "--data", "demo", "--demo-root", WORLD, "--dry-run", "--json"],
}
"""Arguments by name; CLIPS is a folder of the world's test clips, CLIP the first of them (`make_place`)."""

VOLATILE = {
    "created",
    "time",
    "memory",
    "cost",
    "git",
    "path",
    "folder",
    "device",
    "packages",
    "python",
    "platform",
    "command",
    # Of a protocol card: the libraries that decode, the files that the installed encoder wrote, and digests of both.
    "reader",
    "files",
    "column",
}
"""Keys whose values are of a machine, a moment or a place."""


def make_place(folder: Path, world: Path) -> Path:
    """A folder in which `COMMANDS` can run: the committed runs and store, and a drawn world beside them."""
    for name in ("runs", "features", "tiny-clip.json", "tiny.yaml"):
        source = HERE / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.exists():
            shutil.copy(source, folder / name)
    clips = sorted((world / "clips").glob("test*.mp4"))
    (folder / "clips").mkdir()
    for clip in clips:
        shutil.copy(clip, folder / "clips" / f"{clip.name.partition('-')[0]}.mp4")
    shutil.copytree(world, folder / WORLD)
    return folder


def answer(name: str, place: Path) -> Any:
    """What the command `name` prints in `place`, read as JSON where it is JSON, with what is volatile left out."""
    from typer.testing import CliRunner

    from calmctl.captions import score as scorer
    from calmctl.captions.java import JavaUnavailable
    from calmctl.cli.main import app

    clips = place / "clips"
    values = {"CLIPS": "clips", "CLIP": f"clips/{sorted(path.name for path in clips.iterdir())[0]}"}
    no_java = patch.object(scorer, "find_java", side_effect=JavaUnavailable("METEOR takes ten seconds"))
    with contextlib.chdir(place), no_java:
        result = CliRunner().invoke(app, [values.get(word, word) for word in COMMANDS[name]])
    if result.exit_code:
        raise AssertionError(f"{name}: exit code {result.exit_code}\n{result.output}") from result.exception
    text = result.stdout.replace(str(place), "")
    return steady(json.loads(text)) if "--json" in COMMANDS[name] else [line.rstrip() for line in text.splitlines()]


def steady(value: Any) -> Any:
    """`value` without the keys of `VOLATILE`."""
    if isinstance(value, dict):
        volatile = {*VOLATILE, "digest"} if "column" in value else VOLATILE  # a card's own digest has its reader in it
        return {key: steady(each) for key, each in value.items() if key not in volatile}
    return [steady(each) for each in value] if isinstance(value, list) else value


def shapes(folder: Path) -> dict[str, Any]:
    """Every file below `folder` by name; of weights and features the names and shapes of their tensors as well."""
    from safetensors import safe_open

    told: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            name = path.relative_to(folder).as_posix()
            told[name] = None
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    told[name] = {key: list(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
    return told


def _make() -> None:
    """Train the runs, extract the store and write down the answers."""
    import tempfile

    import torch

    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.data.demo import generate_demo
    from calmctl.data.demo_world import DemoCounts
    from calmctl.model.weights import load_backbone
    from calmctl.tensors import save_tensors

    for name in ("runs", "features", "expected"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    world = Path(tempfile.mkdtemp()) / WORLD
    generate_demo(world, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
    place = make_place(Path(tempfile.mkdtemp()), world)
    os.chdir(place)
    torch.manual_seed(0)
    towers = load_backbone("tiny-clip.json", None)
    used = towers.tokenize([*_captions(world), SENTENCE, *resolve_vocabulary("shapes@1").prompts]).unique()
    embedding = towers.token_embedding.data
    keep = torch.zeros(len(embedding), dtype=torch.bool)
    keep[used] = True
    embedding[~keep] = 0.0  # 49,000 rows that nothing reads: zeros pack to nothing in git
    save_tensors(place / "tiny.safetensors", towers.clip.state_dict(), {})
    weights = "backbone.weights=tiny.safetensors"
    _run("train", "tiny.yaml", f"data.root={WORLD}", weights)
    _run("extract", "demo", "--root", WORLD, "--backbone", "tiny-clip.json", "--backbone-weights", "tiny.safetensors",
         "--frames", "2", "--out", "features/demo")  # fmt: skip
    _run("train", "tiny.yaml", "name=frozen", "data.features=features/demo", weights, "backbone.freeze=true",
         "backbone.adapter=linear", "anchors.encode=frozen", "head.kind=t-mass", "head.trials=2")  # fmt: skip
    _run("train", "tiny.yaml", "name=told", "task=caption", f"data.root={WORLD}", weights, "caption.width=16",
         "caption.heads=2", "caption.ffn=32", "caption.decoder_layers=1", "caption.vocabulary=train",
         "optim.epochs=8", "optim.lr_head=1e-2")  # fmt: skip
    for run in (place / "runs").iterdir():
        for name in ("state", "last", *(["slim"] if run.name != "tiny-001" else [])):
            (run / f"{name}.safetensors").unlink(missing_ok=True)
        (run / ".lock").unlink(missing_ok=True)
    for name in ("runs", "features"):
        shutil.copytree(place / name, HERE / name)
    (HERE / "expected").mkdir()
    fresh = make_place(Path(tempfile.mkdtemp()), world)
    for name in COMMANDS:
        write(name, answer(name, fresh))
    write("shapes", {name: shapes(HERE / name) for name in ("runs", "features")})


def write(name: str, value: Any) -> None:
    """Keep an answer as expected/NAME.json."""
    (HERE / "expected" / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _run(*arguments: str) -> None:
    from typer.testing import CliRunner

    from calmctl.cli.main import app

    with contextlib.redirect_stderr(io.StringIO()):
        result = CliRunner().invoke(app, list(arguments))
    if result.exit_code:
        sys.exit(f"calmctl {' '.join(arguments)}: {result.output}\n{result.exception!r}")


def _captions(world: Path) -> list[str]:
    from calmctl.data.registry import load_dataset, protocol_for

    sets = [
        load_dataset(name, world, protocol=protocol_for("caption", name, None)) for name in ("demo", "demo-shifted")
    ]
    return [caption for each in sets for split in each.splits.values() for caption in split.captions]


if __name__ == "__main__":
    _make()
