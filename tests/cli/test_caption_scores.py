"""`calmctl score captions` as its user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.captions import score as scorer
from calmctl.captions.java import JavaUnavailable
from calmctl.cli.main import app
from calmctl.errors import BadInput, DatasetError


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files, and no Java: what Java adds is tested in tests/evaluation/captions."""

    def no_java() -> None:
        raise JavaUnavailable("no Java: not in this test")

    monkeypatch.setattr(scorer, "find_java", no_java)
    monkeypatch.chdir(tmp_path)
    Path("hyp.json").write_text(
        json.dumps([{"image_id": 1, "caption": "A dog runs."}, {"image_id": 2, "caption": "a cat\nsleeps"}])
    )
    Path("ref.json").write_text(json.dumps({"1": ["the dog runs", "a dog"], "2": ["a cat sleeps"]}))


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["score", "captions", *arguments])
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_table() -> None:
    output = call("hyp.json", "ref.json").stdout
    assert max(map(len, output.splitlines())) <= 80
    assert "hyp.json  2 captions, 3 references\n" in output
    assert "tokenizer ptb-python; no SPICE" in output
    assert "n/a" in output
    assert "!! hyp.json: METEOR n/a: no Java: not in this test" in output


def test_json() -> None:
    record = json.loads(call("hyp.json", "ref.json", "--json").stdout)
    assert record["scores"]["bleu1"] == pytest.approx(1.0, abs=1e-6)
    assert record["scores"]["meteor"] is None
    assert record["scores"]["tokenizer"] == "ptb-python"
    assert (record["captions"], record["references"]) == ("hyp.json", "ref.json")
    assert record["packages"]["pycocoevalcap"]
    other = json.loads(call("hyp.json", "ref.json", "--tokenizer", "none", "--json").stdout)
    assert other["scores"]["tokenizer"] == "none"
    assert other["scores"]["bleu1"] < record["scores"]["bleu1"]


def test_mistakes_are_sentences() -> None:
    alone = CliRunner().invoke(app, ["score", "captions", "hyp.json"])
    assert alone.exit_code == 2 and "Missing argument" in alone.output and "REF" in alone.output
    both = ["hyp.json", "ref.json"]
    with pytest.raises(BadInput, match="--tokenizer bert is not known; use one of ptb, ptb-python, none"):
        call(*both, "--tokenizer", "bert")
    Path("hyp.json").write_text(json.dumps({"2": ["a", "b"]}))
    with pytest.raises(DatasetError, match="'2' has 2 captions") as error:
        call(*both)
    assert error.value.exit_code == 2


def test_missing_captions_are_told_or_an_error() -> None:
    Path("ref.json").write_text(json.dumps({"1": ["a dog"], "2": ["a cat"], "3": ["a cow"]}))
    both = ["hyp.json", "ref.json"]
    assert "1 of 3 ids with references have no caption" in " ".join(call(*both).stdout.split())
    with pytest.raises(BadInput, match=r"1 of 3 \(3\)"):
        call(*both, "--require-complete")


def test_no_torch_is_imported() -> None:
    program = (
        "import sys; from calmctl.cli.main import main\n"
        "sys.argv = ['calmctl', 'score', 'captions', 'hyp.json', 'nothing.json']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "2 False\n"
    assert "nothing.json" in ended.stderr
