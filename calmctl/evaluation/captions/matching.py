"""Which caption is scored against which references, and what is not scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calmctl.data.textfiles import shown
from calmctl.errors import BadInput

# Everything that some program takes for white space or the end of a line: Python's white space and all control
# characters. One of them left inside a caption would shift every later caption by one in the tokenizer's output.
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Matched:
    """Captions and their references, in the order of the references.

    Attributes:
        ids: What is scored.
        hypotheses: One caption an id, on one line.
        references: Its references, each on one line.
        unscored: Ids that have references and no caption.
    """

    ids: tuple[str, ...]
    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    unscored: tuple[str, ...]


def match(
    hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]], *, require_complete: bool = False
) -> Matched:
    """Bring captions and references together by id.

    The order is the references', as coco-caption scores: the lexer looks one word past the end of a line.

    Raises:
        BadInput: Nothing to score, a caption whose id has no reference, an id without any reference, something
            that is not text; with `require_complete`, also references without a caption.
    """
    if not hypotheses:
        raise BadInput("there are no captions to score")
    extra = [each for each in hypotheses if each not in references]
    if extra:
        raise BadInput(f"{_counted(extra, len(hypotheses))} captions have no references; is it the right test set?")
    unscored = tuple(each for each in references if each not in hypotheses)
    if unscored and require_complete:
        raise BadInput(
            f"{_counted(unscored, len(references))} ids with references have no caption; a system that has nothing "
            "to say must hand in an empty caption, which is scored as such"
        )
    ids = tuple(each for each in references if each in hypotheses)
    return Matched(
        ids,
        tuple(one_line(hypotheses[each], f"the caption of {shown(each)}") for each in ids),
        tuple(_references(references[each], each) for each in ids),
        unscored,
    )


def one_line(caption: object, place: str) -> str:
    """`caption` with every run of white space, line ends and control characters as one blank.

    Raises:
        BadInput: It is not text, or holds half of a surrogate pair, which no encoding can write.
    """
    if not isinstance(caption, str):
        raise BadInput(f"{place} is not text but {type(caption).__name__}")
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{place} holds U+{ord(caption[error.start]):04X}, half of a surrogate pair; repair it"
        ) from None
    return _BLANK.sub(" ", caption).strip()


def _references(captions: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(captions, str):
        raise BadInput(f"the references of {shown(name)} are not a list; write [caption] where there is only one")
    found = tuple(one_line(each, f"a reference of {shown(name)}") for each in captions)
    if not found:
        raise BadInput(f"{shown(name)} has an empty list of references; give at least one or leave it out")
    return found


def _counted(ids: Sequence[str], total: int) -> str:
    return f"{len(ids)} of {total} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
