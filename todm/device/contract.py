"""Checks of what a runtime relies on in a transducer.

sherpa-onnx ends the process without a message if an integer of the metadata is missing, and fails when
it prints if tokens.txt is too short. So the metadata, the shapes of the graphs (by running them once)
and the number of tokens are compared here first.

Letters: N streams; T feature frames a chunk takes; L, S, R the axes of the two state tensors;
J joiner width; K context size; V vocabulary.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from todm.device.bundle import Bundle, Networks, run
from todm.device.features import NUM_BINS
from todm.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime

STREAMING_MODEL_TYPE = "lstm"
OFFLINE_MODEL_TYPE = "zipformer2"
_STREAMING_KEYS = ("T", "decode_chunk_len", "num_encoder_layers", "d_model", "rnn_hidden_size")
_DECODER_KEYS = ("vocab_size", "context_size")
# Zeros of these sizes are allocated before the graph itself can object: a minute, 64 MB of state.
_LARGEST = {"T": 1 << 14, "num_encoder_layers": 1 << 10, "context_size": 1 << 10}
_LARGEST_STATE = 1 << 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingSpec:
    """The sizes in the metadata of a streaming bundle, checked against its graphs."""

    chunk_frames: int
    shift_frames: int
    state0_shape: tuple[int, int]
    state1_shape: tuple[int, int]
    joiner_dim: int
    vocab_size: int
    context_size: int


def validate(bundle: Bundle) -> StreamingSpec:
    """Check all graphs of a bundle, in every precision, streaming and offline.

    Raises:
        BundleError: says what is wrong, and in which file.
    """
    for precision in bundle.precisions():
        streaming_spec(bundle.networks(precision), bundle.path)
        if bundle.has_offline():
            check_offline(bundle.networks(precision, offline=True), bundle.path)
    return streaming_spec(bundle.networks(), bundle.path)


def streaming_spec(networks: Networks, where: Path) -> StreamingSpec:
    """Check that graphs, metadata and tokens agree, and return the sizes of a streaming transducer.

    Args:
        networks: the loaded graphs.
        where: the bundle, for messages.

    Raises:
        BundleError: the first mismatch.
    """
    _check_model_type(networks.encoder, STREAMING_MODEL_TYPE, where)
    sizes = _integers(networks.encoder, "encoder", _STREAMING_KEYS, where)
    layers = sizes["num_encoder_layers"]
    spec = StreamingSpec(
        chunk_frames=sizes["T"],
        shift_frames=sizes["decode_chunk_len"],
        state0_shape=(layers, sizes["d_model"]),
        state1_shape=(layers, sizes["rnn_hidden_size"]),
        **_check_predictor_and_joiner(networks, where),
    )
    if layers * max(sizes["d_model"], sizes["rnn_hidden_size"]) > _LARGEST_STATE:
        raise BundleError(
            f"{where}: the encoder's state is larger than that of any bundle: not loaded"
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
        BundleError: the first mismatch.
    """
    _check_model_type(networks.encoder, OFFLINE_MODEL_TYPE, where)
    sizes = _check_predictor_and_joiner(networks, where)
    joiner_dim = sizes["joiner_dim"]
    frames = np.zeros((1, 7, NUM_BINS), np.float32)
    out, lens = run(networks.encoder, [frames, np.array([7], np.int64)], "offline encoder", where)
    if out.ndim != 3 or out.shape[2] != joiner_dim or lens.shape != (1,) or lens[0] > out.shape[1]:
        raise BundleError(
            f"{where}: the offline encoder gives {list(out.shape)} and lengths {lens.tolist()}, and "
            f"the joiner takes width {joiner_dim}: export the bundle again"
        )
    return sizes["context_size"]


def start_context(context_size: int) -> NDArray[np.int64]:
    """The context at the start of a stream, int64 [K]: -1 means nothing yet, then blank."""
    return np.array([-1] * (context_size - 1) + [0], np.int64)


def zero_states(spec: StreamingSpec, num_streams: int) -> list[NDArray[np.float32]]:
    """The two states at the start of a stream, float32 [L, N, S] and [L, N, R]."""
    shapes = (spec.state0_shape, spec.state1_shape)
    return [np.zeros((layers, num_streams, size), np.float32) for layers, size in shapes]


def _check_predictor_and_joiner(networks: Networks, where: Path) -> dict[str, int]:
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
    fits = out.ndim == 3 and out.shape[0] == 2 and out.shape[2] == spec.joiner_dim
    if not fits or not 1 <= out.shape[1] <= spec.chunk_frames:
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
    outputs = run(session, inputs, name, where)
    if len(outputs) != num_outputs:
        raise BundleError(
            f"{where}: the {name} has {len(outputs)} outputs, and {num_outputs} are expected"
        )
    return outputs


def _check_model_type(encoder: "onnxruntime.InferenceSession", wanted: str, where: Path) -> None:
    model_type = encoder.get_modelmeta().custom_metadata_map.get("model_type")
    if model_type != wanted:
        given = "no model_type" if model_type is None else f"model_type {model_type!r}"
        raise BundleError(
            f"{where}: the encoder's metadata has {given}, and {wanted!r} is needed here: "
            "this is not a bundle of todm, or a broken one"
        )


def _integers(
    session: "onnxruntime.InferenceSession", name: str, keys: tuple[str, ...], where: Path
) -> dict[str, int]:
    metadata = session.get_modelmeta().custom_metadata_map
    for key in keys:
        text, most = metadata.get(key, ""), _LARGEST.get(key, _LARGEST_STATE)
        plain = text.isascii() and text.isdecimal() and len(text) < 10
        if not plain or not 1 <= int(text) <= most:
            given = repr(metadata.get(key))[:40]
            raise BundleError(
                f"{where}: the {name}'s metadata has {key} = {given}, and a whole number of 1 to {most} "
                "is needed: export the bundle again"
            )
    return {key: int(metadata[key]) for key in keys}
