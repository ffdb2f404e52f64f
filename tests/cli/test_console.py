"""What every subcommand shares, as it looks in terminals of several widths and in pipes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calmctl.cli import console
from calmctl.cli.main import app
from calmctl.errors import BadInput

PATH = "clips/" + "a-very-long-name" * 12 + ".mp4"


def printed(capsys, *values) -> str:
    console.stdout().print(*values)
    return capsys.readouterr().out


def sheet() -> console.Sheet:
    table = console.Sheet()
    table.add_column("system")
    for name in ("R@1", "interval", "R@10", "MnR", "a gain"):
        table.add_column(name, justify="right")
    table.add_row("with CALM", "67.25", "60.25 to 74.75", "99.50", "1024.75", "+12.25")
    table.add_row("without", "57.25", "", "99.00", "4096.50", "-12.75")
    return table


@pytest.mark.parametrize("width", [*range(28, 64), 80, 120])
def test_no_digit_is_cut_at_any_width(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = printed(capsys, sheet())
    assert max(map(len, text.splitlines())) <= width
    for number in ("67.25", "60.25 to 74.75", "99.50", "1024.75", "+12.25", "4096.50", "-12.75"):
        assert number in text, (width, text)
    assert "R@1" in text and "…" not in text


def test_a_pipe_gets_whole_lines(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    table = console.Sheet()
    table.add_column("clip", max_width=38)
    table.add_column("caption")
    table.add_row(PATH, "word " * 60)
    lines = printed(capsys, table).splitlines()
    assert len(lines) == 2 and PATH in lines[1] and "word " * 59 in lines[1]
    monkeypatch.setenv("COLUMNS", "60")
    folded = printed(capsys, table)
    assert max(map(len, folded.splitlines())) <= 60 and len(folded.splitlines()) > 4


def test_no_line_of_a_table_is_filled_with_blanks(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    table = console.Sheet("clip", "caption", title="all of them")
    table.add_row("a.mp4", "a word")
    table.add_row("b.mp4", "word " * 60)
    table.add_row("c.mp4", "")
    lines = printed(capsys, table).splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[1:3] == ["clip   caption", "a.mp4  a word"] and lines[-1] == "c.mp4"


def test_names_in_other_scripts_can_be_read(capsys):
    name = "休暇\u3000一日目\u00a0\U0001f468\u200d\U0001f469\u200d\U0001f467.mp4"
    assert name in printed(capsys, console.printable(name))
    assert console.visible("a\x1b[2J\u202eb\u2028") == "a\\x1b[2J\\u202eb\\u2028"


def test_a_bar_names_what_it_counts_and_work_without_a_count(monkeypatch):
    bar = console.progress_bar("items")
    tell = console.readings(bar)
    tell("demo clips", 1, 2)
    (task,) = bar.tasks
    task.finished_speed = 3.0
    assert console.RateColumn("items").render(task).plain == "3.0 clips/s"
    tell("demo clips", 2, 2)
    assert bar.tasks == [], "a full bar does not stand there"
    tell("ranking, and bootstrap intervals", 0, 0)
    assert [(each.description, each.total) for each in bar.tasks] == [("ranking, and bootstrap intervals", None)]
    tell("lsmdc clips", 0, 9)
    assert [each.description for each in bar.tasks] == ["lsmdc clips"]
    tell("lsmdc clips", 3, 9, 1)
    assert bar.tasks[0].fields["note"] == "1 left out"


def test_a_watcher_with_a_bar_shows_steps_and_reading_and_says_stages(capsys, tmp_path):
    bar = console.progress_bar("items")
    watcher = console.BarWatcher(bar)
    watcher.stage("training [red]on[/] \x1b[2J")
    watcher.begin(tmp_path / "tiny-001", 2)
    watcher.step(3, 4, 0.5)
    (steps,) = bar.tasks
    assert (steps.description, steps.completed, steps.fields["note"]) == ("training steps", 3, "epoch 2/2, loss 0.500")
    watcher.reading("reading val clips", 1, 2)
    assert [each.description for each in bar.tasks] == ["training steps", "reading val clips"]
    watcher.reading("reading val clips", 2, 2)
    watcher.step(4, 4, 0.5)
    assert bar.tasks == []
    said = capsys.readouterr().err
    assert "training [red]on[/] \\x1b[2J" in said and "tiny-001" in said.replace("\n", "")


def test_what_is_printed_next_can_be_pasted(capsys, monkeypatch, tmp_path):
    """In a shell that has never heard of calmctl."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    monkeypatch.setenv("PATH", bare["PATH"])
    if console.activation() is None:
        pytest.skip("calmctl is installed for the whole machine")
    console.print_next("calmctl --version")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(lines) == 2 and lines[0].startswith(("source ", "PATH="))
    pasted = subprocess.run(["bash", "-c", "\n".join(lines)], env=bare, capture_output=True, text=True, timeout=120)
    assert pasted.returncode == 0 and pasted.stdout.startswith("calmctl "), pasted.stderr


def test_the_activating_line_is_short_and_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    venv = tmp_path / "my project" / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").touch()
    monkeypatch.setattr(sys, "prefix", str(venv))
    monkeypatch.chdir(venv.parent)
    assert console.activation() == "source .venv/bin/activate"
    monkeypatch.chdir(tmp_path.parent)
    assert shlex.split(str(console.activation()))[1] == os.path.relpath(venv / "bin" / "activate")
    monkeypatch.chdir("/")
    script = shlex.split(str(console.activation()))[1]
    assert Path(script).resolve() == venv / "bin" / "activate"


def test_where_calmctl_is_a_command_nothing_is_activated(monkeypatch, tmp_path):
    (tmp_path / "calmctl").write_text("#!/bin/sh\n")
    (tmp_path / "calmctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert console.activation() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "demo", "--epochs", "3"], "there is no option --epochs; did you mean optim.epochs=3?"),
        (["train", "demo", "--batch-size=8"], "did you mean optim.batch_size=8?"),
        (["train", "demo", "--lr", "3"], "optim.lr_head=3"),
        (["train", "demo", "--dry-rum"], "did you mean --dry-run?"),
        (["demo", "--epochs", "3"], "optim.epochs=3"),
        (["reproduce", "table1", "--epochs", "3"], "optim.epochs=3"),
    ],
)
def test_an_option_that_is_a_key_is_shown_as_one(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, BadInput) and message in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--cross", "youcook"],
        ["eval", "--cross", "msrvtt:17k"],
        ["eval", "--scorer", "honest"],
        ["diagnose", "gap", "--split", "all"],
        ["diagnose", "calibration", "--weights", "slim"],
        ["eval", "--device", "gpu"],
        ["explain", "CLIP", "x", "--without", "nope"],
        ["explain", "SONG", "x"],
        ["explain", "CLIP", "x", "--vocabulary", "nope"],
        ["explain", "CLIP", "x", "--device", "gpu"],
        ["search", "x", "--in", "EMPTY"],
        ["search", "x", "--in", "EMPTY", "--backbone", "ViT-B-16"],
        ["search", "similar", "SONG", "--in", "FOLDER"],
        ["search", "captions", "queries.txt", "SONG"],
        ["caption", "CLIP", "--weights", "worst"],
        ["caption", "EMPTY"],
        ["caption", "CLIP", "--out", "captions.txt"],
        ["extract", "FOLDER", "--run", "nothing"],
        ["extract", "FOLDER", "--run", "x", "--backbone", "y"],
        ["train", "demo", "anchors.vocabulary=charade"],
        ["train", "demo", "data.dataset=youcook"],
        ["reproduce", "table1", "--device", "gpu"],
        ["diagnose", "coverage", "--vocabulary", "nope"],
        ["diagnose", "failures", "--vocabulary", "nope"],
        ["recipes", "keys", "optm"],
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_before_the_model_library_is_imported(arguments, prepared_place, warm_python):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom calmctl.cli.main import app\n"
        "from calmctl.errors import CalmError\nresult = CliRunner().invoke(app, sys.argv[1:])\n"
        "assert isinstance(result.exception, CalmError), (result.exception, result.output)\n"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules\n"
    )
    names = {"CLIP": "clips/clip.mp4", "SONG": "song.mp4", "EMPTY": "empty", "FOLDER": "clips"}
    words = [names.get(word, word) for word in arguments]
    python = warm_python("typer.testing", "calmctl.cli.*", "calmctl.recipe.*", "calmctl.data.*", "calmctl.video.*")
    done = subprocess.run(
        [*python, "-c", code, *words], cwd=prepared_place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.fixture(scope="module")
def prepared_place(tmp_path_factory) -> Path:
    """A clip, a file that is none, an empty folder, and two runs that only look trained."""
    import numpy as np

    from calmctl.anchors.shipped import resolve_vocabulary
    from calmctl.anchors.vocabulary import save_vocabulary
    from calmctl.data.demo_drawing import encode
    from calmctl.recipe import recipe_from_dict
    from calmctl.runs.run import create_run

    root = tmp_path_factory.mktemp("place")
    (root / "clips").mkdir()
    (root / "empty").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 3), dtype=np.uint8)
    (root / "clips" / "clip.mp4").write_bytes(encode(frames.repeat(8, 1).repeat(8, 2)))
    (root / "song.mp4").write_bytes(b"ID3 no picture in here")
    for task in ("retrieval", "caption"):
        values = {"name": task, "task": task, "data": {"dataset": "folder"}}
        run = create_run(root / "runs", recipe_from_dict(values))
        save_vocabulary(resolve_vocabulary("shapes@1"), run.vocabulary)
        run.weights("best").touch()
    return root
