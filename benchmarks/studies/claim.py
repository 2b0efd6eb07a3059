"""The claim of TODM on a corpus: subnets of one supernet against the same models trained alone.

    python -m benchmarks.studies.claim CORPUS --out DIR --seeds 1 2

trains a supernet and every size alone with the same recipe and number of updates, decodes the test
split with each, and writes a table with paired-bootstrap intervals. `--ablations` adds supernets with
one ingredient changed. Interrupted trainings resume, and finished ones are not repeated.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.studies.results import keep, read, write
from todm import artifact
from todm.asr.decode.wer import Comparison, Wer, compare, score
from todm.asr.loading import backend_of, load_model
from todm.errors import ConfigError, TodmError, TrainingError
from todm.files import markdown_table, write_text
from todm.recipe import named
from todm.supernet.space import SearchSpace, Subnet

RECIPE = "commands"
SIZES = {
    "xs": {"depth": 3, "ffn": 64, "pairs": 2},
    "s": {"depth": 3, "ffn": 128, "pairs": 3},
    "m": {"depth": 4, "ffn": 256, "pairs": 3},
    "l": {"depth": 5, "ffn": 384, "pairs": 4},
}
"""Depth and widths; the space of the recipe has all of them."""
ABLATIONS = {
    "constant dropout": ["asr.model.encoder.dropout_rule=constant"],
    "no dropout": ["asr.model.encoder.dropout=0"],
    "KL": ["asr.objective.distill=kl"],
    "no distillation": ["asr.objective.distill=none"],
    "AdamW": ["train.optim.name=adamw"],
    "students weigh 1": ["train.student_weight=1"],
}
RESAMPLES = 2000
COST = "cost.json"


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
    """All trainings: for each seed the supernet, every size alone, and the ablations."""
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


def check(runs: Sequence[Run], corpus: Path, out: Path) -> None:
    """Report errors before hours of training.

    Raises:
        ArtifactError: no corpus.
        ConfigError: settings that are invalid or lack one of the sizes, a training given twice, or one
            that is in `out` with other settings.
    """
    for index, run in enumerate(runs):
        what = f"{run.name} with seed {run.seed}"
        if run in runs[:index]:
            raise ConfigError(f"{what} is given twice: give every seed and ablation once")
        recipe = named(RECIPE).override(list(run.settings))
        subnets(run, SearchSpace(recipe.asr.space))
        cost = read(run.folder(out) / COST)
        if cost and cost.get("settings") not in (None, list(run.settings)):
            raise ConfigError(
                f"{out} holds {what} of other settings ({' '.join(cost['settings'])}): choose another "
                "--out or remove it"
            )
    artifact.load(corpus, kind="corpus")


def train(run: Run, corpus: Path, out: Path) -> None:
    """Train it with `todm train` unless it is done; records the CPU seconds of all attempts.

    Raises:
        TrainingError: the training failed; the message names its log.
    """
    folder = run.folder(out)
    cost = read(folder / COST) or {"cpu_seconds": 0.0, "done": False}
    if cost["done"]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "todm.cli.main", "train", str(corpus), "--out", str(folder)]
    command += ["--config", RECIPE, *(w for s in run.settings for w in ("--set", s))]
    with (folder / "train.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, ended, usage = os.wait4(process.pid, 0)
        status = process.returncode = os.waitstatus_to_exitcode(ended)  # Popen did not see it end
    seconds = cost["cpu_seconds"] + usage.ru_utime + usage.ru_stime
    cost = {"cpu_seconds": seconds, "done": status == 0, "settings": run.settings}
    write(folder / COST, cost)
    if status:
        raise TrainingError(
            f"the training of {run.name} with seed {run.seed} ended with status {status}: see "
            f"{folder / 'train.log'}, then run the same command again to continue"
        )


def decode(run: Run, out: Path) -> dict[str, list[tuple[str, str, str]]]:
    """(id, reference, hypothesis) of the test split, for every size of a run; kept on disk."""
    return keep(run.folder(out) / "test.json", lambda: _decode(run, out))


def _decode(run: Run, out: Path) -> dict[str, list[tuple[str, str, str]]]:
    found = artifact.load(run.folder(out) / "supernet", kind="supernet")
    backend = backend_of(found)
    model = load_model(found, backend)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for size, subnet in subnets(run, backend.space).items():
        plain = backend.extract(model, subnet).eval()
        decoded = backend.recognise(plain, subnet=None, split="test")
        rows[size] = [(u.id, u.reference, u.hypothesis) for u in decoded]
    return rows


def subnets(run: Run, space: SearchSpace) -> dict[str, Subnet]:
    """The sizes in a run: all in a supernet, one in a model trained alone."""
    if not run.supernet:
        return {run.name.removeprefix("alone-"): space.largest}
    return {
        size: space.uniform(shape["depth"], {k: v for k, v in shape.items() if k != "depth"})
        for size, shape in SIZES.items()
    }


class Results:
    """Error counts by run and size, for the rates of each seed and paired differences."""

    def __init__(self, runs: Sequence[Run], out: Path) -> None:
        self.runs, self.out = runs, out
        self._found: dict[tuple[str, int, str], Wer] = {}
        for run in runs:
            for size, rows in decode(run, out).items():
                found = score([r for _, r, _ in rows], [h for _, _, h in rows])
                self._found[run.name, run.seed, size] = found

    def seeds(self, name: str) -> list[int]:
        """The seeds a run was made with."""
        return [r.seed for r in self.runs if r.name == name]

    def wers(self, name: str, size: str) -> list[Wer]:
        """The counts with each seed."""
        return [self._found[name, seed, size] for seed in self.seeds(name)]

    def summed(self, name: str, size: str) -> Wer:
        """Errors and words of all seeds together, utterance by utterance."""
        wers = self.wers(name, size)
        utterances = [
            np.sum(pairs, axis=0) for pairs in zip(*(w.utterances for w in wers), strict=True)
        ]
        return Wer(
            insertions=sum(w.insertions for w in wers),
            deletions=sum(w.deletions for w in wers),
            substitutions=sum(w.substitutions for w in wers),
            words=sum(w.words for w in wers),
            utterances=tuple((int(errors), int(words)) for errors, words in utterances),
        )

    def relative(self, ours: tuple[str, str], theirs: tuple[str, str]) -> Comparison:
        """Two runs and sizes compared; the interval resamples utterances, not seeds."""
        return compare(self.summed(*ours), self.summed(*theirs), resamples=RESAMPLES)

    def cpu_minutes(self, name: str) -> float:
        """Mean CPU minutes of a training."""
        costs = [read(r.folder(self.out) / COST) for r in self.runs if r.name == name]
        return float(np.mean([cost["cpu_seconds"] for cost in costs if cost])) / 60


def table(results: Results) -> Iterator[str]:
    """The claim as Markdown: sizes, then cost, then ablations."""
    seeds = results.seeds("supernet")
    one = results.wers("supernet", next(iter(SIZES)))[0]
    yield f"{len(one.utterances)} test utterances, {one.words} words; seeds {seeds}."
    yield ""
    heads = (
        "size",
        "alone, WER of each seed",
        "in the supernet",
        "relative difference",
        "95 % interval",
    )
    yield markdown_table(heads, [_size_cells(results, size) for size in SIZES])
    yield ""
    cost = {n: results.cpu_minutes(n) for n in ("supernet", *(f"alone-{s}" for s in SIZES))}
    yield f"CPU minutes: {', '.join(f'{n} {m:.1f}' for n, m in cost.items())}; "
    yield f"the supernet costs {cost['supernet'] / cost['alone-l']:.2f} times the largest alone."
    names = [n for n in ABLATIONS if results.seeds(n)]
    if names:
        yield ""
        heads = ("supernet with", *SIZES, "mean over sizes against the full recipe", "CPU minutes")
        yield markdown_table(
            heads, [_ablation_cells(results, name) for name in ("supernet", *names)]
        )


def _size_cells(results: Results, size: str) -> list[str]:
    alone = f"alone-{size}"
    found = results.relative(("supernet", size), (alone, size))
    rates = [_rates(results.wers(name, size)) for name in (alone, "supernet")]
    return [size, *rates, f"{found.relative:+.1%}", f"{found.low:+.1%} to {found.high:+.1%}"]


def _ablation_cells(results: Results, name: str) -> list[str]:
    rates = [_rates(results.wers(name, size)) for size in SIZES]
    changes = [results.relative((name, size), ("supernet", size)).relative for size in SIZES]
    label = "all three" if name == "supernet" else name
    return [label, *rates, f"{np.mean(changes):+.1%}", f"{results.cpu_minutes(name):.1f}"]


def _rates(wers: Sequence[Wer]) -> str:
    return ", ".join(f"{w.rate:.2%}" for w in wers)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, decode, and write DIR/claim.md.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit status: 2, with a one-line message, for errors that the user can correct.
    """
    parser = argparse.ArgumentParser(description="supernet subnets against models trained alone")
    parser.add_argument("corpus", type=Path, help=f"made with  todm prepare --config {RECIPE}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS), default=[])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    args = parser.parse_args(argv)
    runs = plan(args.seeds, args.ablations, args.set)
    try:
        if args.jobs < 1:
            raise ConfigError(f"--jobs is {args.jobs}: at least 1 is needed")
        check(runs, args.corpus, args.out)
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda run: train(run, args.corpus, args.out), runs))
        text = "\n".join(table(Results(runs, args.out))) + "\n"
        write_text(args.out / "claim.md", text)
    except TodmError as error:
        sys.stderr.write(f"benchmarks.studies.claim: {error}\n")
        return 2
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
