"""Cases of matmul_24: bfloat16 and int8 weights, dense and sparse products, torch's own sparse tensors."""

import functools
import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from todm.bench.kernels.case import Absent, Case, Op, Subject, peer
from todm.bench.kernels.linears import Layer, linear_cases
from todm.kernels.matmul_24 import Algorithm, Packed, matmul_24, pack, semi
from todm.kernels.matmul_int8 import quantise_weight

INT8 = " int8"
"""Suffix of subjects whose weight and activation are int8."""


def subjects(case: Case, device: str) -> list[Subject | Absent]:
    """Ours by every algorithm that the device supports, the dense float product, torch's sparse tensor."""
    layer = Layer.draw(case, device)
    weight_NK = _prune(layer.weight_NK)
    codes_NK, scale_N = quantise_weight(weight_NK)
    packed = {
        "": pack(weight_NK.to(layer.x_MK.dtype)),
        INT8: pack(codes_NK, scale_N=scale_N),
    }
    has_sparse = semi.library(torch.device(device)) is not None
    algorithms: list[Algorithm] = ["measured", "dense", "sparse"] if has_sparse else ["dense"]
    ours = [
        _ours(layer, weight, name=name + kind, algorithm=name)
        for kind, weight in packed.items()
        for name in algorithms
    ]
    weight_NK = weight_NK.to(layer.x_MK.dtype)
    build = functools.partial(_torch_sparse, layer, weight_NK)
    return [*ours, layer.dense(weight_NK), peer("torch.sparse", "torch", build)]


def _prune(weight_NK: Tensor) -> Tensor:
    """The two largest of every four inputs."""
    groups_NG4 = weight_NK.unflatten(1, (-1, 4))
    small = groups_NG4.abs().argsort(-1)[..., :2]
    return groups_NG4.scatter(-1, small, 0.0).flatten(1)


def _ours(layer: Layer, weight: Packed, *, name: str, algorithm: Algorithm) -> Subject:
    def oracle(rows: Tensor, outputs: Tensor) -> Tensor:
        scale_N = None if weight.scale_N is None else weight.scale_N[outputs]
        parts = (weight.values_NH[outputs], weight.codes_NC[outputs])
        few = Packed(*parts, weight.num_inputs, scale_N)
        return matmul_24(layer.x_MK[rows], few, impl="reference")

    run = functools.partial(matmul_24, layer.x_MK, weight, algorithm=algorithm)
    stored = weight.dense_NK.nbytes if algorithm == "dense" else weight.num_bytes
    unit = "" if weight.scale_N is None else "int8"
    return layer.subject(name, run, oracle, stored=stored, unit=unit, ours=True)


def _torch_sparse(layer: Layer, weight_NK: Tensor) -> Subject:
    """The semi-structured tensor as users call it, without our padding or choice."""
    with warnings.catch_warnings():  # a warning that it is a prototype
        warnings.simplefilter("ignore", UserWarning)
        sparse = torch.sparse.to_sparse_semi_structured(weight_NK)
    run = functools.partial(F.linear, layer.x_MK, sparse)
    return layer.subject(
        "torch.sparse", run, layer.product(weight_NK), stored=weight_NK.nbytes * 9 / 16
    )


OP = Op("matmul_24", functools.partial(linear_cases, "matmul_24"), subjects, baseline="F.linear")
