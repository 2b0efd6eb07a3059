"""Fused or dense: a table of measured times on a GPU, a number of rows elsewhere."""

from collections.abc import Callable, Mapping

from torch import Tensor

from todm.kernels._choice import Shape, fastest_way
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
    """The way by the table of measured times."""
    return fastest_way("matmul_w4", shape_of(problem), problem=problem, ways=ways)


def shape_of(problem: Problem) -> Shape:
    """The entry of the table: beside sizes, all that changes the work of either way."""
    p, weight = problem, problem.weight
    entry = Shape.of(p.x_MK, p.x_MK.dtype, weight.shape)
    words = [
        f"w{weight.bits}",
        f"g{weight.group}",
        *(["zero"] if weight.zero_NG is not None else []),
        *(["inv_s"] if weight.pre_quant_scale_K is not None else []),
        *(["cached"] if p.cache_dequantised else []),
    ]
    return entry._replace(dtype=" ".join([entry.dtype, *words]))
