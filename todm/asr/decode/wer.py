"""Word error rate: alignment, counts, bootstrap confidence, and a file to read errors in.

The alignment is Levenshtein's with equal costs, and kaldialign decides between equally short ones: for
"a b" recognised as "b c" it takes a deletion, a match and an insertion, not two substitutions.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from todm.files import write_text

Pair = tuple[str, str]  # (reference word, recognised word); "" where there is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wer:
    """Error counts over a set of utterances; `utterances` holds (errors, words) of each."""

    insertions: int
    deletions: int
    substitutions: int
    words: int
    utterances: tuple[tuple[int, int], ...] = dataclasses.field(default=(), repr=False)

    @property
    def errors(self) -> int:
        """All errors."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Errors per reference word; 0.1 is 10 %. Infinite for errors without any word."""
        if self.words:
            return self.errors / self.words
        return math.inf if self.errors else 0.0

    def __str__(self) -> str:
        return (
            f"{100 * self.rate:.2f} % ({self.errors} errors in {self.words} words: "
            f"{self.insertions} ins, {self.deletions} del, {self.substitutions} sub)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % bootstrap interval around `value`."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One recogniser against another on the same utterances.

    Attributes:
        difference: of the error rates; negative is better.
        relative: the same by the other's errors, with its bootstrap interval `low` to `high`.
        p: two-sided, of there being no difference: twice the smaller share of resamples on one side
            of zero.
    """

    difference: Interval
    relative: float
    low: float
    high: float
    p: float


def figures(wer: Wer) -> dict[str, Any]:
    """As JSON: the rate (`error`), its bootstrap interval, and counts."""
    interval = bootstrap(wer)
    return {
        "error": wer.rate,
        "low": interval.low,
        "high": interval.high,
        "words": wer.words,
        "utterances": len(wer.utterances),
        "insertions": wer.insertions,
        "deletions": wer.deletions,
        "substitutions": wer.substitutions,
    }


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[Pair]:
    """The shortest edit path from reference words to recognised words, in reading order."""
    import kaldialign

    return kaldialign.align(ref, hyp, "")


def score(refs: Sequence[str], hyps: Sequence[str]) -> Wer:
    """Compare transcripts, split at white space, utterance by utterance.

    Raises:
        ValueError: there are not as many hypotheses as references.
    """
    import kaldialign

    if len(refs) != len(hyps):
        raise ValueError(f"{len(hyps)} hypotheses for {len(refs)} references: one each is needed")
    pairs = zip(refs, hyps, strict=True)
    rows = [kaldialign.edit_distance(ref.split(), hyp.split()) for ref, hyp in pairs]
    insertions, deletions, substitutions, words = (
        sum(int(row[name]) for row in rows) for name in ("ins", "del", "sub", "ref_len")
    )
    return Wer(
        insertions=insertions,
        deletions=deletions,
        substitutions=substitutions,
        words=words,
        utterances=tuple((int(row["total"]), int(row["ref_len"])) for row in rows),
    )


def bootstrap(wer: Wer, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """A confidence interval of the rate, by drawing whole utterances with replacement."""
    errors, words = _per_utterance(wer)
    weights = _resample(len(errors), resamples, seed)
    rates = weights @ errors / np.maximum(weights @ words, 1)
    return _interval(wer.rate, rates)


def compare(ours: Wer, theirs: Wer, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Paired bootstrap of two results on the same utterances in the same order.

    Both are resampled together, so what is hard for both does not widen the intervals.
    Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".

    Raises:
        ValueError: the two were not measured on the same references.
    """
    (errors, words), (other, other_words) = _per_utterance(ours), _per_utterance(theirs)
    if not np.array_equal(words, other_words):
        raise ValueError(
            "a paired bootstrap needs two results on the same utterances, in one order"
        )
    weights = _resample(len(errors), resamples, seed)
    changes, before = weights @ (errors - other), weights @ other
    change = ours.errors - theirs.errors
    relative = _interval(change / max(theirs.errors, 1), changes / np.maximum(before, 1))
    sides = float((changes <= 0).mean()), float((changes >= 0).mean())
    rates = changes / np.maximum(weights @ words, 1)
    return Comparison(
        difference=_interval(ours.rate - theirs.rate, rates),
        relative=relative.value,
        low=relative.low,
        high=relative.high,
        p=min(1.0, 2 * min(sides)),
    )


def write_alignments(
    path: Path, ids: Sequence[str], refs: Sequence[str], hyps: Sequence[str]
) -> Wer:
    """Write every utterance with its errors marked, then confusions and a table of words.

    An error reads `(reference->recognised)`. The file is replaced whole or not at all.
    """
    wer = score(refs, hyps)
    alignments = [align(ref.split(), hyp.split()) for ref, hyp in zip(refs, hyps, strict=True)]
    lines = [f"WER {wer}", f"{len(refs)} utterances", "", "## Utterances"]
    for name, ref, hyp, pairs in zip(ids, refs, hyps, alignments, strict=True):
        lines += [f"{name}:", f"  REF {' '.join(ref.split())}", f"  HYP {' '.join(hyp.split())}"]
        if any(a != b for a, b in pairs):
            lines.append(f"  ERR {' '.join(a if a == b else f'({a}->{b})' for a, b in pairs)}")
    every = [pair for pairs in alignments for pair in pairs]
    write_text(Path(path), "\n".join([*lines, *_confusions(every), *_word_table(every)]) + "\n")
    return wer


def _per_utterance(wer: Wer) -> tuple[np.ndarray, np.ndarray]:
    """Errors and words of each utterance, float64."""
    both = np.array(wer.utterances, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _resample(num: int, resamples: int, seed: int) -> np.ndarray:
    """How often each utterance is drawn: [resamples, num]."""
    if not num:
        return np.zeros((resamples, 0))
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=resamples)


def _interval(value: float, samples: np.ndarray) -> Interval:
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))


def _confusions(pairs: Iterable[Pair], most: int = 50) -> list[str]:
    counts = Counter(pair for pair in pairs if pair[0] != pair[1])
    lines = ["", "## Most frequent errors (count, reference->recognised)"]
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return lines + [f"{count:6d} {ref}->{hyp}" for (ref, hyp), count in ranked[:most]]


def _word_table(pairs: Iterable[Pair]) -> list[str]:
    """Per word: right, substituted, deleted, and recognised where there was none or another."""
    rows: dict[str, Counter[str]] = {}
    for ref, hyp in pairs:
        kind = "ok" if ref == hyp else "sub" if hyp else "del"
        if ref:
            rows.setdefault(ref, Counter())[kind] += 1
        if hyp and kind != "ok":
            rows.setdefault(hyp, Counter())["wrong"] += 1
    lines = ["", "## Words (in the reference, right, substituted, deleted; recognised wrongly)"]
    ranked = sorted(rows.items(), key=lambda r: (r[1]["ok"] - r[1].total(), r[0]))
    for word, row in ranked:
        spoken = row["ok"] + row["sub"] + row["del"]
        lines.append(
            f"{spoken:6d} {row['ok']:6d} {row['sub']:6d} {row['del']:6d}  {row['wrong']:6d}  {word}"
        )
    return lines
