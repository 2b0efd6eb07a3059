"""The passes of compression on recognisers: word errors and bytes of every form of some subnets.

    python -m benchmarks.studies.compress_asr SUBNET... --corpus DIR --out DIR

compresses each subnet in every way of `WAYS`, recognises a split and writes compress-asr.md, .json and
.png with paired-bootstrap differences from float32. Finished ways are not repeated. `--ways` selects some;
`--try "2:4 tuned" --set prune.tune.lr=1e-3` adds a variant of a way with other settings.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.results import read, write
from todm import artifact
from todm.artifact import Artifact
from todm.asr.adapter import adapter_of
from todm.asr.decode.wer import Comparison, Interval, Wer, bootstrap, compare, score
from todm.compress.config import CompressConfig
from todm.compress.driver import Result as Compressed
from todm.compress.driver import compress
from todm.compress.report import table as layer_table
from todm.errors import ConfigError
from todm.files import markdown_table, write_text

_TUNED = ("prune.tune.updates=3000", "prune.tune.lr=2e-3")
_QAT8 = ("int8.activations=static", "int8.tune.updates=500", "int8.tune.lr=3e-4")
_G64 = ("int4.group=64", "awq.group=64")
WAYS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "int8 dynamic": ('passes=["int8"]',),
    "int8 dynamic mse": ('passes=["int8"]', "int8.range=mse"),
    "int8 static": ('passes=["int8"]', "int8.activations=static"),
    "int8 static mse": ('passes=["int8"]', "int8.activations=static", "int8.range=mse"),
    "int8 QAT": ('passes=["int8"]', *_QAT8),
    "rtn int4 g64": ('passes=["int4"]', *_G64),
    "gptq int4 g64": ('passes=["int4"]', "int4.method=gptq", *_G64),
    "awq int4 g64": ('passes=["awq"]', *_G64),
    "rtn int3 g64": ('passes=["int4"]', "int4.bits=3", *_G64),
    "gptq int3 g64": ('passes=["int4"]', "int4.bits=3", "int4.method=gptq", *_G64),
    "awq int3 g64": ('passes=["awq"]', "awq.bits=3", *_G64),
    "2:4 magnitude": ('passes=["prune"]', "prune.method=magnitude"),
    "2:4 wanda": ('passes=["prune"]', "prune.method=wanda"),
    "2:4 sparsegpt": ('passes=["prune"]', "prune.method=sparsegpt"),
    "2:4 sparsegpt + int8": ('passes=["prune","int8"]', "prune.method=sparsegpt"),
    "2:4 tuned": ('passes=["prune"]', *_TUNED),
    "2:4 SR-STE": ('passes=["prune"]', "prune.method=sr_ste", *_TUNED),
    "2:4 tuned + int8": ('passes=["prune","int8"]', *_TUNED),
    "2:4 tuned + int8 static": (
        'passes=["prune","int8"]',
        "int8.activations=static",
        *_TUNED,
    ),
    "2:4 tuned + int8 QAT": ('passes=["prune","int8"]', *_TUNED, *_QAT8),
    "2:4 SR-STE + int8": ('passes=["prune","int8"]', "prune.method=sr_ste", *_TUNED),
    "2:4 tuned + awq int4 g64": ('passes=["prune","awq"]', *_TUNED, *_G64),
    "2:4 tuned + gptq int4 g64": (
        'passes=["prune","int4"]',
        "int4.method=gptq",
        *_TUNED,
        *_G64,
    ),
}
"""Settings of `CompressConfig` by name."""
TARGETS = {
    "int8": 0.01,
    "awq int4 g64": 0.02,
    "2:4 tuned + int8": 0.03,
    "2:4 SR-STE + int8": 0.03,
}
"""Largest relative increase of WER aimed at, by the start of a name; a difference whose interval includes
zero counts as no difference."""
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One subnet compressed in one way, as kept on disk.

    `way` is a name in `WAYS`, with other settings in brackets; `settings` are those of `--set`; `inputs` are
    the hashes of subnet and corpus, and the split; `utterances` hold (id, reference, hypothesis). `num_bytes`
    are all parameters and constants as stored; the ratios count parameters with two axes or more, as
    GPUSQ-ViT does. `seconds` are those of the compression, `curves` those of trainings, by pass.
    """

    subnet: str
    way: str
    settings: list[str]
    inputs: dict[str, str]
    utterances: list[tuple[str, str, str]]
    num_bytes: int
    size_ratio: float = 1.0
    ops_ratio: float = 1.0
    seconds: float = 0.0
    curves: dict[str, list[dict[str, float]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A row with its WER, the bootstrap interval, and the difference from float32 (None for float32)."""

    row: Row
    wer: Wer
    interval: Interval
    change: Comparison | None

    @property
    def target(self) -> float | None:
        """The largest relative increase aimed at; None if there is no aim."""
        return next((v for name, v in TARGETS.items() if self.row.way.startswith(name)), None)

    @property
    def verdict(self) -> str:
        """Whether the target is met, and how; empty without a target."""
        if self.target is None or self.change is None:
            return ""
        if self.change.relative <= self.target:
            return "met"
        return "met: holds zero" if self.change.low <= 0 <= self.change.high else "missed"

    def to_json(self) -> dict[str, Any]:
        """Everything except the utterances."""
        row = {k: v for k, v in dataclasses.asdict(self.row).items() if k != "utterances"}
        low, high = self.interval.low, self.interval.high
        figures = {"error": self.wer.rate, "low": low, "high": high, "words": self.wer.words}
        figures |= {"errors": self.wer.errors, "target": self.target, "verdict": self.verdict}
        return {**row, **figures, "change": self.change and dataclasses.asdict(self.change)}


@dataclasses.dataclass(frozen=True)
class Study:
    """Where subnets are compared: the corpus, the folder of the figures, the split."""

    corpus: Path
    out: Path
    split: str

    def row(self, found: Artifact, way: str, settings: Sequence[str]) -> Row:
        """Compress a subnet and recognise the split, unless that was done with the same settings."""
        path = self.out / found.path.name / f"{_slug(way)}.json"
        corpus = artifact.load(self.corpus).hash
        inputs = {"subnet": found.hash, "corpus": corpus, "split": self.split}
        done = _read(path)
        if done is not None and (done.inputs, done.settings) == (inputs, list(settings)):
            return done
        config = CompressConfig().override(list(settings))
        torch.manual_seed(config.seed)
        adapter, began, result = adapter_of(found, self.corpus), time.monotonic(), None
        if config.passes:
            result = compress(
                adapter, config, checkpoints=_checkpoints(config, path.parent / "scratch")
            )
        seconds = time.monotonic() - began
        decoded = adapter.speech.recognise(adapter.model, subnet=None, split=self.split)
        row = Row(
            subnet=found.path.name,
            way=way,
            settings=list(settings),
            inputs=inputs,
            utterances=[(u.id, u.reference, u.hypothesis) for u in decoded],
            num_bytes=sum(t.nbytes for t in adapter.model.state_dict().values()),
            seconds=seconds,
            **_of_result(result),
        )
        write(path, dataclasses.asdict(row))
        if result is not None:
            tables = "\n\n".join(layer_table(r) for r in result.reports)
            write_text(path.with_suffix(".md"), f"{tables}\n")
        return row

    def results(self, found: Artifact) -> list[Result]:
        """Figures of all rows of a subnet that are on disk and belong to it, in the order of `WAYS`.

        Raises:
            ConfigError: float32 was not measured.
        """
        rows = [_read(path) for path in sorted((self.out / found.path.name).glob("*.json"))]
        mine = {r.way: r for r in rows if r is not None and r.inputs["subnet"] == found.hash}
        if "fp32" not in mine:
            raise ConfigError(f"{found.path.name} was not measured in float32: add fp32 to --ways")
        dense = _wer(mine["fp32"])
        order = sorted(mine.values(), key=lambda r: (_place(r.way), r.way))
        return [_result(row, None if row.way == "fp32" else dense) for row in order]


def table(results: Sequence[Result]) -> Iterator[str]:
    """The figures of a subnet in Markdown."""
    first = results[0]
    yield f"### {first.row.subnet}"
    yield ""
    yield (
        f"{len(first.row.utterances)} utterances of {first.row.inputs['split']}, {first.wer.words} "
        f"words, {first.row.num_bytes} bytes in float32"
    )
    yield ""
    heads = ("way", "WER", "95 %", "relative to fp32", "95 %", "p", "target", "bytes")
    heads += ("times smaller", "size ratio", "ops ratio", "minutes")
    yield markdown_table(heads, [_cells(result, first.row.num_bytes) for result in results])
    yield ""
    yield from (f"- {r.row.way}: `{' '.join(r.row.settings)}`" for r in results if r.row.settings)


def plot(by_subnet: Sequence[Sequence[Result]], out: Path) -> None:
    """WER against bytes, an axis for each subnet, with intervals of the difference from float32."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(by_subnet), 5.5), layout="constrained")
    axes = figure.subplots(1, len(by_subnet), squeeze=False)
    for axis, results in zip(axes[0], by_subnet, strict=True):
        dense = results[0].wer.rate
        axis.axhline(100 * dense, color="grey", linewidth=1, linestyle="--")
        for number, result in enumerate(results):
            error, change = result.wer.rate, result.change
            low, high = (change.difference.low, change.difference.high) if change else (0, 0)
            spread = [[100 * (error - dense - low)], [100 * (high - error + dense)]]
            x, y, color = result.row.num_bytes / 1e6, 100 * error, f"C{number % 10}"
            axis.errorbar([x], [y], yerr=spread, marker="o", capsize=2, color=color, alpha=0.8)
            axis.annotate(f" {result.row.way}", (x, y), fontsize=7, color=color)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="MB of parameters and constants, as stored",
            ylabel="WER, % (bars: 95 % of the difference from fp32)",
            title=results[0].row.subnet,
        )
        axis.grid(alpha=0.3, which="both")
    figure.savefig(out, dpi=110)


def _checkpoints(config: CompressConfig, root: Path) -> Path:
    """Where trainings keep their checkpoints: a folder for all ways that begin with the same ones.

    What a way trains first may have been trained for another way; it is copied from there.
    """
    common = {"passes": (), "exclude": config.exclude, "include": config.include}
    base = {**CompressConfig().to_json(), **common, "num_calibration": config.num_calibration}
    trained = [n for n in config.passes[:2] if n != "awq" and getattr(config, n).tune.updates]
    folder = root
    for name in trained:
        base[name] = getattr(config, name).to_json()
        key = json.dumps([base, trained[: trained.index(name) + 1]], sort_keys=True)
        before, folder = folder, root / hashlib.sha256(key.encode()).hexdigest()[:12]
        if before != root and before.is_dir() and not folder.exists():
            shutil.copytree(before, folder)
    return folder


def _of_result(result: Compressed | None) -> dict[str, Any]:
    """Ratios and curves for a row."""
    if result is None:
        return {}
    totals = result.reports[-1].totals
    curves = {report.name: report.curves for report in result.reports if report.curves}
    return {"size_ratio": totals.size_ratio, "ops_ratio": totals.ops_ratio, "curves": curves}


def _result(row: Row, dense: Wer | None) -> Result:
    wer = _wer(row)
    change = None if dense is None else compare(wer, dense, resamples=RESAMPLES)
    return Result(row=row, wer=wer, interval=bootstrap(wer, resamples=RESAMPLES), change=change)


def _cells(found: Result, dense_bytes: int) -> list[str]:
    row, change = found.row, found.change
    against = ["", "", "", ""]
    if change is not None:
        aim = "" if found.target is None else f"{found.target:+.0%}: {found.verdict}"
        interval = f"{change.low:+.1%} to {change.high:+.1%}"
        against = [f"{change.relative:+.1%}", interval, f"{change.p:.3f}", aim]
    return [
        row.way,
        f"{found.wer.rate:.2%} ({found.wer.errors})",
        f"{found.interval.low:.2%} to {found.interval.high:.2%}",
        *against,
        str(row.num_bytes),
        f"{dense_bytes / row.num_bytes:.2f}",
        f"{row.size_ratio:.2f}",
        f"{row.ops_ratio:.1f}",
        f"{row.seconds / 60:.1f}",
    ]


def _wer(row: Row) -> Wer:
    ordered = sorted(row.utterances)
    return score([reference for _, reference, _ in ordered], [h for _, _, h in ordered])


def _read(path: Path) -> Row | None:
    """The row in a file; None if there is none, or one with the fields of an earlier version."""
    found = read(path)
    if not found or found.keys() != {field.name for field in dataclasses.fields(Row)}:
        return None
    return Row(**found)


def _slug(way: str) -> str:
    return re.sub(r"[^a-z0-9.=-]+", "-", way.lower()).strip("-")


def _place(way: str) -> int:
    """A variant of a way comes after that way."""
    fits = [i for i, name in enumerate(WAYS) if way == name or way.startswith(f"{name} [")]
    return fits[-1] if fits else len(WAYS)


def _chosen(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Settings of the ways to measure, by name.

    Raises:
        ConfigError: an unknown way, or settings without a way.
    """
    for name in [*args.ways, *([args.try_] if args.try_ else [])]:
        if name not in WAYS:
            raise ConfigError(f"unknown way {name!r}; choose from {', '.join(WAYS)}")
    if bool(args.try_) != bool(args.set):
        raise ConfigError("--try and --set go together: a way, and its changed settings")
    if args.try_:
        short = ", ".join(item.replace("prune.", "").replace("tune.", "") for item in args.set)
        return {"fp32": (), f"{args.try_} [{short}]": (*WAYS[args.try_], *args.set)}
    return {name: WAYS[name] for name in args.ways or WAYS}


def main() -> None:
    """Measure what is missing, and write DIR/compress-asr.{md,json,png}."""
    parser = argparse.ArgumentParser(description="compressed subnets against their float32 forms")
    parser.add_argument("subnets", type=Path, nargs="+", help="that  todm extract-subnet  wrote")
    parser.add_argument("--corpus", type=Path, required=True, help="that  todm prepare  wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--ways", nargs="*", default=[], metavar="WAY", help="default: all")
    parser.add_argument("--try", dest="try_", metavar="WAY", help="a way with other settings")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    args = parser.parse_args()
    study = Study(args.corpus, args.out, args.split)
    subnets = [artifact.load(path, kind="subnet") for path in args.subnets]
    for way, settings in _chosen(args).items():
        for found in subnets:
            study.row(found, way, settings)
    by_subnet = [study.results(found) for found in subnets]
    text = "\n\n".join("\n".join(table(results)) for results in by_subnet) + "\n"
    write_text(args.out / "compress-asr.md", text)
    rows = [result.to_json() for results in by_subnet for result in results]
    write(args.out / "compress-asr.json", rows, indent=1)
    plot(by_subnet, args.out / "compress-asr.png")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
