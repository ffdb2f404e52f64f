"""A folder's videos once more, as CoCap reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calmctl.data.folder import FolderClips
from calmctl.data.locate import Missing
from calmctl.errors import BadInput, VideoError
from calmctl.files import make_folder, write_bytes
from calmctl.video.compressed import Reencode
from calmctl.video.pool import TIMEOUT_S, run_isolated
from calmctl.words import Progress, watched


@dataclass(frozen=True, slots=True)
class Reencoded:
    """What became of a folder's videos.

    Attributes:
        made: Re-encoded now.
        kept: There before.
        left_out: Those that could not be, and places that could not be read, with reasons.
    """

    made: int
    kept: int
    left_out: dict[str, str]


def reencode_folder(
    root: Path,
    out: Path,
    *,
    side: int,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> Reencoded:
    """Re-encode every video below `root` into `out`, under its own name with .mp4; what is there is kept.

    Args:
        root: The folder.
        out: Another one, not in it; made if missing.
        side: Short side in pixels, even (`video.compressed.Reencode`).
        workers: Processes; None for one per core.
        timeout_s: Time limit for one video.
        progress: Told of the videos.

    Raises:
        BadInput: There is no video, `out` lies in `root`, or two videos would become one.
        RunFailed: `out` cannot be written.
    """
    if not root.is_dir():
        raise BadInput(f"{root} is no folder; name the one with the videos")
    if out.resolve().is_relative_to(root.resolve()):
        raise BadInput(f"{out} is in {root}, where a second call would re-encode it again; name a folder beside it")
    clips = FolderClips(root)
    files = {clip: clips.find(clip) for clip in clips.ids}
    left_out = {clip: file.reason for clip, file in files.items() if isinstance(file, Missing)}
    left_out |= {place.id: place.reason for place in clips.unread}
    targets: dict[Path, Path] = {}
    for path in (file for file in files.values() if isinstance(file, Path)):
        target = (out / path.relative_to(root)).with_suffix(".mp4")
        if target in targets:
            raise BadInput(f"{targets[target]} and {path} would both become {target}; move one of them elsewhere")
        targets[target] = path
    if not files:
        raise BadInput(f"{root}: {clips.no_video()}; name another folder")
    todo = {source: target for target, source in targets.items() if not target.exists()}
    make_folder(out)
    made = run_isolated(Reencode(side), todo, workers=workers, timeout_s=timeout_s)
    n_made = 0
    for path, content in watched(made, "re-encoding", len(todo), progress):
        if isinstance(content, VideoError):
            left_out[path.relative_to(root).as_posix()] = str(content)
            continue
        write_bytes(todo[path], content.tobytes())
        n_made += 1
    return Reencoded(n_made, len(targets) - len(todo), left_out)
