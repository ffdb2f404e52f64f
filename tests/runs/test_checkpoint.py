import pytest
import torch

from calmctl.anchors.shipped import resolve_vocabulary
from calmctl.errors import CheckpointError
from calmctl.model.build import build_model
from calmctl.runs.checkpoint import Position, load_state, load_weights, random_state, save_state
from calmctl.tensors import load_tensors, save_tensors
from calmctl.training.optim import build_optimizer

RECORD = {"epoch": 1.0, "score": 50.0}
STANDS = Position(4, 1, RECORD, [RECORD], {"train": {"clip": "it is broken"}})


@pytest.fixture(scope="module")
def make(request):
    """Makes the same model and optimiser every time."""
    from calmctl.recipe import recipe_from_dict

    recipe = recipe_from_dict(request.getfixturevalue("tiny_recipe_values")(request.getfixturevalue("tiny_world")))

    def built(seed=0):
        torch.manual_seed(seed)
        model = build_model(recipe, resolve_vocabulary("shapes@1"))
        return model, build_optimizer(model, recipe.optim)

    return built


@pytest.fixture(scope="module")
def saved(make, tmp_path_factory):
    """A checkpoint after one step."""
    path = tmp_path_factory.mktemp("run") / "state.safetensors"
    model, optimizer = make()
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    save_state(path, model, optimizer, STANDS, [random_state()])
    return path


def test_everything_comes_back(make, saved, tmp_path):
    model, optimizer = make(seed=5)
    torch.rand(3)
    assert load_state(saved, model, optimizer) == STANDS
    again = tmp_path / "again.safetensors"
    save_state(again, model, optimizer, STANDS, [random_state()])  # weights, moments and random state: the same file
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_the_optimiser_goes_on_where_the_weights_are(make, saved):
    """Its counts of steps too: a fused optimiser on a GPU cannot read them elsewhere. "meta" stands for the GPU."""
    model, optimizer = make()
    model.to("meta")
    load_state(saved, model, optimizer)
    moments = [value for parameter in model.parameters() for value in optimizer.state[parameter].values()]
    assert len(moments) >= 3 and {value.device.type for value in moments} == {"meta"}


@pytest.mark.parametrize(
    "told",
    [
        {"step": -1},
        {"step": "many"},
        {"step": 1e99},
        {"step": None},
        {"epoch": 5},
        {"epoch": -1},
        {"epoch": 0},
        {"history": []},
        {"history": [{"score": "high"}]},
        {"history": 3},
        {"best": None},
        {"best": {}},
        {"best": [1]},
        {"left_out": {"train": "all"}},
        {"left_out": None},
    ],
    ids=str,
)
def test_a_checkpoint_that_stands_nowhere_is_refused(make, saved, tmp_path, told):
    tensors, metadata = load_tensors(saved, what="test")
    save_tensors(tmp_path / "s.safetensors", tensors, metadata | told)
    with pytest.raises(CheckpointError, match="does not say where its run stands"):
        load_state(tmp_path / "s.safetensors", *make())


def broken(name, value):
    def change(tensors):
        found = next(key for key in tensors if key.startswith(name))
        tensors[found] = value(tensors[found])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("random/0/cpu"), "no random state"),
        (broken("random/0/cpu", lambda t: t[:7].clone()), "no random state"),
        (broken("random/0/cpu", lambda t: t.float()), "no random state"),
        (broken("optimizer/", lambda t: torch.zeros(2, 2, 2)), "optimiser's state of .* has another shape"),
        (broken("model/head", lambda t: torch.zeros(3)), "does not fit the recipe: 1 weights"),
        (broken("model/head", lambda t: t.to(torch.float64)), "does not fit the recipe: 1 weights"),
        (broken("model/head", lambda t: t.long()), "does not fit the recipe: 1 weights"),
        (broken("model/head", lambda t: t * float("nan")), "not finite numbers in 1 weights"),
        (lambda tensors: tensors.update({"model/more": torch.zeros(1)}), r"1 weights .* \(first: more\)"),
        (lambda tensors: tensors.clear(), "weights are missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(make, saved, tmp_path, change, message):
    tensors, metadata = load_tensors(saved, what="test")
    change(tensors)
    save_tensors(tmp_path / "s.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=message):
        load_state(tmp_path / "s.safetensors", *make())


def test_one_flipped_bit_in_a_moment_is_noticed(make, saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256 in its header does not fit"):
        load_state(tmp_path / "s.safetensors", *make())


def test_weights_are_loaded_whole_or_not_at_all(make):
    model, _ = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    state.popitem()
    with pytest.raises(CheckpointError):
        load_weights(model, state, source="test")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
