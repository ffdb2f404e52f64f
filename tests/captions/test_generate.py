"""Captions of a trained model: by heart, with and without the cache, drawn, and batched."""

import pytest
import torch

from calmctl.captions import generate
from calmctl.captions.evaluate import references_of
from calmctl.captions.generate import CaptionSearch, caption_features
from calmctl.captions.search import next_log_probs
from calmctl.runs.checkpoint import load_captioner
from calmctl.source.encoding import encode_split, stream_frames
from calmctl.source.source import recipe_source

CPU = torch.device("cpu")


class PlainSteps:
    """Computes every prefix from its beginning; what `CachedSteps` is measured against."""

    def __init__(self, captioner, memory):
        """Begin sentences for memory [N, F, width]."""
        self._captioner = captioner
        self._memory = memory
        self._tokens = torch.empty(len(memory), 0, dtype=torch.long, device=memory.device)

    def advance(self, tokens):
        """Append `tokens` [N]; returns log-probabilities [N, V]."""
        self._tokens = torch.cat([self._tokens, tokens.to(self._memory.device)[:, None]], dim=1)
        return next_log_probs(self._captioner, self._captioner(self._tokens, self._memory)[:, -1])

    def select(self, rows):
        """Go on with sentences `rows` [M]."""
        self._tokens, self._memory = self._tokens[rows], self._memory[rows]


@pytest.fixture(scope="module")
def learned(captioner):
    """The model in float64 with its training clips."""
    model = load_captioner(captioner.run, "last", CPU)
    recipe = captioner.run.recipe()
    split = recipe_source(recipe).split("train")
    encoded = encode_split(model, split, stream_frames(split, model, recipe.data))
    return model.double(), encoded


@pytest.mark.parametrize("search", [CaptionSearch(beam=1), CaptionSearch(), CaptionSearch(length_penalty=0)], ids=str)
def test_the_model_says_what_it_was_told(learned, search):
    model, encoded = learned
    told = {clip: sentences[0] for clip, sentences in references_of(encoded).items()}
    said = dict(zip(encoded.ids, caption_features(model, encoded.frames.double(), search), strict=True))
    assert {clip: caption.text for clip, caption in said.items()} == told
    assert all(-3 < caption.log_prob < 0 and caption.n_tokens <= 30 for caption in said.values())


@pytest.mark.parametrize(
    "keys", [{"beam": 1}, {"beam": 5}, {"beam": 7, "length_penalty": 0.0}, {"temperature": 2.0, "seed": 3}], ids=str
)
def test_the_cache_changes_no_caption(learned, keys, monkeypatch):
    model, _ = learned
    frames = torch.randn(9, 2, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # nothing learned
    cached = caption_features(model, frames, CaptionSearch(**keys))
    monkeypatch.setattr(generate, "CachedSteps", PlainSteps)
    plain = caption_features(model, frames, CaptionSearch(**keys))
    assert [each.text for each in cached] == [each.text for each in plain]
    assert [each.n_tokens for each in cached] == [each.n_tokens for each in plain]
    assert [each.log_prob for each in cached] == pytest.approx([each.log_prob for each in plain], abs=1e-9)
    assert len({each.text for each in cached}) > 1


def test_log_probabilities_are_those_of_the_whole_sentence(learned):
    model, encoded = learned
    frames = encoded.frames.double()[:3]
    captioner = model.captioner
    for search in (CaptionSearch(), CaptionSearch(beam=1)):
        said = caption_features(model, frames, search)
        tokens = captioner.vocabulary.encode([each.text for each in said], captioner.max_tokens)
        logits = captioner(tokens[:, :-1].clamp(min=0), captioner.encode(frames))
        logits[..., captioner.vocabulary.start] = -torch.inf
        log_probs = logits.log_softmax(-1)
        for row, each in enumerate(said):
            targets = tokens[row, 1 : 1 + each.n_tokens]
            total = log_probs[row, torch.arange(len(targets)), targets].sum()
            assert each.log_prob == pytest.approx(float(total.detach()), abs=1e-9)


def test_batches_change_nothing(learned, monkeypatch):
    model, encoded = learned
    frames = encoded.frames.double()
    whole = caption_features(model, frames, CaptionSearch())
    monkeypatch.setattr(generate, "CLIPS_PER_BATCH", 5)
    assert [each.text for each in caption_features(model, frames, CaptionSearch())] == [each.text for each in whole]
