"""The tests of k2's backends under Python 3.9, the newest that k2's wheels on PyPI are built for.

Called by test_k2.sh. todm needs Python 3.11, these tests only a little of it, which is added here:
annotations stay unevaluated, and newer names and arguments of the standard library are understood.
"""

import __future__

import builtins
import dataclasses
import functools
import importlib.machinery
import sys
import typing
from typing import Any

import pytest
import typing_extensions

_zip: Any = zip
_dataclass: Any = dataclasses.dataclass


def _compile(loader: Any, data: Any, path: Any, **options: Any) -> Any:  # noqa: ANN401
    flags = __future__.annotations.compiler_flag
    return compile(data, path, "exec", flags=flags, dont_inherit=True)


_PATCHES = (
    (importlib.machinery.SourceFileLoader, "source_to_code", _compile),
    (typing, "Self", typing_extensions.Self),
    (builtins, "zip", lambda *rows, strict=False: _zip(*rows)),
    (
        dataclasses,
        "dataclass",
        functools.wraps(_dataclass)(lambda *a, kw_only=False, **k: _dataclass(*a, **k)),
    ),
)

if __name__ == "__main__":
    for owner, name, value in _PATCHES:
        setattr(owner, name, value)
    sys.exit(pytest.main(sys.argv[1:]))
