"""`todm VERB ...`: finds the verb, imports its module and no other, and says errors in a sentence.

A verb is a module with `add_arguments(parser)` and `run(args) -> int`. Imports no torch, so that
`todm transcribe` runs on a device without it. Exit status: 0 done, 1 done with a bad result,
2 something the user can put right, 130 interrupted.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from todm import __version__
from todm.errors import MissingExtra, TodmError

# One line of help per verb is kept here: `todm --help` then imports none of their modules.
VERBS = {
    "prepare": ("todm.cli.prepare", "speech and transcripts (made or given) -> corpus"),
    "train": ("todm.cli.train", "corpus -> supernet"),
    "import": ("todm.cli.import_model", "vision transformer or language model on disk -> model"),
    "evaluate": ("todm.cli.evaluate", "word error rate of any stage's artifact on a corpus"),
    "profile": ("todm.cli.profile", "latency of the subnets here, or on any device with one file"),
    "search": ("todm.cli.search", "supernet + budgets -> the best subnets, and the front"),
    "extract-subnet": ("todm.cli.extract_subnet", "supernet + budget -> subnet that meets it"),
    "compress": (
        "todm.cli.compress",
        "subnet or model -> 2:4, int8 or int4, a report on each layer",
    ),
    "export": ("todm.cli.export", "subnet -> files that a device's runtime loads, verified"),
    "transcribe": ("todm.cli.transcribe", "bundle + audio files -> text, without torch"),
    "report": ("todm.cli.report", "table and plot of every bundle of a run"),
    "bench": ("todm.cli.bench", "speed, latency and memory of a bundle; times of the kernels"),
}
# Read by torch when a verb imports it. Threads that wait busily for each other make a step many times
# slower when a core is shared.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
_EXTRAS = {
    "transformers": "llm",
    "timm": "vision",
    "torchvision": "vision",
    "sklearn": "vision",
    "PIL": "vision",
}
_TRAIN = (
    "espeakng_loader", "lhotse", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy",
    "sentencepiece", "sherpa_onnx", "torch", "torchaudio", "triton", "urllib3",
)  # fmt: skip
_DISK = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.EEXIST: "a file is where a directory should be: choose another place",
    errno.ENOTDIR: "a file is where a directory should be: choose another place",
    errno.EISDIR: "a directory is where a file should be: choose another place",
    errno.ENOENT: "no such file or directory: check the path",
    errno.ENAMETOOLONG: "a name is too long: choose another place",
    errno.EPERM: "not permitted: choose another place",
    errno.EACCES: "permission denied: choose another place or change its permissions",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except TodmError as error:
        return _fail(str(error), error.status)
    except ModuleNotFoundError as error:
        return _fail(_missing(error, arguments))
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again, and loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{_DISK[error.errno]}{where}, then run the same command again to continue")
    return status


def extract_subnet() -> int:
    """The console command `extract-subnet`: short for `todm extract-subnet`."""
    return main(["extract-subnet", *sys.argv[1:]])


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="todm", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"todm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for name, (module_name, line) in VERBS.items():
        verb = verbs.add_parser(name, help=line, description=line, allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(module_name)
            module.add_arguments(verb)
            verb.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    return args.run(args)


def _missing(error: ModuleNotFoundError, arguments: list[str]) -> str:
    package = (error.name or "").partition(".")[0]
    extra = "train" if package in _TRAIN else _EXTRAS.get(package)
    if extra is not None:
        return str(MissingExtra(package, extra, f"todm {arguments[0]}"))
    raise error


def _fail(message: str, status: int = TodmError.status) -> int:
    print(f"todm: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
