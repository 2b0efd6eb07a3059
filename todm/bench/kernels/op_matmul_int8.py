"""Cases of matmul_int8: quantisation of activations is part of ours and of torchao's, not of `_int_mm`."""

import functools

import torch
from torch import Tensor

from todm.bench.kernels.case import Absent, Case, Op, Subject, peer
from todm.bench.kernels.linears import Layer, impls, linear_cases
from todm.kernels.matmul_int8 import matmul_int8, quantise_activation, quantise_weight

_AO_ALLOWED = 0.05
"""torchao rounds weights its own way; it is held against the float product."""


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
    def run() -> Tensor:
        return matmul_int8(layer.x_MK, codes_NK, scale_N, impl=impl)

    def oracle(rows: Tensor, outputs: Tensor) -> Tensor:
        weight = (codes_NK[outputs], scale_N[outputs])
        return matmul_int8(layer.x_MK[rows], *weight, out_dtype=torch.float32, impl="reference")

    weight_bytes = codes_NK.nbytes + scale_N.nbytes
    return Subject(
        name=impl,
        run=run,
        check=lambda: layer.check(run, oracle),
        work=layer.work(weight_bytes, "int8", num_outputs=codes_NK.shape[0]),
        ours=True,
        graph=layer.graph,
    )


def _int_mm(layer: Layer, weight_NK: Tensor) -> Subject | Absent:
    codes_MK, _ = quantise_activation(layer.x_MK, impl="torch")
    if codes_MK.is_cuda and codes_MK.shape[0] <= 16:
        return Absent("torch._int_mm", "it takes more than 16 rows")

    def run() -> Tensor:
        return torch._int_mm(codes_MK, weight_NK.t())

    def oracle(rows: Tensor, outputs: Tensor) -> Tensor:
        return codes_MK[rows].double() @ weight_NK[outputs].double().t()

    codes = Layer(codes_MK, weight_NK)
    return Subject(
        name="torch._int_mm",
        run=run,
        check=lambda: layer.check(run, oracle, allowed=0.0),
        work=codes.work(weight_NK.nbytes, "int8", num_outputs=weight_NK.shape[0], out_bytes=4),
        graph=layer.graph,
    )


def _torchao(layer: Layer) -> Subject:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    N, K = layer.weight_NK.shape
    linear = torch.nn.Linear(K, N, bias=False, device=layer.x_MK.device, dtype=layer.x_MK.dtype)
    linear.weight.data.copy_(layer.weight_NK)
    quantize_(linear, Int8DynamicActivationInt8WeightConfig())
    linear.requires_grad_(False)  # noqa: FBT003
    return Subject(
        name="torchao int8",
        run=lambda: linear(layer.x_MK),
        check=lambda: layer.check_float(
            lambda: linear(layer.x_MK), layer.weight_NK, allowed=_AO_ALLOWED
        ),
        work=layer.work(N * K + 4 * N, "int8", num_outputs=N),
        graph=layer.graph,
    )


def _cases(device: str) -> list[Case]:
    return linear_cases("matmul_int8", device)


OP = Op("matmul_int8", _cases, subjects, baseline="F.linear")
