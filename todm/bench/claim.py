"""The claim of TODM on a corpus: subnets of one supernet against the same models trained alone.

    python -m todm.bench.claim CORPUS --out DIR --seeds 1 2

trains a supernet and every size alone with the same recipe and number of updates, decodes the test
split with each, and writes a table with paired-bootstrap intervals. `--ablations` adds supernets with
one ingredient changed. Every training resumes, and what is done is not done again.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from todm import artifact
from todm.artifact import write_text
from todm.asr.loading import backend_of, load_model
from todm.asr.wer import score
from todm.supernet.space import SearchSpace, Subnet

SIZES = {
    "xs": {"depth": 3, "ffn": 64, "pairs": 2},
    "s": {"depth": 3, "ffn": 128, "pairs": 3},
    "m": {"depth": 4, "ffn": 256, "pairs": 3},
    "l": {"depth": 5, "ffn": 384, "pairs": 4},
}
"""Depth and widths in the space of the `commands` recipe, which has them all."""
ABLATIONS = {
    "constant dropout": ["asr.model.encoder.dropout_rule=constant"],
    "no dropout": ["asr.model.encoder.dropout=0"],
    "KL": ["asr.objective.distill=kl"],
    "no distillation": ["asr.objective.distill=none"],
    "AdamW": ["train.optim.name=adamw"],
    "students weigh 1": ["train.student_weight=1"],
}
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: its folder, the settings beside the recipe's, and whether it is a supernet."""

    name: str
    seed: int
    settings: tuple[str, ...]
    supernet: bool

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        return out / f"{self.name.replace(' ', '-').lower()}-{self.seed}"


def plan(seeds: Sequence[int], ablations: Sequence[str], common: Sequence[str]) -> list[Run]:
    """All trainings: per seed the supernet, every size alone, and the ablations asked for."""
    runs: list[Run] = []
    for seed in seeds:
        shared = (*common, f"train.seed={seed}")
        runs.append(Run("supernet", seed, shared, supernet=True))
        for size, shape in SIZES.items():
            alone = (
                "train.sandwich=false",
                f"asr.space.depths=[{shape['depth']}]",
                f"asr.space.widths.ffn=[{shape['ffn']}]",
                f"asr.space.widths.pairs=[{shape['pairs']}]",
            )
            runs.append(Run(f"alone-{size}", seed, shared + alone, supernet=False))
        runs += [Run(a, seed, (*shared, *ABLATIONS[a]), supernet=True) for a in ablations]
    return runs


def train(run: Run, corpus: Path, out: Path) -> None:
    """Train it with `todm train` unless it is done; keeps the CPU seconds of all attempts.

    Raises:
        RuntimeError: the training failed; the message names its log.
    """
    folder = run.folder(out)
    cost = _read(folder / "cost.json") or {"cpu_seconds": 0.0, "done": False}
    if cost["done"]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "todm.cli.main", "train", str(corpus), "--out", str(folder)]
    command += ["--config", "commands", *(w for s in run.settings for w in ("--set", s))]
    with (folder / "train.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = cost["cpu_seconds"] + usage.ru_utime + usage.ru_stime
    cost = {"cpu_seconds": seconds, "done": status == 0}
    write_text(folder / "cost.json", json.dumps(cost) + "\n")
    if status:
        raise RuntimeError(f"{run.name} (seed {run.seed}) failed: see {folder / 'train.log'}")


def decode(run: Run, out: Path) -> dict[str, list[tuple[str, str, str]]]:
    """(id, reference, hypothesis) of the test split, for every size this run has; kept on disk."""
    folder = run.folder(out)
    path = folder / "test.json"
    if path.is_file():
        return json.loads(path.read_text())
    found = artifact.load(folder / "supernet", kind="supernet")
    backend = backend_of(found)
    model = load_model(found, backend)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for size, subnet in subnets(run, backend.space).items():
        plain = backend.extract(model, subnet).eval()
        _, rows[size] = backend.recognise(plain, subnet=None, split="test")
    write_text(path, json.dumps(rows) + "\n")
    return rows


def subnets(run: Run, space: SearchSpace) -> dict[str, Subnet]:
    """The sizes that a run holds: all of a supernet, one of a model trained alone."""
    if not run.supernet:
        return {run.name.removeprefix("alone-"): space.largest}
    return {
        size: space.uniform(shape["depth"], {k: v for k, v in shape.items() if k != "depth"})
        for size, shape in SIZES.items()
    }


class Results:
    """Errors of every utterance, by run and size, for means over seeds and paired differences."""

    def __init__(self, runs: Sequence[Run], out: Path) -> None:
        self.runs, self.out = runs, out
        self._errors: dict[tuple[str, int, str], np.ndarray] = {}
        self.words: np.ndarray = np.zeros(0)
        for run in runs:
            for size, rows in decode(run, out).items():
                result = score([r for _, r, _ in rows], [h for _, _, h in rows])
                errors, words = np.array(result.utterances, dtype=np.float64).T
                self._errors[run.name, run.seed, size] = errors
                self.words = words

    def seeds(self, name: str) -> list[int]:
        """The seeds a run was made with."""
        return [r.seed for r in self.runs if r.name == name]

    def errors(self, name: str, size: str) -> np.ndarray:
        """Errors per utterance, the mean over seeds, [number of utterances]."""
        return np.mean([self._errors[name, s, size] for s in self.seeds(name)], axis=0)

    def wers(self, name: str, size: str) -> list[float]:
        """The rate with each seed."""
        words = self.words.sum()
        return [float(self._errors[name, s, size].sum() / words) for s in self.seeds(name)]

    def relative(
        self, ours: tuple[str, str], theirs: tuple[str, str]
    ) -> tuple[float, float, float]:
        """Relative difference of two rates (negative: ours is better) and its 95 % interval.

        Utterances are drawn with replacement, the same ones for both; errors are means over seeds.
        """
        mine, other = self.errors(*ours), self.errors(*theirs)
        num = len(mine)
        draws = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
        samples = (draws @ (mine - other)) / np.maximum(draws @ other, 1)
        low, high = np.quantile(samples, [0.025, 0.975])
        return float((mine - other).sum() / other.sum()), float(low), float(high)

    def cpu_minutes(self, name: str) -> float:
        """Mean CPU minutes of a training."""
        found = [_read(r.folder(self.out) / "cost.json") for r in self.runs if r.name == name]
        return float(np.mean([f["cpu_seconds"] for f in found if f])) / 60


def table(results: Results) -> Iterator[str]:
    """The claim as Markdown: sizes, then cost, then ablations."""
    seeds = results.seeds("supernet")
    yield f"{len(results.words)} test utterances, {int(results.words.sum())} words; seeds {seeds}."
    yield ""
    yield "| size | alone, WER of each seed | in the supernet | relative difference | 95 % interval |"
    yield "| --- | --- | --- | --- | --- |"
    for size in SIZES:
        alone = f"alone-{size}"
        yield (
            f"| {size} | {_rates(results.wers(alone, size))} | "
            f"{_rates(results.wers('supernet', size))} | "
            f"{_relative(results.relative(('supernet', size), (alone, size)))} |"
        )
    yield ""
    cost = {n: results.cpu_minutes(n) for n in ("supernet", *(f"alone-{s}" for s in SIZES))}
    yield f"CPU minutes: {', '.join(f'{n} {m:.1f}' for n, m in cost.items())}; "
    yield f"the supernet costs {cost['supernet'] / cost['alone-l']:.2f} times the largest alone."
    names = [n for n in ABLATIONS if results.seeds(n)]
    if not names:
        return
    yield ""
    yield f"| supernet with | {' | '.join(SIZES)} | mean over sizes against the full recipe | CPU minutes |"
    yield "| --- |" + " --- |" * (len(SIZES) + 2)
    for name in ("supernet", *names):
        cells = [_rates(results.wers(name, size)) for size in SIZES]
        changes = [results.relative((name, size), ("supernet", size))[0] for size in SIZES]
        label = "all three" if name == "supernet" else name
        yield (
            f"| {label} | {' | '.join(cells)} | {np.mean(changes):+.1%} | "
            f"{results.cpu_minutes(name):.1f} |"
        )


def _rates(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.2%}" for v in values)


def _relative(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:+.1%} | {low:+.1%} to {high:+.1%}"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> None:
    """Train what is missing, decode, and write DIR/claim.md."""
    parser = argparse.ArgumentParser(description="supernet subnets against models trained alone")
    parser.add_argument("corpus", type=Path, help="made with  todm prepare --config commands")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS), default=[])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    args = parser.parse_args()
    runs = plan(args.seeds, args.ablations, args.set)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: train(run, args.corpus, args.out), runs))
    text = "\n".join(table(Results(runs, args.out))) + "\n"
    write_text(args.out / "claim.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
