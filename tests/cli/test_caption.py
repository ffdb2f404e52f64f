"""`calmctl caption`, and `calmctl eval` of a captioning run, as their user meets them."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from calmctl.cli.main import app
from calmctl.errors import CalmError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def workplace(captioner, monkeypatch) -> Path:
    """The folder whose only run is a captioner."""
    folder = captioner.run.folder.parent
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def told(caption_folder) -> dict[str, str]:
    """The sentence that was told of each training clip's file."""
    with (caption_folder / "captions.csv").open(encoding="utf-8") as file:
        return {
            str(caption_folder / row["video"]): row["caption"]
            for row in csv.DictReader(file)
            if row["split"] == "train"
        }


def test_videos_get_the_sentences_they_were_learned_with(workplace, told):
    videos = sorted(told)[:3]
    result = call("caption", *videos, "--runs", ".", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert {video: found["caption"] for video, found in record["captions"].items()} == {v: told[v] for v in videos}
    assert record["search"] == {"method": "beam", "beam": 5, "length_penalty": 1.0} and record["left_out"] == {}
    assert "newest run" in result.stderr
    table = call("caption", videos[0], "--runs", ".", "--beam", "1")
    assert told[videos[0]].split()[0] in table.stdout and max(map(len, table.stdout.splitlines())) <= 80


def test_broken_videos_are_told_and_the_rest_is_captioned(workplace, told, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    record = json.loads(call("caption", str(broken), min(told), "--runs", ".", "--json").stdout)
    assert list(record["captions"]) == [min(told)] and list(record["left_out"]) == [str(broken)]


def test_a_video_in_segments_with_subtitles(workplace, told, tmp_path):
    srt = tmp_path / "video.srt"
    result = call("caption", min(told), "--runs", ".", "--segment-s", "0.5", "--srt", str(srt), "--json")
    assert result.exit_code == 0, result.output
    (segments,) = json.loads(result.stdout)["segments"].values()
    assert len(segments) > 1 and segments[0]["start_s"] == 0 and segments[0]["end_s"] == 0.5
    blocks = srt.read_text(encoding="utf-8").strip().split("\n\n")
    assert [block.splitlines()[2] for block in blocks] == [segment["caption"] for segment in segments]
    assert blocks[0].splitlines()[1] == "00:00:00,000 --> 00:00:00,500"
    assert call("caption", min(told), "--runs", ".", "--segment-s", "1").exit_code == 0


def test_a_data_set_by_name(workplace, tiny_world):
    result = call("caption", "demo", "--root", str(tiny_world), "--runs", ".", "--temperature", "0.5", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert len(record["captions"]) == 6
    assert record["search"] == {"method": "sampling", "temperature": 0.5, "seed": 0}


@pytest.mark.usefixtures("no_java")
def test_eval_in_and_out_of_domain(workplace, captioner, tiny_world):
    own = call("eval", "--runs", ".")
    assert own.exit_code == 0, own.output
    for text in ("CIDEr", "n/a", "no Java in this test", "ptb-python", "beam 5", "one of its true captions"):
        assert text in own.stdout
    assert max(map(len, own.stdout.splitlines())) <= 80
    own_json = json.loads(call("eval", str(captioner.run.folder), "--weights", "best", "--json").stdout)
    trained = json.loads(captioner.run.results.read_text())["test"][0]
    assert own_json["results"][0]["scores"] == trained["scores"]
    crossed = call("eval", "--runs", ".", "--cross", "demo-shifted", "--root", str(tiny_world), "--json")
    (result,) = json.loads(crossed.stdout)["results"]
    assert (result["dataset"], result["protocol"], result["trained_on"]) == ("demo-shifted", "captioning", "folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "nowhere.mp4"], "is no file and no data set"),
        (["caption", "VIDEO", "--run", "nothing"], "no run at nothing"),
        (["caption", "VIDEO", "--runs", "empty"], "no trained captioning run"),
        (["caption", "VIDEO", "--weights", "worst"], "best, last, slim"),
        (["caption", "VIDEO", "--temperature", "1", "--beam", "2"], "one of the two"),
        (["caption", "VIDEO", "VIDEO"], "given twice"),
        (["caption", "demo", "--srt", "x.srt"], "is a data set of clips"),
        (["eval", "--scorer", "dual-softmax"], "is about retrieval"),
        (["eval", "--tokenizer", "wordpiece"], "ptb, ptb-python, none"),
        (["eval", "--cross", "demo:retrieval"], "data.protocol=captioning"),
        (["explain", "VIDEO", "a sentence", "--run", "told-001"], "scores no sentences"),
    ],
)
def test_mistakes_are_sentences(workplace, told, arguments, message):
    given = [min(told) if argument == "VIDEO" else argument for argument in arguments]
    runs = [] if "--runs" in given else ["--runs", "."]
    result = call(*given, *runs)
    assert isinstance(result.exception, CalmError), result.output
    assert message in str(result.exception)


def test_subtitles_that_cannot_be_written_are_refused_before_the_work(workplace, told, tmp_path):
    videos, folder = sorted(told)[:2], tmp_path / "subtitles"
    folder.mkdir()
    (folder / f"{Path(videos[1]).stem}.srt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place, message in ((folder, "is not subtitles that calmctl wrote"), (tmp_path / "file", "is no folder")):
        result = call("caption", *videos, "--runs", ".", "--srt", str(place))
        assert message in str(result.exception) and "loading" not in result.stderr
    assert [path.read_text() for path in (*folder.iterdir(), tmp_path / "file")] == ["mine", "mine"]


def test_a_link_to_nowhere_is_not_replaced(workplace, told, tmp_path):
    (tmp_path / "out.csv").symlink_to("nowhere.csv")
    result = call("caption", min(told), "--runs", ".", "--out", str(tmp_path / "out.csv"))
    assert "exists already" in str(result.exception) and (tmp_path / "out.csv").is_symlink()
