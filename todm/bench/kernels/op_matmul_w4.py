"""Cases of matmul_w4: groups of 128 with zero points, as in AWQ's checkpoints."""

import dataclasses
import functools

import torch
from torch import Tensor

from todm.bench.kernels.case import Absent, Case, Op, Subject, peer
from todm.bench.kernels.linears import Layer, Oracle, impls, linear_cases, once
from todm.kernels.matmul_w4 import Packed, matmul_w4, quantise_rtn

_AO_ALLOWED = 0.25
"""torchao quantises in its own way and is compared with the float product: 4 bits are that far off."""
_GATHER_ROWS = 256
"""The kernel for groups in any order has only tiles for few rows."""


def subjects(case: Case, device: str) -> list[Subject | Absent]:
    """Ours, which chooses its algorithm, ours with a cached copy, the float product, torchao."""
    layer = Layer.draw(case, device)
    weight = quantise_rtn(layer.weight_NK)
    first, *others = impls(device)
    orders = ("in order", "act order") if layer.x_MK.shape[0] <= _GATHER_ROWS else ()

    def reference(rows: Tensor, outputs: Tensor) -> Tensor:
        # The reference loops over the inputs, which is slower on a GPU.
        x, sampled = layer.x_MK[rows].float().cpu(), few(weight, outputs).to("cpu")
        return matmul_w4(x, sampled, impl="reference").to(layer.x_MK.device)

    oracle = once(reference)
    return [
        _ours(layer, weight, oracle, impl=first),
        _ours(layer, quantise_rtn(layer.weight_NK), oracle, impl=first, cached=True),
        *(_ours(layer, weight, oracle, impl=impl) for impl in others),
        layer.dense(weight.dequantise()),
        peer("torchao int4", "torchao", functools.partial(_torchao, layer)),
        *(peer(n, "triton", functools.partial(_gather, layer, weight, name=n)) for n in orders),
    ]


def _ours(
    layer: Layer, weight: Packed, oracle: Oracle, *, impl: str, cached: bool = False
) -> Subject:
    N, K = weight.shape
    stored = N * K * layer.x_MK.itemsize if cached else weight.num_bytes
    run = functools.partial(matmul_w4, layer.x_MK, weight, cache_dequantised=cached, impl=impl)
    name = f"{impl} cached" if cached else impl
    return layer.subject(name, run, oracle, stored=stored, ours=True)


def few(weight: Packed, outputs: Tensor) -> Packed:
    """Some outputs of a weight."""
    zero_NG = None if weight.zero_NG is None else weight.zero_NG[outputs]
    parts = {"words_NJ": weight.words_NJ[outputs], "scale_NG": weight.scale_NG[outputs]}
    return dataclasses.replace(weight, **parts, zero_NG=zero_NG)


def _torchao(layer: Layer) -> Subject:
    from torchao.quantization import Int4WeightOnlyConfig

    config = Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d")
    # Codes, and for each group of 128 a scale and a zero point of 16 bits.
    stored = layer.weight_NK.numel() * (0.5 + 4 / 128)
    return layer.torchao("torchao int4", config, stored=stored, allowed=_AO_ALLOWED)


def _gather(layer: Layer, weight: Packed, *, name: str) -> Subject:
    """The kernel for groups in any order; `in order` runs it without the index."""
    from todm.bench.kernels import triton_gather

    assert weight.zero_NG is not None
    if not layer.x_MK.is_cuda:
        raise RuntimeError("it is a Triton kernel, for GPUs")
    K, device = weight.num_inputs, layer.x_MK.device
    order_K = torch.arange(K, device=device)
    if name == "act order":  # by importance, which does not depend on position
        order_K = torch.randperm(K, generator=torch.Generator(device).manual_seed(1), device=device)
    group_K = (order_K // weight.group).int()
    scale_GN, zero_GN = weight.scale_NG.t().contiguous(), weight.zero_NG.t().contiguous()
    layout = (words(weight.codes_NK()), scale_GN, zero_GN)
    index = group_K if name == "act order" else None
    steps_KN = weight.codes_NK().t().float() - zero_GN[group_K.long()]
    weight_NK = (steps_KN * scale_GN[group_K.long()].float()).t()
    run = functools.partial(triton_gather.product, layer.x_MK, *layout, index)
    stored = weight.num_bytes + (0 if index is None else index.nbytes)
    return layer.subject(name, run, layer.product(weight_NK), stored=stored)


def words(codes_NK: Tensor) -> Tensor:
    """GPTQ's layout, int32 [K / 8, N]: eight inputs a word, the first lowest."""
    codes_J8N = codes_NK.t().unflatten(0, (-1, 8)).int()
    shifts_8 = 4 * torch.arange(8, dtype=torch.int32, device=codes_NK.device)
    return (codes_J8N << shifts_8[:, None]).sum(1, dtype=torch.int32)


OP = Op("matmul_w4", functools.partial(linear_cases, "matmul_w4"), subjects, baseline="F.linear")
