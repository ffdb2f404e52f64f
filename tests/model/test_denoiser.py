"""DiffusionRet's denoisers against their published form in numpy, pair by pair, and against pinned numbers.

The pinned numbers were computed from the published definition apart from this code; S(shape, a, c) fills a tensor with
c sin(a + 0.7 n) in the order of its entries.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calmctl.model.denoiser import Denoiser, Schedule, frame_shares, judged_texts, judged_videos


def wave(*shape, start, scale=1.0):
    return scale * torch.sin(start + 0.7 * torch.arange(math.prod(shape), dtype=torch.float64)).view(*shape)


@pytest.fixture
def pinned():
    denoiser = Denoiser(4).double()
    square = {"query": 0.1, "key": 0.2, "value": 0.3, "out": 0.4, "step_in": 0.6, "step_out": 0.8}
    with torch.no_grad():
        for name, start in square.items():
            getattr(denoiser, name).weight.copy_(wave(4, 4, start=start, scale=0.5))
        for name, start in {"out": 0.5, "step_in": 0.7, "step_out": 0.9}.items():
            getattr(denoiser, name).bias.copy_(wave(4, start=start, scale=0.5))
        denoiser.hidden.weight.copy_(wave(8, 8, start=1.0, scale=0.5))
        denoiser.hidden.bias.copy_(wave(8, start=1.1, scale=0.5))
        denoiser.last.weight.copy_(wave(1, 8, start=1.2, scale=0.1))
    return denoiser


def shaken(dim, size=0.15):
    torch.manual_seed(0)
    denoiser = Denoiser(dim).double()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return denoiser


def close(found, expected, atol=1e-11):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


# --- the published form ---------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def as_published(denoiser, queries, candidates, x, n):
    """One query: `queries` [k, D] is its vector as each candidate meets it, all alike from text to video."""
    w = {name: tensor.detach().numpy() for name, tensor in denoiser.named_parameters()}
    dim = candidates.shape[1]
    turns = [n * 10000 ** (-2 * i / dim) for i in range(dim // 2)]
    pe = np.array([f(turn) for turn in turns for f in (math.sin, math.cos)])
    inner = w["step_in.weight"] @ pe + w["step_in.bias"]
    e = w["step_out.weight"] @ (inner / (1 + np.exp(-inner))) + w["step_out.bias"]
    q = (queries + e) @ w["query.weight"].T
    k, v = (candidates + e) @ w["key.weight"].T, (candidates + e) @ w["value.weight"].T
    weights = softmax((q * k).sum(1) + x)
    c = w["out.weight"] @ (weights @ v) + w["out.bias"]
    out = []
    for j, candidate in enumerate(candidates):
        hidden = np.maximum(w["hidden.weight"] @ np.concatenate([c, candidate]) + w["hidden.bias"], 0)
        out.append(w["last.weight"][0] @ hidden + w["last.bias"][0] + weights[j])
    return np.array(out)


def ddim_as_published(predict, x, steps):
    h = [math.cos((u / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for u in range(steps + 1)]
    kept = np.cumprod([1 - min(1 - h[n + 1] / h[n], 0.999) for n in range(steps)])
    for n in reversed(range(steps)):
        x0 = np.clip(predict(x, n), -1, 1)
        noise = (x - math.sqrt(kept[n]) * x0) / math.sqrt(1 - kept[n])
        before = kept[n - 1] if n else 1.0
        x = math.sqrt(before) * x0 + math.sqrt(1 - before) * noise
    return x0


def pooled(text, frames):
    return softmax(frames @ text) @ frames


def batch_of_one(*arrays):
    return (torch.tensor(array)[None] for array in arrays)


@pytest.mark.parametrize("direction", ["videos", "texts"])
def test_the_restructured_form_is_the_published_one(direction):
    denoiser, rng = shaken(32), np.random.default_rng(0)
    frames, texts, start = rng.normal(size=(6, 5, 32)) * 0.4, rng.normal(size=(6, 32)) * 0.4, rng.normal(size=6)
    if direction == "videos":
        candidates = np.stack([pooled(texts[0], clip) for clip in frames])
        queries, prepared = np.repeat(texts[:1], 6, 0), denoiser.videos(*batch_of_one(texts[0], candidates))
    else:
        queries, candidates = np.stack([pooled(text, frames[0]) for text in texts]), texts
        prepared = denoiser.texts(*batch_of_one(texts, queries))
    once = denoiser(prepared, torch.tensor(start)[None], 17)[0].detach().numpy()
    np.testing.assert_allclose(once, as_published(denoiser, queries, candidates, start, 17), atol=1e-12)
    whole = denoiser.sample(prepared, torch.tensor(start)[None], Schedule(50), 50)[0].detach().numpy()
    expected = ddim_as_published(lambda x, n: as_published(denoiser, queries, candidates, x, n), start, 50)
    np.testing.assert_allclose(whole, expected, atol=1e-12)


@pytest.mark.parametrize("judged", [judged_videos, judged_texts])
def test_the_training_form_is_the_published_one(judged):
    """Values and all gradients, with a step of its own for each query, and candidates that are hidden."""
    torch.manual_seed(0)
    texts, frames = (0.4 * torch.randn(*shape, 8, dtype=torch.float64) for shape in ((4,), (4, 3)))
    x, steps = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 3, 17, 49])
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[0, 2] = hidden[3, 1] = True
    gradients = []
    for row_by_row in (False, True):
        denoiser, shares = shaken(8), frame_shares(texts, frames)
        out = judged(denoiser, texts, frames, shares, x, steps, hidden)
        if row_by_row:
            every, rows = torch.einsum("tvf,vfd->tvd", shares, frames), []
            for row in range(4):
                seen = ~hidden[row]
                if judged is judged_videos:
                    prepared = denoiser.videos(texts[row][None], every[row, seen][None])
                else:
                    prepared = denoiser.texts(texts[seen][None], every[seen, row][None])
                full = torch.full((4,), -torch.inf, dtype=torch.float64)
                full[seen] = denoiser(prepared, x[row, seen][None], int(steps[row]))[0]
                rows.append(full)
            out = torch.stack(rows)
        assert (out[hidden] == -torch.inf).all() and out[~hidden].isfinite().all()
        F.cross_entropy(100 * out, torch.arange(4)).backward()
        gradients.append({name: p.grad for name, p in denoiser.named_parameters()} | {"out": out.detach()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-9, atol=1e-10, msg=name)


# --- pinned numbers -------------------------------------------------------------------------------------------


def test_parameters_are_the_published_ones():
    assert sum(p.numel() for p in Denoiser(512).parameters()) == 2_625_025


def test_the_schedule():
    kept = Schedule(50).kept
    expected = [0.998252486466, 0.994569978238, 0.879122485119, 0.493843590441, 0.462706862017, 0.076649812457]
    close(kept[[0, 1, 10, 24, 25, 40]], expected)
    close(kept[48:], [9.711930298713e-4, 9.711930298713e-7], atol=1e-15)
    assert kept.sum().item() == pytest.approx(24.303941202948, abs=1e-11)
    close(Schedule(5).kept, [0.898705920600, 0.647478211147, 0.340809639760, 0.094045612677, 9.404561267665e-5])


@pytest.mark.parametrize(
    ("predict", "steps", "expected"),
    [
        (lambda x: x / 2, 50, 0.157213252812),
        (lambda x: x / 2, 5, 0.407909556718),
        (lambda x: torch.full_like(x, 0.3), 50, 0.3),
        (lambda x: torch.full_like(x, 2.0), 50, 1.0),
    ],
)
def test_ddim_alone(predict, steps, expected, monkeypatch):
    denoiser = Denoiser(4)
    monkeypatch.setattr(denoiser, "forward", lambda candidates, x, n: predict(x))
    found = denoiser.sample(None, torch.ones(1, 1, dtype=torch.float64), Schedule(steps), steps)
    assert found.item() == pytest.approx(expected, abs=1e-11)


def test_the_steps_of_a_walk():
    schedule = Schedule(50)
    assert schedule.walked(50) == list(range(49, -1, -1)) == schedule.walked(99) and schedule.walked(1) == [49]
    assert schedule.walked(8)[0] == 49 and schedule.walked(8)[-1] == 0 and len(set(schedule.walked(8))) == 8


def test_both_denoisers_are_the_pinned_ones(pinned):
    x = wave(3, start=0.3)[None]
    close(pinned.embed(torch.tensor(0)), [0.941812543824, 0.008271206796, 0.748937465351, -0.146635514014])

    text, frames = wave(4, start=0.1)[None], wave(3, 2, 4, start=0.2)
    seen = torch.einsum("tvf,vfd->tvd", frame_shares(text, frames), frames)
    close(seen[0, 0], [0.197856345102, 0.764776165288, 0.972009804982, 0.722092045321])
    candidates = pinned.videos(text, seen)
    with torch.no_grad():
        close(pinned(candidates, x, 10)[0], [0.471997594670, 0.536393001289, 0.248706264548])
        ends = pinned.sample(candidates, x, Schedule(50), 50)[0]
    close(ends, [0.658170037362, 0.379918046149, 0.219899123595])
    close(ends.softmax(-1), [0.416275195868, 0.315164454026, 0.268560350106])

    texts, clip = wave(3, 4, start=0.4), wave(1, 2, 4, start=0.5)
    seen = torch.einsum("tvf,vfd->vtd", frame_shares(texts, clip), clip)
    candidates = pinned.texts(texts[None], seen)
    with torch.no_grad():
        close(pinned(candidates, x, 10)[0], [0.313541630436, 0.588251973362, 0.566313172039])
        ends = pinned.sample(candidates, x, Schedule(50), 50)[0]
    close(ends, [0.430129735683, 0.624185827797, 0.412024871859])


# --- what it does ---------------------------------------------------------------------------------------------


def test_candidates_may_come_in_any_order():
    denoiser, order = shaken(16), torch.tensor([3, 0, 4, 1, 2])
    torch.manual_seed(1)
    text, seen, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((1, 16), (1, 5, 16), (1, 5)))
    whole = denoiser.sample(denoiser.videos(text, seen), x, Schedule(50), 50)
    turned = denoiser.sample(denoiser.videos(text, seen[:, order]), x[:, order], Schedule(50), 50)
    torch.testing.assert_close(turned, whole[:, order], rtol=0, atol=1e-12)


def test_a_silent_network_guesses_from_the_noise_alone():
    """Then out is softmax(x): a loss of 4.931 in the mean over steps and noise at B = 128."""
    denoiser, schedule = Denoiser(8).double(), Schedule(50)
    with torch.no_grad():
        denoiser.query.weight.zero_()
        denoiser.last.weight.zero_()
    torch.manual_seed(0)
    texts, frames = torch.zeros(128, 8).double(), torch.zeros(128, 1, 8).double()
    shares, nobody, losses = frame_shares(texts, frames), torch.zeros(128, 128, dtype=torch.bool), []
    for _ in range(60):
        steps = torch.randint(50, (128,))
        x = schedule.noised(torch.eye(128).double(), torch.randn(128, 128).double(), steps)
        with torch.no_grad():
            out = judged_videos(denoiser, texts, frames, shares, x, steps, nobody)
        losses.append(F.cross_entropy(100 * out, torch.arange(128)).item())
    # 0.013 is the standard error of 200 batches.
    assert np.mean(losses) == pytest.approx(4.931, abs=5 * 0.013 * (200 / 60) ** 0.5)


@pytest.mark.parametrize("judged", [judged_videos, judged_texts])
def test_it_learns_who_belongs_together(judged):
    torch.manual_seed(0)
    denoiser, schedule, own = Denoiser(32), Schedule(50), torch.arange(32)
    descent = torch.optim.Adam(denoiser.parameters(), 3e-3)
    nobody, losses = torch.zeros(32, 32, dtype=torch.bool), []
    for _ in range(210):
        texts = 5 * F.normalize(torch.randn(32, 32), dim=-1)
        frames, steps = texts[:, None].expand(-1, 2, -1), torch.randint(50, (32,))
        x = schedule.noised(torch.eye(32), torch.randn(32, 32), steps)
        out = judged(denoiser, texts, frames, frame_shares(texts, frames), x, steps, nobody)
        loss = F.cross_entropy(100 * out, own)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert np.mean(losses[190:]) < 0.3 < np.mean(losses[:3])
