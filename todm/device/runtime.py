"""The runtime figures of a bundle on this machine. Imports no torch: it runs on a device."""

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from todm.device.audio import SAMPLE_RATE, Samples, read_audio
from todm.device.bundle import Bundle, Precision, graph_files, open_bundle
from todm.device.timing import Timing, time_bundle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a bundle costs at run time in one precision.

    Attributes:
        timing: latency and real-time factor.
        megabytes: encoder, decoder and joiner of this precision, in units of 10^6 bytes.
        machine: processor, cores, and versions.
    """

    timing: Timing
    megabytes: float
    machine: dict[str, Any]


def measure(
    bundle: str | Path,
    audio: Sequence[str | Path] = (),
    *,
    precision: Precision = "fp32",
    num_threads: int = 1,
    repeats: int = 3,
) -> Runtime:
    """Measure a bundle.

    Args:
        bundle: its directory.
        audio: recordings to decode; the bundle's own test recording by default.
        precision: which graphs.
        num_threads: of onnxruntime.
        repeats: passes over the recordings.

    Raises:
        BundleError: the bundle is damaged or lacks that precision.
        CorpusError: a recording cannot be read.
    """
    opened = open_bundle(bundle)
    timing = time_bundle(
        opened,
        _recordings(opened, audio),
        precision=precision,
        num_threads=num_threads,
        repeats=repeats,
    )
    return Runtime(timing=timing, megabytes=megabytes(opened, precision), machine=machine())


def megabytes(bundle: Bundle, precision: Precision = "fp32") -> float:
    """Size of encoder, decoder and joiner of one precision, in units of 10^6 bytes."""
    files = graph_files(precision).values()
    return sum(bundle.file(name).stat().st_size for name in files) / 1e6


def machine() -> dict[str, Any]:
    """Processor, cores and the versions a speed depends on."""
    import onnxruntime

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def _recordings(bundle: Bundle, audio: Sequence[str | Path]) -> list[Samples]:
    if audio:
        return [read_audio(path) for path in audio]
    sample = bundle.path / "test_wavs" / "0.wav"
    if sample.is_file():
        return [read_audio(sample)]
    return [np.zeros(10 * SAMPLE_RATE, np.float32)]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
