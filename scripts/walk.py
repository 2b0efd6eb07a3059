"""The files of `todm/` in which functions are called while a verb runs: what a newcomer has to read.

    .venv/bin/python scripts/walk.py [--out DIR] [VERB ...]

Runs train, extract-subnet, compress and export of the debug config, each in its own process under a
profile function, and prints the files in the order in which they are entered. It leaves out `errors`,
`config`, `artifact` and `cli/main`, which every verb uses, and what runs only during imports, the lazy
imports of `__getattr__` included.
`back into cli` counts the functions of `todm/cli/` that code below `cli` called; the progress callback,
which the verb itself passed down, is listed separately.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = f"{ROOT / 'todm'}{os.sep}"
EVERYWHERE = {"errors.py", "config.py", "artifact.py", "cli/main.py", "__init__.py"}
VERBS = {
    verb: words.split()
    for verb, words in {
        "train": "train {run}/corpus --config debug --out {run} --set train.num_processes=1",
        "extract-subnet": "extract-subnet {run}/supernet --budget 0.15M --out {run}/subnet",
        "compress": "compress {run}/subnet --passes sparse24,int8 --out {run}/small",
        "export": "export {run}/subnet --out {run}/bundle",
    }.items()
}


class Walk:
    """A profile function that counts first entries into the package's files."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.back: dict[str, None] = {}
        self.progress: dict[str, None] = {}
        self._seen: set[object] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call into a file of the package, unless it happens during an import."""
        code = frame.f_code
        if event != "call" or code in self._seen or not code.co_filename.startswith(PACKAGE):
            return
        place = code.co_filename.removeprefix(PACKAGE)
        if code.co_name in ("<module>", "__getattr__") or place in EVERYWHERE or _imported(frame):
            return
        self.files[place] = None
        if place.startswith("cli/"):
            caller = _caller(frame)
            if caller and not caller.startswith("cli/"):
                found = self.progress if place == "cli/progress.py" else self.back
                found[f"{caller} -> {place}:{code.co_name}"] = None
            return  # a later call from below would go unseen
        self._seen.add(code)


def _imported(frame: FrameType | None) -> bool:
    """Whether a module of the package is being imported further up the stack."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def _caller(frame: FrameType) -> str | None:
    """The file of the package that called, directly or through other packages."""
    outer = frame.f_back
    while outer is not None:
        if outer.f_code.co_filename.startswith(PACKAGE):
            return outer.f_code.co_filename.removeprefix(PACKAGE)
        outer = outer.f_back
    return None


def trace(out: Path, argv: list[str]) -> int:
    """Run a verb in this process and write the files that it entered."""
    from todm.cli.main import main

    walk = Walk()
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        status = main(argv)
    finally:
        sys.setprofile(None)
    out.write_text(
        json.dumps({"files": [*walk.files], "back": [*walk.back], "progress": [*walk.progress]})
    )
    return status


def _run(argv: list[str]) -> None:
    subprocess.run(
        [sys.executable, *argv],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def walks(run: Path, wanted: list[str]) -> dict[str, dict[str, list[str]]]:
    """The walks of these verbs; earlier verbs run as well, to produce their inputs."""
    _run(["-m", "todm.cli.main", "prepare", "--config", "debug", "--out", f"{run}/corpus"])
    found = {}
    last = max([*VERBS].index(verb) for verb in wanted)
    for verb, words in [*VERBS.items()][: last + 1]:
        traced = run / f"{verb}.json"
        _run([__file__, "--trace", str(traced), *(word.format(run=run) for word in words)])
        found[verb] = json.loads(traced.read_text())
    return {verb: found[verb] for verb in wanted}


def main() -> None:
    """Walk and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "verbs", nargs="*", metavar="VERB", help=f"from {', '.join(VERBS)}; default: all"
    )
    parser.add_argument("--out", type=Path, help="write the walks to this file as JSON")
    args = parser.parse_args()
    if wrong := [verb for verb in args.verbs if verb not in VERBS]:
        parser.error(f"unknown verb {wrong[0]}; choose from {', '.join(VERBS)}")
    with tempfile.TemporaryDirectory() as run:
        found = walks(Path(run), args.verbs or [*VERBS])
    for verb, walk in found.items():
        print(f"{verb}: {len(walk['files'])} files, {len(walk['back'])} times back into cli")
        print("".join(f"  {place}\n" for place in walk["files"]), end="")
        print("".join(f"  back: {call}\n" for call in walk["back"]), end="")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        sys.exit(trace(Path(sys.argv[2]), sys.argv[3:]))
    main()
