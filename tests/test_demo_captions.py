"""The demo's captioner on a tiny world: it starts from the demo's backbone and says so."""

import pytest
import torch
from rich.console import Console

from calmctl.cli.console import examples_table
from calmctl.demo import caption_demo
from calmctl.runs.checkpoint import load_captioner, load_run
from calmctl.runs.identity import weights_lineage
from calmctl.training.train import train


@pytest.mark.usefixtures("no_java")
def test_the_demo_captions_its_test_clips(tiny_world, tiny_recipe, tmp_path):
    backbone = train(tiny_recipe("optim.epochs=1", "alignment.kind=none"), tmp_path).run
    small = ["data.frames=2", "data.workers=1", "optim.epochs=1", "optim.batch_size=30", "caption.ffn=32"]
    run, evaluation = caption_demo(tiny_world, tmp_path, backbone, seed=3, overrides=small)
    assert run.folder.name == "demo-caption-001" and len(evaluation.captions) == 6
    assert evaluation.result.labels.system == "best on validation" and evaluation.result.labels.dataset == "demo"
    assert weights_lineage(str(run.weights("best"))) == ("demo retrieval", "demo captioning")
    theirs = load_run(backbone, "slim", torch.device("cpu")).backbone.state_dict()
    ours = load_captioner(run, "best", torch.device("cpu")).backbone.state_dict()
    assert [name for name in theirs if not torch.equal(theirs[name], ours[name])] == []
    console = Console(width=80)
    with console.capture() as shown:
        console.print(examples_table(evaluation, 2))
    first = next(iter(evaluation.captions))
    assert first.split("-")[0] in shown.get() and "true captions" in shown.get()
