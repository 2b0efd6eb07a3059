"""`todm import PATH --backend llm|vision|multimodal --out DIR`: a transformers or timm model, offline."""

import argparse

from todm import stages
from todm.cli.arguments import Flags, given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.import_model)
    flag("source", "directory with config.json and safetensors; vision: or a .safetensors file")
    flag(
        "--backend",
        "language (transformers), timm, or language with images or sound (transformers)",
    )
    flag("--out", "directory of the model")
    flag(
        "--architecture",
        "vision: timm's name, multimodal: transformers' class, if config.json does not say it",
    )
    flag(
        "--data",
        "what it is calibrated and evaluated on; vision: digits, canvas, a folder, an .npz file; "
        "multimodal: a .safetensors of inputs as the processor makes them",
    )
    flag(
        "--text",
        "llm: text of the same use: a file, or a directory with train.txt, dev.txt and test.txt",
    )
    flag("--context", "llm: tokens of a window (default: at most 512)")


def run(args: argparse.Namespace) -> int:
    """Import the model and say where it is."""
    made = stages.import_model(**given(args, stages.import_model))
    print(f"{made.kind}: {made.path}")
    return 0
