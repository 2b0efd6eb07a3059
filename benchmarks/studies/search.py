"""Is what a search chooses better on test than what luck chooses? Four ways to choose a subnet, over seeds.

    python -m benchmarks.studies.search SUPERNET CORPUS --out DIR --seeds 0 1 2 3 4

For every seed and budget, as many subnets are evaluated by `todm search` and at random within the budget.
The search's choice is compared on the test split with the random subnet of the best dev WER; random subnets
chosen by the search's own estimate tell what the estimate gains and what the proposals gain. DIR keeps every
evaluation, so that an interrupted study goes on; search.json has the choices and the test errors of every
utterance, search.md the table.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.claim.bootstrap import relative
from benchmarks.studies.results import write
from todm import artifact
from todm.asr.decode.utterances import score_all
from todm.asr.decode.wer import Interval
from todm.asr.loading import backend_of, load_model
from todm.errors import ConfigError, TodmError
from todm.files import markdown_table, write_text
from todm.search.budget import parse
from todm.search.choice import Choice
from todm.search.devices import Devices
from todm.search.draws import inner_draws, uniform_scaling
from todm.search.estimate import Estimate
from todm.search.evaluations import Evaluations, in_supernet
from todm.search.explore import SearchConfig, explore
from todm.search.problem import Problem

BUDGETS = ("0.25M", "0.35M", "0.5M")
BASELINE = "random draws, best dev WER"
Picks = dict[str, Choice]  # by method
Rows = list[dict[str, Any]]
Propose = Callable[[Problem, Evaluations, int, int, Sequence[Choice]], list[Choice]]


def _random(
    problem: Problem, evaluations: Evaluations, seed: int, num: int, known: Sequence[Choice]
) -> list[Choice]:
    return inner_draws(problem, num, random.Random(f"{seed} {problem.budget.text}"))


def _search(
    problem: Problem, evaluations: Evaluations, seed: int, num: int, known: Sequence[Choice]
) -> list[Choice]:
    config = SearchConfig(seed=seed, evaluations=num)
    return explore(problem, evaluations, config, known=known)


PROPOSALS: dict[str, Propose] = {
    "random draws": _random,
    "search": _search,
}
"""Subnets to evaluate, by method: for a budget, a seed and a number, with those of budgets before."""


def picks(
    problems: Sequence[Problem], evaluations: Evaluations, seed: int, num: int
) -> dict[str, Picks]:
    """What each method chooses with one seed, by budget.

    Args:
        problems: one for each budget.
        evaluations: scores on dev.
        seed: of all draws.
        num: evaluations for each budget and method.
    """
    found: dict[str, Picks] = {
        p.budget.text: {"uniform scaling": _best(uniform_scaling(p), evaluations, "score")}
        for p in problems
    }
    for name, propose in PROPOSALS.items():
        seen: list[Choice] = []
        for problem in problems:
            seen += propose(problem, evaluations, seed, num, seen)
        estimate = Estimate(problems[0].space, seen, evaluations)
        for problem in problems:
            fitting = [c for c in seen if problem.holds(c)]
            found[problem.budget.text][name] = min(fitting, key=estimate)
    for problem in problems:
        drawn = _random(problem, evaluations, seed, num, ())
        found[problem.budget.text][BASELINE] = _best(drawn, evaluations, "error")
    return found


def _best(choices: Sequence[Choice], evaluations: Evaluations, figure: str) -> Choice:
    return min(choices, key=lambda c: evaluations(c)[figure])


def errors_of(found: Mapping[str, Any], budget: str, method: str) -> np.ndarray:
    """Test errors of a method's picks: [S, N], with S seeds and N utterances."""
    keys = [row["key"] for row in _rows(found, budget, method)]
    return np.array([[int(digit, 36) for digit in found["tested"][key]] for key in keys])


def digits(errors: Sequence[int]) -> str:
    """Errors of each utterance as one digit of base 36 each; more than 35 count as 35."""
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[min(e, 35)] for e in errors)


def against(found: Mapping[str, Any], budget: str, method: str) -> Interval:
    """A method against the best of random draws; the interval resamples seeds and utterances."""
    return relative([(errors_of(found, budget, method), errors_of(found, budget, BASELINE))])


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """The result as Markdown."""
    words, seeds = found["words"], list(dict.fromkeys(row["seed"] for row in found["picks"]))
    yield (
        f"{len(words)} test utterances, {sum(words)} words; seeds {seeds}; "
        f"{found['evaluations']} evaluations for each budget and method."
    )
    yield ""
    heads = ("budget", "method", "dev WER", "test WER of each seed", "mean")
    heads += (f"against {BASELINE}", "95 % interval")
    lines: list[list[str]] = []
    for budget in dict.fromkeys(row["budget"] for row in found["picks"]):
        methods = dict.fromkeys(r["method"] for r in found["picks"] if r["budget"] == budget)
        lines += [_cells(found, budget, method) for method in methods]
    yield markdown_table(heads, lines)


def _cells(found: Mapping[str, Any], budget: str, method: str) -> list[str]:
    rates_S = errors_of(found, budget, method).sum(1) / sum(found["words"])
    change = against(found, budget, method)
    same = method == BASELINE
    return [
        budget,
        method,
        f"{np.mean([row['dev'] for row in _rows(found, budget, method)]):.2%}",
        " / ".join(f"{100 * rate:.2f}" for rate in rates_S),
        f"{rates_S.mean():.2%}",
        "" if same else f"{change.value:+.1%}",
        "" if same else f"{change.low:+.1%} to {change.high:+.1%}",
    ]


def _rows(found: Mapping[str, Any], budget: str, method: str) -> Rows:
    return [r for r in found["picks"] if (r["budget"], r["method"]) == (budget, method)]


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    supernet = artifact.load(args.supernet, kind="supernet")
    backend = backend_of(supernet, corpus=args.corpus, report=_report)
    model = load_model(supernet, backend)
    problems = Devices(backend, _report).problems([parse(b) for b in args.budgets], ("none",))
    for problem in problems:
        problem.check()
    key = f"{supernet.hash} {args.corpus.resolve()}"
    dev = in_supernet(backend, model, limit=0, key=key, path=args.out / "dev.jsonl")

    def recognise(choice: Choice) -> dict[str, Any]:
        wer = score_all(backend.recognise(model, subnet=choice.subnet, split="test"))
        errors, words = zip(*wer.utterances, strict=True)
        return {"errors": digits(errors), "words": words}

    test = Evaluations(recognise, args.out / "test.jsonl", key=key)
    rows, tested, words = list[dict[str, Any]](), dict[str, str](), list[int]()
    for seed in args.seeds:
        for budget, chosen in picks(problems, dev, seed, args.evaluations).items():
            for method, choice in chosen.items():
                figures, costs = test(choice), problems[0].costs(choice)
                tested[choice.key], words = figures["errors"], list(figures["words"])
                known = {"dev": dev(choice)["error"], "params": costs["params"]}
                row = {"seed": seed, "budget": budget, "method": method, "key": choice.key}
                rows.append(row | known)
        _report(f"seed {seed}: {len(dev)} subnets on dev, {len(test)} on test", 1, 1)
    return {
        "supernet": supernet.hash,
        "evaluations": args.evaluations,
        "picks": rows,
        "tested": tested,
        "words": words,
    }


def _report(what: str, done: int, total: int) -> None:
    if done == total:
        sys.stderr.write(f"{what}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Search, test, print and write; status 2, with a one-line message, for errors of the user."""
    parser = argparse.ArgumentParser(
        description="what a search chooses against random draws, on test"
    )
    parser.add_argument("supernet", type=Path, help="directory that  todm train  wrote")
    parser.add_argument("corpus", type=Path, help="its corpus, or one with a larger test split")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--evaluations", type=int, default=SearchConfig().evaluations)
    args = parser.parse_args(argv)
    try:
        if len(set(args.seeds)) < len(args.seeds):
            raise ConfigError(f"--seeds has {args.seeds}: give every seed once")
        if args.evaluations < 1:
            raise ConfigError(f"--evaluations is {args.evaluations}: at least 1 is needed")
        found = _measure(args)
    except TodmError as error:
        sys.stderr.write(f"benchmarks.studies.search: {error}\n")
        return 2
    text = "\n".join(table(found)) + "\n"
    write(args.out / "search.json", found)
    write_text(args.out / "search.md", text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
