"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotation files and clips, where one is at hand."""
    folder = os.environ.get("CALMCTL_REAL_DATA")
    if not folder:
        pytest.skip("CALMCTL_REAL_DATA is not set: no real data to read")
    path = Path(folder)
    assert path.is_dir(), f"CALMCTL_REAL_DATA={folder} is not a folder"
    return path
