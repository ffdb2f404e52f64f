import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.errors import VideoError
from calmctl.video.frames import displayed_frames, frame_times, instants_before

seconds = st.floats(0.01, 1e4)


def test_centres_of_equal_intervals() -> None:
    assert frame_times(12.0, 4).tolist() == [1.5, 4.5, 7.5, 10.5]
    assert frame_times(12.0, 12)[0] == 0.5
    assert frame_times(100.0, 2, 10.0, 30.0).tolist() == [15.0, 25.0]
    assert frame_times(20.0, 2, 10.0, 31.0).tolist() == [12.5, 17.5], "a window is clipped to the duration"
    assert frame_times(0.0, 3).tolist() == [0.0, 0.0, 0.0], "one frame without a length is still a frame"


@given(seconds, st.integers(1, 64), st.floats(0, 1), st.floats(0, 1))
def test_times_are_evenly_spread_inside_the_window(duration_s: float, n: int, a: float, b: float) -> None:
    start_s, end_s = sorted((a * duration_s, b * duration_s))
    if end_s - start_s < 1e-3:
        return
    times = frame_times(duration_s, n, start_s, end_s)
    assert times.shape == (n,) and times.dtype == np.float64
    assert (times > start_s).all() and (times < end_s).all()
    np.testing.assert_allclose(np.diff(times), (end_s - start_s) / n, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(times + times[::-1], start_s + end_s, rtol=1e-9)


@pytest.mark.parametrize(("start_s", "end_s"), [(40.0, None), (31.0, 40.0), (5.0, 2.0), (-1.0, None), (31.0, None)])
def test_a_window_with_nothing_in_it(start_s: float, end_s: float | None) -> None:
    with pytest.raises(VideoError, match=r"holds nothing of a clip of 31 s"):
        frame_times(31.0, 12, start_s, end_s)


def test_no_frames_asked_for() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        frame_times(1.0, 0)


@given(st.lists(st.integers(1, 1000), max_size=40), st.lists(st.floats(-1, 50), min_size=1, max_size=20))
def test_displayed_frames_by_brute_force(gaps_ms: list[int], times: list[float]) -> None:
    starts = np.cumsum([0, *gaps_ms]) / 1000
    times_s = np.sort(np.array(times))
    got = displayed_frames(starts, times_s)
    for t, index in zip(times_s, got, strict=True):
        shown = [i for i, start in enumerate(starts) if start <= t + 1e-6]
        assert index == (shown[-1] if shown else 0)
    # The reader that decodes in order counts the other way round, and must agree.
    for index, start in enumerate(starts):
        if index:
            assert instants_before(start, times_s) == int((got < index).sum())


def test_a_frame_that_starts_at_the_instant_is_the_one_shown() -> None:
    """24 frames at 12 a second, 12 instants: every centre falls on the start of an odd frame."""
    starts = np.arange(24) * 512 * (1 / 6144)  # as a container would tell it, with its rounding
    assert displayed_frames(starts, frame_times(2.0, 12)).tolist() == list(range(1, 24, 2))
