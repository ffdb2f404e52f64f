"""A tokenizer in Penn Treebank style for machines where no Java runs. It is close to CoreNLP's, not the same.

docs/caption-scoring.md tells how often the two differ on real captions; results always name the one used.
It follows the conventions of the Treebank as CoreNLP's lexer applies them to lower-cased captions: clitics and
"n't" are tokens of their own, hyphenated words, numbers, addresses and abbreviations stay whole, brackets are
spelled -lrb- and the like, quotes and dashes are written in ASCII.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from calmctl.captions.java import Java, java_process
from calmctl.errors import RunFailed
from calmctl.files import read_regular, sha256_bytes, write_bytes

# Words that the Treebank writes as two tokens.
_TWO_TOKENS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "lemme": "lem me",
    "gimme": "gim me",
    "'tis": "'t is",
    "'twas": "'t was",
}
_ABBREVIATIONS = (
    r"mr|mrs|ms|dr|st|vs|etc|jr|sr|inc|co|corp|ltd|prof|rev|gen|gov|sen|rep|lt|col|sgt|capt|hon|ave|blvd|mt|"
    r"jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|ph\.d|e\.g|i\.e"
)
_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "…": "...",
    "£": "#",
    "€": "$",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
_TOKEN = re.compile(
    r"""
      </?[a-z!][^<>\s]*>                                            # a tag
    | (?:https?://|www\.)[^\s"<>|(){}]*[^\s"<>|(){}.,!?;:'\-]       # an address
    | [\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+
    | [\#@][a-z_]\w*
    | 'n' | '\d\ds?(?!\w) | '(?:tis|twas)(?!\w)
    | n't(?!\w)
    | '(?:s|m|d|re|ve|ll)(?!\w)
    | (?:ABBREVIATIONS)\.(?!\w)                                     # an abbreviation with its point
    | (?:[a-z]\.)+(?![\w.])                                         # u.s., initials
    | (?<![\w.])[+\-]?(?:\d+(?:[.,:]\d+)*|\.\d+)(?![\w.,:/\-]*\w)   # a number
    | (?:[a-z]+?(?=n't(?!\w)))                                      # the verb before n't
    | (?:[cdlo]')?\w+(?:(?:[\-/.]|[,:](?<=\d.)(?=\d))\w+)*           # a word, hyphens and the like inside
    | \.{3} | [!?]+ | -{2,}
    | \S
    """.replace("ABBREVIATIONS", _ABBREVIATIONS),
    re.VERBOSE,
)


def tokenize_in_python(caption: str) -> str:
    """The tokens of one caption, lower-cased, with a blank between; punctuation is still there."""
    text = caption.lower().replace("’", "'").replace("‘", "`").replace("–", "--").replace("—", "--")  # noqa: RUF001
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    return " ".join(token for match in _TOKEN.finditer(text) if (token := _spelled(match[0])))


def _spelled(token: str) -> str:
    if token in _TWO_TOKENS:
        return _TWO_TOKENS[token]
    if token in ('"', "“", "”"):
        return "''"
    if set(token) == {"-"} and len(token) > 1:
        return "--"
    if ord(token[0]) > 0xFFFF:  # CoreNLP's lexer of 2014 knows no characters outside the basic plane
        return ""
    return _SPELLED.get(token, token)


# Captions into tokens: by CoreNLP's Treebank tokenizer, by our own like it, or not at all.


Tokenizer = Literal["ptb-java", "ptb-python", "none"]


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
        lines = [tokenize_in_python(caption) for caption in captions]
    else:
        assert java is not None, "ptb-java needs a Java"
        lines = _by_corenlp(captions, java)
    # Brackets stay: this list has -LRB- in capitals, and tokens are lower-cased. So it is in every published number.
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
    remaining = iter(tokens)
    return [[next(remaining) for _ in captions] for captions in references]


def _by_corenlp(captions: Sequence[str], java: Java) -> list[str]:
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    arguments = ["-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    folder = Path(ptbtokenizer.__file__).parent
    with java_process(java, folder, arguments, name="the PTB tokenizer") as process:
        lines = process.communicate("\n".join(captions)).split("\n")
    # A caption that the tokenizer takes for two lines would shift all later ones by one, and every score would stand.
    if len(lines) != len(captions):
        raise RunFailed(
            f"the PTB tokenizer answered {len(lines)} lines for {len(captions)} captions, so it is not known which is "
            "which; please report these captions, and meanwhile score them with --tokenizer ptb-python"
        )
    return lines


# Tokens of references, kept in the user's cache folder under the digest of what they were made from.


_MOST_BYTES = 1 << 30
_KEPT = 16  # sets of references; MSR-VTT's test set is 3 MB


def cache_folder() -> Path:
    """Where token files lie: under $XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "calmctl" / "caption-tokens"


def cached(kind: str, captions: Sequence[str], tokenize: Callable[[], list[str]]) -> list[str]:
    """What `tokenize` returns for `captions`, from the cache where it was kept before.

    A file that is damaged is made again, and a folder that cannot be written is done without: neither changes
    a result. `kind` names the tokenizer and its version. Captions and tokens must be single lines.
    """
    # The captions themselves are the key: a file of references that was edited is another one.
    key = "\n".join([kind, *captions])
    try:
        path = cache_folder() / f"{sha256_bytes(key.encode('utf-8'))}.txt"
    except RuntimeError:  # a user without a home, as containers have
        return tokenize()
    kept = _read(path, len(captions))
    if kept is not None:
        return kept
    tokens = tokenize()
    content = "\n".join(tokens).encode("utf-8")
    with contextlib.suppress(RunFailed, OSError):
        write_bytes(path, sha256_bytes(content).encode("ascii") + b"\n" + content)
        _prune(path.parent)
    return tokens


def _read(path: Path, n_lines: int) -> list[str] | None:
    try:
        digest, _, content = read_regular(path, _MOST_BYTES).partition(b"\n")
        if sha256_bytes(content).encode("ascii") != digest:
            return None
        os.utime(path)  # used last, dropped last
    except OSError:
        return None
    lines = content.decode("utf-8").split("\n")
    return lines if len(lines) == n_lines else None


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.txt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[_KEPT:]:
        path.unlink(missing_ok=True)
