"""Scoring captions in one pass, and each part of it alone, in seconds.

    python benchmarks/captions.py
    python benchmarks/captions.py --captions 670 --references 41
    python benchmarks/captions.py --files HYP.json REF.json

Captions are drawn from a small grammar with a vocabulary of MSR-VTT's size; by default as many as in MSR-VTT's
test set. The parts are measured one after the other and the whole last, once with tokens of references made
anew and once with kept ones: METEOR reads its paraphrases and scores in a process of its own while the other
metrics are computed, so the whole should be shorter than the sum of its parts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from calmctl.captions import files as corpus
from calmctl.captions.files import read_hypotheses, read_references
from calmctl.captions.java import find_java, match, meteor_process
from calmctl.captions.score import score_captions
from calmctl.captions.tokens import tokenize, tokenize_references

# The sixty words that stand oftenest in captions of videos, or nearly.
FREQUENT = (
    "a the is man woman in of on and are talking person with to video girl about playing an people cooking two "
    "car boy his game food someone singing being for while at from dog water kitchen stage dancing show song "
    "men showing their some black young guy ball walking group her red making room riding cat music is driving"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=2990)
    parser.add_argument("--references", type=int, default=20, help="of each caption")
    parser.add_argument("--files", type=Path, nargs=2, metavar=("HYP.json", "REF.json"), help="instead of drawn ones")
    options = parser.parse_args()
    if options.files:
        hypotheses, references = read_hypotheses(options.files[0]), read_references(options.files[1])
    else:
        hypotheses, references = draw(options.captions, options.references)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        measure(hypotheses, references)


def measure(hypotheses: dict[str, str], references: dict[str, list[str]]) -> None:
    java = find_java()
    matched = match(hypotheses, references)
    n_references = sum(map(len, matched.references))
    print(f"{len(matched.ids)} captions, {n_references} references; Java {java.version} of {java.origin}")
    parts = Clock()
    with parts("tokens of references (PTB)"):
        reference_tokens = tokenize_references(matched.references, "ptb-java", java)
    with parts("tokens of captions (PTB)"):
        tokens = tokenize(matched.hypotheses, "ptb-java", java)
    with parts("BLEU"):
        corpus.bleu(tokens, reference_tokens)
    with parts("ROUGE-L"):
        corpus.rouge_l(tokens, reference_tokens)
    with parts("CIDEr"):
        corpus.cider(tokens, reference_tokens)
    with meteor_process(java) as meteor:
        with parts("METEOR, start"):
            meteor.statistics(tokens[:1], reference_tokens[:1])
        with parts("METEOR, segments"):
            statistics = meteor.statistics(tokens, reference_tokens)
        with parts("METEOR, scores"):
            meteor.scores(statistics)
    print(f"{'sum of the parts':<44}{sum(parts.seconds):>8.2f}")
    with parts("in one pass, references' tokens kept"):
        score_captions(hypotheses, references)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        with parts("in one pass, references' tokens made anew"):
            score_captions(hypotheses, references)


class Clock:
    """Prints and keeps how long each part took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        start = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - start)
        print(f"{name:<44}{self.seconds[-1]:>8.2f}", flush=True)


def draw(n_captions: int, n_references: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Sentences of about ten words whose words are as unevenly frequent as those of a language (Zipf)."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(20_000)]
    words[:60] = FREQUENT.split()

    def sentence(subject: np.ndarray) -> str:
        ranks = np.minimum(rng.zipf(1.4, rng.integers(6, 14)), len(words)) - 1
        chosen = [words[rank] for rank in np.concatenate([subject, ranks])]
        return " ".join(chosen).capitalize() + "."

    hypotheses, references = {}, {}
    for number in range(n_captions):
        subject = rng.integers(0, 60, 3)
        hypotheses[f"video{number}"] = sentence(subject)
        references[f"video{number}"] = [sentence(subject) for _ in range(n_references)]
    return hypotheses, references


if __name__ == "__main__":
    main()
