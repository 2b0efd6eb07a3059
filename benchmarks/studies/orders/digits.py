"""A bundle of digits on people: strings of digits of two corpora, word errors."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.studies.orders.engines import BundleEngine
from benchmarks.studies.orders.recordings import shared
from benchmarks.studies.results import write
from todm.asr.decode.wer import figures, score
from todm.bench.kernels.machine import commit, describe
from todm.device.audio import Samples, read_audio
from todm.errors import CorpusError
from todm.files import Progress, no_progress

DIGITS = frozenset(("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"))
FREE, ADULTS, CHILDREN = "fsdd-connected test", "speechocean762 adults", "speechocean762 children"
ALL = "speechocean762"
_ADULT = 18  # years


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken:
    """A string of digits: float32 [S] at 16 kHz, its words, and the figure that it belongs to."""

    samples_S: Samples
    text: str
    group: str


def strings() -> Iterator[Spoken]:
    """The test split of fsdd-connected, and all of speechocean762 that are digits alone.

    Raises:
        CorpusError: a corpus is not at hand.
    """
    root = shared("speechocean762")
    ages = dict(
        re.findall(r"^(\S+)\t\S+\t(\d+)\t", (root / "speakers.tsv").read_text(), re.MULTILINE)
    )
    for file, text in _utterances(shared("fsdd-connected", "test")):
        yield Spoken(samples_S=read_audio(file), text=text, group=FREE)
    for file, text in _utterances(root):
        if set(text.split()) <= DIGITS:
            adult = int(ages[file.name.partition("-")[0]]) >= _ADULT
            yield Spoken(samples_S=read_audio(file), text=text, group=ADULTS if adult else CHILDREN)


def measure(bundle: Path, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Word errors by group as JSON, and `texts`: what was recognised, with what was said.

    Raises:
        TodmError: the bundle or a corpus cannot be used.
    """
    engine, spoken = BundleEngine(bundle), list(strings())
    texts = []
    for done, one in enumerate(spoken, 1):
        texts.append(engine.recognise(one.samples_S))
        progress("strings of digits", done, len(spoken))
    groups = {FREE: {FREE}, ALL: {ADULTS, CHILDREN}, ADULTS: {ADULTS}, CHILDREN: {CHILDREN}}
    found = {}
    for name, members in groups.items():
        chosen = [
            (s.text, text) for s, text in zip(spoken, texts, strict=True) if s.group in members
        ]
        found[name] = figures(score(*map(list, zip(*chosen, strict=True))))
    return {
        "engine": engine.describe(),
        "machine": describe("cpu"),
        "commit": commit(),
        "wer": found,
        "texts": [[s.group, s.text, text] for s, text in zip(spoken, texts, strict=True)],
    }


def save(path: Path, found: dict[str, Any]) -> None:
    """Write the figures of a bundle."""
    write(path, found)


def _utterances(root: Path) -> Iterator[tuple[Path, str]]:
    """Recordings and transcripts of a corpus in LibriSpeech's layout.

    Raises:
        CorpusError: there are none.
    """
    files = sorted(root.rglob("*.trans.txt"))
    if not files:
        raise CorpusError(f"{root} holds no transcripts (*.trans.txt): restore the corpus")
    for file in files:
        for line in file.read_text().splitlines():
            name, _, text = line.partition(" ")
            yield file.parent / f"{name}.opus", text
