import re
from pathlib import Path

import pytest

from calmctl.errors import RecipeError
from calmctl.recipe import list_recipes, load_recipe, recipe_from_dict, resolve_recipe
from calmctl.recipe.load import describe_keys, recipe_keys

MINIMAL = {"name": "x", "data": {"dataset": "demo"}}


def test_every_shipped_recipe_loads_and_opens_with_what_it_does():
    recipes = list_recipes()
    assert {"demo", "demo-caption", "msrvtt", "msrvtt-7k", "didemo", "lsmdc", "msvd", "folder"} <= {
        path.stem for path in recipes
    }
    for path in recipes:
        assert load_recipe(path).name == path.stem
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ") and any(line.startswith("# Run:") for line in lines), path


def test_paper_settings_are_the_defaults():
    recipe = recipe_from_dict(MINIMAL)
    assert (recipe.optim.batch_size, recipe.optim.epochs, recipe.alignment.kl_weight) == (128, 5, 0.1)
    assert (recipe.alignment.latent, recipe.data.frames, recipe.anchors.vocabulary) == (256, 12, "charades@1")
    assert recipe.backbone.model == "ViT-B-32-quickgelu" and recipe.backbone.weights == "openai"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["optim.epoch=3"], ["unknown key optim.epoch", "did you mean optim.epochs?"]),
        (["hed.kind=xpool"], ["unknown key hed", "head"]),
        (["epochs=3"], ["unknown key epochs", "optim.epochs"]),
        (["optim.epochs=true"], ["optim.epochs = True", "integer"]),
        (["optim.epochs=0"], ["optim.epochs = 0", "greater than 0"]),
        (["optim.epochs=2.5"], ["optim.epochs = 2.5"]),
        (["head.kind=x-pool"], ["head.kind = 'x-pool'", "'xpool'"]),
        (["anchors.temperature=hot"], ["anchors.temperature = 'hot'", "'clip'"]),
        (["name=../evil"], ["name"]),
        (["data=3"], ["data = 3"]),
        (["nonsense"], ["key=value"]),
        (["name.x=3"], ["name is a value"]),
        (["optim.lr_head=.nan"], ["optim.lr_head = nan", "finite"]),
        (["backbone.freeze=true"], ["could change nothing", "backbone.adapter=linear"]),
        (["data.features=store"], ["could change nothing"]),
        (["data.cache=memory"], ["data.augment=none", "data.cache=disk"]),
        (["data.cache=disk", "task=caption", "caption.system=cocap"], ["keeps frames", "data.cache=none"]),
    ],
)
def test_a_mistake_is_told_with_its_key_and_the_way_out(overrides, parts):
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(MINIMAL, where="mine.yaml", overrides=overrides)
    for part in parts:
        assert part.lower() in str(caught.value).lower()


def test_all_mistakes_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(MINIMAL | {"sed": 1, "optim": {"epochs": "five", "lr": 1e-3}}, where="mine.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith("mine.yaml: ") for line in lines)


def test_overrides_reach_nested_keys_and_leave_the_rest():
    recipe = recipe_from_dict(MINIMAL, overrides=["optim.lr_head=1e-4", "optim.betas=[0.9, 0.98]", "seed=7"])
    assert recipe.optim.lr_head == 1e-4 and recipe.optim.betas == (0.9, 0.98) and recipe.seed == 7
    assert recipe.optim.batch_size == 128


def test_a_resolved_recipe_loads_as_itself():
    recipe = recipe_from_dict(MINIMAL, overrides=["head.kind=xpool"])
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe


def test_every_key_is_described():
    keys = list(describe_keys())
    assert all(key.description for key in keys)
    assert {key.name for key in keys} < set(recipe_keys())


def test_names_and_paths_find_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_recipe("recipes/didemo.yaml").stem == "didemo"
    assert resolve_recipe("didemo").stem == "didemo"
    with pytest.raises(RecipeError, match=r"did you mean recipes/didemo\.yaml"):
        resolve_recipe("recipes/didmo.yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text("- a list\n")
    with pytest.raises(RecipeError, match="keys and values"):
        load_recipe(resolve_recipe("mine.yaml"))


def test_messages_and_files_are_bounded(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("".join(f"key{number}: 1\n" for number in range(5000)))
    with pytest.raises(RecipeError, match="and more; mend these first") as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 21
    path.write_text("name: [" + "1, " * 5000 + "]\n" + "k" * 900 + ": 1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert max(map(len, str(caught.value).splitlines())) < 1000
    path.write_text("#" * 300_000)
    with pytest.raises(RecipeError, match="larger than 256 KiB"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.epoch=3", "override 'optim.epoch=3': unknown key optim.epoch; did you mean optim.epochs?"),
        ("lr=3", "did you mean optim.lr_head or optim.lr_backbone or optim.lr_alignment?"),
        ("alpha=1", "did you mean alignment.kl_weight?"),
        ("alignment.alpha=1", "did you mean alignment.kl_weight?"),
        ("tau=10", "did you mean anchors.temperature?"),
        ("optim.epochs=x", "override 'optim.epochs=x': optim.epochs = 'x' should be a valid integer"),
    ],
)
def test_a_typo_in_an_override_is_blamed_on_the_override(override, sentence):
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(MINIMAL, where="mine.yaml", overrides=[override])
    assert sentence in str(caught.value) and "mine.yaml" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"mine\.yaml: unknown key hed"):  # and the file's fault on the file
        recipe_from_dict(MINIMAL | {"hed": {}}, where="mine.yaml", overrides=["optim.epochs=3"])


def test_keys_say_what_they_may_be():
    values = {key.name: key.values for key in describe_keys()}
    assert values["backbone.adapter"] == "none | linear" and values["data.flip"] == "true | false"
    assert values["optim.epochs"] == "whole number > 0" and values["optim.warmup"] == "number >= 0, < 1"
    assert values["anchors.temperature"] == "number >= 1e-12 | clip | learned | auto"
    assert values["optim.chunk"] == "whole number > 0 | null" and values["data.root"] == "text"
    assert "" not in values.values()


def test_keys_of_a_section_or_one_alone():
    assert {key.name.partition(".")[0] for key in describe_keys("optim")} == {"optim"}
    assert [key.name for key in describe_keys("head.kind")] == ["head.kind"]
    with pytest.raises(RecipeError, match=r"no key or section 'optm'; did you mean optim\?"):
        describe_keys("optm")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"optim": None}, "optim = None should hold keys and values"),
        ({"optim": {"betas": "0.9"}}, "optim.betas = '0.9' should be a list"),
        ({"optim": {"betas": [0.9, True]}}, "optim.betas = True should be a valid number"),
        ({"optim": {1: 2}}, "unknown key optim.1"),
        ({"name": "a\ud800"}, "name = 'a\\ud800' holds half a character"),
        ({"data": {"dataset": "demo", "root": "\udc80"}}, "data.root = '\\udc80' holds half a character"),
        ({"a\ud800": 1}, "'a\\ud800' holds half a character"),
        ({"name": b"x"}, "name = b'x' should be a valid string"),
    ],
)
def test_values_are_taken_as_they_stand(section, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        recipe_from_dict({**MINIMAL, **section})
    assert recipe_from_dict({**MINIMAL, "optim": {"betas": [0, 0.5]}}).optim.betas == (0, 0.5)
    assert recipe_from_dict({**MINIMAL, "optim": {"betas": (0, 0.5)}}).optim.betas == (0, 0.5)
