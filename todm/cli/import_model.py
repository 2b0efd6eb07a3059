"""`todm import PATH --backend llm|vision|multimodal --out DIR`: a transformers or timm model, offline."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from todm.artifact import Artifact

_OF = {
    "architecture": ("vision", "multimodal"),
    "data": ("vision", "multimodal"),
    "text": ("llm",),
    "context": ("llm",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "source",
        type=Path,
        help="directory with config.json and safetensors; vision: or a .safetensors file",
    )
    parser.add_argument(
        "--backend",
        choices=("llm", "vision", "multimodal"),
        required=True,
        help="language (transformers), timm, or language with images or sound (transformers)",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument(
        "--architecture",
        help="vision: timm's name, multimodal: transformers' class, if config.json does not say it",
    )
    parser.add_argument(
        "--data",
        help="what it is calibrated and evaluated on; vision: digits, canvas, a folder, an .npz file; "
        "multimodal: a .safetensors of inputs as the processor makes them",
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

    for flag, backends in _OF.items():
        if getattr(args, flag) is not None and args.backend not in backends:
            raise ConfigError(f"--{flag} is for --backend {' and '.join(backends)}: leave it out")
    if args.backend == "multimodal" and args.data is None:
        raise ConfigError("--backend multimodal needs --data: inputs to calibrate and evaluate on")
    if not args.source.exists():
        raise ConfigError(f"{args.source} is not there: check the path")
    if args.context is not None and args.context < 2:
        raise ConfigError(f"--context is {args.context}: at least 2 tokens are needed")
    made = {"vision": _vision, "llm": _llm, "multimodal": _multimodal}[args.backend](args)
    print(f"{made.kind}: {made.path}")
    return 0


def _vision(args: argparse.Namespace) -> "Artifact":
    from todm.vision.importing import import_checkpoint

    name, data = args.architecture or "", args.data or ""
    return import_checkpoint(args.source, args.out, architecture=name, data=data)


def _llm(args: argparse.Namespace) -> "Artifact":
    from todm.llm.importing import import_checkpoint

    return import_checkpoint(args.source, args.out, text=args.text, context=args.context or 0)


def _multimodal(args: argparse.Namespace) -> "Artifact":
    from todm.multimodal.importing import import_checkpoint

    data, name = Path(args.data), args.architecture or ""
    return import_checkpoint(args.source, args.out, data=data, architecture=name)
