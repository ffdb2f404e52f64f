"""What is passed on tells nothing of the machine, what a command makes is as readable as the umask says, and no command
that needs no network asks for any.

One small world is made under a telling home, name, host and token; the recipe names its data and its model by whole
paths, as people do. Then every byte of every file is searched.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import socket
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.data.registry import load_dataset

USER, HOST, TOKEN = "zaphodbeeblebrox", "heart-of-gold-42", "hf_" + "s3cr3t" * 6
SENTENCE = "two big blue circles are moving left"
PUBLISHED = ("pages", "json", "export", "store", "tables", "slim.safetensors", "subtitles.srt")
"""Folders and files below the place that are meant to be passed on; a run's folder, data and frames are not."""


@dataclass
class Made:
    """Everything that the commands left.

    Attributes:
        place: The folder in which they ran.
        connections: Addresses that Python code asked for meanwhile.
        failed: Commands that failed, with what they said.
    """

    place: Path
    connections: list[Any] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def files(self, *parts: str) -> Iterator[tuple[str, bytes]]:
        """Name and content of every file below these parts, and of what is packed in it."""
        for part in parts:
            whole = self.place / part
            for path in sorted(whole.rglob("*") if whole.is_dir() else [whole]):
                if not path.is_file():
                    continue
                content, name = path.read_bytes(), path.relative_to(self.place).as_posix()
                yield name, content
                if zipfile.is_zipfile(io.BytesIO(content)):
                    with zipfile.ZipFile(io.BytesIO(content)) as archive:
                        yield from ((f"{name}: {each}", archive.read(each)) for each in archive.namelist())


_heard: list[list[Any]] = []
"""Where connections are noted while the world is made: a hook stays for good."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    asks = event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname")
    local = event == "socket.connect" and arguments[0].family == getattr(socket, "AF_UNIX", None)
    if _heard and asks and not local:
        _heard[-1].append((event, arguments[1:]))


@pytest.fixture(scope="module")
def made(
    tiny_world: Path,
    tiny_recipe_values: Callable[[Path], dict[str, Any]],
    without_java: Callable[[pytest.MonkeyPatch], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Made]:
    place = tmp_path_factory.mktemp("home") / USER / "work"
    place.mkdir(parents=True)
    result = Made(place)
    values = tiny_recipe_values(place / "world")
    shutil.copytree(tiny_world, place / "world")
    shutil.copy(values["backbone"]["model"], place / "clip.json")
    values["backbone"] = {"model": str(place / "clip.json"), "weights": None}  # whole paths, as people write them
    values["data"] |= {"cache": "disk", "cache_folder": str(place / "frames")}
    values["optim"]["epochs"] = 1
    (place / "tiny.yaml").write_text(yaml.safe_dump(values))
    clip = sorted((place / "world/clips").glob("test*.mp4"))[0]
    (place / "videos").mkdir()
    for path in sorted((place / "world/clips").glob("test*.mp4")):
        shutil.copy(path, place / "videos")
    for folder in ("pages", "json", "tables"):
        (place / folder).mkdir()
    sys.addaudithook(_hook)
    _heard.append(result.connections)
    with pytest.MonkeyPatch.context() as here:
        for name in ("HOME", "USERPROFILE"):
            here.setenv(name, str(place.parent))
        for name in ("USER", "LOGNAME", "USERNAME"):
            here.setenv(name, USER)
        here.setenv("HOSTNAME", HOST)
        here.setenv("HF_TOKEN", TOKEN)
        here.setenv("XDG_CACHE_HOME", str(place / "cache"))
        here.setattr(platform, "node", lambda: HOST)
        here.setattr(socket, "gethostname", lambda: HOST)
        here.chdir(place)
        without_java(here)  # METEOR's table takes ten seconds, and tells nothing

        def command(words: str, to: str | None = None) -> None:
            known = {"CLIP": clip.name, "SENTENCE": SENTENCE}
            outcome = CliRunner().invoke(app, [known.get(word, word) for word in words.split()])
            if outcome.exit_code:
                result.failed[words] = f"{outcome.output} {outcome.exception}"
            if to is not None:
                (place / to).write_text(outcome.stdout)

        shutil.copy(clip, place / clip.name)
        command("train tiny.yaml")
        command("train tiny.yaml name=other seed=7")
        small = "caption.width=16 caption.heads=2 caption.ffn=16 caption.decoder_layers=1"
        command(f"train tiny.yaml name=told task=caption {small}")
        command("eval tiny-001 --root world --device cpu --json", "json/eval.json")
        command("eval tiny-001 --cross demo-shifted --root world --device cpu --json", "json/cross.json")
        command("export tiny-001 export")
        command("extract demo --root world --run tiny-001 --frames 2 --out store")
        command("compare tiny-001 other-001 --root world --json", "json/compare.json")
        command("compare tiny-001 other-001 --root world --csv", "tables/compare.csv")
        command("compare tiny-001 other-001 --root world --latex", "tables/compare.tex")
        command("compare tiny-001 other-001 --root world --markdown", "tables/compare.md")
        command("explain CLIP SENTENCE --run tiny-001 --json", "json/explain.json")
        command("explain CLIP SENTENCE --run tiny-001 --html pages/explain.html")
        command("search SENTENCE --in videos --run tiny-001 --cache found --json --why", "json/search.json")
        command("search SENTENCE --in videos --run tiny-001 --cache found --html pages/search.html")
        command("caption CLIP --run told-001 --json", "json/caption.json")
        command("caption CLIP --run told-001 --segment-s 0.5 --srt subtitles.srt")
        command("report tiny-001 --html pages/report.html")
        command("runs ls --json", "json/runs.json")
        command("train tiny.yaml --dry-run --json", "plan.json")
        command("data check demo --root world --json", "json/check.json")
        command("anchors show shapes@1 --json", "json/anchors.json")
    _heard.clear()
    shutil.copy(place / "runs/tiny-001/slim.safetensors", place)
    yield result


def test_every_command_did_its_work(made: Made) -> None:
    assert not made.failed


def test_what_is_passed_on_tells_nothing_of_the_machine(made: Made) -> None:
    secrets = [USER, HOST, TOKEN, str(made.place), str(Path(__file__).parents[2]), "/tmp/", "/home/", "/root/"]
    found = [
        f"{secret} is in {name}"
        for name, content in made.files(*PUBLISHED)
        for secret in secrets
        if secret.encode() in content or json.dumps(secret)[1:-1].encode() in content
    ]
    assert not found


def test_a_token_is_nowhere(made: Made) -> None:
    assert not [name for name, content in made.files(".", "../cache") if TOKEN.encode() in content]


def test_checkpoints_hold_no_path(made: Made) -> None:
    """A run's folder is private, and its recipe names places; its weights go from hand to hand all the same."""
    names = [f"runs/{run}/{file}.safetensors" for run in ("tiny-001", "told-001") for file in ("best", "last", "slim")]
    headers = ((name, content[: 8 + int.from_bytes(content[:8], "little")]) for name, content in made.files(*names))
    found = [name for name, header in headers for secret in (USER, HOST, str(made.place)) if secret.encode() in header]
    assert not found


def test_no_command_connects_to_anything(made: Made) -> None:
    assert not made.connections


def test_files_are_as_readable_as_the_umask_says(made: Made) -> None:
    mask = os.umask(0)
    os.umask(mask)
    wanted = 0o666 & ~mask
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in made.place.rglob("*") if path.is_file()}
    assert {str(path.relative_to(made.place)): oct(mode) for path, mode in modes.items() if mode != wanted} == {}


def test_captions_of_the_training_are_not_in_weights(made: Made) -> None:
    captions = set(load_dataset("demo", made.place / "world").splits["train"].captions)
    for name, content in made.files("slim.safetensors", "export"):
        assert not [caption for caption in captions if caption.encode() in content], name
