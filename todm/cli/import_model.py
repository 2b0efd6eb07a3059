"""`todm import PATH --backend llm|vision --out DIR`: a transformers or timm model as an artifact, offline."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from todm.artifact import Artifact

_OF = {"architecture": "vision", "data": "vision", "text": "llm", "context": "llm"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "source",
        type=Path,
        help="directory with config.json and safetensors; vision: or a .safetensors file",
    )
    parser.add_argument(
        "--backend",
        choices=("llm", "vision"),
        required=True,
        help="language (transformers) or timm",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument(
        "--architecture", help="vision: timm's name, if config.json does not say it"
    )
    parser.add_argument(
        "--data",
        help="vision: what it is calibrated and evaluated on: digits, canvas, a folder, an .npz file",
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="llm: text of the same use: a file, or a directory with train.txt, dev.txt and test.txt",
    )
    parser.add_argument(
        "--context", type=int, help="llm: tokens of a window (default: at most 512)"
    )


def run(args: argparse.Namespace) -> int:
    """Import the model and say where it is."""
    from todm.errors import ConfigError

    for flag, backend in _OF.items():
        if getattr(args, flag) is not None and backend != args.backend:
            raise ConfigError(f"--{flag} is for --backend {backend}: leave it out")
    if not args.source.exists():
        raise ConfigError(f"{args.source} is not there: check the path")
    if args.context is not None and args.context < 2:
        raise ConfigError(f"--context is {args.context}: at least 2 tokens are needed")
    made = _vision(args) if args.backend == "vision" else _llm(args)
    print(f"{made.kind}: {made.path}")
    return 0


def _vision(args: argparse.Namespace) -> "Artifact":
    from todm.vision.importing import import_checkpoint

    name, data = args.architecture or "", args.data or ""
    return import_checkpoint(args.source, args.out, architecture=name, data=data)


def _llm(args: argparse.Namespace) -> "Artifact":
    from todm.llm.importing import import_checkpoint

    return import_checkpoint(args.source, args.out, text=args.text, context=args.context or 0)
