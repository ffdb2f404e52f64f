from pathlib import Path

import pytest

from calmctl.data.registry import load_dataset
from calmctl.errors import DatasetError

UNBREAKABLE = "1012_Unbreakable_00.05.16.065-00.05.21.941"
CLIPS = ["0001_American_Beauty_00.00.51.926-00.00.54.129", UNBREAKABLE, "3064_X_01.41.07.000-01.41.11.793"]


def line(clip_id: str, sentence: str) -> str:
    return "\t".join([clip_id, "00:00:51.926", "00:00:54.129", "00:00:51.926", "00:00:54.129", sentence])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations/lsmdc"
    folder.mkdir(parents=True)
    for clip_id in CLIPS:
        movie = tmp_path / "videos/lsmdc" / clip_id.split(".")[0][:-3]
        movie.mkdir(parents=True)
        (movie / f"{clip_id}.avi").touch()
    lines = [
        line(CLIPS[0], 'SOMEONE says, "Hello.'),
        line('"' + UNBREAKABLE, "She looks \u2028 up."),
        line(CLIPS[2], "One."),
        line(CLIPS[0], "The same clip again."),
        line("0002_Y_00.00.01.000-00.00.02.000", "Missing."),
    ]
    (folder / "LSMDC16_annos_training.csv").write_text("\n".join(lines) + "\n")
    (folder / "LSMDC16_annos_val.csv").write_text("\r\n".join(lines[:1]))
    (folder / "LSMDC16_challenge_1000_publictect.csv").write_text(lines[2])
    return tmp_path


def test_every_line_is_a_pair(root: Path) -> None:
    dataset = load_dataset("lsmdc", root)
    train = dataset.splits["train"]
    assert [clip.id for clip in train.clips] == CLIPS
    assert train.clips[0].path == root / f"videos/lsmdc/0001_American_Beauty/{CLIPS[0]}.avi"
    assert train.captions == ('SOMEONE says, "Hello.', "She looks \u2028 up.", "One.", "The same clip again.")
    assert train.owners == (0, 1, 2, 0)
    assert [left.id for left in train.left_out] == ["0002_Y_00.00.01.000-00.00.02.000"]
    assert dataset.splits["val"].captions == ('SOMEONE says, "Hello.',)
    assert dataset.splits["test"].captions == ("One.",)
    assert f"train: kept {UNBREAKABLE}, which comparable code drops" in dataset.notes
    assert "train: 5 captions in the annotation files, 101,079 published" in dataset.notes
    assert not any("clips in the annotation files" in note for note in dataset.notes), "no count of clips is published"


def test_the_other_spelling_of_the_test_list(root: Path) -> None:
    folder = root / "annotations/lsmdc"
    (folder / "LSMDC16_challenge_1000_publictect.csv").rename(folder / "LSMDC16_challenge_1000_publictest.csv")
    assert load_dataset("lsmdc", root).splits["test"].captions == ("One.",)


def test_a_line_with_too_few_fields(root: Path) -> None:
    path = root / "annotations/lsmdc/LSMDC16_annos_val.csv"
    path.write_text(line(CLIPS[0], "x") + "\nan,ordinary,csv,line\n")
    with pytest.raises(DatasetError, match=r"LSMDC16_annos_val\.csv:2: 1 tab-separated fields, expected 6"):
        load_dataset("lsmdc", root)


def test_without_its_files_the_user_is_told_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"LSMDC16_annos_training\.csv cannot be found .*Max Planck .*--annotations"):
        load_dataset("lsmdc", tmp_path)
