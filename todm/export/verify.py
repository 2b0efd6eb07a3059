"""Verify an exported bundle: torch against onnxruntime, and onnxruntime against sherpa-onnx.

The first difference is an error that names the check, the place and the size.
Letters: N streams, T frames of a chunk, J joiner width, K context, V vocabulary.
"""

import dataclasses
import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from todm.backend import Graph
from todm.device.audio import Samples
from todm.device.bundle import (
    Bundle,
    Precision,
    graph_name,
    load_session,
    overflows,
    read_tokens,
    run,
)
from todm.device.contract import start_context, validate
from todm.device.features import Frames, fbank
from todm.device.recognizer import (
    OfflineRecognizer,
    StreamingRecognizer,
    Transcript,
    pad_tail,
)
from todm.errors import BundleError
from todm.export.compressed import is_rounding
from todm.export.reference import Call, decibels, encode, greedy, in_torch, split

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-4
# Where a float differs in its last bit, int8 rounding or a near tie between two symbols can go either way,
# so two versions of onnxruntime need not agree on every token. float32 shows exactly that the files are
# wired correctly; int8 only shows that its files are not broken.
INT8_TOKENS = 0.1
# For compressed graphs that round their activations: torch and onnxruntime add floats in different
# orders, so that a code occasionally differs by one, and the values after it by a step.
ROUNDED = 0.05


@dataclasses.dataclass
class Report:
    """The largest difference of each check, by name.

    Attributes:
        rounds: whether the graphs round their activations: values may then differ by `ROUNDED`,
            and a share `INT8_TOKENS` of the tokens.
        figures: the differences.
    """

    rounds: bool = False
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """The allowed difference between values of torch and onnxruntime."""
        return ROUNDED if self.rounds else TOLERANCE

    def close(self, name: str, ours: NDArray[Any], theirs: NDArray[Any], tolerance: float) -> None:
        """Compare and record the difference; one above the tolerance is refused.

        The tolerance is relative for values above 1 and absolute below.

        Raises:
            BundleError: shapes or values differ.
        """
        if ours.shape != theirs.shape:
            raise BundleError(f"{name}: shapes {list(ours.shape)} and {list(theirs.shape)} differ")
        gap = float(np.abs(ours - theirs).max()) if ours.size else 0.0
        self.figures[name] = max(gap, self.figures.get(name, 0.0))
        scale = max(1.0, float(np.abs(ours).max())) if ours.size else 1.0
        if not gap <= tolerance * scale:
            at = np.unravel_index(int(np.argmax(np.abs(ours - theirs))), ours.shape)
            raise BundleError(
                f"{name}: values differ by {gap:.1e} at {tuple(map(int, at))}, and {tolerance:.0e} is "
                "allowed: the export is wrong and was not written"
            )

    def alike(
        self, name: str, ours: Sequence[Hashable], theirs: Sequence[Hashable], share: float
    ) -> None:
        """Compare tokens or ids, of which a share may differ.

        Raises:
            BundleError: more of them differ.
        """
        matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
        total = len(ours) + len(theirs)
        unmatched = total - 2 * sum(block.size for block in matcher.get_matching_blocks())
        self.figures[f"{name}, share of tokens that differ"] = unmatched / max(1, total)
        if unmatched > max(2, share * total):  # one token replaced is always allowed
            raise BundleError(
                f"{name}: {unmatched} of {total} tokens have no match, and {share:.0%} is allowed: the "
                "export is wrong and was not written"
            )

    def same(
        self, name: str, ours: Transcript, theirs: Transcript, tolerance: float = TOLERANCE
    ) -> None:
        """Compare tokens, timestamps and, within the tolerance, log-probabilities.

        Graphs that round are compared by tokens only.

        Raises:
            BundleError: they differ.
        """
        if self.rounds:
            self.alike(name, ours.tokens, theirs.tokens, INT8_TOKENS)
            return
        if ours.tokens != theirs.tokens:
            at = _first_difference(ours.tokens, theirs.tokens)
            raise BundleError(
                f"{name}: token {at} differs: {ours.tokens[at : at + 3]} and "
                f"{theirs.tokens[at : at + 3]}; the export is wrong and was not written"
            )
        self.close(
            f"{name}, timestamps", np.array(ours.timestamps), np.array(theirs.timestamps), 1e-3
        )
        self.close(
            f"{name}, log-probs", np.array(ours.log_probs), np.array(theirs.log_probs), tolerance
        )


def verify(
    graphs: Sequence[Graph], bundle: Bundle, samples_S: Samples, *, in_sherpa: bool
) -> Report:
    """Check a bundle against the modules it was exported from.

    Args:
        graphs: encoder, decoder and joiner.
        bundle: the written bundle.
        samples_S: a recording at 16 kHz, float32 [S].
        in_sherpa: whether to check it in sherpa-onnx too.

    Returns:
        The largest difference of every check.

    Raises:
        BundleError: a difference is above its tolerance, or `validate` fails.
    """
    modules = {graph.name: graph for graph in graphs}
    report = Report(rounds=any(is_rounding(graph.module) for graph in graphs))
    validate(bundle)
    for graph in graphs:
        _check_graph(report, graph, bundle)
    padded = pad_tail(samples_S, bundle.tail_seconds)
    streaming = StreamingRecognizer(bundle)
    frames = fbank(padded)
    exact = _encode(streaming, frames, in_torch(modules["encoder"]))
    streamed = _encode(streaming, frames, _in_onnxruntime(streaming))
    _check_chunks(report, exact, streamed)
    decoder, joiner = (in_torch(modules[name]) for name in ("decoder", "joiner"))
    tokens = read_tokens(bundle.file("tokens.txt"))
    ours = greedy(
        decoder,
        joiner,
        torch.cat(exact),
        tokens,
        streaming.spec.context_size,
        endpoint_seconds=bundle.endpoint_seconds,
    )
    theirs = streaming.transcribe(padded, tail_seconds=0)
    report.same("transcripts of torch and onnxruntime", ours, theirs)
    _check_batch(report, streaming, samples_S)
    if bundle.has_offline():
        _check_offline(report, bundle, streaming, samples_S)
    for precision in bundle.precisions():
        if precision != "fp32":
            recognizer = StreamingRecognizer(bundle, precision=precision)
            rounded = _encode(recognizer, frames, _in_onnxruntime(recognizer))
            name = f"{precision} encoder, signal-to-noise in dB"
            report.figures[name] = decibels(torch.cat(streamed), torch.cat(rounded))
        if in_sherpa:
            _check_sherpa(report, bundle, precision, samples_S)
    return report


def compare_graph(
    report: Report,
    graph: Graph,
    session: "onnxruntime.InferenceSession",
    inputs: Sequence[Tensor],
    *,
    where: Path,
    prefix: str = "",
    first: int = 0,
) -> None:
    """Compare one graph in torch and in onnxruntime on the same inputs.

    Args:
        report: takes the differences.
        graph: the module and its ports.
        session: the graph, loaded.
        inputs: in the order of the ports.
        where: the file or bundle, for messages.
        prefix: of the names of the figures.
        first: which of the session's outputs is the first of the graph's.

    Raises:
        BundleError: onnxruntime refuses the inputs, or outputs differ.
    """
    outputs = in_torch(graph)(*inputs)
    theirs = run(session, [x.numpy() for x in inputs], graph.name, where)
    theirs = theirs[first : first + len(outputs)]
    for port, ours, their in zip(graph.outputs, outputs, theirs, strict=True):
        name = f"{prefix}{port.name}, torch and onnxruntime"
        report.close(name, ours.numpy(), their, report.tolerance)


def _check_graph(report: Report, graph: Graph, bundle: Bundle) -> None:
    """One graph on random inputs, for one, two and three streams."""
    session = bundle.session(graph_name(graph.name))
    for num_streams in (1, 2, 3):
        inputs = [_random_input(p.example, p.dynamic, num_streams) for p in graph.inputs]
        prefix = f"{graph.name} "
        compare_graph(report, graph, session, inputs, where=bundle.path, prefix=prefix)


def _random_input(example: Tensor, dynamic: Mapping[int, str], num_streams: int) -> Tensor:
    shape = [num_streams if axis in dynamic else n for axis, n in enumerate(example.shape)]
    if example.dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(num_streams))
    # The context at the start of a stream: a plain lookup goes wrong at its -1.
    return torch.from_numpy(np.tile(start_context(shape[1]), (num_streams, 1)))


def _encode(recognizer: StreamingRecognizer, frames_TF: Frames, encoder: Call) -> list[Tensor]:
    """Output of every whole chunk, each [C, J], with the sizes of a recognizer's encoder."""
    spec = recognizer.spec
    states = [torch.from_numpy(state) for state in recognizer.create_stream().states]
    return encode(encoder, split(frames_TF, spec.chunk_frames, spec.shift_frames), states)


def _in_onnxruntime(recognizer: StreamingRecognizer) -> Call:
    def call(chunk: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        outputs = recognizer.encode(chunk.numpy(), [state.numpy() for state in states])
        return tuple(torch.from_numpy(array) for array in outputs)

    return call


def _check_chunks(report: Report, exact: Sequence[Tensor], streamed: Sequence[Tensor]) -> None:
    """The encoder over a recording, each side carrying its own states."""
    for number, (ours, theirs) in enumerate(zip(exact, streamed, strict=True)):
        try:
            name = "encoder chunk by chunk, torch and onnxruntime"
            report.close(name, ours.numpy(), theirs.numpy(), report.tolerance)
        except BundleError as error:
            raise BundleError(f"chunk {number}: {error}") from None


def _check_batch(report: Report, streaming: StreamingRecognizer, samples_S: Samples) -> None:
    recordings = three_streams(samples_S)
    for number, batched in enumerate(streaming.transcribe_batch(recordings)):
        alone = streaming.transcribe(recordings[number])
        report.same("batch of 3 and one by one", batched, alone)


def three_streams(samples_S: Samples) -> list[Samples]:
    """A recording, its beginning and its end: three streams of unequal length."""
    third = len(samples_S) // 3
    return [samples_S, samples_S[: 2 * third], samples_S[2 * third :]]


def _check_offline(
    report: Report, bundle: Bundle, streaming: StreamingRecognizer, samples_S: Samples
) -> None:
    """The offline encoder gives the same output as streaming on the same frames."""
    frames = fbank(samples_S)
    session = load_session(bundle.file("offline/encoder.onnx"))
    lens = np.array([len(frames)], np.int64)
    out, _ = run(session, [frames[None], lens], "offline encoder", bundle.path)
    if chunks := _encode(streaming, frames, _in_onnxruntime(streaming)):
        streamed = torch.cat(chunks).numpy()
        offline = out[0, : len(streamed)]
        report.close("encoder, offline and streaming", streamed, offline, report.tolerance)


def _check_sherpa(report: Report, bundle: Bundle, precision: Precision, samples_S: Samples) -> None:
    """Tokens, timestamps and log-probs of sherpa-onnx against ours.

    A form whose sums overflow in sherpa-onnx on this processor, and not in `todm.device`, has to load and
    run; its differences are recorded but not judged. Every other form is judged, `int8.rr` everywhere.
    Left to itself, sherpa-onnx never starts a context again, so ours does not either.
    """
    from todm.export import sherpa

    info = {k: v for k, v in bundle.info.items() if k != "endpoint_seconds"}
    bundle = dataclasses.replace(bundle, info=info)
    judged = not overflows(precision)

    def compare(name: str, ours: Transcript, theirs: Transcript) -> None:
        if precision == "fp32":
            report.same(name, ours, theirs)
        else:
            name = name if judged else f"{name} (form for other processors, not judged)"
            report.alike(name, ours.tokens, theirs.tokens, INT8_TOKENS if judged else 1.0)

    ours = StreamingRecognizer(bundle, precision=precision).transcribe(samples_S)
    recognizer = sherpa.online(bundle, precision)
    padded = pad_tail(samples_S, bundle.tail_seconds)
    theirs = sherpa.decode_online(recognizer, [padded])[0]
    compare(f"{precision}, streaming in sherpa-onnx", ours, theirs)
    if precision == "fp32":
        recordings = [pad_tail(s, bundle.tail_seconds) for s in three_streams(samples_S)]
        batched = sherpa.decode_online(recognizer, recordings)
        alone = [sherpa.decode_online(recognizer, [r])[0] for r in recordings]
        for one, other in zip(batched, alone, strict=True):
            report.same("batch of 3 in sherpa-onnx and one by one", one, other)
    if bundle.has_offline():
        ours = OfflineRecognizer(bundle, precision=precision).transcribe(samples_S)
        theirs = sherpa.decode_offline(sherpa.offline(bundle, precision), [samples_S])[0]
        compare(f"{precision}, offline in sherpa-onnx", ours, theirs)


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
