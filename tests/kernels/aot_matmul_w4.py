"""Launches of matmul_w4 to compile: every tile with 4 bits, the usual ones with all that is optional."""

from triton import language as tl

from todm.kernels.matmul_w4 import triton_gather, triton_impl
from todm.kernels.matmul_w4 import triton_kernels as T

POINTERS = {"words_ptr": "*i32", "scale_ptr": "*fp16", "zero_ptr": "*u8"}
POINTERS |= {"inv_ptr": "*fp32", "group_ptr": "*i32", "parts_ptr": "*fp32"}
SIZES = ("M", "N", "K", "blocks", "groups", "per_split", "rows", "splits", "stride_xm")
FLAGS = {"BITS": 4, "GROUP": 128, "HAS_ZERO": True, "HAS_INV": False, "HAS_BIAS": True}
DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16}
# Act-order groups lie anywhere; a scale of fp32 is what a search keeps.
VARIANTS = {
    "w3": {"BITS": 3},
    "w3 g32": {"BITS": 3, "GROUP": 32},
    "g32 inv_s": {"GROUP": 32, "HAS_INV": True},
    "g64 symmetric": {"GROUP": 64, "HAS_ZERO": False},
    "one group": {"GROUP": 0, "HAS_INV": True},
}


def _case(name, kernel, dtype="bf16", *, partial=False, launch=None, **constants):
    args = POINTERS | dict.fromkeys(SIZES, "i32") | {"stride_xk": 1} | FLAGS
    args |= {f"{t}_ptr": f"*{dtype}" for t in ("x", "y", "bias", "w")}
    args |= {"DOT": DTYPES[dtype], "PARTIAL": partial} | constants
    args |= {"y_ptr": "*fp32"} if partial else {}
    return f"{name} {dtype}", kernel, args, launch or {}


def _tuned(name, kernel, configs, dtype="bf16", **constants):
    for config in configs:
        tile = " ".join(map(str, config.kwargs.values()))
        launch = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        yield _case(f"{name} {tile}", kernel, dtype, launch=launch, **config.kwargs | constants)


def cases():
    row, tile = T.row_kernel.fn, T.tile_kernel
    yield from _tuned("row", row, T.ROW_CONFIGS)
    yield from _tuned("few", tile, T.FEW_CONFIGS, partial=True)
    yield from _tuned("many", tile, T.MANY_CONFIGS)
    for dtype in DTYPES:
        for name, variant in VARIANTS.items():
            yield from _tuned(f"row {name}", row, T.ROW_CONFIGS[2:3], dtype, **variant)
            yield from _tuned(f"few {name}", tile, T.FEW_CONFIGS[1:2], dtype, **variant)
            yield from _tuned(f"many {name}", tile, T.MANY_CONFIGS[-1:], dtype, **variant)
    for name, variant in {"w4": {}, **VARIANTS}.items():
        yield _case(f"dequantise {name}", T.dequantise_kernel, **variant, BLOCK_N=triton_impl.ROWS)
    yield _case("sum", T.sum_kernel, BLOCK=256)
    for ordered in (True, False):
        yield from _tuned(
            f"gather, in order={ordered}",
            triton_gather.gather_kernel.fn,
            triton_gather.CONFIGS,
            IN_ORDER=ordered,
        )
