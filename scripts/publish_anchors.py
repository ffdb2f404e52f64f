"""Write the vocabularies that ship: anchors/NAME@VERSION.yaml, from the label lists in anchors/sources.

    python scripts/publish_anchors.py       in a checkout, after a change of anchors/sources

Only what is new or reworded is written. A published version never changes: other labels need another version in
anchors/sources/sources.yaml. `calmctl anchors build` checks the same without writing.
"""

from __future__ import annotations

import sys

from calmctl.anchors.shipped import Rebuilt, load_sources, rebuild
from calmctl.anchors.vocabulary import save_vocabulary
from calmctl.errors import CalmError


def publish_shipped() -> list[Rebuilt]:
    """Rebuild every shipped vocabulary, writing only what is new or reworded.

    Raises:
        VocabularyError: As `rebuild`; nothing is written then.
        RunFailed: A file cannot be written.
    """
    results = [rebuild(name) for name in load_sources()]
    for result in results:
        if result.status != "unchanged":
            save_vocabulary(result.built.vocabulary, result.path)
    return results


if __name__ == "__main__":
    try:
        for each in publish_shipped():
            print(f"{each.status:<10} {each.built.vocabulary.reference}  ({len(each.built.vocabulary)})")
    except CalmError as fault:
        sys.exit(f"error: {fault}")
