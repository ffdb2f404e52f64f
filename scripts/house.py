"""The numbers of the house: how large its files are, who imports whom, and how far a command wanders.

    python scripts/house.py                 lines, modules, imports, comments, rooms, cycles
    python scripts/house.py --edges         and every edge between rooms
    python scripts/house.py --trace eval RUN ...   moves between files of a command (arguments of calmctl)

docs/architecture.md quotes them; tests/test_house.py holds the ones that must not change (no cycle, one direction).
"""

from __future__ import annotations

import ast
import inspect
import io
import statistics
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

PACKAGE = Path(__file__).resolve().parent.parent / "calmctl"


@dataclass(slots=True)
class Module:
    """One file of the package, as text and as its imports of other modules of ours.

    Attributes:
        name: Dotted, "calmctl.store.store".
        lines: All lines.
        import_lines: Lines that belong to an import statement.
        comment_lines: Lines with a comment, docstrings apart.
        imports: Modules of ours that it imports anywhere, inside functions too.
        imports_at_top: Those that it imports when it is imported itself (TYPE_CHECKING apart).
    """

    name: str
    lines: int
    import_lines: int
    comment_lines: int
    imports: set[str] = field(default_factory=set)
    imports_at_top: set[str] = field(default_factory=set)

    @property
    def room(self) -> str:
        """The folder below calmctl, or the module's own name where it lies at the top."""
        return self.name.split(".")[1] if "." in self.name else self.name


def read_package(package: Path = PACKAGE) -> dict[str, Module]:
    """Every module of `package` by its dotted name."""
    files = {_dotted(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: _read(name, path, files.keys()) for name, path in files.items()}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in edges.get(node, ()):
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def room_edges(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Which room imports which, inside functions too."""
    edges: dict[str, set[str]] = defaultdict(set)
    for module in modules.values():
        edges[module.room] |= {modules[name].room for name in module.imports} - {module.room}
    return dict(edges)


def moves(arguments: list[str]) -> tuple[Counter[tuple[str, str]], int, int, int]:
    """Run `calmctl *arguments` and count: calls from one file of ours into another, files, functions.

    The second number is that of the calls which only go on with a generator.
    """
    from calmctl.cli.main import main

    root = str(PACKAGE)
    seen: Counter[tuple[str, str]] = Counter()
    functions: set[CodeType] = set()
    resumed = 0

    def watch(frame: object, event: str, _: object) -> None:
        nonlocal resumed
        if event != "call":
            return
        code = frame.f_code  # type: ignore[attr-defined]
        if not code.co_filename.startswith(root) or code.co_name == "<module>":
            return
        functions.add(code)
        caller = frame.f_back  # type: ignore[attr-defined]
        while caller is not None and not caller.f_code.co_filename.startswith(root):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != code.co_filename:
            seen[caller.f_code.co_filename, code.co_filename] += 1
            # A loop over 200 clips is told as 200 calls; the instruction says whether it is the first of them.
            at = frame.f_lasti  # type: ignore[attr-defined]
            resumed += bool(code.co_flags & inspect.CO_GENERATOR and code.co_code[at + 1] & 3)

    sys.argv = ["calmctl", *arguments]
    sys.setprofile(watch)
    try:
        main()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    return seen, resumed, len({code.co_filename for code in functions}), len(functions)


def _dotted(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _read(name: str, path: Path, known: Iterator[str] | object) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lazy = {id(node) for scope in ast.walk(tree) if isinstance(scope, ast.FunctionDef) for node in ast.walk(scope)}
    lazy |= {id(node) for test in ast.walk(tree) if _is_type_checking(test) for node in ast.walk(test)}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    module = Module(
        name,
        lines=text.count("\n"),
        import_lines=sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in statements),
        comment_lines=len({token.start[0] for token in tokens if token.type == tokenize.COMMENT}),
    )
    for node in statements:
        targets = {target for target in _targets(node) if target in known} - {name}  # type: ignore[operator]
        module.imports |= targets
        if id(node) not in lazy:
            module.imports_at_top |= targets
    return module


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _report(modules: dict[str, Module], *, edges: bool) -> None:
    sizes = sorted(module.lines for module in modules.values())
    total = sum(sizes)
    imports = sum(module.import_lines for module in modules.values())
    comments = sum(module.comment_lines for module in modules.values())
    chapters = [size for size in sizes if size > 5]
    print(f"lines             {total:,}")
    print(f"modules           {len(sizes)} ({len(chapters)} of more than five lines)")
    print(f"median, longest   {statistics.median(chapters):.0f}, {max(sizes)}")
    print(f"import lines      {100 * imports / total:.1f} %")
    print(f"comment lines     {100 * comments / total:.1f} %")
    # A room's own file, its __init__, counts in no room: it says what the room is and holds nothing.
    packages = {name.rsplit(".", 1)[0] for name in modules}
    rooms = Counter(name.rsplit(".", 1)[0] for name in modules.keys() - packages)
    print(f"most files a room {', '.join(f'{room} {count}' for room, count in rooms.most_common(3))}")
    graph = {name: module.imports - {name} for name, module in modules.items()}
    print(f"import cycles     {len(cycles(graph))} between modules, {len(cycles(room_edges(modules)))} between rooms")
    for group in (*cycles(graph), *cycles(room_edges(modules))):
        print(f"  {' '.join(group)}")
    if edges:
        for room, others in sorted(room_edges(modules).items()):
            print(f"{room:14s} -> {', '.join(sorted(others))}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        pairs, resumed, files, functions = moves(sys.argv[2:])
        told = f"{pairs.total()} moves between files ({resumed} of them back into a generator)"
        print(f"{told}, {files} files, {functions} functions", file=sys.stderr)
        for (caller, called), count in pairs.most_common(12):
            print(f"{count:6d}  {Path(caller).stem} -> {Path(called).stem}", file=sys.stderr)
    else:
        _report(read_package(), edges="--edges" in sys.argv)
