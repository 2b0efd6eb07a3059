"""Command acceptance, parse rate and slots of recognised texts, and what costs most.

A command is accepted if its intent and all slots are right and none is missing. A slot that nobody said
counts as wrong too; the benchmark's own program does not look for it (`spurious` has their number).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.orders.parsing import Parse, Parser
from benchmarks.studies.orders.recordings import Recording
from todm.asr.corpora import grammar
from todm.asr.decode.wer import Interval

GRAMMAR = Path(__file__).resolve().parents[3] / "recipes" / "orders" / "grammar.txt"
INTENT = "orderDrink"
PARSES = ("exact", "nearest")
"""A text must be a sentence of the grammar; or it is taken for the nearest one."""
_RESAMPLES = 2000
_MOST = 12


def order_parser() -> Parser:
    """The parser of the benchmark's orders; definitions without `_` in front are its slots."""
    found = grammar.read(GRAMMAR)
    return Parser(found, [name for name in found.definitions if not name.startswith("_")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Recordings of a condition by one parse.

    Attributes:
        wrong: recordings not accepted.
        spurious: of those, the ones with nothing wrong but slots that nobody said.
        slots: in the labels.
        slots_right: of those.
        confusions: slot, label and what was heard ("" for nothing), with their number, most first.
    """

    wrong: list[str]
    spurious: int
    slots: int
    slots_right: int
    confusions: list[tuple[str, str, str, int]]


def judge(
    recordings: Sequence[Recording], texts: Mapping[str, str], parser: Parser
) -> dict[str, Any]:
    """A condition as JSON.

    Args:
        recordings: with their labels.
        texts: recognised, by name of recording.
        parser: of the grammar.

    Returns:
        `num`; `parsed`, texts that are sentences of the grammar; the fields of `Score` by parse; and the
        `texts` that are not accepted by exact parse.
    """
    parses = {r.name: parser.parse(texts[r.name]) for r in recordings}
    exact = {name: found if found and found.is_exact else None for name, found in parses.items()}
    scores = {"exact": score(recordings, exact), "nearest": score(recordings, parses)}
    return {
        "num": len(recordings),
        "parsed": sum(found is not None for found in exact.values()),
        **{name: dataclasses.asdict(found) for name, found in scores.items()},
        "texts": {name: texts[name] for name in scores["exact"].wrong},
    }


def score(recordings: Sequence[Recording], parses: Mapping[str, Parse | None]) -> Score:
    """Compare parses with labels."""
    wrong: list[str] = []
    confusions: Counter[tuple[str, str, str]] = Counter()
    spurious = right = 0
    for recording in recordings:
        found = parses[recording.name]
        heard = found.slots if found else {}
        right += sum(heard.get(slot) == label for slot, label in recording.slots.items())
        missed = [
            (slot, recording.slots.get(slot, ""), heard.get(slot, ""))
            for slot in {**recording.slots, **heard}
            if recording.slots.get(slot) != heard.get(slot)
        ]
        if missed or found is None or recording.intent != INTENT:
            wrong.append(recording.name)
            spurious += found is not None and all(not label for _, label, _ in missed)
        if found is not None:  # a text without a parse says nothing about a slot
            confusions.update(missed)
    return Score(
        wrong=wrong,
        spurious=spurious,
        slots=sum(len(recording.slots) for recording in recordings),
        slots_right=right,
        confusions=[(*pair, num) for pair, num in confusions.most_common(_MOST)],
    )


def wilson(right: int, num: int) -> Interval:
    """A share with its 95 % interval (Wilson 1927)."""
    z, share = 1.959964, right / num
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    return Interval(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def mean_share(right_CN: np.ndarray) -> Interval:
    """The mean over conditions and recordings, with a 95 % interval: whole recordings are redrawn.

    Args:
        right_CN: 0 or 1 by condition and recording; or differences of two such, for a paired interval.
    """
    means_N = right_CN.mean(0)
    num = len(means_N)
    draws = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=_RESAMPLES)
    low, high = np.quantile(draws @ means_N / num, [0.025, 0.975])
    return Interval(value=float(means_N.mean()), low=float(low), high=float(high))
