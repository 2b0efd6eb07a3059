"""The front: the result of a search as an artifact with a table and a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.errors import ArtifactError
from todm.files import markdown_table
from todm.search.budget import quantity
from todm.search.choice import Choice
from todm.search.explore import SearchConfig
from todm.search.run import Answer, Found

KIND = "front"
POINTS, TABLE, PLOT = "points.json", "front.md", "front.png"
_COLOURS = {"none": "tab:blue", "int8": "tab:orange", "int4": "tab:green"}
_SHOWN = {"none": "fp32"}


def write_front(
    path: Path,
    found: Found,
    supernet: Artifact,
    config: SearchConfig,
    *,
    tables: Mapping[str, Mapping[str, Any]],
    asked: Mapping[str, Any],
) -> Artifact:
    """Write a search as an artifact.

    Args:
        path: the directory to make.
        found: the search.
        supernet: what was searched.
        config: how.
        tables: those of the devices that budgets name.
        asked: the request: the corpus, how much of it, the compressions.

    Raises:
        ArtifactError: `path` exists and is not an artifact.
        MissingExtra: matplotlib is not installed.
    """

    def write(folder: Path) -> None:
        text = json.dumps(found.rows(), indent=1)
        (folder / POINTS).write_text(text + "\n", encoding="utf-8")
        (folder / TABLE).write_text(table(found) + "\n", encoding="utf-8")
        for name, device in tables.items():
            (folder / f"device-{name}.json").write_text(json.dumps(device, indent=1) + "\n")
        plot(found, folder / PLOT)

    return artifact.save(
        path,
        kind=KIND,
        config={"search": config.to_json()},
        parent=supernet.hash,
        metrics={"seconds": found.seconds, "cpu_seconds": found.cpu_seconds},
        info={
            "asked": dict(asked),
            "budgets": [_answer(found, answer) for answer in found.answers],
            "devices": {name: device["sha256"] for name, device in tables.items()},
        },
        write=write,
    )


def default_place(supernet: Path) -> Path:
    """Where the front of a supernet lies unless another place is given: beside it."""
    return supernet.resolve().parent / "front"


def find_front(given: Path | None, supernet: Artifact) -> Artifact | None:
    """The front that is given, or the one beside the supernet if it belongs to it.

    Raises:
        ArtifactError: the one given belongs to another supernet, or is no front.
    """
    path = given or default_place(supernet.path)
    if given is None and not (path / artifact.MANIFEST).is_file():
        return None
    front = artifact.load(path, kind=KIND)
    if front.parent == supernet.hash:
        return front
    if given is None:
        return None
    raise ArtifactError(
        f"{path} is the front of another supernet than {supernet.path}: search this one"
    )


def read_points(found: Artifact) -> list[tuple[Choice, dict[str, Any]]]:
    """Every choice of a front and its figures, the best first.

    Raises:
        ArtifactError: it is not an artifact that a search wrote.
    """
    try:
        rows = json.loads(found.file(POINTS).read_text(encoding="utf-8"))
        return [(Choice.from_json(row), row["figures"]) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{found.path}/{POINTS} is damaged: remove {found.path} and search again"
        ) from None


def table(found: Found) -> str:
    """The answers in Markdown."""
    limits = _limits(found)
    heads = ["budget", "chosen", *(name for name in limits), "dev WER", "95 % interval"]
    heads += ["uniform scaling"]
    lines = []
    for answer in found.answers:
        chosen, figures = answer.chosen, found.figures[answer.chosen]
        costs = [quantity(name, found.costs[chosen][name]) for name in limits]
        interval = f"{figures['low']:.2%} to {figures['high']:.2%}"
        lines.append(
            [
                answer.budget.text,
                str(chosen),
                *costs,
                f"{figures['error']:.2%}",
                interval,
                f"{found.figures[answer.uniform]['error']:.2%}",
            ]
        )
    return (
        f"{markdown_table(heads, lines)}\n\n{len(found.figures)} choices evaluated, "
        f"{found.answers[0].evaluations} for each budget. The one with the least expected loss is chosen: "
        "the transducer loss on dev at three speeds, drawn towards a model of all of them."
    )


def plot(found: Found, path: Path) -> None:
    """WER against every cost: all choices, the front of each cost, the budgets and what they chose.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    from todm.errors import MissingExtra

    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtra("matplotlib", "train", "plots") from None
    limits = _limits(found)
    figure = Figure(figsize=(5 * len(limits), 4.2), layout="constrained")
    axes = figure.subplots(1, len(limits), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, limits, strict=True):
        _panel(axis, found, name)
    axes[0].set_ylabel("dev WER, %")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=130)


def _panel(axis: Any, found: Found, name: str) -> None:  # noqa: ANN401 - matplotlib has no types
    unit, label = _units(name)
    for compression in dict.fromkeys(c.compression for c in found.figures):
        points = [c for c in found.figures if c.compression == compression]
        axis.plot(
            [found.costs[c][name] / unit for c in points],
            [100 * found.figures[c]["error"] for c in points],
            ".",
            color=_COLOURS[compression],
            alpha=0.5,
            label=_SHOWN.get(compression, compression),
        )
    stairs = _stairs(
        [(found.costs[c][name] / unit, found.figures[c]["error"]) for c in found.figures]
    )
    axis.step([x for x, _ in stairs], [100 * y for _, y in stairs], "k-", where="post", lw=0.8)
    for answer in found.answers:
        figures, x = found.figures[answer.chosen], found.costs[answer.chosen][name] / unit
        y = 100 * figures["error"]
        spread = [[max(0.0, y - 100 * figures["low"])], [max(0.0, 100 * figures["high"] - y)]]
        axis.errorbar([x], [y], spread, fmt="r*", ms=11, lw=0.8, capsize=2)
        if name in answer.budget.limits:
            axis.axvline(answer.budget.limits[name] / unit, color="grey", ls=":", lw=1)
    axis.set_xlabel(label)


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The least error at each cost, from cheap to dear."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return [*kept, (max(x for x, _ in points), kept[-1][1])]


def _units(name: str) -> tuple[float, str]:
    kind, _, device = name.partition("@")
    where = f" on {device}" if device else ""
    return {
        "params": (1e6, "parameters, millions"),
        "size": (2.0**20, "weights, MiB"),
        "macs": (1e6, "million MACs per second of audio"),
        "memory": (2.0**20, "memory, MiB"),
        "latency": (1e-3, f"ms a chunk{where}"),
        "rtf": (1.0, f"real-time factor{where}"),
    }[kind]


def _limits(found: Found) -> list[str]:
    """The costs that budgets limit, and those that are always of interest."""
    limited = [name for answer in found.answers for name in answer.budget.limits]
    return list(dict.fromkeys(["params", "size", *limited]))


def _answer(found: Found, answer: Answer) -> dict[str, Any]:
    return {
        "budget": answer.budget.text,
        "evaluations": answer.evaluations,
        "costs": dict(found.costs[answer.chosen]),
        **{
            name: {**choice.to_json(), "figures": dict(found.figures[choice])}
            for name, choice in (("chosen", answer.chosen), ("uniform", answer.uniform))
        },
    }
