"""The shape of the package: who may import whom, and how large a file and a room may get (scripts/house.py)."""

import ast
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]

FOUNDATION = {
    "errors",
    "files",
    "locks",
    "yaml_strict",
    "words",
    "samples",
    "runtime",
    "tensors",
    "device",
    "parallel",
    "hub",
    "hub_faults",
}
"""Files at the top that any room may import; they import nothing but one another."""

MAY_IMPORT = {
    "recipe": set(),
    "anchors": set(),
    "video": set(),
    "data": {"video"},
    "model": {"anchors", "recipe", "video"},
    "runs": {"anchors", "data", "model", "recipe"},
    "store": {"data", "model", "runs", "video"},
    "source": {"data", "model", "recipe", "store", "video"},
    "evaluation": {"anchors", "data", "model", "recipe", "runs", "source"},
    "referee": {"data", "evaluation"},
    "captions": {"data", "evaluation", "model", "recipe", "runs", "source", "video"},
    "explain": {"anchors", "data", "evaluation", "model", "recipe", "runs", "source", "video"},
    "search": {"anchors", "data", "evaluation", "explain", "model", "recipe", "runs", "source", "store", "video"},
    "training": {"anchors", "captions", "evaluation", "model", "recipe", "runs", "source"},
    "reproduce": {
        "anchors", "captions", "data", "evaluation", "explain", "model", "recipe", "runs", "source", "store",
        "training",
    },
}  # fmt: skip
"""The direction of docs/architecture.md: a room, and the rooms it may import, inside functions too."""


def _house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", REPOSITORY / "scripts/house.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


house = _house()


@pytest.fixture(scope="module")
def modules() -> dict[str, "house.Module"]:
    return house.read_package()


def test_nobody_leads_back_to_himself(modules: dict[str, "house.Module"]) -> None:
    assert house.cycles({name: module.imports for name, module in modules.items()}) == []
    assert house.cycles(house.room_edges(modules)) == []


def test_a_cycle_would_be_found() -> None:
    assert house.cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_in_one_direction(room: str, modules: dict[str, "house.Module"]) -> None:
    edges = house.room_edges(modules)
    assert room in edges, f"there is no room {room}"
    assert edges[room] - FOUNDATION <= MAY_IMPORT[room]


def test_the_foundation_carries_and_is_not_carried(modules: dict[str, "house.Module"]) -> None:
    for name in FOUNDATION:
        assert house.room_edges(modules).get(name, set()) <= FOUNDATION


def test_files_are_chapters(modules: dict[str, "house.Module"]) -> None:
    long = {name: module.lines for name, module in modules.items() if module.lines > 550}
    assert long == {}
    # A room within a room is no file of it.
    inner = {name.rsplit(".", 1)[0] for name in modules}
    rooms = Counter(name.rsplit(".", 1)[0] for name in modules if name not in inner)
    del rooms["calmctl"]  # the foundation's files and the rooms themselves
    assert {room: count for room, count in rooms.items() if count > 14} == {}


# Windows: pyproject.toml claims it, so nothing that only other systems have may be needed to import the package.

POSIX_MODULES = {
    "crypt",
    "fcntl",
    "grp",
    "posix",
    "pty",
    "pwd",
    "readline",
    "resource",
    "spwd",
    "syslog",
    "termios",
    "tty",
}
POSIX_NAMES = {
    "os": {
        *("chown", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg"),
        *("getpgid", "getpriority", "getuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "posix_fadvise", "pread"),
        *("pwrite", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "setpgid", "setsid", "setuid"),
        *("statvfs", "sync", "uname", "wait3", "wait4", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "alarm"),
        *("pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
    },
}
GUARDS = (
    "hasattr(",
    "sys.platform",
    "os.name",
    "except ImportError",
    "suppress(ImportError)",
    "suppress(AttributeError)",
)
"""What a function says that has another way on Windows."""


def posix_only(source: str) -> list[str]:
    """What of a module only POSIX systems have, outside functions that look first."""

    def looks_first(function: ast.AST | None) -> bool:
        return function is not None and any(guard in ast.unparse(function) for guard in GUARDS)

    def needed(node: ast.AST, function: ast.AST | None) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            function = node
        found: list[str] = []
        match node:
            case ast.Import(names=names):
                found = [each.name for each in names if each.name.partition(".")[0] in POSIX_MODULES]
            case ast.ImportFrom(module=str(name)) if name.partition(".")[0] in POSIX_MODULES:
                found = [name]
            case ast.ImportFrom(module=str(name), names=names):
                found = [f"{name}.{each.name}" for each in names if each.name in POSIX_NAMES.get(name, ())]
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if attr in POSIX_NAMES.get(name, ()):
                found = [f"{name}.{attr}"]
        if found and not looks_first(function):
            yield from found
        for child in ast.iter_child_nodes(node):
            yield from needed(child, function)

    return list(needed(ast.parse(source), None))


def test_nothing_that_windows_lacks_is_needed() -> None:
    files = {path.relative_to(REPOSITORY): posix_only(path.read_text("utf-8")) for path in house.PACKAGE.rglob("*.py")}
    assert {path: names for path, names in files.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import resource",
        "try:\n    import fcntl\nexcept ImportError:\n    fcntl = None",
        "from os import fork",
        "import signal\nENDS = (signal.SIGTERM, signal.SIGHUP)",
        "def f():\n    import pwd",
        "class A:\n    def f(self):\n        os.fork()",
    ],
)
def test_what_windows_lacks_would_be_found(source: str) -> None:
    assert posix_only(source)


def test_a_function_that_looks_first_may_use_it() -> None:
    assert posix_only("def f():\n    if hasattr(os, 'nice'):\n        os.nice(5)") == []
    assert posix_only("def f():\n    try:\n        import resource\n    except ImportError:\n        return") == []
