"""Recognised utterances: their errors, their word times, and their form on disk.

On disk an utterance is a line of JSON (id, reference, hypothesis, errors, words), so that any two
evaluations of the same utterances can be compared.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from todm.asr.decode.wer import Wer, figures, score
from todm.device.segments import word_spans
from todm.errors import ConfigError
from todm.files import write_text


class Emission(NamedTuple):
    """A recognised word and the frame of its last label."""

    text: str
    frame: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """An utterance as it was recognised: `symbols` came out at `frames` (of 40 ms).

    `final` is what a bundle's threshold leaves of the hypothesis; None without a threshold.
    """

    id: str
    reference: str
    hypothesis: str
    symbols: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    final: str | None = None

    @property
    def words(self) -> tuple[Emission, ...]:
        """The recognised words and when each was complete."""
        return emissions(self.symbols, self.frames)


def emissions(symbols: Sequence[str], frames: Sequence[int]) -> tuple[Emission, ...]:
    """The words that symbols spell, each with the frame of its last symbol."""
    return tuple(Emission(text, frames[end - 1]) for text, _, end in word_spans(symbols))


def score_all(decoded: Sequence[Decoded]) -> Wer:
    """Errors of recognised utterances."""
    return score([u.reference for u in decoded], [u.hypothesis for u in decoded])


def figures_of(decoded: Sequence[Decoded]) -> dict[str, Any]:
    """Figures of recognised utterances, as JSON: those of `wer.figures`, and of speech that is no command.

    `other_speech` (not there without any) has its `utterances` and in how many a word was recognised,
    `accepts`. None of these words is in the error rate. `decision` (not there without a threshold) has what
    the threshold makes of it: of the `exact` utterances, recognised without an error, the share `lost`, and
    the `accepts` that are left.
    """
    found = figures(score_all(with_words(decoded)))
    others = [u for u in decoded if not u.reference.strip()]
    if others:
        accepts = sum(bool(u.hypothesis.strip()) for u in others)
        found["other_speech"] = {"utterances": len(others), "accepts": accepts}
    if any(u.final is not None for u in decoded):
        exact = [u for u in with_words(decoded) if u.hypothesis.split() == u.reference.split()]
        lost = sum((u.final or "").split() != u.hypothesis.split() for u in exact)
        found["decision"] = {
            "exact": len(exact),
            "lost": lost / max(1, len(exact)),
            "accepts": sum(bool((u.final or "").strip()) for u in others),
        }
    return found


def with_words(decoded: Sequence[Decoded]) -> list[Decoded]:
    """Those of which the transcript has a word."""
    return [u for u in decoded if u.reference.strip()]


def paired(ours: Sequence[Decoded], theirs: Sequence[Decoded]) -> tuple[Wer, Wer]:
    """Errors of two evaluations, utterance by utterance in one order, without speech that is no command.

    Raises:
        ConfigError: they are not of the same utterances.
    """
    first, second = ({u.id: u for u in side} for side in (ours, theirs))
    unpaired = len(first.keys() ^ second.keys())
    different = sum(first[n].reference != second[n].reference for n in first.keys() & second)
    if unpaired or different:
        raise ConfigError(
            f"the two evaluations are not of the same utterances: {unpaired} are in one of them only, "
            f"and {different} have different references; evaluate both on one corpus, split and limit"
        )
    order = sorted(name for name, u in first.items() if u.reference.strip())
    return score_all([first[n] for n in order]), score_all([second[n] for n in order])


def write_utterances(path: Path, decoded: Sequence[Decoded]) -> None:
    """Every utterance as a line of JSON: id, reference, hypothesis, errors, words."""
    rows = (
        {
            "id": u.id,
            "reference": u.reference,
            "hypothesis": u.hypothesis,
            "errors": errors,
            "words": words,
        }
        for u, (errors, words) in zip(decoded, score_all(decoded).utterances, strict=True)
    )
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def read_utterances(path: Path) -> list[Decoded]:
    """What `write_utterances` wrote.

    Raises:
        ConfigError: no such file, or another kind of file.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            Decoded(id=row["id"], reference=row["reference"], hypothesis=row["hypothesis"])
            for row in rows
        ]
    except OSError:
        raise ConfigError(f"{path} is not there: run  todm evaluate ... --out DIR  first") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} does not hold utterances that todm evaluate wrote") from None
