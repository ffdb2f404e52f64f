"""The device by name: what there is, and a sentence for what there is not."""

import pytest
import torch

from calmctl.device import choose_device
from calmctl.errors import RecipeError


def test_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


@pytest.mark.parametrize("name", ["cudda", "CPU", "", "cuda:99"])
def test_an_unknown_name_is_a_sentence(name: str) -> None:
    with pytest.raises(RecipeError, match=r"there is no .*; choose auto, cpu, cuda or mps"):
        choose_device(name)


def test_what_this_machine_has_not_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="cuda is not available on this machine"):
        choose_device("cuda")
