import sys

import pytest

from calmctl.errors import BadInput
from calmctl.training.trackers import TensorBoardTracker


def test_tensorboard_gets_the_numbers_of_a_run(tiny_recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from calmctl.training.train import train

    trained = train(tiny_recipe("optim.epochs=1"), tmp_path, tensorboard=True)
    events = EventAccumulator(str(trained.run.folder / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("rec")] == [1, 2, 3]
    assert events.Scalars("val/t2v_r1")[0].value == pytest.approx(trained.validation[0]["t2v_r1"])


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadInput, match=r"pip install 'calmctl\[tensorboard\]'"):
        TensorBoardTracker(tmp_path)
