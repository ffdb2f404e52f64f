"""`calmctl score matrix`, `score embeddings` and `score ranks` as their user meets them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from calmctl.cli.main import app
from calmctl.errors import BadInput


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    videos = rng.normal(size=(40, 24)).astype(np.float32)
    texts = (np.repeat(videos, 2, axis=0) + 1.5 * rng.normal(size=(80, 24))).astype(np.float32)
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (texts, videos)]
    np.save("texts.npy", texts)
    np.save("videos.npy", videos)
    np.save("s.npy", units[0] @ units[1].T)
    Path("pairs.csv").write_text("text_id,video_id\n" + "".join(f"{t},{t // 2}\n" for t in range(80)))


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["score", *arguments])
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def read(*arguments: str) -> dict:
    return json.loads(call(*arguments, "--json").stdout)


def test_a_matrix_and_its_embeddings_give_the_same_numbers() -> None:
    shown = call("matrix", "s.npy", "--pairs", "pairs.csv").stdout
    assert "80 captions, 40 clips" in shown and "nDCG@10" in shown and "Nothing looks wrong" in shown
    assert "\ns.npy  80 captions" in shown  # its block has a name, too
    assert "!! given" in shown  # nobody knows what a file's scorer saw
    matrix, vectors = (
        read(*each, "--pairs", "pairs.csv") for each in (["matrix", "s.npy"], ["embeddings", "texts.npy", "videos.npy"])
    )
    assert matrix["metrics"] == vectors["metrics"] and matrix["further"] == vectors["further"]
    assert (matrix["scorer"], vectors["scorer"]) == ("given", "leak-free")


def test_a_fault_is_named_and_its_remedy_works() -> None:
    scores = np.load("s.npy")
    np.save("distances.npy", 1 - scores)
    np.save("transposed.npy", scores.T)
    np.save("shifted.npy", np.roll(scores, 1, axis=1))
    honest = read("matrix", "s.npy", "--pairs", "pairs.csv")["metrics"]
    found = read("matrix", "distances.npy", "--pairs", "pairs.csv")
    assert [each["kind"] for each in found["suspicions"]] == ["distances"]
    assert read("matrix", "distances.npy", "--pairs", "pairs.csv", "--distances")["metrics"] == honest
    with pytest.raises(BadInput, match=r"is transposed.*--transpose"):
        call("matrix", "transposed.npy", "--pairs", "pairs.csv")
    assert read("matrix", "transposed.npy", "--pairs", "pairs.csv", "--transpose")["metrics"] == honest
    shown = call("matrix", "shifted.npy", "--pairs", "pairs.csv").stdout
    assert "!! shifted: the columns are shifted by one to the right" in shown
    call("matrix", "shifted.npy", "--pairs", "pairs.csv", "--ranks", "shifted.json")
    again = CliRunner().invoke(app, ["score", "ranks", "shifted.json"])
    assert "Nothing looks wrong" not in again.stdout and "!! the columns are shifted by one" in again.stdout
    assert "was not looked at" in again.stderr


def test_a_leak_is_seen_beside_the_embeddings() -> None:
    scores = np.load("s.npy")
    scores[np.arange(80), np.arange(80) // 2] += 0.2
    np.save("leaky.npy", scores)
    beside = ["--text-embeddings", "texts.npy", "--video-embeddings", "videos.npy"]
    found = read("matrix", "leaky.npy", "--pairs", "pairs.csv", *beside)
    assert [each["kind"] for each in found["suspicions"]] == ["leak"]
    assert read("matrix", "s.npy", "--pairs", "pairs.csv", *beside)["suspicions"] == []


def test_ranks_are_kept_read_and_compared() -> None:
    for name in ("ranks.json", "ranks.csv"):
        first = read("matrix", "s.npy", "--pairs", "pairs.csv", "--ranks", name)
        again = read("ranks", name)
        assert again["metrics"] == first["metrics"] and again["further"] == first["further"]
    worse = np.load("s.npy") + np.random.default_rng(1).normal(size=(80, 40)).astype(np.float32) * 0.2
    np.save("worse.npy", worse)
    found = read("matrix", "s.npy", "--pairs", "pairs.csv", "--against", "worse.npy", "--against", "ranks.csv")
    compared, same = found["differences"]
    assert compared["text_to_video"]["r1"]["difference"] > 0 == same["text_to_video"]["mrr"]["difference"]
    vectors = call("embeddings", "texts.npy", "videos.npy", "--pairs", "pairs.csv", "--against", "ranks.json").stdout
    assert "minus ranks.json" in vectors and "paired over 40 clips" in vectors
    assert "minus ranks.csv" in call("ranks", "ranks.json", "--against", "ranks.csv").stdout


def test_ids_beside_the_file() -> None:
    order = np.random.default_rng(2).permutation(40)
    np.save("shuffled.npy", np.load("s.npy")[:, order])
    Path("videos.txt").write_text("\n".join(map(str, order)))
    honest = read("matrix", "s.npy", "--pairs", "pairs.csv")
    found = read("matrix", "shuffled.npy", "--pairs", "pairs.csv", "--video-ids", "videos.txt")
    assert found["metrics"] == honest["metrics"] and found["suspicions"] == []
    lost = read("matrix", "shuffled.npy", "--pairs", "pairs.csv")
    assert [each["kind"] for each in lost["suspicions"]] == ["chance"]


def test_a_data_set_says_what_is_missing() -> None:
    Path("data/msrvtt").mkdir(parents=True)
    rows = "".join(f"ret{n},msr{n},video{n},sentence {n}\n" for n in range(45))
    Path("data/msrvtt/MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\n" + rows)
    scores = np.load("s.npy")[::2]
    np.savez(
        "s.npz",
        scores=scores,
        text_ids=[f"sentence {n}" for n in range(40)],
        video_ids=[f"video{n}" for n in range(40)],
    )
    found = read("matrix", "s.npz", "--dataset", "msrvtt", "--root", "data")
    assert found["metrics"]["text_to_video"]["n_queries"] == 40
    assert (found["dataset"], found["protocol"]) == ("msrvtt", "9k")
    assert any("5 queries of 45" in each for each in found["caveats"])
    assert {each["kind"] for each in found["suspicions"]} == {"missing queries", "other candidates"}
    assert any("ranks 45 videos, and these scores 40 (5 are missing" in each for each in found["caveats"])
    shown = " ".join(call("matrix", "s.npz", "--dataset", "msrvtt", "--root", "data").output.split())
    for once in ("5 queries of 45", "ranks 45 videos, and these scores 40"):
        assert shown.count(once) == 1
    assert "Nothing looks wrong" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matrix", "s.npy"], "give --pairs FILE or --dataset NAME"),
        (["matrix", "none.npy", "--pairs", "pairs.csv"], "none.npy does not exist"),
        (["matrix", "s.npy", "--pairs", "pairs.csv", "--dataset", "msrvtt"], "give one of them"),
        (["matrix", "s.npy", "--pairs", "pairs.csv", "--text-embeddings", "texts.npy"], "belong together"),
        (["matrix", "s.npy", "--pairs", "pairs.csv", "--ranks", "ranks.txt"], "written as .json or .csv"),
        (["matrix", "s.npy", "--pairs", "pairs.csv", "--ranks", "pairs.csv"], "is not ranks that calmctl wrote"),
        (["embeddings", "texts.npy", "videos.npy", "--pairs", "pairs.csv", "--similarity", "l2"], "cosine, dot"),
        (
            ["embeddings", "texts.npy", "videos.npy", "--pairs", "pairs.csv", "--against", "s.npy"],
            "compared with ranks",
        ),
        (["matrix", "s.npy", "--dataset", "msrvt"], "did you mean msrvtt"),
        (["ranks", "none.json"], "none.json does not exist"),
    ],
    ids=" ".join,
)
def test_mistakes_are_sentences(arguments: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call(*arguments)


def test_the_page_shows_what_its_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/score.md: its script is run, and so are its commands, in order."""
    monkeypatch.setenv("COLUMNS", "78")
    page = (Path(__file__).parents[2] / "docs/score.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    blocks = re.findall(r"^    \$ calmctl score (.+)\n((?:(?:    .*)?\n)+)", page, re.MULTILINE)
    assert len(blocks) == 4
    for command, shown in blocks:
        printed = {line.strip() for line in call(*command.split()).output.splitlines()}
        assert {line.strip() for line in shown.splitlines()} <= printed, command
