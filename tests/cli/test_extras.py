"""What an extra brings: without it a command ends with one sentence and the line that installs it, before any work."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.errors import BadInput, CalmError

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_OF_COMMANDS = {"dev", "docs", "mteb"}  # people who work on calmctl; a class of Python that mteb itself asks for

COMMANDS = [
    ("report", "matplotlib", "report tiny-001"),
    ("index", "usearch", "search recall --in clips"),
    ("index", "usearch", "search dog --in clips --approximate"),
    ("cluster", "ray", "extract clips --out features --ray 2"),
    ("serve", "starlette", "serve clips"),
    ("serve", "uvicorn", "serve clips"),
    ("mcp", "mcp", "serve clips --mcp"),
    ("syntax", "textblob", "train msrvtt-semsynan data.root=clips"),
    ("syntax", "textblob", "train msrvtt-semsynan data.root=clips --dry-run"),
    *(("tracking", name, f"train msrvtt --track {name}") for name in ("tensorboard", "wandb", "mlflow", "trackio")),
    ("tracking", "wandb", "train msrvtt --track wandb --dry-run"),
    ("hf", "transformers", "train msrvtt backbone.model=ViT-B-16-SigLIP"),
    ("hf", "transformers", "search dog --in clips --backbone ViT-B-16-SigLIP"),
    ("hf", "sentence_transformers", "train msrvtt backbone.model=sentence-transformers:a/b backbone.weights=own"),
    ("parquet", "pyarrow", "score matrix scores.parquet"),
    ("parquet", "pyarrow", "data unpack videos.parquet --out videos"),
]


@pytest.mark.parametrize(("extra", "package", "command"), COMMANDS, ids=[f"{c[1]}: {c[2]}" for c in COMMANDS])
def test_without_an_extra_one_sentence_says_how_to_install_it(extra, package, command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "no-video.mp4").write_bytes(b"reading this would be work, and another error")
    (tmp_path / "runs" / "tiny-001").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-001" / "recipe.json").write_text('{"name": "tiny", "data": {"dataset": "demo"}}')
    for name in ("scores.parquet", "videos.parquet"):
        (tmp_path / name).write_bytes(b"PAR1")
    before = sorted(tmp_path.rglob("*"))
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:  # another test had it
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    fault = CliRunner().invoke(app, command.split()).exception
    assert isinstance(fault, CalmError) and fault.exit_code == BadInput.exit_code, repr(fault)
    assert f"pip install 'calmctl[{extra}]'" in str(fault)
    assert package.replace("_", "-") in str(fault).replace("_", "-").lower()
    assert sorted(tmp_path.rglob("*")) == before, "nothing was begun"


def test_every_extra_is_among_them_and_brings_the_package() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {extra for extra, *_ in COMMANDS} == set(extras) - NOT_OF_COMMANDS
    for extra, package, _ in COMMANDS:
        brought = {re.split(r"[\[>=]", each)[0].replace("-skinny", "").replace("-", "_") for each in extras[extra]}
        assert package in brought
