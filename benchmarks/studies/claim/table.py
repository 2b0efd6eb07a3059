"""Tables in Markdown, and a picture, from rows alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.claim import bootstrap, rows
from benchmarks.studies.claim.plan import ALONE, Part, part_named, plan
from benchmarks.studies.claim.rows import Key, Row
from todm.asr.decode.wer import Interval
from todm.files import markdown_table

FULL = "supernet"


class Results:
    """The rows of a part, with those that its ablations are compared with."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read and check them; see `rows.load` and `rows.check_comparable`."""
        self.name, self.part = name, part_named(name)
        self.own = rows.load(folder, name)
        self.all: dict[Key, Row] = dict(self.own)
        if self.own and self.part.base:
            others = rows.load(folder, self.part.base)
            self.all.update({key: row for key, row in others.items() if key[0] == FULL})
        if self.all:
            rows.check_comparable(self.all.values())

    @property
    def words_N(self) -> np.ndarray:
        """Words of each test utterance."""
        return np.array(next(iter(self.all.values())).words)

    def seeds(self, *names: str) -> list[int]:
        """The seeds that all of these runs have."""
        found = [{seed for run, seed in self.all if run == name} for name in names]
        return sorted(set.intersection(*found))

    def of(self, name: str, seeds: Sequence[int]) -> list[Row]:
        """The rows of a run."""
        return [self.all[name, seed] for seed in seeds]

    def errors_SN(self, name: str, size: str, seeds: Sequence[int]) -> np.ndarray:
        """Errors of a run at a size, by seed and utterance."""
        return np.array([row.errors[size] for row in self.of(name, seeds)])

    def against_alone(self, sizes: Sequence[str], seeds: Sequence[int]) -> Interval:
        """Mean over sizes of the difference of the supernet to a net trained alone."""
        return bootstrap.relative(
            [
                (self.errors_SN(FULL, size, seeds), self.errors_SN(ALONE + size, size, seeds))
                for size in sizes
            ]
        )

    def against_full(self, name: str, seeds: Sequence[int]) -> Interval:
        """Mean over sizes of the difference of an ablation to the full recipe."""
        return bootstrap.relative(
            [
                (self.errors_SN(name, size, seeds), self.errors_SN(FULL, size, seeds))
                for size in self.part.sizes
            ]
        )

    def missing(self) -> list[str]:
        """The planned trainings without a row, by run."""
        seeds: dict[str, list[int]] = {}
        for run in plan(self.name):
            if (run.name, run.seed) not in self.own:
                seeds.setdefault(run.name, []).append(run.seed)
        return [f"{n} seed{'s' * (len(s) > 1)} {_list(s)}" for n, s in seeds.items()]


def report(name: str, folder: Path) -> Iterator[str]:
    """A part as Markdown, line by line.

    Raises:
        ConfigError: an unknown part, or rows that are damaged or cannot be compared.
    """
    results = Results(name, folder)
    yield f"## {name}"
    yield ""
    yield f"Corpus: `{results.part.prepare}`."
    if results.own:
        yield from _conditions(results)
        yield ""
        yield from _ablations(results) if results.part.base else _sizes(results)
    if missing := results.missing():
        yield ""
        yield f"missing: {', '.join(missing)}"
    yield ""


def _conditions(results: Results) -> Iterator[str]:
    """What the figures depend on."""
    own = list(results.own.values())
    row, words = own[0], results.words_N
    shared = [s for s in row.settings if s not in row.changes and not s.startswith("train.seed=")]
    yield f"Settings beside the recipe's: `{' '.join(shared)}`."
    yield f"{len(words)} test utterances, {words.sum()} words; {row.updates} updates."
    commits = {_short(attempt["commit"]) for r in own for attempt in r.attempts}
    versions = {f"torch {r.machine['torch']} on {r.machine['processor']}" for r in own}
    yield f"Commits {', '.join(sorted(commits))}; {', '.join(sorted(versions))}."
    yield "Intervals: 95 %, over seeds and utterances together (with one seed over utterances only)."


def _short(commit: str | None) -> str:
    """A commit in seven digits, with `+` if the code had changes."""
    return commit[:7] + "+" * commit.endswith("+") if commit else "unknown"


def _sizes(results: Results) -> Iterator[str]:
    """Nets in the supernet against nets alone, then the cost."""
    heads = (
        "size",
        "parameters",
        "seeds",
        "alone, WER of each seed",
        "in the supernet",
        "relative difference",
        "95 % interval",
    )
    sizes = results.part.sizes
    cells = [_size_cells(results, size) for size in sizes if results.seeds(FULL, ALONE + size)]
    least = sizes[:2]
    if seeds := results.seeds(FULL, *(ALONE + size for size in least)):
        mean = _difference(results.against_alone(least, seeds))
        cells.append([f"mean of {' and '.join(least)}", "", _list(seeds), "", "", *mean])
    yield markdown_table(heads, cells)
    yield ""
    yield from _cost(results)


def _size_cells(results: Results, size: str) -> list[str]:
    alone = ALONE + size
    seeds = results.seeds(FULL, alone)
    parameters = results.of(alone, seeds)[0].parameters[size]
    rates = [_rates(results, name, size, seeds) for name in (alone, FULL)]
    difference = _difference(results.against_alone([size], seeds))
    return [size, f"{parameters / 1e6:.2f}M", _list(seeds), *rates, *difference]


def _cost(results: Results) -> Iterator[str]:
    """CPU minutes, and the supernet's against the largest net alone and against all of them."""
    alone = [ALONE + size for size in results.part.sizes]
    minutes = [f"{n} {_minutes(results, n)}" for n in (FULL, *alone) if results.seeds(n)]
    yield f"CPU minutes of a training, mean over seeds (least to greatest): {', '.join(minutes)}."
    against = {"the largest alone": alone[-1:], f"all {len(alone)} alone": alone}
    for what, names in against.items():
        if seeds := results.seeds(FULL, *names):
            ours = _cpu_seconds(results, FULL, seeds)
            theirs = np.sum([_cpu_seconds(results, n, seeds) for n in names], axis=0)
            found = bootstrap.ratio(ours, list(theirs))
            spread = f"{found.low:.2f} to {found.high:.2f}, seeds {_list(seeds)}"
            yield f"The supernet costs {found.value:.2f} times {what} ({spread})."


def _ablations(results: Results) -> Iterator[str]:
    """The full recipe, then supernets with one ingredient changed."""
    heads = (
        "supernet with",
        "seeds",
        *results.part.sizes,
        "mean over sizes against the full recipe",
        "95 % interval",
        "CPU minutes",
    )
    names = dict.fromkeys(name for name, _ in results.all if results.seeds(name, FULL))
    names = sorted(names, key=[FULL, *results.part.ablations, *names].index)
    yield markdown_table(heads, [_ablation_cells(results, name) for name in names])


def _ablation_cells(results: Results, name: str) -> list[str]:
    seeds = results.seeds(name, FULL)
    rates = [_rates(results, name, size, seeds) for size in results.part.sizes]
    if name == FULL:
        return ["the full recipe", _list(seeds), *rates, "", "", _minutes(results, name)]
    difference = _difference(results.against_full(name, seeds))
    return [name, _list(seeds), *rates, *difference, _minutes(results, name)]


def _rates(results: Results, name: str, size: str, seeds: Sequence[int]) -> str:
    words = results.words_N.sum()
    return ", ".join(f"{e.sum() / words:.2%}" for e in results.errors_SN(name, size, seeds))


def _difference(found: Interval) -> tuple[str, str]:
    return f"{found.value:+.1%}", f"{found.low:+.1%} to {found.high:+.1%}"


def _cpu_seconds(results: Results, name: str, seeds: Sequence[int]) -> list[float]:
    return [row.cpu_seconds for row in results.of(name, seeds)]


def _minutes(results: Results, name: str) -> str:
    minutes = np.array(_cpu_seconds(results, name, results.seeds(name))) / 60
    return f"{minutes.mean():.1f} ({minutes.min():.1f} to {minutes.max():.1f})"


def _list(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))


def plot(parts: Mapping[str, Part], folder: Path, path: Path) -> bool:
    """WER by size, alone and in the supernet, a panel for each part that has both; whether there is one.

    Raises:
        ConfigError: as by `report`.
    """
    from matplotlib.figure import Figure

    panels = [Results(name, folder) for name, part in parts.items() if not part.base]
    panels = [p for p in panels if any(p.seeds(FULL, ALONE + size) for size in p.part.sizes)]
    if not panels:
        return False
    figure = Figure(figsize=(3.2 * len(panels), 3.2), layout="constrained")
    for axis, results in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        sizes = [s for s in results.part.sizes if results.seeds(FULL, ALONE + s)]
        for shift, label in ((-0.08, "alone"), (0.08, "in the supernet")):
            found = [_rate(results, label, size) for size in sizes]
            value, low, high = np.array(
                [(100 * f.value, 100 * f.low, 100 * f.high) for f in found]
            ).T
            places = np.arange(len(sizes)) + shift
            spread = np.maximum([value - low, high - value], 0)
            axis.errorbar(places, value, yerr=spread, fmt="o-", ms=4, lw=1, capsize=3, label=label)
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set(title=results.name, xlabel="size", ylim=(0, None))
    first = figure.axes[0]
    first.set_ylabel("WER (%), 95 % interval")
    first.legend()
    figure.savefig(path, dpi=110)
    return True


def _rate(results: Results, label: str, size: str) -> Interval:
    seeds = results.seeds(FULL, ALONE + size)
    name = ALONE + size if label == "alone" else FULL
    return bootstrap.rate(results.errors_SN(name, size, seeds), results.words_N)
