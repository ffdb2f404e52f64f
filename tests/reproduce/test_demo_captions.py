"""The demo's captioner on a tiny world: it starts from the CLIP that ships, which stays as it is."""

import pytest
import torch
from rich.console import Console

from calmctl.cli.results import examples_table
from calmctl.model.weights import load_backbone
from calmctl.reproduce.demo import caption_demo
from calmctl.runs.checkpoint import load_captioner
from calmctl.runs.identity import weights_lineage


@pytest.mark.usefixtures("no_java")
def test_the_demo_captions_its_test_clips(tiny_world, tmp_path):
    small = ["data.frames=2", "data.workers=1", "optim.epochs=1", "optim.batch_size=30", "caption.ffn=32"]
    run, evaluation = caption_demo(tiny_world, tmp_path, seed=3, overrides=small)
    assert run.folder.name == "demo-caption-001" and len(evaluation.captions) == 6
    assert evaluation.result.labels.system == "best on validation" and evaluation.result.labels.dataset == "demo"
    assert weights_lineage(str(run.weights("best"))) == ("demo captioning",)
    theirs = load_backbone("demo-clip", "drawn-2").state_dict()
    ours = load_captioner(run, "best", torch.device("cpu")).backbone.state_dict()
    assert [name for name in theirs if not torch.equal(theirs[name], ours[name])] == []
    console = Console(width=80)
    with console.capture() as shown:
        console.print(examples_table(evaluation, 2))
    first = next(iter(evaluation.captions))
    assert first.split("-")[0] in shown.get() and "true captions" in shown.get()
