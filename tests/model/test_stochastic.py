import pytest
import torch

from calmctl.errors import BadInput
from calmctl.model.heads.tmass import NoiseLaw, Radius, support_texts


def test_parameter_count():
    assert sum(p.numel() for p in Radius(12, 512).parameters()) == 6656


def test_radius_at_the_start(formulas):
    """At the start: exp(cos_k) on coordinates k < F, exactly 1 elsewhere."""
    torch.manual_seed(0)
    texts, frames = torch.randn(3, 20).double(), torch.randn(3, 5, 20).double()
    radii = Radius(5, 20).double()(texts, frames)
    for i in range(3):
        cosines = [formulas.cos(texts[i].numpy(), frame.numpy()) for frame in frames[i]]
        torch.testing.assert_close(radii[i, :5], torch.tensor(cosines).double().exp())
    assert torch.equal(radii[:, 5:], torch.ones(3, 15).double())


def test_radius_is_the_formula_paired_and_for_all_pairs(formulas, trained):
    torch.manual_seed(1)
    module = trained(Radius(4, 10).double(), step=0.5)
    texts, frames = torch.randn(3, 10).double(), torch.randn(2, 4, 10).double()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(texts, dim=-1)
        units = torch.nn.functional.normalize(frames, dim=-1)
        of_all = module.of_cosines(torch.einsum("vfd,td->vft", units, unit))
        for v in range(2):
            paired = module(texts, frames[v].expand(3, 4, 10))
            for t in range(3):
                expected = torch.from_numpy(formulas.radius(module, texts[t].numpy(), frames[v].numpy()))
                torch.testing.assert_close(of_all[v, :, t], expected)
                torch.testing.assert_close(paired[t], expected)


def test_uniform_noise_is_on_the_unit_interval_and_normal_noise_has_its_width():
    generator = torch.Generator().manual_seed(0)
    uniform = NoiseLaw("uniform").sample(200, 512, generator=generator)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.005)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.002)
    normal = NoiseLaw("normal", 0.003).sample(200, 512, generator=generator)
    assert normal.mean().item() == pytest.approx(0, abs=1e-4)
    assert normal.std().item() == pytest.approx(0.003, rel=0.02)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_training_noise_comes_from_the_default_generator(kind):
    law, like = NoiseLaw(kind, 2.0), torch.zeros(3, 4, dtype=torch.float64)
    torch.manual_seed(5)
    first = law.sample_like(like)
    assert first.dtype == torch.float64 and not torch.equal(first, law.sample_like(like))
    torch.manual_seed(5)
    assert torch.equal(first, law.sample_like(like))


def test_unknown_noise_is_refused():
    with pytest.raises(BadInput, match="'uniform01'"):
        NoiseLaw("uniform01")


def test_support_text_lies_on_the_cloud_towards_the_video():
    texts, radii = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[2.0, 3.0], [1.0, 1.0]])
    pooled = torch.tensor([[4.0, 6.0], [0.0, -7.0]])  # offsets (3, 4) of length 5, and (0, -7) of length 7
    expected = torch.tensor([[1 + 2 * 0.6, 2 + 3 * 0.8], [0.0, -1.0]])
    torch.testing.assert_close(support_texts(texts, radii, pooled), expected)
