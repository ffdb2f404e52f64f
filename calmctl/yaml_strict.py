"""YAML as people read it: strict, safe and bounded; recipes and vocabularies come in through here.

Plain PyYAML speaks YAML 1.1, where `no` and `off` are False, `1e-5` is a string, `12:30:00` is 45000,
`010` is 8 and the last of two equal keys wins in silence. Here scalars follow the YAML 1.2 core schema,
equal keys are an error, tags and aliases do not exist (nothing executable, no alias bombs), and size and
nesting are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from calmctl.errors import BadInput
from calmctl.files import read_regular

MAX_BYTES = 4 * 1024 * 1024
"""Of a YAML file (our choice): 20,000 labels fit in 1 MiB."""
MAX_DEPTH = 32
"""Of its nesting (our choice): a recipe is 4 deep."""
_TOO_LARGE = "is larger than {:,} KiB, too large for a file that people read"

_TRUE = {"true", "True", "TRUE"}
_CORE_SCHEMA = {  # YAML 1.2.2, section 10.3.2; tried in this order, whatever fits none is a string
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_WORDS = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"character '\\t' that cannot start", "a tab cannot indent; use spaces"),
        (r"character ('.*') that cannot start", r"the character \1 cannot start a value; put it in quotes"),
        (r"^mapping values are not allowed", "a ': ' cannot be here; check the indentation, or use quotes"),
        (r"^expected <block end>", "the indentation does not fit the lines above"),
        (r"^could not find expected ':'", "there is no ': ' after this key"),
        (r"^but found another document", "a second document starts ('---'); keep one a file"),
        (r"^expected '(.)' or '(.)'", r"a '\1' or '\2' is missing"),
        (r"^found unexpected end of stream", "a quote is opened and never closed"),
    )
]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema's scalars, unique keys, no tags, no aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way: it looks the table up on the class
        None: [(_PREFIX + kind, pattern) for kind, pattern in _CORE_SCHEMA.items()]
    }
    yaml_constructors = {}  # noqa: RUF012 - filled below; empty so that no 1.1 constructor is inherited

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; refuses aliases, tags and deep nesting."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _fault("'&' and '*' at the start of a value are YAML references, which are not used here; "
                         "write the value out, or in quotes", event.start_mark)  # fmt: skip
        if getattr(event, "tag", None) is not None:
            raise _fault(f"the tag {event.tag!r} is not allowed; write a plain value", event.start_mark)
        if self._depth >= MAX_DEPTH:
            raise _fault(f"it is nested more than {MAX_DEPTH} deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _fault(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    for prefix, base in (("0o", 8), ("0x", 16)):
        if text.startswith(prefix):
            return int(text[2:], base)
    if len(text) > 40:  # far beyond 64 bits, and Python refuses some lengths itself
        raise _fault(f"the number {text[:20]}... is too long", node.start_mark)
    return int(text)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(node.value).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    lines: dict[Any, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _fault("a key must be a single word or text", key_node.start_mark)
        key = loader.construct_object(key_node)
        if key in result:
            first = lines[key]
            raise _fault(f"the key {key_node.value!r} is there twice (first in line {first}); "
                         "keep one of them", key_node.start_mark)  # fmt: skip
        lines[key] = key_node.start_mark.line + 1
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(child, deep=True) for child in node.value]


_CONSTRUCTORS: dict[str, Callable[[_Loader, Any], Any]] = {
    "null": lambda loader, node: None,
    "bool": lambda loader, node: node.value in _TRUE,
    "int": _integer,
    "float": _float,
    "str": lambda loader, node: node.value,
    "map": _mapping,
    "seq": _sequence,
}
for _kind, _constructor in _CONSTRUCTORS.items():
    _Loader.add_constructor(_PREFIX + _kind, _constructor)


def parse_yaml(text: str, *, where: str, error: type[BadInput] = BadInput) -> Any:
    """Parse one YAML document into None, bool, int, float, str, list and dict (order kept).

    Args:
        text: The document; an empty one is None.
        where: What an error calls it, usually "<what>: <path>".
        error: The exception class of any fault.

    Raises:
        error: One sentence with `where` and the line: bad syntax, equal keys, tags, aliases, more than
            `MAX_DEPTH` levels, more than `MAX_BYTES`, more than one document.
    """
    if len(text) > MAX_BYTES:
        raise error(f"{where} {_TOO_LARGE.format(MAX_BYTES // 1024)}")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise error(f"{where}{line}: {_plain(fault.problem or '', fault.context or '')}") from None
    except yaml.reader.ReaderError as fault:
        line_number = text.count("\n", 0, fault.position) + 1
        code = f"U+{ord(text[fault.position]):04X}"
        raise error(f"{where}, line {line_number}: the character {code} is not allowed in YAML") from None


def _plain(problem: str, context: str) -> str:
    """PyYAML's words in the words of somebody who never read a parser; unknown ones pass as they are."""
    for theirs, ours in _PLAIN_WORDS:
        if match := theirs.search(problem):
            return match.expand(ours)
    return f"{problem} {context}".strip()


def load_yaml(path: Path, *, what: str, error: type[BadInput] = BadInput, most_bytes: int = MAX_BYTES) -> Any:
    """Read one YAML document of at most `most_bytes` from `path` (UTF-8); see `parse_yaml`.

    Raises:
        error: Also when the file is missing, unreadable, or not UTF-8.
    """
    where = f"{what}: {path}"
    try:
        if path.stat().st_size > most_bytes:
            raise error(f"{where} {_TOO_LARGE.format(most_bytes // 1024)}")
        content = read_regular(path, most_bytes)
    except FileNotFoundError:
        raise error(f"{where} does not exist") from None
    except OSError as fault:
        raise error(f"{what}: cannot read {path}: {fault.strerror or fault}") from fault
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise error(f"{where}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    return parse_yaml(text, where=where, error=error)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for something other than a string; indents lists."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent a list under its key, as people write it."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal objects twice: the loader knows no aliases."""
        return True


def _string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Double quotes escape line breaks of every kind; PyYAML's other styles turn U+0085 into a space.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(_PREFIX + "str", text, style=style)


_Dumper.add_representer(str, _string)
for _kind, _pattern in _CORE_SCHEMA.items():
    _Dumper.add_implicit_resolver(_PREFIX + _kind, _pattern, None)


def dump_yaml(value: Any) -> str:
    """Write plain data (what `parse_yaml` returns) as YAML every reader reads alike, keys in order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))
