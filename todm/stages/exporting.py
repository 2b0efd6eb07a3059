"""Subnet or model -> files that a device's runtime loads, verified."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from todm.errors import ConfigError
from todm.files import Progress, no_progress, path_or_none

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.backend import AsrBackend
    from todm.backend import Graph
    from todm.export.calibration import Spoken

Target = Literal["onnx", "sherpa-onnx", "web", "executorch", "awq"]
Kind = Literal["bundle", "programs", "model", "checkpoint"]
_TARGETS: dict[str, tuple[Target, ...]] = {
    "asr": ("sherpa-onnx", "onnx", "web", "executorch"),
    "vision": ("onnx",),
    "llm": ("onnx", "awq"),
    "multimodal": ("onnx",),
}
"""By modality, the default first."""
_MAX_LOST = 0.03
_MOST_CALIBRATED = 1000  # recordings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported.

    Attributes:
        path: where it lies.
        kind: what it is.
        sizes: bytes of its graphs, by name.
        existed: whether it was there already.
    """

    path: Path
    kind: Kind
    sizes: dict[str, int]
    existed: bool


def export(
    model: str | Path,
    *,
    out: str | Path,
    target: Target | None = None,
    precisions: Sequence[str] | None = None,
    chunk: int | None = None,
    tail: float | None = None,
    sample: str | Path | None = None,
    corpus: str | Path | None = None,
    max_lost: float | None = None,
    progress: Progress = no_progress,
) -> Exported:
    """Export a model, and verify it in its runtime.

    A recogniser becomes a bundle of encoder, decoder and joiner, or programs of ExecuTorch; a vision or
    language model one ONNX file; a language model with 4-bit weights also an AWQ checkpoint. The card of a
    recogniser compares all chunk sizes of its training on the corpus.

        >>> stages.export(run / "subnet", out=run / "bundles" / "a", target="onnx").kind
        'bundle'

    Args:
        model: what  todm extract-subnet, compress  or  import  wrote.
        out: directory of the result.
        target: by default sherpa-onnx for speech, else onnx.
        precisions: forms of a recogniser; see `todm.export.bundle.ExportConfig`.
        chunk: frames of 40 ms that a recogniser decodes at a time, one of those trained with; by default
            `asr.chunk`.
        tail: seconds of silence that a recogniser needs after speech; by default a chunk and 0.36 s.
        sample: recording that travels with a bundle; by default a test utterance.
        corpus: of the test utterance and of the figures by chunk size; by default the one the model was
            trained on, none with a sample.
        max_lost: share of commands that the threshold of confidence of a bundle may cost, found on the dev
            split of the corpus: 0 for no threshold. By default 0.03 for the commands of a grammar and for a
            corpus that has speech that is no command, and 0 for all other speech.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm import artifact
    from todm.stages.adapters import backend_name

    found = artifact.load(model, kind=("subnet", "compressed", "model"))
    name = backend_name(found)
    target = target or _TARGETS[name][0]
    if target not in _TARGETS[name]:
        raise ConfigError(
            f"--target {target} is not for a model of {name}: choose from {', '.join(_TARGETS[name])}"
        )
    if name != "asr" and not (chunk is None and tail is None):
        raise ConfigError(f"--chunk and --tail are for recognisers of speech: {found.path} is none")
    if max_lost is not None:
        _check_max_lost(max_lost, name, target)
    if target == "awq":
        return _checkpoint(found, Path(out))
    if name != "asr":
        return _one_graph(found, Path(out))
    request = _Request(
        found,
        Path(out),
        target,
        precisions=precisions,
        chunk=chunk,
        tail=tail,
        sample=path_or_none(sample),
        corpus=path_or_none(corpus),
        max_lost=max_lost,
        progress=progress,
    )
    return _programs(request) if target == "executorch" else _bundle(request)


@dataclasses.dataclass(frozen=True)
class _Request:
    """A recogniser, and how to export it; see `export`."""

    found: "Artifact"
    out: Path
    target: Target
    _: dataclasses.KW_ONLY
    precisions: Sequence[str] | None
    chunk: int | None
    tail: float | None
    sample: Path | None
    corpus: Path | None
    max_lost: float | None
    progress: Progress

    def existing(self, kind: str, config: dict[str, Any]) -> "Artifact | None":
        """What was exported of this model at the same chunk and with the same settings.

        Raises:
            ConfigError: the chunk or the tail cannot be; before anything is read or written.
        """
        from todm.asr.loading import backend_of
        from todm.export.bundle import tail_for

        seconds = backend_of(self.found, with_data=False, chunk=self.chunk).chunk_seconds
        tail_for(seconds, self.tail)
        done = _existing(self.out, self.found, kind, config)
        return done if done and done.info.get("chunk_seconds") == round(seconds, 2) else None

    def load(self) -> "tuple[Sequence[Graph], dict[str, Any]]":
        """The graphs of the recogniser, and what their writers need besides.

        The recording is the given one, or the first test utterance of at least two seconds.
        """
        from todm.asr.chunk_sizes import by_chunk
        from todm.asr.loading import backend_of, load_model
        from todm.export.decoding import Decoding
        from todm.export.sample import Sample

        with_data = self.sample is None or self.corpus is not None
        backend = backend_of(
            self.found,
            corpus=self.corpus,
            with_data=with_data,
            chunk=self.chunk,
            report=self.progress,
        )
        if self.sample is None:
            samples, text = backend.example("test", seconds=2.0)
            recording = Sample(samples_S=samples, reference=text)
        else:
            recording = Sample.read(self.sample)
        model = load_model(self.found, backend)
        rows = by_chunk(backend, model, progress=self.progress) if with_data else []
        max_lost, recordings = self._calibration(backend) if with_data else (0.0, [])
        options = {
            "write_assets": backend.write_assets,
            "sample": recording,
            "parent": self.found,
            "decoding": Decoding(
                endpoint_seconds=backend.config.endpoint_seconds,
                chunk_sizes=rows,
                calibrate_on=recordings,
                max_lost=max_lost,
            ),
        }
        return backend.graphs(model), options

    def _calibration(self, backend: "AsrBackend") -> "tuple[float, list[Spoken]]":
        """The share of commands that the threshold may cost, and what it is found with; nothing for none."""
        from todm.export.calibration import Spoken

        recordings = [
            Spoken(text, read) for text, read in backend.recordings("dev", _MOST_CALIBRATED)
        ]
        share = self.max_lost
        if share is None:
            is_commands = backend.config.data.source == "commands"
            share = _MAX_LOST if is_commands or any(not r.text for r in recordings) else 0.0
        return share, recordings if share else []


def _check_max_lost(share: float, modality: str, target: Target) -> None:
    if not 0 <= share <= 0.5:  # false for NaN too
        raise ConfigError(f"--max-lost is {share:g}: a share of the commands from 0 to 0.5")
    if modality != "asr" or target == "executorch":
        raise ConfigError("--max-lost is for bundles of a recogniser of speech: leave it out")


def _bundle(request: _Request) -> Exported:
    """Encoder, decoder and joiner of a recogniser."""
    from todm.export.bundle import ExportConfig, write_bundle

    wanted: dict[str, object] = {
        "target": request.target,
        "tail_seconds": request.tail,
        "max_lost": request.max_lost,
    }
    if request.precisions:
        wanted["precisions"] = list(request.precisions)
    elif request.found.kind == "compressed":  # has its one form; others are made of float32 graphs
        wanted["precisions"] = ["fp32"]
    config = ExportConfig.from_json(wanted)
    if done := request.existing("bundle", config.to_json()):
        return _exported(done, "bundle", existed=True)
    graphs, options = request.load()
    made = write_bundle(
        request.out,
        graphs,
        config=config,
        progress=request.progress,
        **options,
    )
    return _exported(made, "bundle")


def _programs(request: _Request) -> Exported:
    """Programs for the XNNPACK delegate of ExecuTorch."""
    from todm.export.to_executorch import KIND, ExecutorchConfig, require, write_executorch

    wanted = ",".join(request.precisions or ("fp32", "int8"))
    if wanted not in ("fp32", "fp32,int8"):
        raise ConfigError(f"--precisions {wanted}: executorch has fp32 and fp32,int8")
    config = ExecutorchConfig(int8="int8" in wanted, tail_seconds=request.tail)
    if done := request.existing(KIND, config.to_json()):
        return _exported(done, "programs", existed=True)
    require()  # before the chunk sizes are measured, which may take minutes
    graphs, options = request.load()
    return _exported(write_executorch(request.out, graphs, config=config, **options), "programs")


def _one_graph(found: "Artifact", out: Path) -> Exported:
    """A vision or language model as one file."""
    from todm.export.model import KIND, check_one_graph, write_model
    from todm.stages.adapters import adapter_of

    if done := _existing(out, found, KIND):
        return _exported(done, "model", existed=True)
    adapter = adapter_of(found)
    graph = check_one_graph(adapter.graphs(adapter.model.float().eval()), found.path)
    made = write_model(out, graph, parent=found, write_assets=adapter.write_assets)
    return _exported(made, "model")


def _checkpoint(found: "Artifact", out: Path) -> Exported:
    """A language model as transformers and vLLM load it."""
    from todm.llm.adapter import LlmAdapter
    from todm.llm.awq_checkpoint import write

    adapter = LlmAdapter.load(found)
    write(out, adapter.model, adapter.config, assets=found.path)
    return Exported(path=out, kind="checkpoint", sizes={}, existed=False)


def _existing(
    out: Path, found: "Artifact", kind: str, config: dict[str, Any] | None = None
) -> "Artifact | None":
    """The export at `out`, if it was made of the same model with the same settings."""
    from todm import artifact

    done = artifact.existing(out, kind=kind)
    if done is None or done.parent != found.hash:
        return None
    return done if config is None or done.config["export"] == config else None


def _exported(made: "Artifact", kind: Kind, *, existed: bool = False) -> Exported:
    return Exported(path=made.path, kind=kind, sizes=made.metrics["bytes"], existed=existed)
