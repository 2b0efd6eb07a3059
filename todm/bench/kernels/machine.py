"""What figures depend on: device, roofs, versions, commit."""

import dataclasses
import datetime
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

import todm
from todm.bench.kernels.case import Work
from todm.bench.kernels.clock import cpu_time
from todm.device import profiler

_PACKAGES = ("torch", "triton", "torchaudio", "k2", "torchao", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofs:
    """The peak rates of a device.

    Attributes:
        source: the vendor's data sheet, or measured here with a copy and a matmul.
        bytes_per_s: of its memory.
        flops_per_s: by unit: float32, tf32, bfloat16, int8 (without sparsity).
    """

    source: Literal["data sheet", "measured"]
    bytes_per_s: float
    flops_per_s: Mapping[str, float]

    def seconds(self, work: Work) -> float:
        """The least time for some work. A unit that the device has no rate for counts as float32."""
        peak = self.flops_per_s.get(work.unit, self.flops_per_s["float32"])
        return max(work.bytes / self.bytes_per_s, work.flops / peak)


def _sheet(tb_per_s: float, *, float32: float, tf32: float, bfloat16: float, int8: float) -> Roofs:
    units = {"float32": float32, "tf32": tf32, "bfloat16": bfloat16, "int8": int8}
    peaks = {name: 1e12 * value for name, value in units.items()}
    return Roofs(source="data sheet", bytes_per_s=1e12 * tb_per_s, flops_per_s=peaks)


_HOPPER_SXM = {"float32": 67, "tf32": 494, "bfloat16": 989, "int8": 1979}
_AMPERE = {"float32": 19.5, "tf32": 156, "bfloat16": 312, "int8": 624}
SHEETS = {
    "NVIDIA H200": _sheet(4.8, **_HOPPER_SXM),
    "NVIDIA H100 80GB HBM3": _sheet(3.35, **_HOPPER_SXM),
    "NVIDIA H100 PCIe": _sheet(2.0, float32=51, tf32=378, bfloat16=756, int8=1513),
    "NVIDIA A100-SXM4-80GB": _sheet(2.039, **_AMPERE),
    "NVIDIA A100 80GB PCIe": _sheet(1.935, **_AMPERE),
    "NVIDIA A100-SXM4-40GB": _sheet(1.555, **_AMPERE),
    "NVIDIA A100-PCIE-40GB": _sheet(1.555, **_AMPERE),
}
"""By torch's name of the device; NVIDIA's data sheets, dense, no boost beyond them."""


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(profiler.machine()["processor"])


def roofs_of(device: str) -> Roofs:
    """From the data sheet if the device is known, else measured."""
    if device == "cuda":
        return SHEETS.get(torch.cuda.get_device_name()) or _measured_on_cuda()
    a, b = (torch.randn(1024, 1024) for _ in range(2))
    peaks = {"float32": 2 * 1024**3 / _fastest(lambda: a @ b)}
    return Roofs(source="measured", bytes_per_s=_copied_per_s("cpu", 64 << 20), flops_per_s=peaks)


def describe(device: str) -> dict[str, Any]:
    """Machine and versions, for the record."""
    found = {"device": device_name(device), **profiler.machine()}
    found["threads"] = torch.get_num_threads()
    if device == "cuda":
        found["cuda"] = torch.version.cuda
        found["compute_capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    found["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return found | {name: _version(name) for name in _PACKAGES}


def commit() -> str | None:
    """The commit of this code, with `+` if `todm/` has changes; None outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """The time of day in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _measured_on_cuda() -> Roofs:
    size = 4096
    floats = torch.randn(size, size, device="cuda")
    brains = floats.bfloat16()
    codes = torch.ones(size, size, device="cuda", dtype=torch.int8)
    calls: dict[str, Callable[[], object]] = {
        "float32": lambda: floats @ floats,
        "bfloat16": lambda: brains @ brains,
        "int8": lambda: torch._int_mm(codes, codes.t()),
    }
    peaks = {name: 2.0 * size**3 / _fastest(call) for name, call in calls.items()}
    copied = _copied_per_s("cuda", 1 << 30)
    return Roofs(source="measured", bytes_per_s=copied, flops_per_s=peaks)


def _copied_per_s(device: str, num_bytes: int) -> float:
    """Bytes read and written by a copy."""
    source = torch.zeros(num_bytes, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _fastest(lambda: target.copy_(source))


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of ten: a roof is what can be reached."""
    on_gpu = torch.cuda.is_available()
    now = time.perf_counter if on_gpu else cpu_time()[1]
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    seconds = []
    for _ in range(10):
        wait()
        begin = now()
        call()
        wait()
        seconds.append(now() - begin)
    return min(seconds)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    folder = Path(todm.__file__).parent
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()
