"""The demo on a tiny world: everything runs and is recorded; the numbers are not judged here."""

import json
from functools import partial

from typer.testing import CliRunner

from calmctl import demo
from calmctl.cli.main import app
from calmctl.data.demo import generate_demo
from calmctl.data.demo_world import DemoCounts


def test_the_demo_trains_three_systems_and_reports_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = partial(generate_demo, counts=DemoCounts(train=12, val=6, test=6, shifted=6))
    monkeypatch.setattr(demo, "generate_demo", tiny)
    result = CliRunner().invoke(
        app, ["demo", "optim.epochs=1", "optim.batch_size=30", "data.frames=2", "data.workers=1"]
    )
    assert result.exit_code == 0, result.output
    tables = result.stdout.partition("Next:")[0]  # commands to copy may be longer
    assert max(map(len, tables.splitlines())) <= 80
    for text in ("backbone alone", "without CALM", "with CALM", "chance is 16.7 %", "CIDEr", "explain", "Next:"):
        assert text in result.stdout
    report = json.loads((tmp_path / "runs" / "demo-report.json").read_text())
    assert list(report["systems"]) == ["backbone alone", "without CALM", "with CALM"]
    for system in report["systems"].values():
        assert [r["dataset"] for r in system["results"]] == ["demo", "demo-shifted"]
        assert {r["scorer"] for r in system["results"]} == {"leak-free"}
    assert "<script" in (tmp_path / "runs" / "demo-explained.html").read_text()
    assert report["captioner"]["captions"]
    assert set(report["calm_minus_without"]) == {"demo", "demo-shifted"}
