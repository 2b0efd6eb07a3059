"""Launches of a typical size: V = 500, J = 512, U = 80; see aot.py."""

from todm.kernels.rnnt_loss import Divergence, triton_joint, triton_lattice, triton_nodes

J, V = 512, 500
NUMBERS = {"num_rows": 9, "T": 9, "U1": 9, "B": 9, "J": J, "V": V, "width": 512, "stride": 512}
RUN = {"start": 9, "stop": 9, "first_frame": 9, "last_frame": 9}
INTEGERS = ("nodes", "labels", "rows", "enc_lens", "target_lens", "starts", "places")
KINDS = {"alpha": Divergence(), "collapsed": Divergence(kind="collapsed")}


def _case(name, kernel, constants, *, scores="fp32", **dtypes):
    """A launch; arguments that are not given are tensors of scores, indices or sizes."""
    options = {k: constants.pop(k) for k in ("num_warps", "num_stages") if k in constants}
    args = {**NUMBERS, **RUN, **constants}
    for parameter in kernel.arg_names:
        if parameter.endswith("_ptr"):
            tensor = parameter.removesuffix("_ptr")
            default = "i32" if tensor in INTEGERS else "i8" if tensor == "low" else scores
            args[parameter] = "*" + dtypes.get(tensor, default)
    return name, kernel, {k: args[k] for k in kernel.arg_names}, options


def _node_cases():
    options = {"BLOCK_M": triton_nodes._BLOCK_M, "num_warps": triton_nodes._WARPS, "BLOCK_V": 512}
    yield _case("score", triton_nodes.score_kernel, dict(options))
    for kind, config in KINDS.items():
        constants = {**triton_nodes._constants(config), **options}
        yield _case(f"divergence {kind}", triton_nodes.divergence_kernel, dict(constants))
        constants["DISTIL"] = True
        yield _case(f"gradient {kind}", triton_nodes.gradient_kernel, constants, out="bf16")
    wide = {**options, **triton_nodes._constants(KINDS["alpha"]), "DISTIL": False, "BLOCK_V": 256}
    yield _case("gradient in float64", triton_nodes.gradient_kernel, wide, scores="fp64")


def _joint_cases(dtype):
    blocks = {"BLOCK_M": triton_joint._BLOCK_M, "BLOCK_J": triton_joint._BLOCK_J}
    inputs = {"enc": dtype, "pred": dtype, "grad": dtype}
    yield _case("join", triton_joint.join_kernel, dict(blocks), out=dtype, **inputs)
    yield _case("frames", triton_joint.frame_kernel, dict(blocks), **inputs)
    yield _case("positions", triton_joint.position_kernel, dict(blocks), **inputs)


def _lattice_cases():
    for standard, block in ((True, 128), (False, 512)):
        constants = {"STANDARD": standard, "BLOCK_U": block, "num_stages": 1}
        constants["num_warps"] = triton_lattice.num_warps(block)
        name = f"{block} positions, standard={standard}"
        yield _case(f"paths of {name}", triton_lattice.path_kernel, constants, paths="fp64")
    constants = {"STANDARD": True, "BLOCK_N": triton_lattice._BLOCK_N}
    yield _case("occupancy", triton_lattice.occupancy_kernel, constants, paths="fp64")


def cases():
    yield from _node_cases()
    yield from _joint_cases("bf16")
    yield from _lattice_cases()
