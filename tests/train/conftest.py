"""Programs beside the tests, which tests run in other processes and look into in this one."""

import importlib.util
from pathlib import Path

import pytest


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"tests_train_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake():
    """The module with a fake backend."""
    return _load("fake_backend")


@pytest.fixture(scope="session")
def two():
    """The module of what two processes do."""
    return _load("two_processes")
