import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calmctl.model.heads import pooling as exact
from calmctl.model.heads.pooling import TextConditionedPooling, pooled_cosines


def move(module, step, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += step * torch.randn_like(parameter)
    return module.eval()


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 3, 6]),
    width=st.integers(1, 5),
    n_frames=st.integers(1, 13),
    n_texts=st.integers(1, 5),
    n_videos=st.integers(1, 5),
    step=st.sampled_from([0.0, 0.02, 0.5]),
    scale=st.sampled_from([0.05, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_mixture_equals_the_dense_form(heads, width, n_frames, n_texts, n_videos, step, scale, seed):
    dim = 2 * heads * width
    pooling = move(TextConditionedPooling(dim, heads).double(), step, seed)
    texts = scale * torch.randn(n_texts, dim).double()
    frames = scale * torch.randn(n_videos, n_frames, dim).double()
    with torch.no_grad():
        dense = pooling(texts, frames)
        table, sides = exact.pooling_table(pooling, frames), exact.prepare_texts(pooling, texts)
        mixture = exact.mix(pooling, sides, table)
        close = dict(rtol=0, atol=1e-9)
        torch.testing.assert_close(exact.pooled_vectors(mixture, table).permute(0, 2, 1), dense, **close)
        torch.testing.assert_close(mixture.norms, dense.norm(dim=-1), **close)
        torch.testing.assert_close(mixture.dots / scale, torch.einsum("td,vtd->vt", texts, dense) / scale, **close)
        cosines = exact.mixture_cosines(pooling, sides, table)
        torch.testing.assert_close(cosines.T, pooled_cosines(texts, dense), **close)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("scale", [0.02, 1.0, 20.0])
def test_float32_agrees_with_dense_float64(heads, scale):
    pooling = move(TextConditionedPooling(512, heads), 0.02)
    texts = scale * torch.randn(60, 512)
    # Frames of one video resemble each other, and their mean is far from zero, as CLIP's are.
    frames = scale * (0.5 + torch.randn(25, 1, 512) + 0.3 * torch.randn(25, 12, 512))
    with torch.no_grad():
        found = exact.mixture_cosines(
            pooling, exact.prepare_texts(pooling, texts), exact.pooling_table(pooling, frames)
        )
        dense = pooled_cosines(texts.double(), pooling.double()(texts.double(), frames.double()))
    assert (found.T - dense).abs().max() < 2e-6


def test_degenerate_videos_and_texts_give_finite_scores():
    pooling = move(TextConditionedPooling(16).double(), 0.1)
    texts = torch.stack([torch.zeros(16), torch.ones(16), torch.randn(16)]).double()
    one = torch.randn(1, 16).double()
    frames = torch.stack([torch.zeros(4, 16).double(), torch.ones(4, 16).double(), one.expand(4, 16)])
    with torch.no_grad():
        found = exact.mixture_cosines(
            pooling, exact.prepare_texts(pooling, texts), exact.pooling_table(pooling, frames)
        )
        torch.testing.assert_close(found.T, pooled_cosines(texts, pooling(texts, frames)), rtol=0, atol=1e-10)
    assert found[:, 0].abs().max() == 0  # no direction, no similarity


def test_a_video_vector_of_zeros_scores_zero():
    pooling = TextConditionedPooling(8)
    torch.nn.init.zeros_(pooling.output_norm.weight)
    with torch.no_grad():
        found = exact.mixture_cosines(
            pooling,
            exact.prepare_texts(pooling, torch.randn(2, 8)),
            exact.pooling_table(pooling, torch.randn(3, 4, 8)),
        )
    assert torch.equal(found, torch.zeros(3, 2))


@pytest.mark.parametrize(("texts_per_block", "pairs"), [(1, 1), (3, 7), (4, 40), (256, 10_000)])
def test_blocks_cover_every_pair_once(monkeypatch, texts_per_block, pairs):
    monkeypatch.setattr(exact, "_TEXTS_PER_BLOCK", {"cpu": texts_per_block})
    pooling = TextConditionedPooling(4)
    texts = torch.arange(40.0).view(10, 4)
    table = {"keys": torch.zeros(7, 1, 1, 4), "number": torch.arange(7.0)}
    seen = []

    def block(queries, videos):
        pairs_here = queries.columns[0] + 1000 * videos["number"][:, None]
        seen.append(pairs_here.numel())
        return pairs_here

    found = exact.score_in_blocks(block, pooling, texts, table, pairs)
    assert torch.equal(found, texts[:, :1] + 1000 * table["number"])
    assert sum(seen) == 70 and max(seen) <= pairs
