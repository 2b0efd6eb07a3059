"""Launches of matmul_24 to compile: every tile in bfloat16, the widest in int8 and float32."""

from triton import language as tl

from todm.kernels.matmul_24 import triton_impl as T

POINTERS = {"codes_ptr": "*u8", "scale_m_ptr": "*fp32", "scale_n_ptr": "*fp32", "bias_ptr": "*fp32"}
SIZES = dict.fromkeys(("M", "N", "K", "groups", "bytes_of_codes", "rows"), 1024)
STRIDES = {"stride_xm": 1024, "stride_xk": 1}
TYPES = {"bf16": (tl.bfloat16, "*i32"), "i8": (tl.int8, "*i16"), "fp32": (tl.float32, "*i64")}


def cases():
    configs = T.packed_kernel.configs
    for name, chosen in (("bf16", configs), ("i8", configs[-1:]), ("fp32", configs[:1])):
        value, pair = TYPES[name]
        args = POINTERS | SIZES | STRIDES | {"x_ptr": f"*{name}", "pairs_ptr": pair}
        args |= {"y_ptr": "*bf16", "VALUE": value, "DOT": value, "HAS_BIAS": True}
        for config in chosen:
            tile = " ".join(map(str, config.kwargs.values()))
            launch = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            yield f"{name} {tile}", T.packed_kernel, args | config.kwargs, launch
