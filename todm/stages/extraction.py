"""Supernet + budget -> the subnet that meets it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.files import Progress, no_progress, path_or_none

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.search.budget import Budget
    from todm.search.choice import Choice
    from todm.search.evaluations import Evaluations
    from todm.search.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extracted:
    """A subnet that was cut out.

    Attributes:
        subnet: its artifact; `info` has its costs, predicted and measured, `metrics` its dev WER.
        budget: what it meets.
        choice: the subnet and the compression it is meant to be deployed in.
        front: the front it was chosen from; None if a brief search found it.
        existed: whether it was there already.
    """

    subnet: "Artifact"
    budget: "Budget"
    choice: "Choice"
    front: "Artifact | None"
    existed: bool


def extract_subnet(
    supernet: str | Path,
    *,
    budget: str,
    out: str | Path,
    front: str | Path | None = None,
    corpus: str | Path | None = None,
    compression: str | None = None,
    candidates: int = 12,
    limit: int = 150,
    progress: Progress = no_progress,
) -> Extracted:
    """Cut the best subnet for a budget out of a supernet.

    It is taken from the front that a search wrote, or found by a brief search if there is none.

        >>> found = stages.extract_subnet(run / "supernet", budget="0.5M", out=run / "subnet")
        >>> found.subnet.info["costs"]["params"] <= 0.5e6
        True

    Args:
        supernet: what  todm train  wrote.
        budget: such as `2M` or `latency=20ms@local,size=3MiB`.
        out: directory of the subnet.
        front: what  todm search  wrote; by default the front beside the supernet, if there is one.
        corpus: corpus whose dev split decides; by default the one the supernet was trained on.
        compression: what may be chosen; by default `none,int8` for budgets of bytes or time, else `none`.
        candidates: subnets to score without a front.
        limit: dev utterances to score on then.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm import artifact
    from todm.asr.loading import backend_of, check_numbers, load_model, same_outputs
    from todm.search.budget import parse
    from todm.search.choice import Choice, compressions_of
    from todm.search.devices import Devices
    from todm.search.evaluations import in_supernet
    from todm.search.extract import write_subnet
    from todm.search.front import find_front

    check_numbers(candidates=candidates, limit=limit)
    limits = parse(budget)
    found = artifact.load(supernet, kind="supernet")
    points = find_front(path_or_none(front), found)
    asked = {"budget": budget, "compression": compression, "candidates": candidates, "limit": limit}
    asked |= {"corpus": str(corpus or ""), "front": points.hash if points else ""}
    done = artifact.existing(out, kind="subnet")
    if done is not None and (done.parent, done.info["asked"]) == (found.hash, asked):
        choice = Choice.from_json(done.info)
        return Extracted(subnet=done, budget=limits, choice=choice, front=points, existed=True)
    compressions = compressions_of(limits.compressions if compression is None else compression)
    backend = backend_of(found, corpus=path_or_none(corpus), report=progress)
    devices = Devices(backend, progress)
    (problem,) = devices.problems([limits], compressions)
    problem.check()
    model = load_model(found, backend)
    ranked = _from_front(points, problem, candidates) if points else []
    if not ranked:
        scores = in_supernet(backend, model, limit=limit)
        ranked = _brief_search(problem, scores, candidates, progress)
    choice = ranked[0][0]
    plain = backend.extract(model, choice.subnet)
    subnet = write_subnet(
        Path(out),
        plain,
        backend=backend,
        found=found,
        choice=choice,
        difference=same_outputs(model, plain, choice.subnet),
        info={
            "asked": asked,
            "costs": dict(problem.costs(choice)),
            "measured": devices.measured(choice, limits),
            "candidates": [_row(problem, c, figures) for c, figures in ranked],
        },
    )
    return Extracted(subnet=subnet, budget=limits, choice=choice, front=points, existed=False)


def _row(problem: "Problem", choice: "Choice", figures: "Mapping[str, Any]") -> dict[str, Any]:
    """A candidate as JSON."""
    costs = dict(problem.costs(choice))
    return {**choice.to_json(), "costs": costs, "error": figures["error"]}


def _from_front(
    front: "Artifact", problem: "Problem", most: int
) -> "Sequence[tuple[Choice, Mapping[str, Any]]]":
    """The best points of a front that meet the budget, and their figures."""
    from todm.search.front import read_points

    return [
        (choice, figures)
        for choice, figures in read_points(front)
        if choice.compression in problem.compressions and problem.holds(choice)
    ][:most]


def _brief_search(
    problem: "Problem", evaluations: "Evaluations", num: int, progress: Progress
) -> "Sequence[tuple[Choice, Mapping[str, Any]]]":
    """So many subnets evaluated, the best first, and their figures."""
    from todm.search.estimate import Estimate
    from todm.search.explore import SearchConfig, explore

    what = f"subnets for {problem.budget.text}"
    seen = explore(
        problem,
        evaluations,
        SearchConfig(evaluations=num),
        progress=lambda done: progress(what, done, num),
    )
    ranked = sorted(seen, key=Estimate(problem.space, seen, evaluations))
    return [(choice, evaluations(choice)) for choice in ranked]
