"""The Python API: what docs/api.md promises is what there is, it is light, and nothing shadows it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import todm

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "api.md"
PROMISED = re.findall(r"^### `([\w.]+)", DOCUMENT.read_text(), re.MULTILINE)


def _fresh(code: str) -> str:
    """What code prints in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_what_is_promised_is_what_is_exported():
    from todm import stages

    exported = [f"todm.{name}" for name in todm.__all__ if name != "stages"]
    exported += [f"stages.{name}" for name in stages.__all__]
    assert sorted(PROMISED) == sorted(exported)


def test_every_public_name_is_there_after_every_module_was_imported():
    pytest.importorskip("torch")
    code = """
import importlib, pkgutil
import todm
from todm.errors import TodmError
for module in pkgutil.walk_packages(todm.__path__, "todm."):
    try:
        importlib.import_module(module.name)
    except (ImportError, TodmError):
        pass  # an optional package
from todm import stages
print(*(type(getattr(todm, n)).__name__ for n in ("load",)))
print(*{type(getattr(stages, n)).__name__ for n in stages.__all__})
print(set(stages.__all__) <= set(dir(stages)), {"load", "stages"} <= set(dir(todm)))
"""
    assert _fresh(code).splitlines() == ["function", "function", "True True"]


def test_importing_is_quick_and_brings_neither_torch_nor_numpy():
    code = """
import time
start = time.perf_counter()
import todm
print(time.perf_counter() - start)
import sys
from todm import stages
print({"torch", "numpy", "rich"} & set(sys.modules))
stages.transcribe, todm.load
print("torch" in sys.modules)
"""
    found = [_fresh(code).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in found) < 0.05
    assert found[0][1:] == ["set()", "False"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    from todm import stages

    for module in (todm, stages):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018
