"""Graphs to a bundle: files, metadata, int8 and offline forms, checks, card; all or nothing.

The bundle is written and verified in a temporary directory and appears only after every check passed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from todm import __version__, artifact
from todm.artifact import Artifact
from todm.backend import Graph
from todm.config import Config
from todm.device.bundle import KIND, Bundle, Precision, forms_here, graph_name, read_tokens
from todm.device.contract import STREAMING_MODEL_TYPE
from todm.device.features import FRAMES_PER_SECOND
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer
from todm.device.timing import time_bundle
from todm.errors import BundleError, ConfigError
from todm.export.calibration import Calibration, calibrate
from todm.export.card import card
from todm.export.compressed import summary
from todm.export.decoding import Decoding
from todm.export.quantize import quantize_blocks, quantize_int8
from todm.export.sample import Sample, expected_of, sample_signal, write_expected
from todm.export.sparsity import require_24
from todm.export.to_onnx import graph_to_onnx
from todm.export.verify import Report, verify
from todm.export.web import check_page, write_page
from todm.files import Progress, no_progress

_LATE_SECONDS = 0.36  # from the end of a word to its last symbol, at most
_LOOK_AHEAD_SECONDS = (
    0.04  # a host decodes a chunk when one feature frame more is there, whose window is wide
)
_LONGEST_TAIL = 10.0
_ASSETS = ("tokens.txt", "bpe.model", "bpe.vocab")
GRAPHS = ("encoder", "decoder", "joiner")
_TIMED_SECONDS = 10.0
_REPEATS = 15  # short passes, of which the fastest counts, because forms are compared
_BITS = {"int8.block": 8, "int4": 4}
_NOT_SHIPPED = ("corpus", "compressed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """The content of a bundle.

    Attributes:
        target: the graphs are the same for all; `sherpa-onnx` is checked in sherpa-onnx too, `web` adds
            a page with its runtime and is checked in it.
        precisions: forms of the encoder, fp32 first: `int8` is for ARM and x86 with VNNI, `int8.rr`
            with 7-bit weights for other x86, `int8.block` (8 bits in blocks of 32) if int8 costs too many
            errors, `int4` if bytes matter most.
        tail_seconds: silence fed after speech; see `tail_for`.
        max_lost: share of commands that the threshold of confidence may cost; None for the usual one.
    """

    target: Literal["onnx", "sherpa-onnx", "web"] = "sherpa-onnx"
    precisions: tuple[Precision, ...] = ("fp32", "int8", "int8.rr")
    tail_seconds: float | None = None
    max_lost: float | None = None

    def __post_init__(self) -> None:
        if self.precisions[:1] != ("fp32",) or len(set(self.precisions)) < len(self.precisions):
            raise ConfigError(
                f"precisions are {', '.join(self.precisions) or 'none'}: give each once and fp32 first, "
                "such as fp32,int8,int4"
            )


def write_bundle(
    path: str | Path,
    graphs: Sequence[Graph],
    *,
    write_assets: Callable[[Path], None],
    config: ExportConfig,
    sample: Sample | None = None,
    parent: Artifact | None = None,
    decoding: Decoding | None = None,
    progress: Progress = no_progress,
) -> Artifact:
    """Lower, quantize, verify and write a bundle.

    Args:
        path: the directory to write; a bundle already there is replaced.
        graphs: encoder, decoder and joiner, batch axis dynamic.
        write_assets: writes tokens.txt, bpe.model and bpe.vocab into a directory.
        config: the content of the bundle.
        sample: a recording to check with and to ship; a synthetic signal if None.
        parent: the subnet it is made from; its config and info go into the manifest.
        decoding: what manifest and card say of decoding, besides the graphs.
        progress: called with the target and the number of steps done and in total.

    Raises:
        BundleError: graphs are missing or a check failed; then nothing is written.
        MissingExtra: a package for export is not installed.
        ArtifactError: `path` exists and is not an artifact.
    """
    by_name = {graph.name: graph for graph in graphs}
    missing = [name for name in GRAPHS if name not in by_name]
    if missing:
        raise BundleError(
            f"a transducer needs the graphs {', '.join(GRAPHS)}: there is no {missing[0]}"
        )
    if len(config.precisions) > 1 and (layers := summary([graph.module for graph in graphs])):
        raise ConfigError(
            f"these graphs are compressed already ({', '.join(layers)}): give precisions fp32 alone; the "
            "passes of  todm compress  make other forms"
        )
    decoding, sample = decoding or Decoding(), sample or Sample(samples_S=sample_signal())
    job = _Job(by_name, config, sample, decoding, progress)
    info = {
        "target": config.target,
        "tail_seconds": job.tail_seconds,
        "chunk_seconds": job.chunk_seconds,
        "subnet": _shipped(parent.info) if parent else {},
        "compressed": summary([graph.module for graph in graphs]),
    }
    if parent and "provenance" in parent.info:
        info["provenance"] = parent.info["provenance"]
    if decoding.endpoint_seconds is not None:
        info["endpoint_seconds"] = decoding.endpoint_seconds
    metrics: dict[str, Any] = {}

    def write(folder: Path) -> None:
        write_assets(folder)
        metrics.update(job.fill(folder, info))

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
        config: ExportConfig,
        sample: Sample,
        decoding: Decoding,
        progress: Progress,
    ) -> None:
        self._graphs, self._config, self._sample = graphs, config, sample
        self._decoding, self._progress = decoding, progress
        self.chunk_seconds = graphs["encoder"].inputs[0].example.shape[1] / FRAMES_PER_SECOND
        self.tail_seconds = tail_for(self.chunk_seconds, config.tail_seconds)

    def fill(self, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
        """Write all files into a directory that has the assets; returns the measured figures.

        The threshold of confidence goes into `info`.
        """
        bundle = Bundle(path=folder, info=info)
        in_sherpa = self._config.target == "sherpa-onnx"
        check_assets(folder, self._graphs["joiner"])
        if self._config.target == "web":
            write_page(folder)
        steps: list[Callable[[], object]] = [
            lambda: self._write_graphs(folder),
            lambda: self._write_forms(folder),
            lambda: self._write_offline(folder),
            lambda: self._calibrate(bundle, info),
            lambda: verify(
                list(self._graphs.values()), bundle, self._sample.samples_S, in_sherpa=in_sherpa
            ),
            lambda: self._time(bundle),
            lambda: self._write_sample(bundle),
        ]
        results, what = [], f"export to {self._config.target}"
        for done, step in enumerate(steps):
            self._progress(what, done, len(steps))
            results.append(step())
        calibration: Calibration | None = results[3]
        report: Report = results[4]
        if self._config.target == "web":
            check_page(report, bundle, results[6])
        figures = {
            "checks": report.figures,
            "runtime": results[5],
            "bytes": {p.name: p.stat().st_size for p in sorted(folder.glob("*.onnx"))},
            "chunk_sizes": list(self._decoding.chunk_sizes),
        }
        if calibration is not None:
            figures["decision"] = dataclasses.asdict(calibration)
        text = card(
            bundle, figures, results[6], reference=self._sample.reference, calibration=calibration
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        self._progress(what, len(steps), len(steps))
        return figures

    def _write_graphs(self, folder: Path) -> None:
        for name, metadata in _metadata(self._graphs).items():
            graph_to_onnx(self._graphs[name], folder / f"{name}.onnx", metadata=metadata)
        require_24(folder / "encoder.onnx", self._graphs["encoder"])

    def _write_forms(self, folder: Path) -> None:
        """Write the encoder in each precision, and the decoder and joiner shared by all but fp32."""
        for precision in self._config.precisions[1:]:
            files = folder / "encoder.onnx", folder / graph_name("encoder", precision)
            if precision in _BITS:
                quantize_blocks(*files, bits=_BITS[precision])
            else:
                quantize_int8(*files, reduce_range=precision == "int8.rr")
        for name in GRAPHS[1:] if len(self._config.precisions) > 1 else ():
            files = folder / f"{name}.onnx", folder / graph_name(name, "int8")
            quantize_int8(*files, reduce_range=True)

    def _write_offline(self, folder: Path) -> None:
        from todm.export.offline import wrap_in_scan

        (folder / "offline").mkdir()
        tail_frames = math.ceil(self.tail_seconds * FRAMES_PER_SECOND)
        for precision in self._config.precisions:
            name = graph_name("encoder", precision)
            wrap_in_scan(folder / name, folder / "offline" / name, tail_frames=tail_frames)

    def _calibrate(self, bundle: Bundle, info: dict[str, Any]) -> Calibration | None:
        """Find the threshold, if there is speech to find it with, on the forms of this processor."""
        if not self._decoding.calibrate_on:
            return None
        found = calibrate(
            bundle,
            [form for form in forms_here(bundle) if form in ("fp32", "int8", "int8.rr")],
            self._decoding.calibrate_on,
            max_lost=self._decoding.max_lost,
            progress=lambda done, total: self._progress("threshold of confidence", done, total),
        )
        if not any(row["exact"] for row in found.forms.values()):  # it has not learnt anything yet
            return None
        info["decision_threshold"] = found.threshold
        return found

    def _time(self, bundle: Bundle) -> dict[str, Any]:
        samples = self._sample.samples_S[: int(_TIMED_SECONDS * 16_000)]
        timings = [
            time_bundle(bundle, [samples], precision=p, repeats=_REPEATS)
            for p in self._config.precisions
        ]
        return {t.precision: dataclasses.asdict(t) for t in timings}

    def _write_sample(self, bundle: Bundle) -> dict[str, Any]:
        """Write the recording and its transcript by each form of the bundle."""
        samples = self._sample.write(bundle.path, self.tail_seconds)
        expected: dict[str, Any] = {"reference": self._sample.reference}
        for precision in self._config.precisions:
            recognizer = StreamingRecognizer(bundle, precision=precision)
            transcripts = {"streaming": expected_of(recognizer.transcribe(samples))}
            if bundle.has_offline():
                offline = OfflineRecognizer(bundle, precision=precision)
                transcripts["offline"] = expected_of(offline.transcribe(samples))
            expected[precision] = transcripts
        write_expected(bundle.path, expected)
        return expected


def tail_for(chunk_seconds: float, given: float | None = None) -> float:
    """Seconds of silence that bring out the last word.

    Args:
        chunk_seconds: audio of a chunk.
        given: what a user wants; by default a chunk and what a symbol may come after its word.

    Raises:
        ConfigError: it is too short for the last frames of speech to be decoded, or too long.
    """
    if given is None:
        return round(chunk_seconds + _LATE_SECONDS, 2)
    least = round(chunk_seconds + _LOOK_AHEAD_SECONDS, 2)
    most = max(_LONGEST_TAIL, least)
    if not least <= given <= most:  # false for NaN too
        raise ConfigError(
            f"--tail is {given:g}: {least:g} to {most:g} seconds, since a chunk of {chunk_seconds:g} s has "
            "to fill up behind the last word before it is decoded"
        )
    return given


def check_assets(folder: Path, joiner: Graph) -> tuple[str, ...]:
    """Check the tokenizer's files in a directory and return the tokens.

    Raises:
        BundleError: a file is missing, or the numbers of tokens and of the joiner's logits differ.
    """
    bundle = Bundle(path=folder)
    for name in _ASSETS:
        bundle.file(name)
    tokens = read_tokens(bundle.file("tokens.txt"))
    vocab_size = joiner.outputs[0].example.shape[1]
    if len(tokens) != vocab_size:
        raise BundleError(
            f"tokens.txt has {len(tokens)} tokens, and the joiner gives {vocab_size} logits: the "
            "tokenizer is not the one this model was trained with"
        )
    return tokens


def _shipped(info: Mapping[str, Any]) -> dict[str, Any]:
    """A subnet's info without the path of its corpus: a bundle goes to strangers."""
    kept = {k: v for k, v in info.items() if k not in _NOT_SHIPPED}
    return {k: _shipped(v) if isinstance(v, Mapping) else v for k, v in kept.items()}


def _metadata(graphs: Mapping[str, Graph]) -> dict[str, dict[str, str]]:
    """The metadata of each graph; the encoder's is that of sherpa-onnx's `lstm` type with one layer."""
    frames, state0, state1 = (port.example for port in graphs["encoder"].inputs)
    sizes = {
        "encoder": {
            "T": frames.shape[1],
            "decode_chunk_len": frames.shape[1],
            "num_encoder_layers": state0.shape[0],
            "d_model": state0.shape[2],
            "rnn_hidden_size": state1.shape[2],
        },
        "decoder": {
            "vocab_size": graphs["joiner"].outputs[0].example.shape[1],
            "context_size": graphs["decoder"].inputs[0].example.shape[1],
        },
        "joiner": {"joiner_dim": graphs["joiner"].inputs[0].example.shape[1]},
    }
    texts = {
        "model_type": STREAMING_MODEL_TYPE,
        "comment": "MH-SSM, all streaming state packed into two tensors",
    }
    common = {"version": "1", "model_author": f"todm {__version__}"}
    return {
        name: {
            **common,
            **(texts if name == "encoder" else {}),
            **{key: str(size) for key, size in named.items()},
        }
        for name, named in sizes.items()
    }
