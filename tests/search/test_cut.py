"""Hits as files of their own, by copying packets."""

import errno
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from calmctl.errors import BadInput, RunFailed, VideoError
from calmctl.search import cut as cutting
from calmctl.search.cut import cut, require_folder_for_cuts
from calmctl.search.results import Hit


def film(path: Path, seconds: int = 6, rate: int = 10, every: int = 10) -> None:
    """Frames that are as bright as they are late, with a key frame each second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.time_base, stream.gop_size = "yuv420p", Fraction(1, rate), every
        for number in range(seconds * rate):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def levels(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(frame.to_ndarray(format="rgb24").mean()) / 4 for frame in file.decode(video=0)]


def keys(path: Path) -> list[int]:
    """Numbers of the frames that can be decoded without others."""
    with av.open(str(path)) as file:
        return [number for number, frame in enumerate(file.decode(video=0)) if frame.key_frame]


def hit(path: Path | None, start_s: float, end_s: float | None) -> Hit:
    return Hit(1, 0.5, "film", path, start_s, end_s)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_cut_has_the_frames_of_its_moment(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    film(path)
    whole = levels(path)
    made = cut(hit(path, 2.0, 4.0), tmp_path / "cuts")
    assert made.name == f"film-2.0-4.0.{suffix}" and made.parent == tmp_path / "cuts"
    first = max(key for key in keys(path) if key <= 20)
    assert levels(made) == pytest.approx(whole[first:40], abs=0.01), "the same packets: nothing was encoded again"
    again = cut(hit(path, 2.0, 4.0), tmp_path / "cuts")
    assert again != made and levels(again) == levels(made), "nothing is replaced"
    last = max(key for key in keys(path) if key <= 50)
    assert levels(cut(hit(path, 5.0, None), tmp_path / "cuts")) == pytest.approx(whole[last:], abs=0.01)
    assert not list((tmp_path / "cuts").glob(".*")), "nothing half written stays"


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--videos"):
        cut(hit(None, 0.0, 1.0), tmp_path)
    broken = tmp_path / "a.mp4"
    broken.write_text("no video")
    with pytest.raises((BadInput, VideoError)):
        cut(hit(broken, 0.0, 1.0), tmp_path / "cuts")
    assert not list((tmp_path / "cuts").iterdir())
    with pytest.raises(BadInput, match="is a file"):
        require_folder_for_cuts(broken)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_no_fault_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    film(tmp_path / "film.mp4")
    monkeypatch.setattr(cutting, "_copy", lambda hit, path: av.error.err_check(-fault))
    with pytest.raises(RunFailed, match=r"cannot write .*film-2\.0-4\.0\.mp4: "):
        cut(hit(tmp_path / "film.mp4", 2.0, 4.0), tmp_path / "cuts")
    monkeypatch.setattr(cutting, "_copy", lambda hit, path: av.error.err_check(-errno.EINVAL))
    with pytest.raises(VideoError, match="does not allow a cut"):
        cut(hit(tmp_path / "film.mp4", 2.0, 4.0), tmp_path / "cuts")
