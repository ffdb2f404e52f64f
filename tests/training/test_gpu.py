"""What a GPU computes, beside what the CPU does, and how it trains: `make gpu` runs these where there is one."""

import argparse
import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from calmctl.evaluation.retrieval import score_all, score_tmass_released
from calmctl.model.backbone import PatchEmbedding
from calmctl.model.calm import Batch
from calmctl.model.heads.base import Reranker
from calmctl.runs.run import Run
from calmctl.tensors import load_tensors
from calmctl.training.loop import on_device
from calmctl.training.optim import build_optimizer
from calmctl.training.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # another machine has other libraries

HEADS = ("meanp", "seqlstm", "seqtransf", "xpool", "t-mass-support", "emcl-gaussian", "wti", "uatvr")
STEPS = [
    *(f"{head} {kind}" for head in (*HEADS, "t-mass", "emcl") for kind in ("none", "vae")),
    *(f"xpool {kind}" for kind in ("kl", "ce", "mse")),
    *("diffusionret wti", "diffusionret meanp", "mask", "both directions", "frames", "temperature", "adapter"),
    *("caption smoothed 3", "caption symmetric 3", "caption none", "caption both", "caption kl"),
    *("xpool in chunks", "wti in chunks", "caption in chunks"),
]


class DrawnOnHost(TorchFunctionMode):
    """Random numbers are the CPU's, on whatever device they are wanted."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.randn, torch.randint) and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def step_of(alike, name, device):
    """Losses and gradients of a case, on the CPU."""
    model = alike.build(alike.CASES[name].overrides)
    normalise = model.normalise
    # A GPU divides by 255 as it multiplies by one over it: float32 pixels may differ in their last bit.
    model.normalise = lambda frames: normalise(frames.cpu()).to(device)
    model.to(device)
    torch.manual_seed(3)
    with DrawnOnHost():
        losses = model(alike.batch_of(model, slice(None)).to(device))
        losses.total.backward()
    return {key: value.cpu() for key, value in alike.numbers_of(name, losses, model).items()}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_same_on_both(alike, cuda, name):
    """Losses, diagnostics and gradients in float64, which tells a mistake from rounding."""
    ours, theirs = step_of(alike, name, cuda), step_of(alike, name, torch.device("cpu"))
    assert ours.keys() == theirs.keys() and any("grad" in key for key in ours)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("head", [*HEADS, "t-mass", "diffusionret wti", "diffusionret meanp"])
def test_scores_are_the_same_on_both(alike, cuda, head):
    """In float64 to rounding; in float32 to 1e-6, or to what the CPU's own float32 is off."""
    model = alike.build(alike.HEADS.get(head) or alike.SECOND_STAGES[head]).eval()
    torch.manual_seed(4)
    dim = model.backbone.dim
    texts = torch.randn((300, 9, dim) if model.reads_words else (300, dim), dtype=torch.float64)
    frames = torch.randn(41, 2, dim, dtype=torch.float64)
    if model.reads_words:
        texts[:, 6:] = 0
        texts[::3, 4:] = 0

    def scored(device, dtype):
        head = deepcopy(model.head).to(device, dtype)
        scores = score_all(head, texts.to(dtype), frames.to(dtype), device=device)
        assert scores.device.type == "cpu" and scores.dtype == dtype
        found = [scores]
        if isinstance(head, Reranker):
            found += [head.rerank_videos(texts.to(dtype), frames.to(dtype), scores).cpu()]
        return [each.double() for each in found]

    cpu = torch.device("cpu")
    right, single = scored(cpu, torch.float64), scored(cpu, torch.float32)
    for exact, ours, theirs, on_cpu in zip(
        right, scored(cuda, torch.float64), scored(cuda, torch.float32), single, strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-10)
        assert (theirs - exact).abs().max() <= max(1e-6, 3 * float((on_cpu - exact).abs().max()))
        if isinstance(model.head, Reranker):
            return  # its float32 order may differ, and then so do its list-wise scores


def test_the_released_audit_is_the_same_on_both(alike, cuda):
    head = alike.build(alike.HEADS["t-mass"]).head.eval()
    torch.manual_seed(5)

    texts, frames = (torch.randn(30, *shape, head.pooling.dim, dtype=torch.float64) for shape in ((), (2,)))
    owners = torch.randperm(30)
    theirs = score_tmass_released(head, texts, frames, owners)
    ours = score_tmass_released(head.to(cuda), texts, frames, owners)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [*(f"{head} vae" for head in HEADS), "caption smoothed 3"])
def test_the_host_waits_nowhere_in_a_step(parity, cuda, name):
    """In its second step: constants are made in the first."""
    model = parity.build(parity.CASES[name].overrides).to(cuda)
    batch = parity.batch_of(model, slice(None)).to(cuda)
    from calmctl.recipe import recipe_from_dict

    optimizer = build_optimizer(model, recipe_from_dict({"name": "x", "data": {"dataset": "demo"}}).optim)
    try:
        for mode in ("default", "error"):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            total = model(batch).total
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_arrive_whole_and_in_order(cuda):
    made = [
        Batch(torch.full((3, 4), n), torch.full((3, 2, 64, 64, 3), n, dtype=torch.uint8), torch.full((3,), n))
        for n in range(20)
    ]
    for number, batch in enumerate(on_device([*made[:10], None, *made[10:]], cuda)):
        if number == 10:
            assert batch is None
            continue
        expected = made[number - (number > 10)]
        torch.ones(2048, 2048, device=cuda) @ torch.ones(2048, 2048, device=cuda)  # the stream has something to do
        for part in ("texts", "frames", "clips"):
            assert getattr(batch, part).is_cuda and torch.equal(getattr(batch, part).cpu(), getattr(expected, part))


def test_patches_are_a_matrix_product(alike, cuda):
    conv = deepcopy(alike.build([]).backbone.clip.visual.conv1).to(cuda)
    assert isinstance(conv, PatchEmbedding)
    pixels = torch.randn(5, 3, 16, 16, dtype=torch.float64, device=cuda)
    torch.testing.assert_close(conv(pixels), torch.nn.Conv2d.forward(conv, pixels), rtol=1e-10, atol=1e-12)


# Training.


@pytest.fixture(scope="module")
def train_step():
    """benchmarks/train_step.py, which keeps the step as it once was."""
    path = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("benchmark_train_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_step(alike, model, rows, cuda, *, bf16):
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        losses = model(alike.batch_of(model, rows).to(cuda))
    losses.total.backward()
    return losses.total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_compiled_step_is_the_same_and_compiles_twice(alike, cuda, train_step):
    """Beside the step as it once was: float32 to 1e-5 of its gradient; batches and sentences of other sizes."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    options = argparse.Namespace(
        model="demo-clip", frames=2, vocabulary="shapes@1", encode="gradient", chunk=None, device="cuda"
    )
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(train_step.build(options, "xpool", "kl").to(cuda))
    before, now = models
    before.head.pooling.dropout.p = now.head.pooling.dropout.p = 0.0
    train_step.as_before(before)
    now.backbone.compile_blocks()
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        for rows, more in ((6, ""), (5, " and then it turns red"), (3, ""), (4, " and so on it goes")):
            found = []
            for model in models:
                tokens = model.backbone.tokenize([sentence + more for sentence in alike.SENTENCES[:rows]])
                generator = torch.Generator().manual_seed(rows)
                frames = torch.randint(256, (rows, 2, 48, 48, 3), generator=generator, dtype=torch.uint8)
                model.zero_grad()
                losses = model(Batch(tokens, frames, torch.arange(rows)).to(cuda))
                losses.total.backward()
                gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
                found.append((losses.total.detach(), gradient))
            (loss, gradient), (ours, other) = found
            torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
            assert (other - gradient).norm() <= 1e-5 * gradient.norm()
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("compiles", [False, True])
def test_bf16_is_near(alike, cuda, compiles):
    from calmctl.model.backbone import split_preprocess

    found = []
    for bf16 in (False, True):
        model = alike.build(alike.HEADS["xpool"]).float().to(cuda)
        model.normalise = split_preprocess(model.backbone)[1]
        if compiles and bf16:
            model.backbone.compile_blocks()
        found.append(compiled_step(alike, model, slice(6), cuda, bf16=bf16))
    (loss, gradient), (ours, other) = found
    assert float((ours - loss).abs()) < 0.03 * float(loss)
    assert torch.nn.functional.cosine_similarity(other, gradient, dim=0) > 0.995


@pytest.mark.parametrize(
    "keys",
    [
        ["optim.compile=false"],
        ["optim.compile=true", "optim.precision=bf16"],
        ["optim.compile=false", "optim.precision=bf16", "optim.chunk=7", "head.kind=t-mass"],
    ],
    ids=["float32", "bf16 compiled", "bf16 in chunks"],
)
def test_a_killed_run_ends_as_the_unbroken_one(tiny_recipe, tmp_path, cuda, stop_at, killed, keys):
    """Bit for bit, and it learns."""
    recipe = tiny_recipe("device=cuda", "optim.save_every=2", *keys)
    whole = train(recipe, tmp_path / "whole").run
    with pytest.raises(killed):
        train(recipe, tmp_path / "killed", watcher=stop_at(5))
    run = Run(tmp_path / "killed" / "tiny-001")
    train(run.recipe_to_resume(), tmp_path / "killed", resume=run)
    ours, theirs = (load_tensors(each.weights("last"), what="test")[0] for each in (run, whole))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    losses = [line["loss"] for line in whole.read_log(100, 100) if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert [line.get("loss") for line in run.read_log(100, 100)] == [
        line.get("loss") for line in whole.read_log(100, 100)
    ]


def test_a_loss_that_is_not_finite_is_told_before_a_checkpoint(tiny_recipe, tmp_path, cuda, monkeypatch):
    from calmctl.errors import RunFailed
    from calmctl.model import calm

    genuine, calls = calm.task_loss, []

    def broken(*arguments, **keys):
        total, parts = genuine(*arguments, **keys)
        calls.append(1)
        return (total * float("nan") if len(calls) == 4 else total), parts

    monkeypatch.setattr(calm, "task_loss", broken)
    recipe = tiny_recipe("device=cuda", "optim.compile=false", "optim.save_every=2")
    with pytest.raises(RunFailed, match="the loss of step 4 is not finite"):
        train(recipe, tmp_path)
    run = Run(tmp_path / "tiny-001")
    assert load_tensors(run.state, what="test")[1]["step"] == 3  # the epoch's end; no step later
    last = run.read_log(100, 100)[-1]
    assert (last["step"], last["not_finite"]) == (4, "loss") and last["clips"]
