"""A bundle that is also a web page: static files that recognise speech in a browser, checked in Node.

It has `index.html`, `page/` (our modules, from `todm/export/page/`) and `ort/` (onnxruntime-web, from npm)
besides the files of every bundle, all listed in the manifest.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from todm import artifact
from todm.device.bundle import KIND, Bundle, Precision
from todm.device.recognizer import Transcript
from todm.errors import BundleError, ConfigError
from todm.export.verify import INT8_TOKENS, Report

ORT_WEB = "1.30.0"  # the version that the page was tested with
# The page computes features in double precision, so they differ in the last bits of float32.
TOLERANCE = 1e-3
# Without int8.rr: sums do not overflow in WebAssembly.
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int8.block", "int4")
_PAGE = Path(__file__).with_name("page")
_CLONE = Path(__file__).parents[2] / "build"
_ORT_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
_SECONDS = 300


def find_runtime() -> Path:
    """The npm package onnxruntime-web on this machine.

    Searched in TODM_ORT_WEB, or else in `node_modules` of the working directory and in the folder where
    `export/web/setup.sh` of a clone puts it.

    Raises:
        ConfigError: it is not found, or has another version than the page was tested with.
    """
    given = os.environ.get("TODM_ORT_WEB")
    usual = [root / "node_modules" / "onnxruntime-web" for root in (Path.cwd(), _CLONE)]
    places = [Path(given)] if given else usual
    package = next((p for p in places if (p / "package.json").is_file()), None)
    if package is None:
        raise ConfigError(
            f"target web needs onnxruntime-web, which is not in {' or '.join(map(str, places))}: run  "
            f"npm install onnxruntime-web@{ORT_WEB}  in the working directory"
        )
    version = json.loads((package / "package.json").read_text(encoding="utf-8")).get("version")
    if version != ORT_WEB:
        raise ConfigError(
            f"{package} is onnxruntime-web {version}, and the page was tested with {ORT_WEB}: run  "
            f"npm install onnxruntime-web@{ORT_WEB}"
        )
    return package


def find_node() -> str:
    """The program `node`, which runs the page's modules for the check.

    Raises:
        ConfigError: it is not on the PATH.
    """
    node = shutil.which("node")
    if node is None:
        raise ConfigError(
            "target web needs the program node to check what it writes: install Node.js 18 or newer"
        )
    return node


def write_page(folder: Path) -> None:
    """Copy the page and its runtime into a bundle's directory.

    Raises:
        ConfigError: onnxruntime-web is not on this machine.
    """
    runtime = find_runtime() / "dist"
    (folder / "page").mkdir()
    for source in sorted(p for p in _PAGE.iterdir() if p.is_file()):
        is_start = source.name == "index.html"
        shutil.copyfile(source, folder / source.name if is_start else folder / "page" / source.name)
    (folder / "ort").mkdir()
    for name in _ORT_FILES:
        shutil.copyfile(runtime / name, folder / "ort" / name)


def transcribe_in_node(folder: Path, wav: Path, *, precision: Precision = "fp32") -> Transcript:
    """Transcribe a recording with the page's own modules and runtime, in Node.

    Args:
        folder: a web bundle.
        wav: a wav file.
        precision: which graphs.

    Raises:
        BundleError: the modules refuse the bundle or do not finish.
        ConfigError: Node is not installed.
    """
    # The baseline compiler of WebAssembly: the same results, and it starts five times sooner.
    program = [find_node(), "--liftoff-only", "page/run.mjs"]
    command = [*program, ".", str(wav.resolve()), "--precision", precision]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"{folder}: the page's recogniser did not finish in {_SECONDS} s"
        ) from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BundleError(f"{folder}: the page's recogniser refuses this bundle: {reason}")
    return _transcript(json.loads(done.stdout.splitlines()[-1]))


def check_page(report: Report, bundle: Bundle, expected: dict[str, Any]) -> None:
    """Compare the page's transcripts of the bundle's own recording with the device's.

    Args:
        report: records the differences.
        bundle: the bundle with its page, but without its manifest.
        expected: the transcripts of each precision, as in `test_wavs/expected.json`.

    Raises:
        BundleError: they differ.
    """
    wav = bundle.path / "test_wavs" / "0.wav"
    for precision in PRECISIONS:
        if precision not in expected:
            continue
        ours = _transcript(expected[precision]["streaming"])
        with _manifest(bundle):
            theirs = transcribe_in_node(bundle.path, wav, precision=precision)
        name = f"{precision}, streaming in onnxruntime-web"
        if precision == "fp32":
            report.same(name, ours, theirs, TOLERANCE)
        else:
            report.alike(name, ours.tokens, theirs.tokens, INT8_TOKENS)


@contextlib.contextmanager
def _manifest(bundle: Bundle) -> Iterator[None]:
    """Temporarily write the part of a manifest that the page reads into an unfinished bundle."""
    path = bundle.path / artifact.MANIFEST
    files = {
        p.relative_to(bundle.path).as_posix(): {
            "bytes": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in bundle.path.rglob("*")
        if p.is_file()
    }
    head = {"kind": KIND, "format_version": artifact.FORMAT_VERSION}
    path.write_text(json.dumps({**head, "info": dict(bundle.info), "files": files}))
    try:
        yield
    finally:
        path.unlink()


def _transcript(entry: dict[str, Any]) -> Transcript:
    return Transcript(
        text=entry["text"],
        ids=(),
        tokens=tuple(entry["tokens"]),
        timestamps=tuple(entry["timestamps"]),
        log_probs=tuple(entry["log_probs"]),
    )
