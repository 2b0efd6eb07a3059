"""Fused or dense: a table of measured times on a GPU, a number of rows elsewhere.

The table is `matmul_24`'s, in a file of its own: `$XDG_CACHE_HOME/todm/matmul_w4.json` (`~/.cache`
where the variable is not set).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from todm.errors import ConfigError
from todm.kernels.matmul_24.choice import Shape, Table
from todm.kernels.matmul_w4.problem import Problem

FEW_ROWS = 16
"""Up to here reading the weight is all the time there is, and packed there is less to read."""
DENSE_ROWS = 512
"""Where the dense way begins if nothing can be measured: in torch, and in Triton's interpreter."""

Ways = Mapping[str, Callable[[Problem], Tensor]]


def choose(problem: Problem, ways: Ways) -> str:
    """`fused` or `dense`: what the call asks for, else the faster, measured if this shape was not yet."""
    p = problem
    rows = p.x_MK.shape[0]
    if p.way != "measured":
        return p.way
    if p.x_MK.device.type != "cuda":
        return by_rows(rows, cached=p.cache_dequantised)
    return "fused" if rows <= FEW_ROWS else measured(p, ways)


def by_rows(rows: int, *, cached: bool) -> str:
    """The way without a measurement; where there is a copy, a CPU gains nothing from the packed weight."""
    return "dense" if cached or rows >= DENSE_ROWS else "fused"


def measured(problem: Problem, ways: Ways) -> str:
    """The way by the table of this process."""
    entry = shape_of(problem)
    return table().choose(entry, functools.partial(_candidates, problem, entry.rows, ways))


def shape_of(problem: Problem) -> Shape:
    """The entry of the table: beside sizes, all that changes the work of either way."""
    p, weight = problem, problem.weight
    entry = Shape.of(p.x_MK, p.x_MK.dtype, weight.shape)
    words = [
        f"w{weight.bits}",
        f"g{weight.group}",
        *(["zero"] if weight.zero_NG is not None else []),
        *(["inv_s"] if weight.inv_s_K is not None else []),
        *(["cached"] if p.cache_dequantised else []),
    ]
    return entry._replace(dtype=" ".join([entry.dtype, *words]))


def _candidates(problem: Problem, rows: int, ways: Ways) -> dict[str, Callable[[], object]]:
    """Both ways, on random activations of as many rows as the entry of the table stands for."""
    if torch.cuda.is_current_stream_capturing():
        raise ConfigError(
            f"matmul_w4: {rows} rows of this layer are not measured yet, and cannot be while a CUDA "
            "graph is captured: call it once before, or give way='fused' or way='dense'"
        )
    x = problem.x_MK
    draw = torch.Generator(x.device).manual_seed(0)  # the caller's random state is left alone
    x_MK = torch.randn(rows, x.shape[1], generator=draw, device=x.device).to(x.dtype)
    probe = dataclasses.replace(problem, x_MK=x_MK)
    return {name: functools.partial(way, probe) for name, way in ways.items()}


@functools.cache
def table() -> Table:
    """The table of this process."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Table(Path(cache) / "todm" / "matmul_w4.json")
