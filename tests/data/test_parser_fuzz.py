"""Whatever bytes an annotation file holds: a dataset or one of our errors, and no path outside."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from calmctl.data.registry import BENCHMARKS, load_dataset
from calmctl.errors import CalmError

CLIPS = ("a", "b", "video0")
_VIDEOS = [{"video_id": clip, "split": split} for clip, split in zip(CLIPS, ("train", "validate", "test"), strict=True)]
_SENTENCES = [{"video_id": clip, "caption": f"{clip} does, it"} for clip in CLIPS]
_MOMENTS = [{"video": f"{clip}.mp4", "description": "first, it"} for clip in CLIPS]
_LSMDC = "".join(f"{clip}\t0\t1\t0\t1\tSOMEONE does, it\n" for clip in CLIPS).encode()

# Well-formed files, by the end of their names.
WELL_FORMED = {
    "videodatainfo.json": json.dumps({"videos": _VIDEOS, "sentences": _SENTENCES}).encode(),
    "MSRVTT_data.json": json.dumps({"videos": _VIDEOS, "sentences": _SENTENCES}).encode(),
    "JSFUSION_test.csv": b"key,vid_key,video_id,sentence\n0,0,a,one\n1,1,b,two\n",
    "k.csv": b"video_id\na\nb\nvideo0\n",
    "captions_msvd.json": json.dumps({clip: ["one", "two"] for clip in CLIPS}).encode(),
    "_data.json": json.dumps(_MOMENTS).encode(),
    "_label.csv": b'video_path,text\n/x/a.mp4,"one\ntwo"\n/x/b.mp4,two\n',
    "_list.txt": b"a\nb",
    "captions.csv": b"video,caption,split\na,one,train\nb,two,train\nvideo0,three,test\n",
    "captions.json": json.dumps(_SENTENCES).encode(),
    "captions.jsonl": "\n".join(map(json.dumps, _SENTENCES)).encode(),
    "train.txt": b"a\nb\n",
    "test.txt": b"video0\n",
    "LSMDC16_annos_training.csv": _LSMDC,
    "LSMDC16_annos_val.csv": _LSMDC,
    "publictect.csv": _LSMDC,
    "publictest.csv": _LSMDC,
}
PIECES = [
    b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'"a"', b'"\\ud800"', b'"../a"', b"../a", b"/a", b"..", b"\n",
    b"\r", b"\t", b",", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", "\u2028é".encode(), b"a", b"video0",
    b"[" * 2000, b"9" * 5000,
]  # fmt: skip
CASES = [
    *((name, protocol) for name, benchmark in BENCHMARKS.items() for protocol in benchmark.protocols),
    ("folder", ""),
]


def file_names(name: str, protocol: str) -> list[str]:
    if name == "folder":
        return ["captions.csv", "captions.json", "captions.jsonl", "train.txt", "test.txt"]
    choices = BENCHMARKS[name].protocols[protocol].files.values()
    return sorted({file for split in choices for choice in split for file in choice})


@st.composite
def contents(draw: st.DrawFn, file: str) -> bytes | None:
    """Well-formed, with pieces put in or cut out, or anything; None for no such file."""
    kind = draw(st.sampled_from(["whole", "whole", "spliced", "spliced", "spliced", "any", "none"]))
    if kind == "none":
        return None
    if kind == "any":
        return draw(st.binary(max_size=100))
    content = next(base for ending, base in WELL_FORMED.items() if file.endswith(ending))
    for _ in range(draw(st.integers(1, 3)) if kind == "spliced" else 0):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 12))
        content = content[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=3)) + content[end:]
    return content


@pytest.mark.parametrize(("name", "protocol"), CASES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_bytes_give_a_dataset_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str, protocol: str
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    videos = root / "clips"
    videos.mkdir()
    for clip in CLIPS:
        (videos / f"{clip}.mp4").touch()
    files = file_names(name, protocol)
    if name == "folder":  # two captions files are an error, and no more is read
        files = [data.draw(st.sampled_from(files[:3])), *files[3:]]
    for file in files:
        content = data.draw(contents(file), label=file)
        if content is not None:
            (root / file).write_bytes(content)
    try:
        dataset = load_dataset(name, None, protocol=protocol, annotations=root, videos=videos)
    except CalmError as error:
        event("one of our errors")
        assert str(error).strip() and len(str(error)) < 2000
        return
    event("a dataset")
    for split in dataset.splits.values():
        assert len(split.captions) == len(split.owners)
        assert all(0 <= owner < len(split.clips) for owner in split.owners)
        assert len({clip.id for clip in split.clips}) == len(split.clips)
        assert all(Path(os.path.normpath(clip.path)).is_relative_to(videos) for clip in split.clips)
        json.dumps([split.captions, [left.id for left in split.left_out]], ensure_ascii=False).encode("utf-8")
