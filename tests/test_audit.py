"""The audit of the pages that the tool writes, where the variable CALMCTL_AXE names axe-core's axe.min.js."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"
AXE = os.environ.get("CALMCTL_AXE")


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if reason := module.missing():
        pytest.skip(reason)
    return module


@pytest.mark.skipif(AXE is None, reason="CALMCTL_AXE names no axe.min.js (scripts/audit.py says how to get it)")
def test_no_page_has_a_serious_finding_and_a_bad_one_would_have(
    audit: ModuleType, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'calmctl[report]'")
    pytest.importorskip("uvicorn", reason="pip install 'calmctl[serve]'")
    program = Path(str(AXE)).read_text(encoding="utf-8")
    with audit.written_pages(tiny_world, tmp_path) as pages:
        assert len(pages) == 6 and audit.audit(program, pages) == 0, capsys.readouterr().out
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<title>x</title><img src='data:,'><p style='width: 2000px; color: #eee'>pale and wide</p>")
    assert audit.audit(program, [str(wrong)]) >= 4 * 3  # no language, no alternative, and it must be pushed sideways
