"""Searches against all sentences there are, on models small enough to list them."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calmctl.captions.search import beam_search, follow, greedy, sampler

START, END = 0, 1


class Table:
    """A model whose next-token log-probabilities [V] are drawn once for every prefix and clip."""

    def __init__(self, clips: int, vocabulary: int, seed: int) -> None:
        self.vocabulary, self.seed = vocabulary, seed
        self.rows: list[tuple[int, ...]] = [(clip,) for clip in range(clips)]

    def next(self, row: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, row)) % 2**31)
        logits = 2 * torch.randn(self.vocabulary, generator=generator, dtype=torch.float64)
        logits[START] = -torch.inf
        return logits.log_softmax(0)

    def advance(self, tokens: torch.Tensor) -> torch.Tensor:
        self.rows = [(*row, int(token)) for row, token in zip(self.rows, tokens, strict=True)]
        return torch.stack([self.next(row) for row in self.rows])

    def select(self, rows: torch.Tensor) -> None:
        self.rows = [self.rows[int(row)] for row in rows]


def every_sentence(table: Table, clip: int, longest: int) -> list[tuple[float, tuple[int, ...]]]:
    """(log-probability, tokens) of all sentences of up to `longest` tokens."""
    words = range(2, table.vocabulary)
    sentences = [
        (*middle, last)
        for length in range(longest)
        for middle in product(words, repeat=length)
        for last in ([END] if length < longest - 1 else [END, *words])
    ]
    found = []
    for sentence in sentences:
        prefix, log_prob = (clip, START), 0.0
        for token in sentence:
            log_prob += float(table.next(prefix)[token])
            prefix = (*prefix, token)
        found.append((log_prob, sentence))
    return found


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.7, 1.0, 2.0]))
def test_a_wide_beam_finds_the_best_of_all_sentences(seed, penalty):
    longest, vocabulary, clips = 3, 5, 2
    found = beam_search(
        Table(clips, vocabulary, seed),
        clips,
        start=START,
        end=END,
        beam=vocabulary**longest,
        max_tokens=longest,
        length_penalty=penalty,
    )
    for clip in range(clips):
        sentences = every_sentence(Table(clips, vocabulary, seed), clip, longest)
        log_prob, tokens = max(sentences, key=lambda each: each[0] / len(each[1]) ** penalty)
        length = int(found.lengths[clip])
        assert tuple(found.tokens[clip, :length].tolist()) == tokens
        assert float(found.log_probs[clip]) == pytest.approx(log_prob)


def narrow(table: Table, clip: int, beam: int, longest: int, penalty: float) -> tuple[float, tuple[int, ...]]:
    """A beam search with lists: the best (log-probability, tokens)."""
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, longest + 1):
        further = [
            (log_prob + float(log_next), (*tokens, token))
            for log_prob, tokens in alive
            for token, log_next in enumerate(table.next((clip, START, *tokens)))
            if token != START
        ]
        further.sort(reverse=True)
        if length == longest:
            ended += further
        ended += [each for each in further[:beam] if each[1][-1] == END]
        alive = [each for each in further if each[1][-1] != END][:beam]
    return max(ended, key=lambda each: each[0] / len(each[1]) ** penalty)


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.0, 0.7, 1.0, 2.0]))
def test_a_narrow_beam_ends_a_sentence_where_its_end_is_among_the_likeliest(seed, beam, penalty):
    keys = {"start": START, "end": END, "beam": beam, "max_tokens": 5, "length_penalty": penalty}
    found = beam_search(Table(2, 6, seed), 2, **keys)
    for clip in range(2):
        log_prob, tokens = narrow(Table(2, 6, seed), clip, beam, 5, penalty)
        assert tuple(found.tokens[clip, : int(found.lengths[clip])].tolist()) == tokens
        assert float(found.log_probs[clip]) == pytest.approx(log_prob)


@given(st.integers(0, 10_000))
def test_a_beam_does_not_depend_on_the_other_clips(seed):
    keys = {"start": START, "end": END, "beam": 3, "max_tokens": 6, "length_penalty": 1.0}
    together = beam_search(Table(3, 6, seed), 3, **keys)
    alone = beam_search(Table(1, 6, seed), 1, **keys)
    n = int(alone.lengths[0])
    assert int(together.lengths[0]) == n
    assert together.tokens[0, :n].tolist() == alone.tokens[0, :n].tolist()
    assert (together.tokens[0, n:] == END).all()


@given(st.integers(0, 10_000))
def test_greedy_takes_the_likeliest_token_each_time(seed):
    found = follow(Table(2, 6, seed), 2, greedy, start=START, end=END, max_tokens=5)
    for clip in range(2):
        prefix, total, taken = (clip, START), 0.0, []
        while len(taken) < 5 and END not in taken:
            log_probs = Table(2, 6, seed).next(prefix)
            token = int(log_probs.argmax())
            total += float(log_probs[token])
            prefix, taken = (*prefix, token), [*taken, token]
        assert found.tokens[clip, : int(found.lengths[clip])].tolist() == taken
        assert float(found.log_probs[clip]) == pytest.approx(total)


def test_draws_follow_the_model_and_its_temperature():
    log_probs = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).log().expand(20_000, 3)
    for temperature, expected in ((1.0, [0.1, 0.2, 0.7]), (0.5, [1 / 54, 4 / 54, 49 / 54])):
        drawn = sampler(temperature, torch.Generator().manual_seed(0))(log_probs)
        shares = torch.bincount(drawn, minlength=3) / len(drawn)
        torch.testing.assert_close(shares, torch.tensor(expected), atol=0.015, rtol=0)


def test_draws_repeat_with_their_seed():
    drawn = [
        follow(
            Table(4, 6, 1), 4, sampler(1.0, torch.Generator().manual_seed(seed)), start=START, end=END, max_tokens=9
        ).tokens.tolist()
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
