"""Segments of a long video and their subtitles."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmctl.captions.generate import Caption, Segment, segment_bounds, srt, timestamp


@given(st.floats(0.01, 20_000), st.floats(0.1, 500))
def test_segments_cover_a_video_without_gaps(duration_s, segment_s):
    bounds = segment_bounds(duration_s, segment_s)
    assert bounds[0][0] == 0 and bounds[-1][1] == duration_s
    starts, ends = np.array(bounds).T  # up to 200,000 of them
    assert (ends[:-1] == starts[1:]).all()
    lengths = ends - starts
    assert (np.abs(lengths[:-1] - segment_s) <= 1e-6).all()
    assert 0 < lengths[-1] < 1.5 * segment_s + 1e-6


def test_a_short_remainder_joins_the_last_segment():
    assert segment_bounds(24, 10) == [(0, 10), (10, 24)]
    assert segment_bounds(25, 10) == [(0, 10), (10, 20), (20, 25)]
    assert segment_bounds(3, 10) == [(0, 3)]


def test_subtitles_are_what_players_read():
    text = srt([Segment(0, 10, Caption("a cat", -1, 3)), Segment(10, 3725.25, Caption("a dog", -2, 3))])
    assert text == "1\n00:00:00,000 --> 00:00:10,000\na cat\n\n2\n00:00:10,000 --> 01:02:05,250\na dog\n"


@given(st.floats(0, 300_000))
def test_timestamps_are_the_time_to_a_millisecond(time_s):
    match = re.fullmatch(r"(\d\d+):(\d\d):(\d\d),(\d{3})", timestamp(time_s))
    assert match is not None
    hours, minutes, seconds, ms = map(int, match.groups())
    assert minutes < 60 and seconds < 60
    assert hours * 3600 + minutes * 60 + seconds + ms / 1000 == pytest.approx(time_s, abs=6e-4)
