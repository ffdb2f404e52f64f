"""Every table is a list of rows whose recipes hold, beside the numbers that the paper prints."""

from dataclasses import replace
from pathlib import Path

import pytest

from calmctl.errors import BadInput, RecipeError
from calmctl.evaluation.paper import ALIGNMENT, ANCHORS
from calmctl.recipe import recipe_from_dict
from calmctl.reproduce.datasets import folder_world, look, needs
from calmctl.reproduce.rows import FIRST_SEED, PUBLISHED, Table, published_table
from calmctl.reproduce.stand_in import stand_in_table
from calmctl.reproduce.work import digest_of
from calmctl.source.base import SourceSpec

STAND_INS = ("table1", "table4", "table5", "table6", "table7", "ablations")


def every_table() -> list[Table]:
    return [*map(published_table, PUBLISHED), *(stand_in_table(name, Path("runs")) for name in STAND_INS)]


@pytest.mark.parametrize("table", every_table(), ids=lambda t: f"{t.name}{'-demo' if t.stand_in else ''}")
def test_rows_resolve_and_differ(table: Table) -> None:
    keys = [row.key for row in table.rows]
    assert len(keys) == len(set(keys)) and keys
    recipes = {}
    for row in table.rows:
        assert row.baseline in ("", *keys) and row.baseline != row.key
        assert row.first in ("", *keys[: keys.index(row.key)])  # which is trained before it
        assert len(row.label) <= 20 and row.tests
        recipe = row.resolved(1)
        assert recipe.seed == FIRST_SEED + 1
        assert recipe == recipe_from_dict(recipe.model_dump(mode="json"))  # its name is a name as well
        assert recipe.data.dataset == row.tests[0] or recipe.task == "caption"
        recipes[row.key] = digest_of(recipe), recipe.anchors.vocabulary  # anchors by their content, elsewhere
    assert len(set(recipes.values())) == len(keys), "two rows are the same run"


@pytest.mark.parametrize("table", [published_table("table1"), stand_in_table("table1", Path("runs"))])
def test_table_1_has_every_head_with_and_without_calm(table: Table) -> None:
    rows = {row.key: row for row in table.rows}
    own = () if table.stand_in else ("t-mass-0",)
    for head in ("meanp", "seqlstm", "seqtransf", "emcl", "wti", "uatvr", "xpool", "t-mass", *own):
        assert rows[f"{head}+calm"].baseline == head
        plain, calm = rows[head].resolved(0), rows[f"{head}+calm"].resolved(0)
        assert (plain.alignment.kind, calm.alignment.kind) == ("none", "vae")
        assert plain.head == calm.head and plain.optim == calm.optim and plain.data == calm.data
    for calm, kind in (("", "none"), ("+calm", "vae")):
        base, stage = rows[f"diffusionret-1{calm}"].resolved(0), rows[f"diffusionret{calm}"].resolved(0)
        assert rows[f"diffusionret{calm}"].first == f"diffusionret-1{calm}" == stage.head.from_run
        assert (base.head.kind, base.head.hidden, base.alignment.kind) == ("wti", 2, kind)
        assert (stage.head.base, stage.head.hidden, stage.head.base_alignment) == ("wti", 2, kind)
        assert stage.frozen and stage.alignment.kind == "none" and stage.data == base.data
        assert stage.optim == base.optim and stage.backbone == base.backbone
    assert rows["diffusionret"].baseline == "diffusionret-1" and rows["diffusionret+calm"].baseline == "diffusionret"
    if table.stand_in:
        return
    assert rows["diffusionret"].paper_on("msrvtt")["r1"] == 49.0 and not rows["diffusionret-1"].paper_on("msrvtt")
    assert rows["t-mass+calm"].paper_on("didemo") == {"r1": 41.2, "r5": 66.3, "r10": 76.3, "mnr": 16.1}
    assert rows["emcl"].paper_on("lsmdc")["r1"] == 15.2 and not rows["xpool"].paper_on("msrvtt")


def test_tables_6_and_7_stand_beside_the_papers_numbers() -> None:
    anchors = published_table("table6").rows
    assert [row.paper_on("msrvtt")["r1"] for row in anchors] == [row.r1 for row in ANCHORS]
    subset = next(row for row in anchors if row.key == "t-mass+calm-50")
    seeds = [subset.resolved(seed).anchors for seed in range(3)]
    assert [each.subset for each in seeds] == [50, 50, 50] and len({each.subset_seed for each in seeds}) == 3
    losses = {row.resolved(0).alignment.kind: row for row in published_table("table7").rows}
    for printed in ALIGNMENT:
        assert losses[printed.align].paper_on("didemo") == {"r1": printed.didemo_r1, "r5": printed.didemo_r5}


def test_tables_4_and_5_are_captioning() -> None:
    for name, tested_on in (("table4", "msrvtt"), ("table5", "msvd")):
        rows = published_table(name).rows
        assert {row.resolved(0).task for row in rows} == {"caption"}
        assert {row.tests for row in rows} == {(tested_on,)}
        assert {row.resolved(0).data.dataset for row in rows} == {"msrvtt", "msvd"}
    best = next(row for row in published_table("table5").rows if row.key == "msvd-calm")
    assert best.paper_on("msvd")["cider"] == 115.7


def test_tables_share_runs() -> None:
    """CALM and its baseline are in Tables 1, 6 and 7 and in the ablations, and are trained once."""
    for tables in (PUBLISHED, STAND_INS):
        digests = []
        for name in ("table1", "table6", "table7", "ablations"):
            table = published_table(name) if tables is PUBLISHED else stand_in_table(name, Path("runs"))
            digests.append({digest_of(row.resolved(0)) for row in table.rows if row.key in ("t-mass", "t-mass+calm")})
        assert all(each == digests[0] and len(each) == 2 for each in digests)


def test_mistakes_are_sentences() -> None:
    with pytest.raises(BadInput, match="table1, table2"):
        published_table("table8")
    with pytest.raises(BadInput, match="has no stand-in on the demo world"):
        stand_in_table("table2", Path("runs"))
    with pytest.raises(RecipeError, match=r"did you mean optim\.epochs"):
        published_table("table1").rows[0].resolved(0, ("optim.epoch=1",))


def test_tables_4_and_5_have_every_captioner_of_the_paper_but_one_and_say_why() -> None:
    for name in ("table4", "table5"):
        published, drawn = published_table(name), stand_in_table(name, Path("runs"))
        systems = {row.resolved(0).caption.system for row in published.rows}
        assert systems == {row.resolved(0).caption.system for row in drawn.rows} == {"transformer", "cocap", "semsynan"}
        for table in (published, drawn):
            assert set(table.left_out or {}) == {"TextKG"}
            # Every system has a row with CALM's loss, and a row differs by one thing from that it is held against.
            changed = []
            for row in table.rows:
                if row.baseline:
                    ours = row.resolved(0)
                    base = next(other for other in table.rows if other.key == row.baseline).resolved(0)
                    assert ours.caption == base.caption and ours.data == base.data
                    changed.append((ours.alignment.kind != base.alignment.kind, ours.backbone != base.backbone))
                    assert row.key.endswith(("+calm", "-calm")) == (ours.alignment.kind == "vae")
            assert set(changed) == ({(True, False), (False, True)} if table is published else {(True, False)})
            assert changed.count((True, False)) == (4 if table is drawn else 8)
    cocap = next(row for row in published_table("table4").rows if row.key == "msvd-cocap")
    assert cocap.paper_on("msrvtt")["cider"] == 29.1


@pytest.mark.parametrize("there", [True, False])
def test_semsynan_wants_its_tagger_before_anything_is_trained(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calmctl.reproduce.datasets.find_spec", lambda name: object() if there else None)
    table = published_table("table5")
    table = replace(table, rows=tuple(row for row in table.rows if row.key in ("msvd-semsynan", "msvd-calm")))
    world = folder_world(tmp_path, [table])
    recipes = {("table5", row.key, 0): world.recipe(row, 0) for row in table.rows}
    found = look(world, table, recipes)["textblob"]
    assert found.present == there and ("calmctl[syntax]" in found.says) != there
    assert "textblob" in needs(recipes["table5", "msvd-semsynan", 0])
    assert "textblob" not in needs(recipes["table5", "msvd-calm", 0])


def test_a_dataset_is_looked_for_once_however_many_rows_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def refuse(test: SourceSpec, *_: object, **__: object) -> None:
        opened.append(test.dataset)
        raise BadInput("nothing is there")

    monkeypatch.setattr("calmctl.reproduce.datasets.open_source", refuse)
    table = published_table("table1")
    world = folder_world(tmp_path, [table])
    recipes = {("table1", row.key, 0): world.recipe(row, 0) for row in table.rows}
    look(world, table, recipes)
    assert len(table.rows) > 3 and sorted(opened) == ["didemo", "lsmdc", "msrvtt"]


def test_cocap_wants_clips_that_were_reencoded(tiny_world: Path, tmp_path: Path) -> None:
    table = published_table("table5")
    table = replace(table, rows=tuple(row for row in table.rows if row.key in ("msvd-cocap", "msvd-calm")))
    world = folder_world(tmp_path, [table])
    recipes = {("table5", row.key, 0): world.recipe(row, 0) for row in table.rows}
    assert recipes["table5", "msvd-cocap", 0].data.videos == str(tmp_path / "reencoded")
    assert recipes["table5", "msvd-calm", 0].data.videos is None
    found = look(world, table, recipes)
    assert "calmctl data reencode" in found["msvd, re-encoded"].says
    assert "reencode" not in found["msvd"].says
    (test,) = world.tests_of(table.rows[0], recipes["table5", table.rows[0].key, 0])
    cross = replace(table.rows[-1], tests=("msrvtt",))
    world = replace(world, tests={"msrvtt": replace(test, dataset="msrvtt")})
    (elsewhere,) = world.tests_of(cross, recipes["table5", "msvd-cocap", 0])
    assert elsewhere.videos == tmp_path / "reencoded" and elsewhere.features is None
