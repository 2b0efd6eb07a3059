"""One check for every op: outputs and gradients against the oracle, on memory filled with NaN.

Without a GPU, Triton's kernels run in its interpreter; with one, the same tests run them compiled.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where Triton's kernels run."""
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
IMPLS = ["torch", pytest.param("triton", marks=needs_triton)]
"""Implementations of a linear layer that are compared with the reference."""
# In the interpreter a loop bound that is a number in the kernel is an array with one element.
INTERPRETER = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(INTERPRETER))


@pytest.fixture
def device():
    """Where Triton's kernels run."""
    return DEVICE


def _poisoned(real):
    def empty(*args, **kwargs):
        out = real(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() and not out.requires_grad else out

    return empty


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Uninitialised memory reads as NaN, so that missing writes show."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


@pytest.fixture
def check_op():
    """`check(op, oracle, args, rtol=)` compares the op with its oracle in float64."""

    def check(op, oracle, args, *, rtol):
        args = [a.detach().requires_grad_(a.is_floating_point()) for a in args]
        wide = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in args]
        got, want = op(*args), oracle(*wide)
        cotangent = torch.randn_like(got)
        got.backward(cotangent)
        want.backward(cotangent.double())
        pairs = [("out", got, want)] + [
            (f"grad of argument {i}", a.grad, w.grad)
            for i, (a, w) in enumerate(zip(args, wide, strict=True))
            if w.is_floating_point()
        ]
        for name, a, w in pairs:
            err = (a.double() - w).norm() / w.norm().clamp_min(1e-12)
            assert err < rtol, f"{name}: relative error {err:.2e}, allowed {rtol:.0e}"

    return check
