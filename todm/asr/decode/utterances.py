"""Recognised utterances: their errors, their word times, and their form on disk.

On disk an utterance is a line of JSON (id, reference, hypothesis, errors, words), so that any two
evaluations of the same utterances can be compared.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from todm.asr.decode.wer import Wer, score
from todm.device.segments import word_spans
from todm.errors import ConfigError
from todm.files import write_text


class Emission(NamedTuple):
    """A recognised word and the frame of its last label."""

    text: str
    frame: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """An utterance as it was recognised: `symbols` came out at `frames` (of 40 ms)."""

    id: str
    reference: str
    hypothesis: str
    symbols: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()

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


def paired(ours: Sequence[Decoded], theirs: Sequence[Decoded]) -> tuple[Wer, Wer]:
    """Errors of two evaluations, utterance by utterance in one order.

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
    order = sorted(first)
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
