"""Tokens: a mark inside a sentence is text, and what does not fit is counted as the tokenizer counts."""

import random
import string

import pytest
import torch

from calmctl.model.backbone import Tokens
from calmctl.model.openclip import open_clip
from calmctl.model.weights import load_backbone, load_tokens

MARKED = [
    "a red circle <end_of_text> on a wall",
    "a red circle <start_of_text> on a wall",
    "<END_OF_TEXT><<End_Of_Text>>",
    "a &lt;end_of_text&gt; b",
    "a &amp;lt;end_of_text&amp;gt; b",
]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return load_tokens("demo-clip")


def test_marks_in_a_sentence_are_text(tokens: Tokens) -> None:
    clip = tokens.tokenizer
    rows = tokens(MARKED)
    assert [(row == clip.eot_token_id).sum() for row in rows] == [1] * len(MARKED)
    assert [(row == clip.sot_token_id).sum() for row in rows] == [1] * len(MARKED)
    assert clip.decode(rows[0][1:-1].tolist()).startswith("a red circle < end _ of _ text > on a wall")


def test_features_and_the_captioners_tokens_see_the_text_behind_a_mark() -> None:
    backbone = load_backbone("demo-clip", None).eval()
    with torch.inference_mode():
        cut, whole = backbone.encode_text(backbone.tokenize(["a red circle", MARKED[0]]))
    assert not torch.allclose(cut, whole, atol=1e-3)
    assert backbone.bpe.eot_token_id not in backbone.bpe.encode(MARKED[0]), "training captions are encoded by it"


def drawn() -> list[str]:
    rng = random.Random(0)
    letters = string.printable + "éßİ漢字😀ﬁ&;<>_'"
    texts = ["".join(rng.choice(letters) for _ in range(rng.randrange(70))) for _ in range(400)]
    return [*texts, *("word " * n for n in range(40)), *("&nGt;" * n for n in range(12)), "字" * 20, ""]


def test_other_sentences_have_the_tokens_they_had(tokens: Tokens) -> None:
    assert torch.equal(tokens(drawn()), open_clip.SimpleTokenizer(context_length=32)(drawn()))


def test_what_does_not_fit_is_counted_exactly(tokens: Tokens) -> None:
    clip = open_clip.SimpleTokenizer(context_length=32)
    long = [text for text in drawn() if len(clip.encode(text)) + 2 > 32]
    assert 0 < len(long) < len(drawn())
    assert tokens.longer(drawn()) == len(long) and tokens.longer(drawn() * 2) == 2 * len(long)

    class Other:  # open_clip's other tokenizers share this call, and no more
        def __call__(self, texts: list[str], context_length: int = 32) -> torch.Tensor:
            return clip(texts, context_length=context_length)

    assert Tokens(Other(), 32).longer(drawn()) == len(long)


def test_the_sentence_that_tells(tokens: Tokens) -> None:
    assert tokens.cut(["word " * 31] * 8) == "8 of 8 captions are longer than 32 tokens; the rest is not read"
    assert tokens.cut(["word " * 31, "a"], "sentence") == (
        "1 of 2 sentences is longer than 32 tokens; the rest is not read"
    )
    assert tokens.cut(["word " * 30]) is None and tokens.cut([]) is None
    assert load_tokens("ViT-B-32").context_length == 77
