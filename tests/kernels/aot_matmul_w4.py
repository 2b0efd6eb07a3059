"""Launches of matmul_w4 to compile: the widest tiles, and every optional argument with and without."""

from triton import language as tl

from todm.bench.kernels import triton_gather
from todm.kernels.matmul_w4 import triton_impl
from todm.kernels.matmul_w4 import triton_kernels as T

POINTERS = {"words_ptr": "*i32", "scale_ptr": "*fp16", "zero_ptr": "*u8"}
POINTERS |= {"input_scale_ptr": "*fp32", "group_ptr": "*i32", "parts_ptr": "*fp32"}
SIZES = dict.fromkeys(("M", "N", "K", "chunks", "blocks", "per_split", "rows", "stride_xm"), 1024)
SIZES |= {"groups": "i32", "group": 128, "splits": 4, "exponent": "i32", "stride_xk": 1}
FLAGS = {"BITS": 4, "GROUP": 128, "HAS_ZERO": True, "HAS_INPUT_SCALE": False, "HAS_BIAS": True}
DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16}
W3_OF_32 = {"BITS": 3, "GROUP": 32}
W3_SCALED = {"BITS": 3, "HAS_INPUT_SCALE": True}
SYMMETRIC = {"GROUP": 64, "HAS_ZERO": False, "HAS_INPUT_SCALE": True}


def _case(kernel, dtype, config=None, **constants):
    args = POINTERS | SIZES | FLAGS | {"DOT": DTYPES[dtype], "PARTIAL": False}
    args |= {f"{t}_ptr": f"*{dtype}" for t in ("x", "y", "bias", "w")} | constants
    args["y_ptr"] = "*fp32" if args["PARTIAL"] else args["y_ptr"]
    name = f"{kernel.__name__} {dtype} {constants}"
    if config is None:
        return name, kernel, args, {}
    launch = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return f"{name} {config.kwargs}", kernel, args | config.kwargs, launch


def cases():
    row, tile = T.row_kernel, T.tile_kernel
    yield _case(row, "bf16", T.ROW_CONFIGS[4][1])
    yield _case(row, "bf16", T.ROW_CONFIGS[4][-1], GROUP=32, HAS_INPUT_SCALE=True)
    yield _case(row, "fp16", T.ROW_CONFIGS[3][-1], **W3_OF_32, PARTIAL=True)
    yield _case(tile, "bf16", T.FEW_CONFIGS[1], **W3_SCALED)
    yield _case(tile, "fp16", T.FEW_CONFIGS[3], GROUP=32, PARTIAL=True)
    yield _case(tile, "bf16", T.FEW_CONFIGS[4], **SYMMETRIC)
    yield _case(tile, "fp16", T.MANY_CONFIGS[1], **W3_OF_32)
    yield _case(tile, "fp16", T.MANY_CONFIGS[3], GROUP=0)
    yield _case(tile, "bf16", T.MANY_CONFIGS[4], **W3_SCALED)
    yield _case(tile, "bf16", T.MANY_CONFIGS[5])
    yield _case(T.dequantise_kernel, "bf16", BLOCK_N=triton_impl.ROWS, **W3_OF_32)
    yield _case(T.sum_kernel, "bf16", BLOCK=256)
    yield _case(triton_gather.gather_kernel.fn, "bf16", triton_gather.CONFIGS[1], IN_ORDER=False)
