"""`todm compress ARTIFACT --passes prune,int8 --out DIR`: a smaller model, and a report on every layer.

With `--analyse` nothing is compressed: each layer is tried alone, and what it costs is told.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.cli.progress import progress_report

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.compress.adapter import ModelAdapter
    from todm.compress.analyse import Measure, Sensitivity
    from todm.compress.config import CompressConfig
    from todm.compress.report import PassReport

_REPORT, _PLOT = "report.md", "report.png"
_SENSITIVITY = "sensitivity.json"
_LOSS_BATCHES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "artifact",
        type=Path,
        help="directory that  todm extract-subnet  or  todm import  wrote",
    )
    parser.add_argument(
        "--passes",
        required=True,
        help="of prune (alias sparse24), int8, int4, awq, in order, with commas; at most one quantises, last",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the result")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting, such as prune.method=wanda or awq.group=64",
    )
    parser.add_argument(
        "--include",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="layers to be done although they would stay dense",
    )
    parser.add_argument(
        "--exclude",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="layers to be left as they are, such as '*.down'",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="your own text, images or audio (default: the training data)",
    )
    parser.add_argument("--corpus", type=Path, help="data of speech (default: the one trained on)")
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="measure the error before and after; with --analyse, of every layer alone",
    )
    parser.add_argument("--split", default="test", help="what --evaluate is on (default: test)")
    parser.add_argument(
        "--limit", type=int, default=0, help="of --evaluate: at most so many; 0: all"
    )
    parser.add_argument(
        "--analyse", action="store_true", help="try every layer alone and compress nothing"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="of --analyse: relative increase that is allowed in all (default 0.01)",
    )


def run(args: argparse.Namespace) -> int:
    """Compress or analyse, or say that it is done."""
    from todm import artifact
    from todm.cli.adapters import DENSE
    from todm.compress.storage import KIND, refuse_compressed

    found = artifact.load(args.artifact, kind=(*DENSE, KIND))
    refuse_compressed(found)
    config = _config(args)
    asked = _asked(args, found, config)
    return (
        _analyse(args, found, config, asked)
        if args.analyse
        else _compress(args, found, config, asked)
    )


def _config(args: argparse.Namespace) -> "CompressConfig":
    """The settings of the flags.

    Raises:
        ConfigError: they cannot be used.
    """
    from todm.compress.config import CompressConfig
    from todm.errors import ConfigError

    if args.limit < 0:
        raise ConfigError(f"--limit is {args.limit}: 0 (all) or more")
    if not args.tolerance >= 0:
        raise ConfigError(f"--tolerance is {args.tolerance}: 0 or more, as in 0.01")
    if args.calibration and not args.calibration.exists():
        raise ConfigError(f"--calibration {args.calibration} is not there: check the path")
    passes = args.passes.split(",")
    return CompressConfig.parse(passes, args.set, include=args.include, exclude=args.exclude)


def _asked(args: argparse.Namespace, found: "Artifact", config: "CompressConfig") -> dict[str, Any]:
    """All that decides what comes out."""
    file = args.calibration
    return {
        "parent": found.hash,
        "settings": config.to_json(),
        "calibration": None if file is None else _fingerprint(file),
        "corpus": None if args.corpus is None else str(args.corpus.resolve()),
        "evaluate": [args.split, args.limit] if args.evaluate else None,
    }


def _fingerprint(path: Path) -> str:
    """Of a file's content; of a folder, of the names and sizes in it."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    names = sorted(f"{p.relative_to(path)} {p.stat().st_size}" for p in path.rglob("*"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _compress(
    args: argparse.Namespace, found: "Artifact", config: "CompressConfig", asked: dict[str, Any]
) -> int:
    from todm.cli.adapters import adapter_of
    from todm.compress import storage
    from todm.compress.driver import compress
    from todm.compress.plots import plot_report

    if (done := _existing(args.out, asked)) is not None:
        print(f"done already: {done.path}")
        _show(storage.read(done).reports, done.metrics)
        return 0
    checkpoints = args.out.with_name(f".{args.out.name}.training")
    with progress_report() as report:
        adapter = adapter_of(found, corpus=args.corpus)
        before = _evaluate(adapter, args) if args.evaluate else None
        result = compress(
            adapter,
            config,
            calibration=args.calibration,
            optimizers=_optimizers(),
            checkpoints=checkpoints,
            progress=report,
        )
        after = _evaluate(adapter, args) if args.evaluate else None

    def write(folder: Path) -> None:
        adapter.write_assets(folder)
        (folder / _REPORT).write_text(_tables(result.reports) + "\n", encoding="utf-8")
        plot_report(result.reports, folder / _PLOT)

    made = storage.save(
        args.out,
        adapter.model,
        parent=found,
        config=config,
        reports=result.reports,
        metrics={"before": before, "after": after} if args.evaluate else {},
        info={"asked": asked} | ({"corpus": str(args.corpus)} if args.corpus else {}),
        write=write,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    _show(result.reports, made.metrics)
    print(f"plot: {made.path / _PLOT}\ncompressed: {made.path}")
    return 0


def _existing(out: Path, asked: dict[str, Any]) -> "Artifact | None":
    """`out` if it already holds what is asked for."""
    from todm import artifact
    from todm.compress.storage import KIND

    if not (out / artifact.MANIFEST).is_file():
        return None
    done = artifact.load(out, kind=KIND)
    return done if done.info.get("asked") == asked else None


def _optimizers() -> dict[str, Any]:
    """What passes that train may use beside torch's."""
    from todm.train.optim import for_tuning

    return {"scaled_adam": for_tuning}


def _evaluate(adapter: "ModelAdapter", args: argparse.Namespace) -> dict[str, Any]:
    return adapter.evaluate(adapter.model.eval(), split=args.split, limit=args.limit)


def _tables(reports: "Sequence[PassReport]") -> str:
    from todm.compress.report import table

    return "\n\n".join(table(report) for report in reports)


def _show(reports: "Sequence[PassReport]", metrics: dict[str, Any]) -> None:
    """Print what became of every layer, and the error."""
    print(_tables(reports))
    if metrics.get("before"):
        before, after = metrics["before"], metrics["after"]
        name = before.get("metric", "error")
        print(f"{name} {before['error']:.4g} before, {after['error']:.4g} after")


def _analyse(
    args: argparse.Namespace, found: "Artifact", config: "CompressConfig", asked: dict[str, Any]
) -> int:
    from todm import artifact
    from todm.cli.adapters import adapter_of
    from todm.compress.analyse import analyse
    from todm.compress.plots import plot_sensitivity
    from todm.errors import ConfigError
    from todm.files import write_text

    if (args.out / artifact.MANIFEST).is_file():
        raise ConfigError(f"{args.out} holds an artifact: give the analysis a place of its own")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / _SENSITIVITY
    known = _known(file, asked)

    def keep(values: dict[str, float]) -> None:
        write_text(file, json.dumps({"asked": asked, "values": values}, indent=1) + "\n")

    with progress_report() as report:
        adapter = adapter_of(found, corpus=args.corpus)
        sensitivity = analyse(
            adapter,
            config,
            _measure(adapter, args, config.seed),
            tolerance=args.tolerance,
            calibration=args.calibration,
            known=known,
            keep=keep,
            progress=report,
        )
    found_json = {"asked": asked, "values": dict(sensitivity.values), **sensitivity.to_json()}
    write_text(file, json.dumps(found_json, indent=1) + "\n")
    plot = args.out / "sensitivity.png"
    plot_sensitivity(sensitivity.increases, sensitivity.exclude, plot)
    _show_sensitivity(sensitivity)
    print(f"figures: {file}\nplot: {plot}")
    return 0


def _known(file: Path, asked: dict[str, Any]) -> dict[str, float]:
    """Values of an earlier call that asked for the same."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    same = isinstance(found, dict) and found.get("asked") == asked
    return found.get("values", {}) if same else {}


def _measure(adapter: "ModelAdapter", args: argparse.Namespace, seed: int) -> "Measure":
    """The error on a split, or else the loss on a few training batches."""
    from itertools import islice

    if args.evaluate:
        return lambda model: float(
            adapter.evaluate(model.eval(), split=args.split, limit=args.limit)["error"]
        )
    batches = list(islice(adapter.batches(seed), _LOSS_BATCHES))

    def loss(model: "Any") -> float:  # noqa: ANN401 - torch is not imported here
        model.eval()
        found = [adapter.losses(b, model, None, temperature=1.0)["hard"] for b in batches]
        return sum(float(value) for value in found) / len(found)

    return loss


def _show_sensitivity(found: "Sensitivity") -> None:
    """Print a row for each layer and kind, and the flags to give."""
    print("| layer or kind alone | layers | increase |\n| --- | --- | --- |")
    for name, increase in found.increases.items():
        print(f"| {name} | {len(found.layers[name])} | {increase:+.3%} |")
    if found.exclude:
        names = " ".join(found.exclude)
        print(f"for an increase of {found.tolerance:.2%} in all:  --exclude {names}")
    else:
        print(f"all layers together stay below {found.tolerance:.2%} if their increases add up")
