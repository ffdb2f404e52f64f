"""Vocabularies from vocabularies: the union of several, a seeded subset of one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from calmctl.anchors.vocabulary import NAME_PATTERN, Vocabulary, make_vocabulary
from calmctl.errors import VocabularyError


@dataclass(frozen=True, slots=True)
class Merged:
    """A union of vocabularies.

    Attributes:
        vocabulary: The result.
        removed: Exact duplicates that were left out, as "'label' of a@1, already in b@1".
    """

    vocabulary: Vocabulary
    removed: tuple[str, ...] = ()


def merge(
    parts: Sequence[Vocabulary],
    *,
    name: str | None = None,
    version: int = 1,
    note: str = "",
    prompt: str | None = None,
) -> Merged:
    """Concatenate vocabularies in order; of exactly equal labels the first stays.

    Ids become `part/id`, whatever else is merged; ids that already name a part stay.

    Args:
        parts: Two or more vocabularies.
        name: Default: the parts' names joined by "+".
        version: Of the result.
        note: Of the result.
        prompt: Needed when the parts' prompts differ.

    Raises:
        VocabularyError: Fewer than two parts, differing prompts, or ids that collide.
    """
    if len(parts) < 2:
        raise VocabularyError("merge needs at least two vocabularies; name two, such as charades and coco")
    prompts = {part.prompt for part in parts}
    if prompt is None and len(prompts) > 1:
        raise VocabularyError(
            f"the prompts of {', '.join(part.reference for part in parts)} differ "
            f"({'; '.join(sorted(prompts))}); choose one with --prompt"
        )
    first_in: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    removed = []
    for part in parts:
        for label in part.labels:
            if label.text in first_in:
                removed.append(f"{label.text!r} of {part.reference}, already in {first_in[label.text]}")
                continue
            first_in[label.text] = part.reference
            named = re.match(rf"{NAME_PATTERN}/", label.id)
            pairs.append((label.id if named else f"{part.name}/{label.id}", label.text))
    vocabulary = make_vocabulary(
        pairs,
        where=f"merging {', '.join(part.reference for part in parts)}",
        name=name or "+".join(part.name for part in parts),
        version=version,
        source="; ".join(f"{part.reference}: {part.source}" for part in parts),
        licence="; ".join(f"{part.reference}: {part.licence}" for part in parts),
        note=note,
        prompt=prompt or parts[0].prompt,
    )
    return Merged(vocabulary, tuple(removed))


def subset(vocabulary: Vocabulary, count: int, seed: int = 0) -> Vocabulary:
    """A seeded sample of `count` labels in their old order (docs/science.md, reading 20).

    Labels are drawn by the SHA-256 of seed and id, so the sample is the same on every machine and in every
    version of Python and numpy, and for one seed a smaller subset lies inside every larger one.

    Raises:
        VocabularyError: `count` is below 2 or above the number of labels.
    """
    if not 2 <= count <= len(vocabulary):
        raise VocabularyError(
            f"{vocabulary.reference} has {len(vocabulary)} labels: a subset of {count} cannot be drawn; "
            f"choose 2 to {len(vocabulary)}"
        )

    def draw(label_id: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{label_id}".encode()).digest()

    chosen = set(sorted((label.id for label in vocabulary.labels), key=draw)[:count])
    note = f"{count} of {len(vocabulary)} labels of {vocabulary.reference} ({vocabulary.digest}), seed {seed}"
    return make_vocabulary(
        ((label.id, label.text) for label in vocabulary.labels if label.id in chosen),
        where=f"subset of {vocabulary.reference}",
        **{
            **vocabulary.model_dump(exclude={"labels"}),
            "name": f"{vocabulary.name}-{count}-seed{seed}",
            "note": note,
        },
    )
