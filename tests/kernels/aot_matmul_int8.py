"""Launches of matmul_int8 to compile: the row quantiser, and every tile of both matrix kernels."""

from todm.kernels.matmul_int8 import triton_impl as T
from todm.kernels.matmul_int8.quantise import FLOOR

X = {"x_ptr": "*bf16", "act_scale_ptr": "*fp32", "stride_xm": 1024, "stride_xk": 1}
LAYER = {"weight_ptr": "*i8", "weight_scale_ptr": "*fp32", "bias_ptr": "*bf16", "y_ptr": "*bf16"}
SIZES = dict.fromkeys(("M", "N", "K", "chunks", "rows", "padded"), 1024)
OTHERS = {"codes_ptr": "*i8", "scale_ptr": "*fp32", "FLOOR": FLOOR, "HAS_BIAS": True}


def cases():
    args = X | LAYER | SIZES | OTHERS
    for static in (False, True):
        options = args | {"STATIC": static, "BLOCK_M": 4, "BLOCK_K": 512}
        yield f"quantise static={static}", T.quantise_kernel, options, {"num_warps": 4}
    for name, kernel in (("gemm", T.gemm_kernel), ("fused", T.fused_kernel)):
        for config in kernel.configs:
            tile = " ".join(map(str, config.kwargs.values()))
            launch = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            yield f"{name} {tile}", kernel, args | {"STATIC": False} | config.kwargs, launch
