"""Load time and memory of a bundle, measured in a process of its own.

`python -m todm.bench.bundles.footprint BUNDLE RUNTIME FORM THREADS [RECORDING]` prints one line of JSON.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from todm.bench.bundles.engines import open_engine
from todm.device.audio import SAMPLE_RATE, read_audio
from todm.device.bundle import Bundle, Precision, open_bundle
from todm.errors import BundleError, TodmError

_TIMEOUT = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """Time and memory that a process needs to decode with a bundle.

    `load_seconds` is from an imported runtime to a loaded bundle, with files in the page cache;
    `start_mb` is the memory before loading (Python and its packages), in 10^6 bytes, and `peak_mb` the
    peak while loading and decoding.
    """

    load_seconds: float
    start_mb: float
    peak_mb: float


def footprint(
    bundle: Bundle, name: str, *, precision: Precision, num_threads: int, recording: Path | None
) -> Footprint:
    """Measure in a new process.

    Raises:
        BundleError: the process failed; the message has the last line of its output.
    """
    command = [sys.executable, "-m", __name__, str(bundle.path), name, precision, str(num_threads)]
    command += [str(recording)] if recording else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BundleError(f"{bundle.path} in {name} ({precision}): {last}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str]) -> int:
    """Load, decode once, and print the footprint."""
    place, name, precision, threads, *recordings = arguments
    if name == "sherpa-onnx":
        import sherpa_onnx  # noqa: F401 - its own memory is not the bundle's
    else:
        import onnxruntime  # noqa: F401
    bundle = open_bundle(place)
    before, start = _peak_mb(), time.perf_counter()
    try:
        engine = open_engine(
            name,
            bundle,
            precision=precision,  # pyright: ignore[reportArgumentType] - checked where it is used
            num_threads=int(threads),
        )
        loaded = time.perf_counter() - start
        samples = read_audio(Path(recordings[0])) if recordings else np.zeros(SAMPLE_RATE, "f4")
        engine.decode(samples)
    except TodmError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    found = Footprint(load_seconds=loaded, start_mb=before, peak_mb=_peak_mb())
    sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
    return 0


def _peak_mb() -> float:
    """Peak memory of this process so far.

    Not from getrusage on Linux, where a new process inherits the peak of its parent.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # macOS counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
