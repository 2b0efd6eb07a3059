"""Bundles: open one, and find what is wrong before a runtime dies of it.

sherpa-onnx ends the process without a message where an integer of the metadata is missing, and
breaks at print time where tokens.txt is short. So everything it relies on is checked here first:
the manifest, the metadata, the shapes of the graphs (by running them once) and the token count.

Letters: N streams; T feature frames a chunk takes; L, S, R the axes of the two state tensors;
J joiner width; K context size; V vocabulary.
"""

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from todm import artifact
from todm.device.features import NUM_BINS
from todm.errors import ArtifactError, BundleError

if TYPE_CHECKING:
    import onnxruntime

Precision = Literal["fp32", "int8", "int8.rr"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int8.rr")
KIND = "bundle"
BLANK = "<blk>"
UNKNOWN = "<unk>"
STREAMING_MODEL_TYPE = "lstm"
OFFLINE_MODEL_TYPE = "zipformer2"
_STREAMING_KEYS = ("T", "decode_chunk_len", "num_encoder_layers", "d_model", "rnn_hidden_size")
_DECODER_KEYS = ("vocab_size", "context_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingSpec:
    """What the metadata of a streaming bundle says, held against its graphs."""

    chunk_frames: int
    shift_frames: int
    state0_shape: tuple[int, int]
    state1_shape: tuple[int, int]
    joiner_dim: int
    vocab_size: int
    context_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """The three graphs of a transducer, loaded, and its tokens."""

    encoder: "onnxruntime.InferenceSession"
    decoder: "onnxruntime.InferenceSession"
    joiner: "onnxruntime.InferenceSession"
    tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk. `open_bundle` makes one whose files were checked."""

    path: Path
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tail_seconds(self) -> float:
        """Silence to feed after speech before the last words are out."""
        return float(self.info.get("tail_seconds", 1.0))

    def has_offline(self) -> bool:
        """Whether it can transcribe whole recordings in one call."""
        return (self.path / "offline" / "encoder.onnx").is_file()

    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of which it holds an encoder."""
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
            encoder=self.session(files["encoder"], num_threads=num_threads),
            decoder=self.session(files["decoder"], num_threads=num_threads),
            joiner=self.session(files["joiner"], num_threads=num_threads),
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
            BundleError: it is missing, or onnxruntime cannot load it.
        """
        return load_session(self.file(name), num_threads=num_threads)


def graph_name(stem: str, precision: Precision = "fp32") -> str:
    """The file of a graph: encoder.onnx, encoder.int8.onnx, encoder.int8.rr.onnx."""
    return f"{stem}.onnx" if precision == "fp32" else f"{stem}.{precision}.onnx"


def graph_files(precision: Precision, *, offline: bool = False) -> dict[str, str]:
    """The files that go together: encoder, decoder and joiner of one precision.

    The two int8 encoders share decoder and joiner, which are small and always of 7-bit weights.
    """
    rest: Precision = "fp32" if precision == "fp32" else "int8"
    folder = "offline/" if offline else ""
    return {
        "encoder": folder + graph_name("encoder", precision),
        "decoder": graph_name("decoder", rest),
        "joiner": graph_name("joiner", rest),
    }


def best_int8(bundle: Bundle) -> Precision:
    """The int8 form for this processor: `int8.rr` where 8-bit products saturate, if there is one.

    x86 without VNNI adds products in 16 bits; full-range weights overflow there (20 dB of noise).
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    if x86 and "int8.rr" in bundle.precisions() and not _has_vnni():
        return "int8.rr"
    return "int8"


def _has_vnni() -> bool:
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: the form that is right everywhere
        return False


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle after checking every file against its manifest.

    Raises:
        BundleError: not a bundle, incomplete, damaged, or with files outside itself.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory: give the directory that `todm export` wrote")
    if not (path / artifact.MANIFEST).is_file():
        raise BundleError(
            f"{path} is not a todm bundle (it has no {artifact.MANIFEST}): "
            "give the directory that `todm export` wrote"
        )
    for file in path.rglob("*"):
        if not file.resolve().is_relative_to(path.resolve()):
            raise BundleError(
                f"{path} holds a link to a file outside itself ({file.name}): not read"
            )
    try:
        found = artifact.load(path, kind=KIND)
    except ArtifactError as error:
        raise BundleError(str(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BundleError(
            f"{path}/{artifact.MANIFEST} is damaged: export the bundle again"
        ) from None
    return Bundle(path=path, info=found.info)


def validate(bundle: Bundle) -> StreamingSpec:
    """Check all graphs of a bundle, in every precision, streaming and offline.

    Raises:
        BundleError: what is wrong, and in which file.
    """
    for precision in bundle.precisions():
        streaming_spec(bundle.networks(precision), bundle.path)
        if bundle.has_offline():
            check_offline(bundle.networks(precision, offline=True), bundle.path)
    return streaming_spec(bundle.networks(), bundle.path)


def streaming_spec(networks: Networks, where: Path) -> StreamingSpec:
    """The sizes of a streaming transducer, after checking that graphs, metadata and tokens agree.

    Args:
        networks: the loaded graphs.
        where: the bundle, for messages.

    Raises:
        BundleError: the first thing that does not fit.
    """
    _check_model_type(networks.encoder, STREAMING_MODEL_TYPE, where)
    sizes = _integers(networks.encoder, "encoder", _STREAMING_KEYS, where)
    layers = sizes["num_encoder_layers"]
    spec = StreamingSpec(
        chunk_frames=sizes["T"],
        shift_frames=sizes["decode_chunk_len"],
        state0_shape=(layers, sizes["d_model"]),
        state1_shape=(layers, sizes["rnn_hidden_size"]),
        **_check_search_graphs(networks, where),
    )
    if spec.shift_frames > spec.chunk_frames:
        raise BundleError(
            f"{where}: the encoder advances {spec.shift_frames} frames (decode_chunk_len) and reads "
            f"only {spec.chunk_frames} (T): export the bundle again"
        )
    _check_streaming_run(networks, spec, where)
    return spec


def check_offline(networks: Networks, where: Path) -> int:
    """Check an offline transducer.

    Returns:
        Its context size.

    Raises:
        BundleError: the first thing that does not fit.
    """
    _check_model_type(networks.encoder, OFFLINE_MODEL_TYPE, where)
    sizes = _check_search_graphs(networks, where)
    joiner_dim = sizes["joiner_dim"]
    frames = np.zeros((1, 7, NUM_BINS), np.float32)
    out, lens = run(networks.encoder, [frames, np.array([7], np.int64)], "offline encoder", where)
    if out.ndim != 3 or out.shape[2] != joiner_dim or lens.shape != (1,) or lens[0] > out.shape[1]:
        raise BundleError(
            f"{where}: the offline encoder gives {list(out.shape)} and lengths {lens.tolist()}, and "
            f"the joiner takes width {joiner_dim}: export the bundle again"
        )
    return sizes["context_size"]


def read_tokens(path: Path) -> tuple[str, ...]:
    """The symbols of tokens.txt in the order of their ids.

    Raises:
        BundleError: a line is not `symbol id`, an id is missing or doubled, or blank is not first.
    """
    symbols: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise BundleError(f"{path} is not UTF-8 text: export the bundle again") from None
    for number, line in enumerate(lines, start=1):
        symbol, _, index = line.rstrip().rpartition(" ")
        if not index.isdecimal() or int(index) in symbols:
            raise BundleError(
                f"{path}, line {number}: {line!r} is not a symbol and an id of its own"
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
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's classes share no base but this
        raise BundleError(f"{path} cannot be loaded by onnxruntime: {_first_line(error)}") from None


def run(
    session: "onnxruntime.InferenceSession", inputs: list[NDArray[Any]], name: str, where: Path
) -> list[NDArray[Any]]:
    """Run a graph with its inputs in order, as sherpa-onnx does.

    Raises:
        BundleError: the graph refuses them.
    """
    ports = session.get_inputs()
    if len(ports) != len(inputs):
        raise BundleError(
            f"{where}: the {name} has {len(ports)} inputs, and {len(inputs)} are expected"
        )
    try:
        feed = {port.name: value for port, value in zip(ports, inputs, strict=True)}
        return session.run(None, feed)
    except Exception as error:  # noqa: BLE001 - as in load_session
        shapes = ", ".join(str(list(value.shape)) for value in inputs)
        raise BundleError(
            f"{where}: the {name} does not accept inputs of shape {shapes}, which its metadata "
            f"promises ({_first_line(error)})"
        ) from None


def _check_search_graphs(networks: Networks, where: Path) -> dict[str, int]:
    """Sizes of decoder and joiner: joiner_dim, vocab_size, context_size."""
    sizes = _integers(networks.decoder, "decoder", _DECODER_KEYS, where)
    vocab_size, context_size = sizes["vocab_size"], sizes["context_size"]
    if len(networks.tokens) != vocab_size:
        raise BundleError(
            f"{where}/tokens.txt has {len(networks.tokens)} tokens, and the decoder's vocab_size is "
            f"{vocab_size}: export the bundle again"
        )
    context = start_context(context_size)[None]
    (decoder_out,) = _run_counted(networks.decoder, [context], 1, "decoder", where)
    if decoder_out.ndim != 2:
        raise BundleError(f"{where}: the decoder gives rank {decoder_out.ndim}, and 2 is needed")
    encoder_out = np.zeros_like(decoder_out)
    (logits,) = _run_counted(networks.joiner, [encoder_out, decoder_out], 1, "joiner", where)
    if logits.shape != (1, vocab_size):
        raise BundleError(
            f"{where}: the joiner gives logits {list(logits.shape)}, and vocab_size is {vocab_size}"
        )
    return {
        "joiner_dim": decoder_out.shape[1],
        "vocab_size": vocab_size,
        "context_size": context_size,
    }


def _check_streaming_run(networks: Networks, spec: StreamingSpec, where: Path) -> None:
    # Two streams: a batch axis that was frozen at export shows here.
    inputs = [np.zeros((2, spec.chunk_frames, NUM_BINS), np.float32), *zero_states(spec, 2)]
    out, state0, state1 = _run_counted(networks.encoder, inputs, 3, "encoder", where)
    if out.ndim != 3 or out.shape[0] != 2 or out.shape[2] != spec.joiner_dim:
        raise BundleError(
            f"{where}: the encoder gives {list(out.shape)} for 2 streams, and the joiner takes width "
            f"{spec.joiner_dim}: export the bundle again"
        )
    if state0.shape != inputs[1].shape or state1.shape != inputs[2].shape:
        raise BundleError(
            f"{where}: the encoder's states change their shape: export the bundle again"
        )


def _run_counted(
    session: "onnxruntime.InferenceSession",
    inputs: list[NDArray[Any]],
    num_outputs: int,
    name: str,
    where: Path,
) -> list[NDArray[Any]]:
    found = run(session, inputs, name, where)
    if len(found) != num_outputs:
        raise BundleError(
            f"{where}: the {name} has {len(found)} outputs, and {num_outputs} are expected"
        )
    return found


def start_context(context_size: int) -> NDArray[np.int64]:
    """The context at the start of a stream, int64 [K]: -1 for `nothing yet`, then blank."""
    return np.array([-1] * (context_size - 1) + [0], np.int64)


def zero_states(spec: StreamingSpec, num_streams: int) -> list[NDArray[np.float32]]:
    """The two states at the start of a stream: float32 [L, N, S] and [L, N, R]."""
    shapes = (spec.state0_shape, spec.state1_shape)
    return [np.zeros((layers, num_streams, size), np.float32) for layers, size in shapes]


def _check_model_type(encoder: "onnxruntime.InferenceSession", wanted: str, where: Path) -> None:
    found = encoder.get_modelmeta().custom_metadata_map.get("model_type")
    if found != wanted:
        given = "no model_type" if found is None else f"model_type {found!r}"
        raise BundleError(
            f"{where}: the encoder's metadata has {given}, and {wanted!r} is needed here: "
            "this is not a bundle of todm, or a broken one"
        )


def _integers(
    session: "onnxruntime.InferenceSession", name: str, keys: tuple[str, ...], where: Path
) -> dict[str, int]:
    metadata = session.get_modelmeta().custom_metadata_map
    for key in keys:
        if not metadata.get(key, "").isdecimal() or int(metadata[key]) < 1:
            raise BundleError(
                f"{where}: the {name}'s metadata has {key} = {metadata.get(key)!r}, and a whole "
                "number of at least 1 is needed: export the bundle again"
            )
    return {key: int(metadata[key]) for key in keys}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
