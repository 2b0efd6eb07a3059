"""`todm export MODEL --target sherpa-onnx --out DIR`: files that a device's runtime loads, verified.

A recogniser (subnet, compressed or not) becomes a bundle of encoder, decoder and joiner; a vision or
language model one ONNX file; a language model of 4-bit weights also an AWQ checkpoint.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.asr.backend import AsrBackend
    from todm.export.sample import Sample

_TARGETS = {
    "asr": ("onnx", "sherpa-onnx", "web", "executorch"),
    "vision": ("onnx",),
    "llm": ("onnx", "awq"),
    "multimodal": ("onnx",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "subnet",
        metavar="MODEL",
        type=Path,
        help="directory that  todm extract-subnet, compress  or  import  wrote",
    )
    parser.add_argument(
        "--target",
        choices=("onnx", "sherpa-onnx", "web", "executorch", "awq"),
        help="speech: onnx, sherpa-onnx and web have the same graphs; sherpa-onnx is verified in "
        "sherpa-onnx too (default), web is a page; executorch is .pte programs, "
        "fp32 and int8. Other models: onnx (default); awq is a checkpoint of a "
        "language model in AutoAWQ's layout",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument(
        "--precisions",
        help="forms of a recogniser's bundle, with commas: fp32 first, and of int8, int8.rr (for x86 "
        "without VNNI), int8.block (8 bits, least noise) and int4 (least bytes) what is wanted; "
        "fp32,int8,int8.rr by default",
    )
    parser.add_argument(
        "--sample",
        type=Path,
        help="recording that travels with the bundle (default: a test utterance)",
    )
    parser.add_argument("--corpus", type=Path, help="where the test utterance comes from")


def run(args: argparse.Namespace) -> int:
    """Export and verify, or say that it is done."""
    from todm import artifact
    from todm.cli.adapters import backend_name
    from todm.errors import ConfigError

    found = artifact.load(args.subnet, kind=("subnet", "compressed", "model"))
    name = backend_name(found)
    target = args.target or ("sherpa-onnx" if name == "asr" else "onnx")
    if target not in _TARGETS[name]:
        raise ConfigError(
            f"--target {target} is not for a model of {name}: choose of {', '.join(_TARGETS[name])}"
        )
    if target == "executorch":
        return _executorch(args, found)
    if name == "asr":
        return _bundle(args, found, target)
    return _checkpoint(args, found) if target == "awq" else _one_graph(args, found)


def _bundle(args: argparse.Namespace, found: "Artifact", target: str) -> int:
    """Encoder, decoder and joiner of a recogniser."""
    from todm.asr.loading import backend_of, load_model
    from todm.export.bundle import ExportConfig, write_bundle

    wanted: dict[str, object] = {"target": target}
    if args.precisions:
        wanted["precisions"] = args.precisions.split(",")
    elif found.kind == "compressed":  # has its one form; others are made of float32 graphs
        wanted["precisions"] = ["fp32"]
    config = ExportConfig.from_json(wanted)
    done = _existing(args.out, found, "bundle")
    if done is not None and done.config["export"] == config.to_json():
        print(f"done already: {done.path}")
        return 0
    backend = backend_of(found, corpus=args.corpus, with_data=args.sample is None)
    with progress_report() as report:
        bundle = write_bundle(
            args.out,
            backend.graphs(load_model(found, backend)),
            write_assets=backend.write_assets,
            config=config,
            sample=_sample(args.sample, backend),
            parent=found,
            progress=lambda done, total: report(f"export to {target}", done, total),
        )
    _show(bundle)
    print(f"verified; bundle: {bundle.path}")
    return 0


def _executorch(args: argparse.Namespace, found: "Artifact") -> int:
    """Programs for the XNNPACK delegate of ExecuTorch."""
    from todm.asr.loading import backend_of, load_model
    from todm.errors import ConfigError
    from todm.export.to_executorch import KIND, ExecutorchConfig, write_executorch

    wanted = args.precisions or "fp32,int8"
    if wanted not in ("fp32", "fp32,int8"):
        raise ConfigError(f"--precisions {wanted}: executorch has fp32 and fp32,int8")
    config = ExecutorchConfig(int8="int8" in wanted)
    done = _existing(args.out, found, KIND)
    if done is not None and done.config["export"] == config.to_json():
        print(f"done already: {done.path}")
        return 0
    backend = backend_of(found, corpus=args.corpus, with_data=args.sample is None)
    made = write_executorch(
        args.out,
        backend.graphs(load_model(found, backend)),
        write_assets=backend.write_assets,
        config=config,
        sample=_sample(args.sample, backend),
        parent=found,
    )
    _show(made)
    print(f"verified; programs: {made.path}")
    return 0


def _one_graph(args: argparse.Namespace, found: "Artifact") -> int:
    """A vision or language model as one file."""
    from todm.cli.adapters import adapter_of
    from todm.export.model import KIND, check_one_graph, write_model

    if (done := _existing(args.out, found, KIND)) is not None:
        print(f"done already: {done.path}")
        return 0
    adapter = adapter_of(found)
    graph = check_one_graph(adapter.graphs(adapter.model.float().eval()), found.path)
    made = write_model(args.out, graph, parent=found, write_assets=adapter.write_assets)
    _show(made)
    print(f"verified; model: {made.path}")
    return 0


def _checkpoint(args: argparse.Namespace, found: "Artifact") -> int:
    """A language model as transformers and vLLM load it."""
    from todm.llm.adapter import LlmAdapter
    from todm.llm.awq_checkpoint import write

    adapter = LlmAdapter.load(found)
    write(args.out, adapter.model, adapter.config, assets=found.path)
    print(f"checkpoint: {args.out}")
    return 0


def _existing(out: Path, found: "Artifact", kind: str) -> "Artifact | None":
    """What is at `out`, if it was made of the same model."""
    from todm import artifact

    if not (out / artifact.MANIFEST).is_file():
        return None
    done = artifact.load(out, kind=kind)
    return done if done.parent == found.hash else None


def _show(made: "Artifact") -> None:
    for name, size in made.metrics["bytes"].items():
        print(f"{name:24} {size / 1e6:8.3f} MB")


def _sample(path: Path | None, backend: "AsrBackend") -> "Sample":
    """The given recording, or the first test utterance of at least two seconds."""
    from todm.export.sample import Sample

    if path is not None:
        return Sample.read(path)
    samples, text = backend.example("test", seconds=2.0)
    return Sample(samples_S=samples, reference=text)
