"""Training and evaluation on the real clips that are at hand, with the missing ones listed."""

import json

import pytest
from typer.testing import CliRunner

from calmctl.cli.main import app

SMALL = ["backbone.model=demo-clip", "backbone.weights=null", "data.frames=4", "head.kind=xpool", "device=cpu"]


@pytest.mark.real
def test_train_and_evaluate_on_real_clips(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = [
        f"data.root={real_data}",
        "data.cache=memory",
        "data.augment=none",
        "optim.epochs=1",
        "optim.batch_size=128",
    ]
    trained = CliRunner().invoke(app, ["train", "msvd", *SMALL, *keys, "--json"])
    assert trained.exit_code == 0, trained.output
    record = json.loads(trained.stdout)
    assert {name: len(clips) for name, clips in record["left_out"].items()} == {"train": 1184, "val": 98, "test": 665}
    test = record["test"][0]
    assert (test["n_clips"], test["n_captions"], test["left_out"]) == (5, 207, 665)
    assert any("665 of 670 clips left out" in caveat for caveat in test["caveats"])
    cross = CliRunner().invoke(app, ["eval", "--cross", "msrvtt:full", "--json"])
    assert cross.exit_code == 0, cross.output
    result = json.loads(cross.stdout)["results"][0]
    assert (result["dataset"], result["protocol"], result["n_clips"], result["n_captions"]) == ("msrvtt", "full", 2, 40)
    strict = CliRunner().invoke(app, ["eval", "--require-complete"])
    assert "665 clips" in str(strict.exception)


@pytest.mark.real
def test_extract_real_clips_then_train_on_the_features(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from calmctl.model.weights import load_backbone
    from calmctl.tensors import save_tensors

    backbone = load_backbone("demo-clip", None)
    save_tensors(tmp_path / "clip.safetensors", backbone.clip.state_dict(), {})
    what = ["msvd", "--root", str(real_data), "--frames", "4", "--out", "store", "--json"]
    extracted = CliRunner().invoke(
        app, ["extract", *what, "--backbone", "demo-clip", "--backbone-weights", "clip.safetensors"]
    )
    assert extracted.exit_code == 0, extracted.output
    keys = ["backbone.weights=clip.safetensors", "data.features=store", "backbone.adapter=linear", "optim.epochs=1"]
    trained = CliRunner().invoke(app, ["train", "msvd", *SMALL[:1], *SMALL[2:], *keys, "--json"])
    assert trained.exit_code == 0, trained.output
    record = json.loads(trained.stdout)
    assert (record["test"][0]["n_clips"], record["test"][0]["left_out"]) == (5, 665)
    # The same weights on the videos themselves give the same numbers as on the store.
    from_store = json.loads(CliRunner().invoke(app, ["eval", "--json"]).stdout)
    assert from_store["results"][0]["metrics"] == record["test"][0]["metrics"]
