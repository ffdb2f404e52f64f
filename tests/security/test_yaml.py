"""YAML that wants more than to be read: recipes and vocabularies come in as YAML from anywhere."""

import pytest

from calmctl.anchors.vocabulary import load_vocabulary
from calmctl.errors import RecipeError, VocabularyError
from calmctl.recipe import load_recipe

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)

DOCUMENTS = {
    "billion laughs": LAUGHS,
    "billion laughs in merges": "a: &a {k: 1}\nb: &b\n  <<: [*a, *a, *a]\nc:\n  <<: [*b, *b, *b]\n",
    "reference to itself": "a: &a [*a]\n",
    "anchor without use": "name: &x demo\n",
    "python call": "name: !!python/object/apply:os.system ['touch it-ran']\n",
    "python new": "name: !!python/object/new:subprocess.Popen [['touch', 'it-ran']]\n",
    "python name": "name: !!python/name:os.system\n",
    "python module": "name: !!python/module:os\n",
    "python tuple": "name: !!python/tuple [1, 2]\n",
    "own tag": "name: !evil x\n",
    "binary": "name: !!binary aGVsbG8=\n",
    "set": "name: !!set {a, b}\n",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/\n---\nname: !name:os.system\n",
    "nested flow": "a: " + "[" * 5000 + "]" * 5000,
    "nested maps": "a: " + "{a: " * 5000 + "1" + "}" * 5000,
    "nested blocks": "".join(" " * n + "a:\n" for n in range(500)),
    "nested dashes": "- " * 5000 + "x",
    "number of a million digits": "seed: " + "9" * 1_000_000,
    "number in hexadecimal of a million digits": "seed: 0x" + "f" * 1_000_000,
    "number without end": "seed: .inf\n",
    "no number": "seed: .nan\n",
    "exponent": "optim: {lr_head: 1e999999}\n",
    "key twice": "name: a\nname: b\n",
    "key twice below": "optim: {epochs: 1, epochs: 2}\n",
    "key is a list": "? [a, b]\n: 1\n",
    "key is a map": "? {a: b}\n: 1\n",
    "keys beyond number": "\n".join(f"k{n}: {n}" for n in range(5_000)),
    "too large": "name: " + "x" * (5 << 20),
    "two documents": "name: a\n---\nname: b\n",
    "control characters": "name: a\x00b\n",
    "escape sequence": "name: a\x1b[2Jb\n",
    "half a character": "name: \udcff\n",
    "name leads out": "name: ../../etc/x\n",
    "name is a path": "name: /etc/x\n",
    "name is a flag": "name: --help\n",
    "name starts a line": 'name: "x\\ny"\n',
    "attribute": "__class__: x\n",
    "only a number": "3\n",
    "only a list": "[1, 2]\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_recipes(tmp_path, monkeypatch, refused, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(DOCUMENTS[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as error:
        load_recipe(path, [])
    assert len(str(error.value)) < 5000 and not (tmp_path / "it-ran").exists()
    refused("YAML")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_vocabularies(tmp_path, monkeypatch, refused, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "anchors.yaml"
    path.write_bytes(DOCUMENTS[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(VocabularyError, match=r"anchors\.yaml") as error:
        load_vocabulary(path)
    assert len(str(error.value)) < 5000 and not (tmp_path / "it-ran").exists()
    refused("YAML")
