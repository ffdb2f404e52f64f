import numpy as np
import torch

from calmctl.evaluation.retrieval import dual_softmax


def test_dual_softmax_is_the_formula():
    scores = np.random.default_rng(0).uniform(-0.1, 0.4, (4, 3))
    expected = np.empty_like(scores)
    for v in range(3):
        weights = np.exp(100 * scores[:, v])
        expected[:, v] = scores[:, v] * weights / weights.sum()
    np.testing.assert_allclose(dual_softmax(torch.from_numpy(scores)).numpy(), expected, rtol=1e-12)


def test_a_score_depends_on_the_other_queries():
    scores = torch.tensor([[0.30, 0.10], [0.20, 0.25]])
    other = torch.tensor([[0.30, 0.10], [0.32, 0.25]])
    assert dual_softmax(scores)[0, 0] != dual_softmax(other)[0, 0]
