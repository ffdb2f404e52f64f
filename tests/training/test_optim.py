import json
import math
import subprocess

import pytest
import torch
import yaml

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.model.build import build_model
from calmctl.training.optim import AdamW, alignment_share, build_optimizer, clamp_logit_scale, group_of, schedule_factor
from calmctl.training.train import train


def test_schedule_rises_then_follows_half_a_cosine():
    total, warmup = 100, 0.1
    factors = [schedule_factor(step, total, warmup) for step in range(total)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert 0 < factors[-1] < 0.001
    assert schedule_factor(0, 1, 0.0) == 1.0


def test_the_alignment_weight_rises_from_nothing():
    assert [alignment_share(step, 20, 0.2) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert alignment_share(0, 20, 0.0) == alignment_share(19, 20, 0.0) == 1
    assert alignment_share(0, 1, 0.1) == 0 and alignment_share(1, 3, 0.01) == 1


def test_a_run_warms_its_alignment_up(tiny_recipe, tmp_path):
    """Two epochs of three steps: the loss of the log has none, half, then all of the alignment's."""
    recipe = tiny_recipe("alignment.warmup=0.34", "optim.epochs=2")
    lines = [json.loads(line) for line in train(recipe, tmp_path).run.log.read_text().splitlines()]
    shares = [(each["loss"] - each["task"]) / (each["rec"] + 0.1 * each["kl"]) for each in lines if "rec" in each]
    assert shares == pytest.approx([0, 0.5, 1, 1, 1, 1], abs=1e-5)


def test_every_module_of_the_alignment_has_its_rate(tiny_recipe):
    recipe = tiny_recipe("alignment.direction=both", "head.kind=wti", "head.layers=1")
    names = [name for name, _ in build_model(recipe, resolve_vocabulary("shapes@1")).named_parameters()]
    groups = {name.split(".")[0]: group_of(name) for name in names}
    assert groups == {
        "backbone": "backbone",
        "head": "head",
        "anchors": "alignment",
        "vae": "alignment",
        "reverse_vae": "alignment",
    }


def test_groups_rates_and_decay(tiny_recipe):
    recipe = tiny_recipe("optim.decay=matrices", "optim.lr_alignment=0.5", "anchors.temperature=learned")
    model = build_model(recipe, resolve_vocabulary("shapes@1"))
    optimizer = build_optimizer(model, recipe.optim)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group_of(name) == group["name"]
            decayed = parameter.dim() > 1 and name != "anchors.position"
            assert group["weight_decay"] == (0.2 if decayed else 0.0), name
    assert seen == set(names.values())
    assert {g["name"]: g["peak_lr"] for g in optimizer.param_groups} == {
        "backbone": 1e-3,
        "head": 1e-3,
        "alignment": 0.5,
    }
    assert group_of("log_temperature") == group_of("anchors.position") == "alignment"


def test_frozen_towers_are_not_in_the_optimizer(tiny_recipe):
    recipe = tiny_recipe("backbone.freeze=true", "backbone.adapter=linear")
    model = build_model(recipe, resolve_vocabulary("shapes@1"))
    optimizer = build_optimizer(model, recipe.optim)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    towers = [n for n, p in model.named_parameters() if n.startswith("backbone.") and id(p) in trained]
    assert towers == ["backbone.clip.logit_scale"]


def test_logit_scale_is_clamped(tiny_recipe):
    model = build_model(tiny_recipe(), resolve_vocabulary("shapes@1"))
    with torch.no_grad():
        model.backbone.logit_scale.fill_(9.0)
    clamp_logit_scale(model)
    assert model.backbone.logit_scale.item() == pytest.approx(math.log(100))


def test_the_optimiser_takes_the_steps_of_torchs():
    """With a break in the middle, a group without decay, and a gradient that is missing once."""
    starts = [torch.randn(3, 4, generator=torch.manual_seed(1)), torch.randn(5)]

    def steps(kind):
        parameters = [torch.nn.Parameter(start.clone()) for start in starts]
        groups = [{"params": [parameter], "weight_decay": n * 0.1} for n, parameter in enumerate(parameters)]
        optimizer = kind(groups, lr=0.1, fused=True)
        for step in range(6):
            optimizer.zero_grad(set_to_none=True)
            sum((p**4).sum() for p in parameters[step % 2 :]).backward()
            optimizer.step()
            if step == 2:
                state, optimizer = optimizer.state_dict(), kind(groups, lr=0.3, fused=True)
                optimizer.load_state_dict(state)
        return parameters, optimizer.state_dict()

    (ours, our_state), (theirs, their_state) = steps(AdamW), steps(torch.optim.AdamW)
    assert all(map(torch.equal, ours, theirs)) and not any(map(torch.equal, ours, starts))
    assert our_state["param_groups"] == their_state["param_groups"]
    for one, other in zip(our_state["state"].values(), their_state["state"].values(), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_training_does_not_load_the_compiler(tiny_recipe, tmp_path, warm_python):
    """Seconds of every start, and of every process of several."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe("optim.epochs=1").model_dump(mode="json")))
    code = (
        "import sys; from pathlib import Path; from calmctl.recipe import load_recipe\n"
        "from calmctl.training.train import train\n"
        "train(load_recipe(Path('tiny.yaml'), []), Path('runs'))\n"
        "assert 'torch' in sys.modules and not {'torch._dynamo', 'torch._inductor'} & set(sys.modules)\n"
    )
    done = subprocess.run([*warm_python(), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny-001" / "results.json").exists()
