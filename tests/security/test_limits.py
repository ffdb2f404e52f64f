"""The table of limits in docs/trust.md is what the program has, and each limit says what it is of."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROW = re.compile(r"^\| (calmctl/\S+\.py) \| (\w+) \| ([\d,]+) \|", re.MULTILINE)


def limits(path: Path) -> dict[str, int | float]:
    """The constants of a module that are numbers, and have a docstring behind them or behind the last of several."""
    body = ast.parse(path.read_text()).body
    found = {}
    for number, statement in enumerate(body):
        behind = next((each for each in body[number:] if not isinstance(each, ast.Assign)), None)
        told = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and told:
            nodes = ast.walk(statement.value)
            if all(isinstance(node, ast.BinOp | ast.Constant | ast.operator) for node in nodes):
                found[statement.targets[0].id] = eval(compile(ast.Expression(statement.value), str(path), "eval"))
    return found


def test_every_limit_of_the_table_is_one_of_the_program() -> None:
    rows = ROW.findall((REPOSITORY / "docs/trust.md").read_text())
    assert len(rows) > 20
    wrong = [
        (file, name, value)
        for file, name, value in rows
        if limits(REPOSITORY / file).get(name) != int(value.replace(",", ""))
    ]
    assert not wrong
