"""The whole path on real clips: learn one sentence of each by heart through the command line, then say them."""

import csv
import json

import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app
from calmctl.data.registry import load_dataset

RECIPE = [
    "name=heart",
    "task=caption",
    "device=cpu",
    "data.dataset=folder",
    "data.frames=4",
    "data.cache=memory",
    "data.augment=none",
    "backbone.model=demo-clip",
    "backbone.weights=null",
    "anchors.temperature=100",
    "backbone.freeze=true",
    "backbone.adapter=linear",
    "anchors.vocabulary=shapes@1",
    "anchors.subset=5",
    "anchors.encode=frozen",
    "caption.width=64",
    "caption.heads=2",
    "caption.ffn=128",
    "caption.dropout=0",
    "caption.vocabulary=train",
    "optim.batch_size=32",
    "optim.epochs=16",
    "optim.lr_head=5e-3",
    "optim.weight_decay=0.01",
    "optim.decay=matrices",
]


@pytest.mark.real
@pytest.mark.usefixtures("no_java")
def test_real_clips_are_learned_by_heart(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told: dict[str, str] = {}
    rows = []
    for name, split in load_dataset("msvd", real_data).splits.items():
        for number, clip in enumerate(split.clips):
            own = [text for text, owner in zip(split.captions, split.owners, strict=True) if owner == number]
            if name == "train":
                told[str(clip.path)] = own[0]
            rows += [(clip.path.name, text, name) for text in ([own[0]] * 30 if name == "train" else own)]
    folder = next(iter(load_dataset("msvd", real_data).splits["train"].clips)).path.parent
    with open("captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "caption", "split"), *rows])
    recipe = [*RECIPE, f"data.root={folder}", f"data.annotations={tmp_path / 'captions.csv'}"]
    trained = CliRunner().invoke(app, ["train", "demo-caption", *recipe, "--json"])
    assert trained.exit_code == 0, trained.output
    said = CliRunner().invoke(app, ["caption", *told, "--weights", "last", "--json"])
    assert said.exit_code == 0, said.output
    captions = {video: found["caption"] for video, found in json.loads(said.stdout)["captions"].items()}
    assert captions == {video: text.lower() for video, text in told.items()}
