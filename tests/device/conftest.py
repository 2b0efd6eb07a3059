"""A small bundle of random weights, as `todm export` wrote it: what a device has, and no torch.

tests/export/test_bundle.py writes it anew, and holds it against today's export.
"""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden():
    """The bundle; not to be changed."""
    return Path(__file__).with_name("golden")


@pytest.fixture
def spoilable(golden, tmp_path):
    """A copy of the bundle."""
    return Path(shutil.copytree(golden, tmp_path / "bundle"))
