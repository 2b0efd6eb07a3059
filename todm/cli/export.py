"""`todm export MODEL --target sherpa-onnx --out DIR`: files that a device's runtime loads, verified."""

import argparse

from todm import stages
from todm.cli.arguments import Flags, given, names
from todm.cli.progress import progress_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    flag = Flags(parser, stages.export)
    flag("model", "directory that  todm extract-subnet, compress  or  import  wrote")
    flag(
        "--target",
        "speech: onnx, sherpa-onnx and web have the same graphs; sherpa-onnx is verified in "
        "sherpa-onnx too (default), web is a page; executorch is .pte programs, fp32 and int8. Other "
        "models: onnx (default); awq is a checkpoint of a language model in AutoAWQ's layout",
    )
    flag("--out", "directory of the bundle")
    flag(
        "--precisions",
        "forms of a recogniser's bundle, joined by commas: fp32 first, then any of int8, int8.rr (for "
        "x86 without VNNI), int8.block (8 bits, least noise) and int4 (least bytes); "
        "default: fp32,int8,int8.rr",
        action="store",
        type=names("--precisions"),
    )
    flag(
        "--chunk",
        "frames of 40 ms that a recogniser decodes at a time, one of those it was trained with (default: "
        "asr.chunk); the bundle's card compares them",
    )
    flag(
        "--tail",
        "seconds of silence that a recogniser needs after speech (default: a chunk and 0.36 s)",
    )
    flag("--sample", "recording that travels with the bundle (default: a test utterance)")
    flag(
        "--corpus",
        "of the test utterance, and of the card's figures by chunk size (default: the corpus trained on; "
        "none with --sample)",
    )
    flag(
        "--max-lost",
        "share of the commands that the threshold of confidence may cost, below which a segment gives no "
        "text: 0 for none (default: 0.03 for a grammar and a corpus with speech that is no command)",
    )


def run(args: argparse.Namespace) -> int:
    """Export and verify, or say that it is done."""
    with progress_report() as progress:
        made = stages.export(**given(args, stages.export), progress=progress)
    if made.existed:
        print(f"done already: {made.path}")
        return 0
    for name, size in made.sizes.items():
        print(f"{name:24} {size / 1e6:8.3f} MB")
    verified = "" if made.kind == "checkpoint" else "verified; "
    print(f"{verified}{made.kind}: {made.path}")
    return 0
