"""Captions into tokens: by CoreNLP's Treebank tokenizer, by our own like it, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from calmctl.errors import RunFailed
from calmctl.evaluation.captions import ptb_python
from calmctl.evaluation.captions.java import Java, java_process
from calmctl.evaluation.captions.token_cache import cached

Tokenizer = Literal["ptb-java", "ptb-python", "none"]
TOKENIZERS: tuple[Tokenizer, ...] = get_args(Tokenizer)


def tokenize(captions: Sequence[str], tokenizer: Tokenizer, java: Java | None = None) -> list[str]:
    """The tokens of captions on one line each, a blank between tokens, coco-caption's punctuation left out.

    "none" returns the captions as they are.

    Raises:
        JavaFailed: "ptb-java" ended with an error.
        RunFailed: "ptb-java" answered with another number of lines than it was asked.
    """
    if tokenizer == "none" or not captions:
        return list(captions)
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    if tokenizer == "ptb-python":
        lines = [ptb_python.tokenize(caption) for caption in captions]
    else:
        assert java is not None, "ptb-java needs a Java"
        lines = _by_corenlp(captions, java)
    dropped = frozenset(PUNCTUATIONS)
    return [" ".join(token for token in line.rstrip().split(" ") if token not in dropped) for line in lines]


def tokenize_references(
    references: Sequence[Sequence[str]], tokenizer: Tokenizer, java: Java | None = None
) -> list[list[str]]:
    """`tokenize` for the references of each id; done once for a set of references and kept on disk.

    Raises:
        JavaFailed, RunFailed: As `tokenize`.
    """
    flat = [caption for captions in references for caption in captions]
    if tokenizer == "ptb-java":
        assert java is not None, "ptb-java needs a Java"
        kind = f"{tokenizer} java {java.version}"
        tokens = cached(kind, flat, lambda: tokenize(flat, tokenizer, java))
    else:  # faster than reading them back would be safe
        tokens = tokenize(flat, tokenizer)
    each = iter(tokens)
    return [[next(each) for _ in captions] for captions in references]


def _by_corenlp(captions: Sequence[str], java: Java) -> list[str]:
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    arguments = ["-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    folder = Path(ptbtokenizer.__file__).parent
    with java_process(java, folder, arguments, name="the PTB tokenizer") as process:
        lines = process.communicate("\n".join(captions)).split("\n")
    if len(lines) != len(captions):
        raise RunFailed(
            f"the PTB tokenizer answered {len(lines)} lines for {len(captions)} captions, so it is not known which is "
            "which; please report these captions, and meanwhile score them with --tokenizer ptb-python"
        )
    return lines
