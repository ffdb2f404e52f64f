import subprocess
import sys
from pathlib import Path

import pytest

from calmctl.data.registry import BENCHMARKS, DATASETS, load_dataset
from calmctl.errors import DatasetError


def test_the_table_of_datasets() -> None:
    published = {"msrvtt", "msvd", "didemo", "lsmdc", "activitynet", "vatex", "youcook2", "charades-sta"}
    assert set(BENCHMARKS) == published and set(DATASETS) == published | {"demo", "demo-shifted", "folder"}
    for name, info in DATASETS.items():
        assert info.default_protocol in info.protocols and info.description
        if name in BENCHMARKS:
            for protocol in BENCHMARKS[name].protocols.values():
                assert set(protocol.published) == set(protocol.files) <= {"train", "val", "test"}
                assert protocol.val_clips == (0 if "val" in protocol.files else 500)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("msrvt", {}, "no dataset 'msrvt'; did you mean msrvtt"),
        ("kinetics", {}, "no dataset 'kinetics'; there are msrvtt, msvd"),
        ("msrvtt", {"protocol": "1k"}, "msrvtt has no protocol '1k'; it has 9k, 7k and full"),
        ("msvd", {"protocol": "9k"}, "msvd has no protocol '9k'; it has only one"),
        ("demo", {"val_clips": 5}, "demo is read from --root alone"),
        ("demo", {}, "demo"),
        ("demo-shifted", {}, "demo"),
    ],
)
def test_what_cannot_be_loaded(tmp_path: Path, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, tmp_path, **options)  # type: ignore[arg-type]


def test_demo_protocols_are_those_of_the_demo() -> None:
    from calmctl.data.demo import PROTOCOLS

    assert DATASETS["demo"].protocols == DATASETS["demo-shifted"].protocols == PROTOCOLS


def test_importing_the_registry_is_cheap() -> None:
    heavy = (
        "import sys, calmctl.data.registry; print([m for m in ('torch', 'av', 'decord', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"
