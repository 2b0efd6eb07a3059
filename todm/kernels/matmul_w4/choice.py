"""Fused or dense: a table of measured times on a GPU, a number of rows elsewhere."""

from collections.abc import Callable, Mapping

from torch import Tensor

from todm.kernels._choice import Shape, fastest_algorithm
from todm.kernels.matmul_w4.problem import Problem

FEW_ROWS = 16
"""Up to here all the time goes into reading the weight, and the packed one is smaller."""
DENSE_ROWS = 512
"""`dense` starts here where nothing can be measured: in torch, and in Triton's interpreter."""

Algorithms = Mapping[str, Callable[[Problem], Tensor]]


def choose(problem: Problem, algorithms: Algorithms) -> str:
    """`fused` or `dense`: the caller's choice, else the faster; a new shape is measured."""
    p = problem
    rows = p.x_MK.shape[0]
    if p.algorithm != "measured":
        return p.algorithm
    if p.x_MK.device.type != "cuda":
        return by_rows(rows, cached=p.cache_dequantised)
    return "fused" if rows <= FEW_ROWS else measured(p, algorithms)


def by_rows(rows: int, *, cached: bool) -> str:
    """The choice without a measurement; with a cached copy a CPU gains nothing from the packed weight."""
    return "dense" if cached or rows >= DENSE_ROWS else "fused"


def measured(problem: Problem, algorithms: Algorithms) -> str:
    """The choice by the table of measured times."""
    return fastest_algorithm("matmul_w4", shape_of(problem), problem=problem, algorithms=algorithms)


def shape_of(problem: Problem) -> Shape:
    """The entry of the table: besides the sizes, everything that changes the work of either algorithm."""
    p, weight = problem, problem.weight
    entry = Shape.of(p.x_MK, p.x_MK.dtype, weight.shape)
    words = [
        f"w{weight.bits}",
        f"g{weight.group}",
        *(["zero"] if weight.zero_NG is not None else []),
        *(["pre_quant_scale"] if weight.pre_quant_scale_K is not None else []),
        *(["cached"] if p.cache_dequantised else []),
    ]
    return entry._replace(dtype=" ".join([entry.dtype, *words]))
