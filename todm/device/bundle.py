"""Bundles on disk: open a bundle, load its graphs, read its tokens."""

import dataclasses
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from todm import artifact
from todm.device import trust
from todm.device.onnx_file import check_onnx
from todm.errors import ArtifactError, BundleError, first_line

if TYPE_CHECKING:
    import onnxruntime

Precision = Literal["fp32", "int8", "int8.rr", "int8.block", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int8.rr", "int8.block", "int4")
KIND = "bundle"
BLANK = "<blk>"
UNKNOWN = "<unk>"
_PAUSE = 0.8
_LONGEST_TOKENS = 1 << 24  # bytes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what a terminal would obey


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """The three loaded graphs of a transducer, and its tokens."""

    encoder: "onnxruntime.InferenceSession"
    decoder: "onnxruntime.InferenceSession"
    joiner: "onnxruntime.InferenceSession"
    tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk; `open_bundle` checks its files first."""

    path: Path
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tail_seconds(self) -> float:
        """Seconds of silence to feed after speech to get the last words."""
        return float(self.info.get("tail_seconds", 1.0))

    @property
    def endpoint_seconds(self) -> float | None:
        """Seconds without a symbol that end a segment and start the predictor's context again.

        None in bundles of earlier versions, whose context goes on.
        """
        seconds = self.info.get("endpoint_seconds")
        return None if seconds is None else float(seconds)

    @property
    def pause_seconds(self) -> float:
        """Seconds without a symbol that end a segment: the endpoint, 0.8 in bundles that state none."""
        return _PAUSE if self.endpoint_seconds is None else self.endpoint_seconds

    @property
    def threshold(self) -> float:
        """The confidence below which a segment gives no text; 0, which keeps all, in bundles without one."""
        return float(self.info.get("decision_threshold", 0.0))

    def has_offline(self) -> bool:
        """Whether it has an encoder for whole recordings."""
        return (self.path / "offline" / "encoder.onnx").is_file()

    def precisions(self) -> tuple[Precision, ...]:
        """The precisions it has an encoder for."""
        return tuple(p for p in PRECISIONS if (self.path / graph_name("encoder", p)).is_file())

    def networks(
        self, precision: Precision = "fp32", *, offline: bool = False, num_threads: int = 1
    ) -> Networks:
        """Load encoder, decoder and joiner.

        Raises:
            BundleError: a graph or tokens.txt is missing or cannot be read.
        """
        files = graph_files(precision, offline=offline)
        return Networks(
            **{part: self.session(name, num_threads=num_threads) for part, name in files.items()},
            tokens=read_tokens(self.file("tokens.txt")),
        )

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            BundleError: no such file.
        """
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{self.path} has no file {name!r}: export the bundle again")
        return path

    def session(self, name: str, *, num_threads: int = 1) -> "onnxruntime.InferenceSession":
        """Load one graph.

        Raises:
            BundleError: it is missing, holds more than a graph, or cannot be loaded by onnxruntime.
        """
        path = self.file(name)
        check_onnx(path)
        return load_session(path, num_threads=num_threads)


def graph_name(stem: str, precision: Precision = "fp32") -> str:
    """The file of a graph: encoder.onnx, encoder.int8.onnx, encoder.int8.rr.onnx."""
    return f"{stem}.onnx" if precision == "fp32" else f"{stem}.{precision}.onnx"


def graph_files(precision: Precision, *, offline: bool = False) -> dict[str, str]:
    """The files of one precision: encoder, decoder and joiner.

    All encoders except fp32 share decoder and joiner, which are small and have 7-bit weights.
    """
    rest: Precision = "fp32" if precision == "fp32" else "int8"
    folder = "offline/" if offline else ""
    return {
        "encoder": folder + graph_name("encoder", precision),
        "decoder": graph_name("decoder", rest),
        "joiner": graph_name("joiner", rest),
    }


def best_int8(bundle: Bundle) -> Precision:
    """The int8 form for this processor: `int8.rr` where 8-bit products saturate, if the bundle has it.

    x86 without VNNI adds products in 16 bits, where full-range weights overflow (a loss of 20 dB).
    """
    return "int8.rr" if "int8.rr" in bundle.precisions() and _saturates() else "int8"


def forms_here(bundle: Bundle) -> tuple[Precision, ...]:
    """The forms of a bundle that suit this processor: only one of `int8` and `int8.rr` does."""
    other = {"int8": "int8.rr", "int8.rr": "int8"}[best_int8(bundle)]
    return tuple(p for p in bundle.precisions() if p != other)


def overflows(precision: Precision) -> bool:
    """Whether sums of a form overflow on this processor where `load_session` does not prevent it."""
    return precision == "int8" and _saturates()


def _saturates() -> bool:
    """Whether this processor adds products of uint8 and int8 in 16 bits, which overflow."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    return x86 and not has_vnni()


def has_vnni() -> bool:
    """Whether this processor adds products of int8 in 32 bits, as far as Linux says."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: take the form that is correct on any processor
        return False


def open_bundle(path: str | Path) -> Bundle:
    """Check every file of a bundle against its manifest and open it.

    Raises:
        BundleError: not a bundle, incomplete, damaged, or its folder holds unlisted files.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory: give the directory that `todm export` wrote")
    if not (path / artifact.MANIFEST).is_file():
        raise BundleError(
            f"{path} is not a todm bundle (it has no {artifact.MANIFEST}): "
            "give the directory that `todm export` wrote"
        )
    files = trust.check_folder(path)
    try:
        manifest = artifact.load(path, kind=KIND)
    except ArtifactError as error:
        raise BundleError(str(error)) from None
    trust.check_listed(path, files, manifest.files)
    trust.check_info(path, manifest.info)
    return Bundle(path=path, info=manifest.info)


def read_tokens(path: Path) -> tuple[str, ...]:
    """The symbols of tokens.txt in the order of their ids.

    Raises:
        BundleError: a line is not `symbol id`, an id is missing or repeated, or blank is not first.
    """
    symbols: dict[int, str] = {}
    if path.stat().st_size > _LONGEST_TOKENS:
        raise BundleError(
            f"{path} is not a list of tokens: it is larger than {_LONGEST_TOKENS} bytes"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise BundleError(f"{path} is not UTF-8 text: export the bundle again") from None
    for number, line in enumerate(lines, start=1):
        symbol, _, index = line.rstrip().rpartition(" ")
        plain = index.isdecimal() and len(index) < 10 and not _CONTROL.search(symbol)
        if not plain or int(index) in symbols:
            raise BundleError(
                f"{path}, line {number}: {line[:40]!r} is not a symbol with its own id"
            )
        symbols[int(index)] = symbol or " "
    if sorted(symbols) != list(range(len(symbols))) or symbols.get(0) != BLANK:
        raise BundleError(f"{path}: ids must run from 0 without a gap, and 0 must be {BLANK}")
    return tuple(symbols[i] for i in range(len(symbols)))


def load_session(path: Path, *, num_threads: int = 1) -> "onnxruntime.InferenceSession":
    """Load an ONNX file on the CPU.

    Raises:
        BundleError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors come back as exceptions
    if _saturates():  # makes int8 weights uint8, whose products are added in 32 bits
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's classes share no base but this
        raise BundleError(f"{path} cannot be loaded by onnxruntime: {first_line(error)}") from None


def run(
    session: "onnxruntime.InferenceSession", inputs: list[NDArray[Any]], name: str, where: Path
) -> list[NDArray[Any]]:
    """Run a graph on inputs in order, as sherpa-onnx does.

    Raises:
        BundleError: the graph refuses the inputs.
    """
    ports = session.get_inputs()
    if len(ports) != len(inputs):
        raise BundleError(
            f"{where}: the {name} has {len(ports)} inputs, and {len(inputs)} are expected"
        )
    try:
        feed = {port.name: value for port, value in zip(ports, inputs, strict=True)}
        outputs: list[Any] = list(session.run(None, feed))
    except Exception as error:  # noqa: BLE001 - as in load_session
        shapes = ", ".join(str(list(value.shape)) for value in inputs)
        raise BundleError(
            f"{where}: the {name} does not accept inputs of shape {shapes}, which its metadata "
            f"promises ({first_line(error)})"
        ) from None
    if not all(isinstance(out, np.ndarray) and out.dtype.kind in "fiu" for out in outputs):
        raise BundleError(f"{where}: the {name} returns something other than tensors of numbers")
    return outputs
