"""The vocabularies that ship: their counts, their digests, their sources, and how they are found."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from calmctl.anchors import shipped
from calmctl.anchors import shipped as checks
from calmctl.anchors import shipped as publish
from calmctl.anchors import shipped as sources
from calmctl.anchors.label_lists import build_vocabulary
from calmctl.anchors.shipped import (
    build_from_source,
    check,
    check_shipped,
    load_shipped,
    load_sources,
    publication_status,
    resolve_vocabulary,
    shipped_path,
    shipped_vocabularies,
)
from calmctl.anchors.vocabulary import load_vocabulary, save_vocabulary
from calmctl.errors import VocabularyError


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "publish_anchors", Path(__file__).parents[2] / "scripts/publish_anchors.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


publish_shipped = _script().publish_shipped
SHIPPED = {  # pinned: a published version never changes
    "shapes@1": (48, "sha256:7bd0e06a8b1bd232a43ce00dab550dc4eb59265d096481156469b554df7fdc60"),
    "charades@1": (157, "sha256:f2513f19d419178f2838693ad38dfdd3e489987ce27be91e834ba539aa6dd44b"),
    "charades+coco@1": (248, "sha256:03f7f153fbcbf8991839d3f522934cc7465968e2ccb4303f19a0f90fed0e52b4"),
    "coco@1": (91, "sha256:021f526cf1526fbfe1045d036eba9a3eb76b4b918721264c5dd9582197addfa3"),
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped folder that a test may break."""
    folder = tmp_path / "anchors"
    shutil.copytree(shipped_path("charades", 1).parent, folder)
    for module in (shipped, sources, checks):
        monkeypatch.setattr(module, "shipped_folder", lambda name: folder)
    return folder


def test_every_shipped_vocabulary_is_pinned_and_loads() -> None:
    found = [f"{name}@{version}" for name, versions in shipped_vocabularies().items() for version in versions]
    assert sorted(found) == sorted(SHIPPED)
    for reference, (count, digest) in SHIPPED.items():
        vocabulary = resolve_vocabulary(reference)
        assert (vocabulary.reference, len(vocabulary), vocabulary.digest) == (reference, count, digest)
        assert len(set(vocabulary.texts)) == count


def test_known_facts_of_the_lists() -> None:
    charades, coco, both = (resolve_vocabulary(name) for name in ("charades", "coco", "charades+coco"))
    first, third, last = (charades.labels[index] for index in (0, 2, 156))
    assert (first.id, first.text) == ("c000", "Holding some clothes")
    assert (third.id, third.text) == ("c002", "Taking some clothes from somewhere")
    assert (last.id, last.text) == ("c156", "Someone is eating something")
    assert charades.prompts[0] == "The content of Holding some clothes"
    assert [label.id for label in coco.labels] == [str(number) for number in range(1, 92)]
    assert {"street sign", "hair brush", "eye glasses"} < set(coco.texts)
    assert both.texts == charades.texts + coco.texts
    assert "258" in both.note and "248" in both.note
    assert "non-commercial" in charades.licence and "Sigurdsson" in charades.source
    assert coco.licence == "CC BY 4.0"


@pytest.mark.real
def test_shipped_labels_are_the_official_ones(real_data: Path) -> None:
    for name, file in (("charades", "Charades_v1_classes.txt"), ("coco", "coco_91.txt")):
        official = build_vocabulary(real_data / "anchors" / file).vocabulary
        assert resolve_vocabulary(name).labels == official.labels


def test_rebuilding_changes_nothing() -> None:
    before = {path: path.read_bytes() for path in shipped_path("charades", 1).parent.glob("*.yaml")}
    results = publish_shipped()
    assert {result.status for result in results} == {"unchanged"}
    assert {result.path for result in results} == set(before)
    assert {path: path.read_bytes() for path in before} == before
    assert [each.fault for each in check_shipped()] == [None] * len(before)


def test_rebuilding_restores_a_missing_file(copy: Path) -> None:
    original = (copy / "coco@1.yaml").read_bytes()
    (copy / "coco@1.yaml").unlink()
    faults = [each.fault for each in check_shipped() if each.fault]
    assert faults == ["coco@1 was not built from its source: see scripts/publish_anchors.py"]
    assert {r.built.vocabulary.reference for r in publish_shipped() if r.status == "new"} == {"coco@1"}
    assert (copy / "coco@1.yaml").read_bytes() == original


def test_rewording_a_source_keeps_the_digest_and_is_noticed(copy: Path) -> None:
    text = (copy / "sources" / "sources.yaml").read_text()
    (copy / "sources" / "sources.yaml").write_text(text.replace("The anchors of", "These are the anchors of"))
    assert [each.name for each in check_shipped() if each.fault] == ["charades@1"]
    assert [r.status for r in publish_shipped()].count("reworded") == 1
    assert load_shipped("charades", 1).digest == SHIPPED["charades@1"][1]
    assert not any(each.fault for each in check_shipped())


def test_a_changed_source_does_not_replace_a_published_version(copy: Path) -> None:
    labels = copy / "sources" / "coco.csv"
    labels.write_text(labels.read_text().replace("person", "human"))
    before = (copy / "coco@1.yaml").read_bytes()
    with pytest.raises(VocabularyError, match="a published version never changes"):
        publish_shipped()
    assert (copy / "coco@1.yaml").read_bytes() == before
    assert {each.name for each in check_shipped() if each.fault} == {"coco@1", "charades+coco@1"}


def test_a_hand_edited_file_is_found(copy: Path) -> None:
    path = copy / "coco@1.yaml"
    path.write_text(path.read_text().replace("person", "human"))
    (fault,) = [each for each in check_shipped() if each.fault]
    assert fault.name == "coco@1" and "changed by hand" in str(fault.fault)
    with pytest.raises(VocabularyError, match="delete it first"):
        publish_shipped()


def test_a_file_under_another_name_is_found(copy: Path) -> None:
    shutil.copy(copy / "coco@1.yaml", copy / "coco@2.yaml")
    shutil.copy(copy / "coco@1.yaml", copy / "mine.yaml")
    faults = {each.name: str(each.fault) for each in check_shipped() if each.fault}
    assert "calls itself coco@1" in faults["coco@2"]
    assert "is not named NAME@VERSION.yaml" in faults["mine.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("merge: [charades, coco]", "merge: [charades, cocos]", "'cocos' does not stand above it"),
        ("labels: coco.csv", "label: coco.csv", "coco.label: Extra inputs"),
        ("  labels: coco.csv\n", "", "needs either 'labels' or 'merge'"),
        ("labels: coco.csv", "labels: none.txt", "does not exist"),
        ("version: 1", "version: one", "charades.version: "),
    ],
)
def test_faulty_sources_are_named(copy: Path, old: str, new: str, said: str) -> None:
    path = copy / "sources" / "sources.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(VocabularyError) as caught:
        publish_shipped()
    assert said in str(caught.value)


def test_the_newest_version_is_meant_by_a_bare_name(copy: Path) -> None:
    second = load_shipped("coco", 1).model_copy(update={"version": 2, "prompt": "A {label}"})
    tenth = second.model_copy(update={"version": 10})
    save_vocabulary(second, copy / "coco@2.yaml")
    save_vocabulary(tenth, copy / "coco@10.yaml")
    assert shipped_vocabularies()["coco"] == [1, 2, 10]
    assert resolve_vocabulary("coco").version == 10
    assert resolve_vocabulary("coco@2").version == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("charade", "there is no vocabulary 'charade'; did you mean 'charades'?"),
        ("Charades", "did you mean 'charades'?"),
        ("charades+cocoa", "did you mean 'charades+coco'?"),
        ("charades@2", "there is no vocabulary 'charades@2'; there is charades@1"),
        ("charades@x", "did you mean 'charades'?"),
        ("charades@", "did you mean 'charades'?"),
        ("zzzz", "there is charades, charades+coco, coco, shapes"),
        ("", "there is no vocabulary ''"),
        ("none.txt", "label list: none.txt does not exist"),
        ("none.yaml", "vocabulary: none.yaml does not exist"),
        ("folder/none", "label list: folder/none does not exist"),
    ],
)
def test_what_is_not_found_is_told_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        resolve_vocabulary(name)
    assert said in str(caught.value)


def test_files_are_accepted_wherever_a_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets.txt").write_text("cat\ndog\n")
    Path("farm").write_text("cow\nhen\n")
    save_vocabulary(resolve_vocabulary("coco"), tmp_path / "mine.yaml")
    assert resolve_vocabulary("pets.txt").reference == "pets@1"
    assert resolve_vocabulary(Path("pets.txt")).texts == ("cat", "dog")
    assert resolve_vocabulary("farm").texts == ("cow", "hen")
    assert resolve_vocabulary("./mine.yaml").reference == "coco@1"
    assert check("pets.txt").n_labels == 2
    assert check("nothing").fault is not None
    Path("coco").write_text("not\nthis\n")
    assert len(resolve_vocabulary("coco")) == 91  # a shipped name means the shipped vocabulary


def test_publishing_never_replaces_other_contents(tmp_path: Path) -> None:
    coco = build_from_source("coco").vocabulary
    path = tmp_path / "v.yaml"
    assert publish.publish(coco, path) == "new"
    inode = path.stat().st_ino
    assert publish.publish(coco, path) == "unchanged"
    assert path.stat().st_ino == inode  # not written again
    assert publish.publish(coco.model_copy(update={"note": "x"}), path) == "reworded"
    assert load_vocabulary(path).note == "x"
    other = coco.model_copy(update={"name": "mine", "prompt": "A {label}"})
    with pytest.raises(VocabularyError, match=r"exists with other contents.*--version 2"):
        publish.publish(other, path)
    with pytest.raises(VocabularyError, match="coco@1 is a shipped vocabulary with other contents"):
        publish.publish(coco.model_copy(update={"prompt": "A {label}"}), tmp_path / "w.yaml")
    assert publication_status(other, tmp_path / "new.yaml") == "new"
    path.write_text("broken: [")
    with pytest.raises(VocabularyError, match="to write it anew, delete it first"):
        publish.publish(coco, path)


def test_unknown_sources() -> None:
    assert list(load_sources())[:3] == ["charades", "coco", "charades+coco"]
    with pytest.raises(VocabularyError, match="no built-in source 'x'"):
        build_from_source("x")
