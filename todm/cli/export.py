"""`todm export SUBNET --target sherpa-onnx --out DIR`: a bundle that a device's runtime loads, verified."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.asr.backend import AsrBackend
    from todm.export.bundle import Sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("subnet", type=Path, help="directory that  todm extract-subnet  wrote")
    parser.add_argument(
        "--target",
        choices=("onnx", "sherpa-onnx"),
        default="sherpa-onnx",
        help="the same files; sherpa-onnx is verified in sherpa-onnx too (default)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--no-int8", action="store_true", help="leave the int8 forms out")
    parser.add_argument(
        "--sample",
        type=Path,
        help="recording that travels with the bundle (default: a test utterance)",
    )
    parser.add_argument("--corpus", type=Path, help="where the test utterance comes from")


def run(args: argparse.Namespace) -> int:
    """Export and verify, or say that it is done."""
    from todm import artifact
    from todm.asr.loading import backend_of, load_model
    from todm.export.bundle import ExportConfig, write_bundle

    found = artifact.load(args.subnet, kind="subnet")
    config = ExportConfig(target=args.target, int8=not args.no_int8)
    if (args.out / artifact.MANIFEST).is_file():
        done = artifact.load(args.out, kind="bundle")
        if done.parent == found.hash and done.config["export"] == config.to_json():
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
            progress=lambda done, total: report(f"export to {args.target}", done, total),
        )
    for name, size in bundle.metrics["bytes"].items():
        print(f"{name:24} {size / 1e6:8.3f} MB")
    print(f"verified; bundle: {bundle.path}")
    return 0


def _sample(path: Path | None, backend: "AsrBackend") -> "Sample":
    """The given recording, or the first test utterance of at least two seconds."""
    from todm.export.bundle import Sample

    if path is not None:
        return Sample.read(path)
    samples, text = backend.example("test", seconds=2.0)
    return Sample(samples_S=samples, reference=text)
