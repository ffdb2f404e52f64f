"""A tokenizer in Penn Treebank style for machines where no Java runs. It is close to CoreNLP's, not the same.

docs/caption-scoring.md tells how often the two differ on real captions; results always name the one used.
It follows the conventions of the Treebank as CoreNLP's lexer applies them to lower-cased captions: clitics and
"n't" are tokens of their own, hyphenated words, numbers, addresses and abbreviations stay whole, brackets are
spelled -lrb- and the like, quotes and dashes are written in ASCII.
"""

from __future__ import annotations

import re

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


def tokenize(caption: str) -> str:
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
