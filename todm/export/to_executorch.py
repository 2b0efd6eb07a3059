"""Graphs to ExecuTorch programs for the XNNPACK delegate: fp32 and int8, compared with torch.

    encoder.pte, encoder.int8.pte, decoder.pte, joiner.pte
    tokens.txt, bpe.model, bpe.vocab, test_wavs/, README.md

A program has one stream: its shapes are fixed when it is lowered. int8 means 8-bit weights per output
channel in the encoder's linear layers, with dynamically quantized activations; everything else is float32.
ExecuTorch has no recogniser that carries states from chunk to chunk, so the caller decodes:
export/executorch/run.py is an example.

Needs the extra `executorch`, which pairs with one release of torch: 1.2 with 2.11.

Letters: C encoder frames of a chunk, J joiner width, K context, R and S sizes of the states.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Graph
from todm.config import Config
from todm.device.audio import Samples
from todm.device.contract import start_context
from todm.device.features import FRAMES_PER_SECOND, fbank
from todm.device.recognizer import pad_tail
from todm.errors import BundleError, MissingExtra
from todm.export.bundle import GRAPHS, check_assets, tail_for
from todm.export.card import endpoint
from todm.export.compressed import summary
from todm.export.decoding import Decoding, chunk_table
from todm.export.reference import decibels, encode, greedy, in_torch, split
from todm.export.sample import Sample, expected_of, sample_signal, write_expected
from todm.export.to_onnx import quiet
from todm.export.verify import INT8_TOKENS, TOLERANCE, Report

KIND = "executorch"
Form = Literal["fp32", "int8"]

_CALIBRATION = 20  # chunks of the sample; they only trace shapes, since scales are dynamic

_CARD = """\
# Speech recogniser for ExecuTorch, {chunk_ms} ms chunks

Exported by todm with ExecuTorch {version} for the XNNPACK delegate. One stream, 16 kHz mono.

| file | MB (10^6 bytes) |
| --- | --- |
{files}

- **Encoder** `encoder.pte` (or `encoder.int8.pte`): x float32 [1, {T}, 80], two states float32 [1, 1, {S}]
  and [1, 1, {R}] -> encoder_out [1, {C}, {J}] and the new states. Zeros start a stream.
- **Decoder** `decoder.pte`: y int64 [1, {K}], which is {start} at the start -> [1, {J}].
- **Joiner** `joiner.pte`: [1, {J}] and [1, {J}] -> logits [1, {V}]; id 0 is blank.
- **Tail**: feed **{tail} s of silence** after the speech, or the last words are lost.
{endpoint}
`test_wavs/0.wav`, which has its tail already, must give: "{text}"
Run it: `python export/executorch/run.py DIR test_wavs/0.wav [--precision int8]`.

Compared with torch when it was made; largest differences:

{checks}

{chunk_sizes}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutorchConfig(Config):
    """The forms to lower.

    Attributes:
        int8: write an int8 form of the encoder too.
        tail_seconds: silence fed after speech; see `todm.export.bundle.tail_for`.
    """

    int8: bool = True
    tail_seconds: float | None = None


class Pte:
    """A loaded program: called with the tensors of its inputs in order."""

    def __init__(self, path: Path) -> None:
        """Load a .pte file.

        Raises:
            MissingExtra: executorch is not installed.
            BundleError: the file is not a program.
        """
        require()
        from executorch.runtime import Runtime, Verification

        # The program owns the method's memory, so it is kept.
        try:
            self._program = Runtime.get().load_program(path, verification=Verification.Minimal)
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise BundleError(f"{path} cannot be loaded by ExecuTorch: {error}") from None
        assert self._method is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run it; the outputs are copies, because the next call overwrites the program's own."""
        assert self._method is not None
        return tuple(out.clone() for out in self._method.execute([_plain(x) for x in inputs]))


def write_executorch(
    path: str | Path,
    graphs: Sequence[Graph],
    *,
    write_assets: Callable[[Path], None],
    config: ExecutorchConfig,
    sample: Sample | None = None,
    parent: Artifact | None = None,
    decoding: Decoding | None = None,
) -> Artifact:
    """Lower, quantize, verify and write programs.

    Args:
        path: the directory to write; an export already there is replaced.
        graphs: encoder, decoder and joiner.
        write_assets: writes tokens.txt, bpe.model and bpe.vocab into a directory.
        config: the forms to lower.
        sample: a recording to check with and to ship; a synthetic signal if None.
        parent: the subnet it is made from.
        decoding: what manifest and card say of decoding, besides the graphs.

    Raises:
        BundleError: the graphs are compressed, or a check failed; then nothing is written.
        MissingExtra: executorch is not installed.
        ArtifactError: `path` exists and is not an artifact.
    """
    require()
    if layers := summary([graph.module for graph in graphs]):
        raise BundleError(
            f"these graphs are compressed ({', '.join(layers)}), which ExecuTorch programs cannot "
            "be: export the subnet they were made from, whose encoder gets an int8 form there"
        )
    decoding = decoding or Decoding()
    job = _Job({graph.name: graph for graph in graphs}, config, sample, decoding)
    info = {
        "target": "executorch",
        "tail_seconds": job.tail_seconds,
        "chunk_seconds": job.chunk_seconds,
        "sizes": job.sizes,
    }
    if decoding.endpoint_seconds is not None:
        info["endpoint_seconds"] = decoding.endpoint_seconds
    metrics: dict[str, Any] = {}

    def write(folder: Path) -> None:
        write_assets(folder)
        metrics.update(job.fill(folder))

    return artifact.save(
        path,
        kind=KIND,
        config={"export": config.to_json(), "model": parent.config if parent else {}},
        parent=parent.hash if parent else None,
        metrics=metrics,
        info=info,
        write=write,
    )


class _Job:
    """The steps of one export, in order."""

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        config: ExecutorchConfig,
        sample: Sample | None,
        decoding: Decoding,
    ) -> None:
        self._graphs, self._config, self._decoding = graphs, config, decoding
        self._sample = sample or Sample(samples_S=sample_signal())
        x, state0, state1 = (port.example.shape for port in graphs["encoder"].inputs)
        out, logits = graphs["encoder"].outputs[0].example, graphs["joiner"].outputs[0].example
        self.sizes = {
            "T": x[1], "C": out.shape[1], "S": state0[2], "R": state1[2], "J": out.shape[2],
            "K": graphs["decoder"].inputs[0].example.shape[1], "V": logits.shape[1],
        }  # fmt: skip
        self.chunk_seconds = x[1] / FRAMES_PER_SECOND
        self.tail_seconds = tail_for(self.chunk_seconds, config.tail_seconds)

    def fill(self, folder: Path) -> dict[str, Any]:
        """Write all files into a directory that has the assets; returns the measured figures."""
        tokens = check_assets(folder, self._graphs["joiner"])
        samples = self._sample.write(folder, self.tail_seconds)
        for name in GRAPHS:
            lower(self._graphs[name], folder / f"{name}.pte")
        if self._config.int8:
            chunks = self._chunks(samples)[:_CALIBRATION]
            lower(self._graphs["encoder"], folder / "encoder.int8.pte", calibrate=chunks)
        report, expected = Report(), {}
        for form in ("fp32", "int8") if self._config.int8 else ("fp32",):
            expected[form] = {"streaming": self._verify(report, folder, form, samples, tokens)}
        write_expected(folder, expected)
        figures = {
            "checks": report.figures,
            "bytes": {p.name: p.stat().st_size for p in sorted(folder.glob("*.pte"))},
            "chunk_sizes": list(self._decoding.chunk_sizes),
        }
        (folder / "README.md").write_text(self._card(figures, expected), encoding="utf-8")
        return figures

    def _chunks(self, samples_S: Samples) -> list[Tensor]:
        return split(fbank(samples_S), self.sizes["T"], self.sizes["T"])

    def _verify(
        self, report: Report, folder: Path, form: Form, samples_S: Samples, tokens: tuple[str, ...]
    ) -> dict[str, Any]:
        """Compare encoder chunks and transcripts; returns the form's transcript of the sample."""
        ours = [in_torch(self._graphs[name]) for name in GRAPHS]
        theirs = [Pte(folder / file_name(name, form)) for name in GRAPHS]
        chunks = self._chunks(pad_tail(samples_S, self.tail_seconds))  # runners add a tail too
        states = [torch.zeros(1, 1, self.sizes[name]) for name in "SR"]
        exact, lowered = (torch.cat(encode(call, chunks, states)) for call in (ours[0], theirs[0]))
        name = f"{form}, encoder chunk by chunk, torch and ExecuTorch"
        if form == "fp32":
            report.close(name, exact.numpy(), lowered.numpy(), TOLERANCE)
        else:
            report.figures[f"{form} encoder, signal-to-noise in dB"] = decibels(exact, lowered)
        decode = functools.partial(
            greedy,
            tokens=tokens,
            context_size=self.sizes["K"],
            endpoint_seconds=self._decoding.endpoint_seconds,
        )
        wanted = decode(ours[1], ours[2], exact)
        transcript = decode(theirs[1], theirs[2], lowered)
        name = f"{form}, transcripts of torch and ExecuTorch"
        if form == "fp32":
            report.same(name, wanted, transcript)
        else:
            report.alike(name, wanted.tokens, transcript.tokens, INT8_TOKENS)
        return expected_of(transcript)

    def _card(self, figures: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
        from importlib.metadata import version

        text = _CARD.format(
            version=version("executorch"),
            chunk_ms=round(1000 * self.chunk_seconds),
            files="\n".join(f"| {n} | {size / 1e6:.2f} |" for n, size in figures["bytes"].items()),
            start=start_context(self.sizes["K"]).tolist(),
            tail=self.tail_seconds,
            endpoint=endpoint(self._decoding.endpoint_seconds),
            chunk_sizes=chunk_table(self._decoding.chunk_sizes, self.sizes["C"]),
            text=expected["fp32"]["streaming"]["text"],
            checks="\n".join(f"- {name}: {value:.2g}" for name, value in figures["checks"].items()),
            **self.sizes,
        )
        return text.rstrip() + "\n"


def lower(graph: Graph, path: Path, *, calibrate: Sequence[Tensor] | None = None) -> None:
    """Write one graph as a program of one stream.

    Args:
        graph: to lower.
        path: the .pte file to write.
        calibrate: chunks, each [1, T, 80]; if given, linear layers get 8-bit weights.

    Raises:
        MissingExtra: executorch is not installed.
    """
    require()
    examples = _examples(graph)
    module = graph.module.eval()
    with quiet(), _flatc(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        if calibrate is not None:
            module = _rounded(module, examples, calibrate)
        program = torch.export.export(module, examples, strict=False)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)


def _rounded(
    module: torch.nn.Module, examples: tuple[Tensor, ...], chunks: Sequence[Tensor]
) -> torch.nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    traced = torch.export.export(module, examples, strict=False).module()
    prepared = prepare_pt2e(traced, XNNPACKQuantizer().set_global(config))
    states = examples[1:]
    for chunk in chunks:
        _, *states = prepared(chunk, *states)
    return convert_pt2e(prepared)


def file_name(name: str, form: Form) -> str:
    """The file name of a graph; only the encoder has an int8 form."""
    return f"{name}.int8.pte" if form == "int8" and name == "encoder" else f"{name}.pte"


def _examples(graph: Graph) -> tuple[Tensor, ...]:
    """The examples of the inputs, for one stream."""
    examples = []
    for port in graph.inputs:
        example = port.example
        for axis in port.dynamic:
            example = example.narrow(axis, 0, 1)
        examples.append(_plain(example))
    return tuple(examples)


def _plain(x: Tensor) -> Tensor:
    """A contiguous copy; ExecuTorch refuses other strides, even those of an axis of size 1."""
    return torch.empty(x.shape, dtype=x.dtype).copy_(x)


@contextlib.contextmanager
def _flatc() -> Iterator[None]:
    """Put the interpreter's folder, where pip installs the compiler flatc, on the PATH."""
    before = os.environ.get("PATH", "")
    if shutil.which("flatc") is None:
        os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def require() -> None:
    """Raise MissingExtra if executorch is not installed."""
    # "executorch" alone may be a folder of that name.
    if importlib.util.find_spec("executorch") is None or not importlib.util.find_spec(
        "executorch.exir"
    ):
        raise MissingExtra("executorch", "executorch", "the target executorch")
