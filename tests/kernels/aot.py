"""Triton kernels compiled for NVIDIA GPUs on a machine without one: the resources that they need.

`python tests/kernels/aot.py OP` compiles the cases of `tests/kernels/aot_OP.py` and prints one JSON
object for each: name, capability, shared memory (bytes), registers per thread, stack (bytes of spills),
and the arguments that specialise a compilation. It runs in its own process, because under
TRITON_INTERPRET=1 there is nothing to compile.

A case is `(name, kernel, args, options)`: the arguments of a launch by name, tensors as dtypes
("*bf16"), numbers and constants (tl.constexpr) by value; options such as num_warps. As in a launch,
tensors are aligned to 16 bytes, and Triton knows of a number whether it is 1 or a multiple of 16. A
number of unknown value is "i32".
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CAPABILITIES = (80, 90)
MULTIPLE = [["tt.divisibility", 16]]


def resources(kernel, args, *, capability, **options):
    """Shared memory, registers and stack of one compiled launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernel, "fn", kernel) if not hasattr(kernel, "params") else kernel
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = args[parameter.name]
        if parameter.is_constexpr or (_known(parameter, value) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if _is_pointer(value) or (_known(parameter, value) and value % 16 == 0):
            attributes[(place,)] = MULTIPLE
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    usage = {"shared": compiled.metadata.shared, **_usage(compiled.asm["cubin"])}
    return {**usage, "specialised": _specialised(kernel, args)}


def _is_pointer(value):
    return isinstance(value, str) and value.startswith("*")


def _known(parameter, value):
    return type(value) is int and not parameter.do_not_specialize


def _specialised(kernel, args):
    """Numbers that cause another compilation where they are 1, or multiples of 16."""
    return [
        p.name
        for p in kernel.params
        if not (p.is_constexpr or p.do_not_specialize or _is_pointer(args[p.name]))
    ]


def _type(value):
    if isinstance(value, str):
        return value
    return {bool: "i1", int: "i32", float: "fp32"}[type(value)]


def _usage(cubin):
    """Registers and stack, as NVIDIA's own tool (it comes with Triton) reports them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return {"registers": int(found[1]), "stack": int(found[2])}


def main(op):
    sys.path.insert(0, str(Path(__file__).parents[2]))  # where todm is not installed
    path = Path(__file__).with_name(f"aot_{op}.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, kernel, args, options in module.cases():
        for capability in CAPABILITIES:
            found = resources(kernel, args, capability=capability, **options)
            print(json.dumps({"name": name, "capability": capability, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
