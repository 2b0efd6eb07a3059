"""Time an encoder in TensorRT on an NVIDIA device (AGX Orin and newer), with and without 2:4 sparsity.

NOT RUN on such a device by this project: the commands are written after TensorRT's manual. What was
checked is the file: its 8-bit weights stand behind DequantizeLinear and keep their 2:4 zeros along the
reduction axis (`todm.export.sparsity`), which is what `--sparsity=enable` looks for. TensorRT takes only
int8 about zero, and a bundle has uint8 about 128: `encoder.signed.onnx`, with the same values, is
written into the current directory first.

The bundle is of a model compressed to int8 with static scales (QDQ), best with the pass prune before
it; the `encoder.int8.onnx` of other bundles rounds activations as they come, which TensorRT does not take.

pip install onnx                                  (trtexec comes with TensorRT, JetPack has it)
python trtexec.py BUNDLE [--dry-run]
"""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it
MEDIAN = re.compile(r"GPU Compute Time:.*?median = ([\d.]+) ms")


def main() -> None:
    """Print the commands; run them and print milliseconds a chunk, unless --dry-run."""
    parser = argparse.ArgumentParser(description="Time an encoder in TensorRT.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--trtexec", default=shutil.which("trtexec") or TRTEXEC)
    args = parser.parse_args()
    encoder = Path("encoder.signed.onnx")
    onnx.save(signed(onnx.load(str(args.bundle / "encoder.onnx"))), str(encoder))
    for sparsity in ("disable", "enable"):
        line = command(args.trtexec, encoder, sparsity)
        print(shlex.join(line), flush=True)
        if args.dry_run:
            continue
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        found = MEDIAN.search(done.stdout)
        if done.returncode or found is None:
            raise SystemExit(f"trtexec failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        used = "Chose" in done.stdout and "sparse" in done.stdout.lower()
        note = "; its log names sparse layers" if used else ""
        print(f"sparsity {sparsity}: {found[1]} ms a chunk, median{note}", flush=True)


def signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all uint8 codes about 128 of QuantizeLinear and DequantizeLinear as int8 about 0."""
    names = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[::2]  # values, and the zero point if there is one
    }
    for constant in model.graph.initializer:
        codes = onnx.numpy_helper.to_array(constant)
        if constant.name in names and codes.dtype == np.uint8:
            shifted = (codes.astype(np.int16) - 128).astype(np.int8)
            constant.CopyFrom(onnx.numpy_helper.from_array(shifted, constant.name))
    return model


def command(trtexec: str, encoder: Path, sparsity: str) -> list[str]:
    """The call of trtexec for one stream."""
    model = onnx.load(str(encoder))
    shapes = []
    for port in model.graph.input:
        dims = port.type.tensor_type.shape.dim
        sizes = "x".join(str(dim.dim_value or 1) for dim in dims)  # the open axis: one stream
        shapes.append(f"{port.name}:{sizes}")
    return [
        trtexec,
        f"--onnx={encoder}",
        "--int8",
        f"--sparsity={sparsity}",
        f"--shapes={','.join(shapes)}",
        "--useCudaGraph",
        "--iterations=200",
        "--avgRuns=100",
        "--verbose",
    ]


if __name__ == "__main__":
    main()
