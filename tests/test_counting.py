"""Numbers of things in words, and who is told how far work is."""

from pathlib import Path

import pytest

from calmctl.words import SILENT, counted, watched


def test_one_is_singular_and_thousands_are_parted() -> None:
    assert [counted(n, "clip") for n in (0, 1, 2, 27763)] == ["0 clips", "1 clip", "2 clips", "27,763 clips"]


def test_progress_is_told_after_each_item() -> None:
    told: list[tuple[object, ...]] = []
    items = watched("ab", "reading letters", 2, lambda *step: told.append(step))
    assert told == [] and next(items) == "a" and told == [], "an item is done when the next one is asked for"
    assert list(items) == ["b"] and told == [("reading letters", 1, 2), ("reading letters", 2, 2)]
    assert list(watched("ab", "", 2, None)) == ["a", "b"]


def test_quick_items_are_told_ten_times_a_second_and_the_last_always(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([*(step / 32 for step in range(100) for _ in range(2))])  # read twice an item at most
    monkeypatch.setattr("calmctl.words.time.monotonic", lambda: next(now))
    told: list[int] = []
    assert len(list(watched(range(40), "clips", 40, lambda _, done, *rest: told.append(done)))) == 40
    assert told[0] == 1 and told[-1] == 40 and 5 < len(told) < 20 and told == sorted(set(told))


def test_a_watcher_says_nothing_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    SILENT.stage("drawing")
    SILENT.begin(tmp_path, 2)
    SILENT.reading("clips", 1, 2, 1)
    SILENT.step(1, 2, 0.5)
    SILENT.epoch(1, {})
    SILENT.warn("a collapse")
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []
