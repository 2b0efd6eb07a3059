"""Launches of mh_ssm at the encoder's sizes (blocks of 64 frames, 16 modes), short ones, and 32 modes."""

from triton import language as tl

from todm.kernels.mh_ssm import triton_operators, triton_scan

SIZES = ("T", "R", "N", "width", "segments", "frames", "pad", "blocks", "chunk", "length")
STRIDES = tuple(f"{tensor}stride_{axis}" for tensor in ("", "u_", "y_") for axis in "htb")
FLAGS = {"STATE": True, "RESET": False, "FIRST": True, "SAVE": True, "LAST": True, "P": 32}
# Of u and y, of kept states, of all else; precision of the matmuls.
KINDS = {
    "bf16": ("bf16", "bf16", "fp32", "tf32"),
    "fp32": ("fp32", "fp32", "fp32", "tf32x3"),
}


def _case(kernel, kind, options, **constants):
    value, kept, wide, precision = KINDS[kind]
    args = {
        **dict.fromkeys((*SIZES, *STRIDES), 512),
        "N": 16,
        **FLAGS,
        "L": 64,
        "NP": 16,
        **constants,
    }
    args |= {"WIDE": tl.float32, "PRECISION": precision}
    special = dict.fromkeys(("u_ptr", "y_ptr", "dy_ptr"), value)
    special |= dict.fromkeys(("saved_ptr", "x_ptr", "dx_ptr"), kept)
    for parameter in kernel.arg_names:
        if parameter.endswith("_ptr"):
            args[parameter] = "*" + special.get(parameter, wide)
    name = " ".join(map(str, (kernel.fn.__name__, kind, options["num_warps"], constants)))
    return name, kernel, {k: args[k] for k in kernel.arg_names}, options


def _tuned(kernel, kind, **constants):
    for config in (kernel.configs[0], kernel.configs[-1]):  # the least and the most it may need
        launch = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        yield _case(kernel, kind, launch, **config.kwargs, **constants)


def cases():
    scan, gradient = triton_scan.scan_kernel, triton_scan.gradient_kernel
    back = {"TRANSPOSED": True, "LAST": False}
    yield from _tuned(scan, "fp32", TRANSPOSED=False)
    yield from _tuned(gradient, "fp32")
    narrow = scan.configs[0]
    launch = {"num_warps": narrow.num_warps, "num_stages": narrow.num_stages}
    no_state = {"STATE": False, "RESET": True, "FIRST": False, "SAVE": False, **back}
    yield _case(scan, "bf16", launch, **narrow.kwargs, **back)
    yield _case(gradient, "bf16", {"num_warps": 8, "num_stages": 2}, BR=32)
    yield _case(scan, "bf16", launch, **narrow.kwargs, **no_state)
    yield _case(scan, "fp32", launch, **narrow.kwargs, **back, L=16)
    yield _case(scan, "fp32", launch, **narrow.kwargs, **back, NP=32, L=32)
    yield _case(gradient, "fp32", {"num_warps": 8, "num_stages": 1}, BR=32, NP=32, L=32)
    yield _case(triton_scan.segment_kernel, "fp32", launch, **narrow.kwargs, **back)
    for kernel in (triton_operators.operator_kernel, triton_operators.parameter_kernel):
        yield _case(kernel, "fp32", {"num_warps": 4, "num_stages": 1})
