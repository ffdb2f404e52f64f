"""Numbers of things in words."""

from calmctl.words import counted


def test_one_is_singular_and_thousands_are_parted() -> None:
    assert [counted(n, "clip") for n in (0, 1, 2, 27763)] == ["0 clips", "1 clip", "2 clips", "27,763 clips"]
