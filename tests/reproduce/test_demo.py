"""The demo on a tiny world: everything runs and is recorded; the numbers are not judged here."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.data.demo import generate_demo
from calmctl.data.demo_world import DemoCounts
from calmctl.model.weights import load_backbone
from calmctl.reproduce import demo


@pytest.mark.usefixtures("no_java")
def test_the_demo_trains_three_systems_and_reports_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = partial(generate_demo, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
    monkeypatch.setattr(demo, "generate_demo", tiny)
    # The CLIP that ships is 25 MB, which would be written and read a hundred times.
    clip = str(Path(__file__).parents[1] / "tiny-clip.json")
    torch.manual_seed(0)
    save_file(load_backbone(clip, None).clip.state_dict(), tmp_path / "clip.safetensors")
    command = ["demo", "optim.epochs=1", "optim.batch_size=30", "data.frames=2", "data.workers=1"]
    command += [f"backbone.model={clip}", f"backbone.weights={tmp_path / 'clip.safetensors'}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    first = json.loads((tmp_path / "runs" / "demo-report.json").read_text())
    tables = result.stdout.partition("Next:")[0]  # commands to copy may be longer
    assert max(map(len, tables.splitlines())) <= 80
    for text in ("zero-shot", "without CALM", "with CALM", "chance is 16.7 %", "CIDEr", "explain", "Next:"):
        assert text in result.stdout
    report = json.loads((tmp_path / "runs" / "demo-report.json").read_text())
    assert list(report["systems"]) == ["zero-shot", "without CALM", "with CALM"]
    assert report["systems"]["zero-shot"]["run"] is None
    for system in report["systems"].values():
        assert all(value > 0 for value in system["kl_of_true_pairs"].values())
        assert [r["dataset"] for r in system["results"]] == ["demo", "demo-shifted"]
        assert {r["scorer"] for r in system["results"]} == {"leak-free"}
    page = (tmp_path / "runs" / "demo.html").read_text()
    assert page.count('<h2 id="c') == 4 and page.count("data:image/jpeg") == 4 * 2  # four clips of two frames
    assert page.count('<svg class="effect') == 3 * 2 and "calmctl explain" in page
    assert report["captioner"]["captions"]
    assert set(report["calm_minus_without"]) == {"demo", "demo-shifted"}
    shown = re.sub(r"[-+]?\d+(\.\d+)?", "#", " ".join(result.stdout.split()))
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("    One seed decides nothing") : readme.index("    clip      caption")]
    assert re.sub(r"[-+]?\d+(\.\d+)?", "#", " ".join(block.split())) in shown  # the README shows what is printed
    # No verdict from one: the study's numbers are quoted, and neither a star nor a difference of this seed.
    assert "noise" not in result.stdout and "*" not in tables and "One seed decides nothing" in result.stdout

    # Interrupted in the first training and never begun with the others: what is whole stays, the rest is done.
    runs = tmp_path / "runs"
    weights = {path: path.read_bytes() for path in runs.glob("*/best.safetensors")}
    (runs / "demo-without-001" / "results.json").unlink()
    shutil.rmtree(runs / "demo-001")
    shutil.rmtree(runs / "demo-caption-001")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    said = " ".join(again.stderr.split())
    assert "without CALM's loss: going on with runs/demo-without-001" in said
    folders = sorted(path.name for path in runs.iterdir() if path.is_dir())
    assert folders == ["demo-001", "demo-caption-001", "demo-without-001"]
    assert {path: path.read_bytes() for path in weights} == weights
    report = json.loads((runs / "demo-report.json").read_text())
    assert report["systems"] == first["systems"] and report["captioner"]["captions"] == first["captioner"]["captions"]

    changed = {path: path.stat().st_mtime_ns for path in runs.glob("*/*.safetensors")}
    finished = CliRunner().invoke(app, command)
    assert finished.exit_code == 0 and " ".join(finished.stderr.split()).count("done before") == 3
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/*.safetensors")} == changed
    assert finished.stdout == again.stdout
