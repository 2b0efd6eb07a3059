"""Cases of matmul_int8: quantisation of activations is part of ours and of torchao's, not of `_int_mm`."""

import functools

import torch
from torch import Tensor

from todm.bench.kernels.case import Absent, Case, Op, Subject, peer
from todm.bench.kernels.linears import Layer, impls, linear_cases
from todm.kernels.matmul_int8 import matmul_int8, quantise_activation, quantise_weight

_AO_ALLOWED = 0.05
"""torchao rounds weights in its own way and is compared with the float product."""


def subjects(case: Case, device: str) -> list[Subject | Absent]:
    """Ours, the float product, the bare int8 product and torchao's layer."""
    layer = Layer.draw(case, device)
    codes_NK, scale_N = quantise_weight(layer.weight_NK)
    ours = [_ours(layer, codes_NK, scale_N, impl=impl) for impl in impls(device)]
    return [
        *ours,
        layer.dense(codes_NK.float() * scale_N[:, None]),
        _int_mm(layer, codes_NK),
        peer("torchao int8", "torchao", functools.partial(_torchao, layer)),
    ]


def _ours(layer: Layer, codes_NK: Tensor, scale_N: Tensor, *, impl: str) -> Subject:
    def oracle(rows: Tensor, outputs: Tensor) -> Tensor:
        weight = (codes_NK[outputs], scale_N[outputs])
        return matmul_int8(layer.x_MK[rows], *weight, out_dtype=torch.float32, impl="reference")

    run = functools.partial(matmul_int8, layer.x_MK, codes_NK, scale_N, impl=impl)
    stored = codes_NK.nbytes + scale_N.nbytes
    return layer.subject(impl, run, oracle, stored=stored, unit="int8", ours=True)


def _int_mm(layer: Layer, weight_NK: Tensor) -> Subject | Absent:
    codes_MK, _ = quantise_activation(layer.x_MK, impl="torch")
    if codes_MK.is_cuda and codes_MK.shape[0] <= 16:
        return Absent("torch._int_mm", "it takes more than 16 rows")
    codes = Layer(codes_MK, weight_NK)
    return codes.subject(
        "torch._int_mm",
        lambda: torch._int_mm(codes_MK, weight_NK.t()),
        codes.product(weight_NK),
        stored=weight_NK.nbytes,
        unit="int8",
        allowed=0.0,
    )


def _torchao(layer: Layer) -> Subject:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    N, K = layer.weight_NK.shape
    config = Int8DynamicActivationInt8WeightConfig()
    stored = N * K + 4 * N
    return layer.torchao("torchao int8", config, stored=stored, allowed=_AO_ALLOWED, unit="int8")


OP = Op(
    "matmul_int8", functools.partial(linear_cases, "matmul_int8"), subjects, baseline="F.linear"
)
