"""False accepts and waits of a bundle, at the point at which it recognises orders.

Any segment with a word is a false accept, as in `todm evaluate --reject`; `parsed` are those that say a
whole order, on which an application that parses exactly would act.

Letters: S samples.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.studies.orders.parsing import Parser
from benchmarks.studies.orders.recordings import Recording, shared
from benchmarks.studies.orders.scoring import PARSES, judge
from todm.device import false_accepts
from todm.device.after_silence import Command, after_waits, change
from todm.device.audio import SAMPLE_RATE, Samples
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import transcribe_blocks
from todm.device.sounds import silence, white_noise

SPEECH = "speech (librispeech-mini)"
WAITS = (0.0, 60.0, 600.0)
"""Seconds; the first is what the others are compared with."""
SOUNDS = {"silence": silence(), "white noise at -60 dB": white_noise(-60.0)}
_MINUTES = 10.0
_PAUSE_SECONDS = 1.0


def kinds() -> tuple[str, ...]:
    """Speech, silence, and each noise that a bundle is tested with."""
    return (SPEECH, "silence", *false_accepts.noises())


def accepts(recognizer: StreamingRecognizer, kind: str, parser: Parser) -> dict[str, Any]:
    """False accepts in a kind of sound as JSON: the fields of `FalseAccepts`, for speech with `parsed`.

    Raises:
        CorpusError: librispeech-mini is not at hand.
    """
    if kind != SPEECH:
        found = false_accepts.score_noise(recognizer, kind, minutes=_MINUTES)
        return dataclasses.asdict(found)
    pause_S, num_samples = np.zeros(round(_PAUSE_SECONDS * SAMPLE_RATE), np.float32), 0

    def blocks() -> Iterator[Samples]:
        nonlocal num_samples
        for samples_S in false_accepts.folder_of_speech(shared("librispeech-mini")):
            num_samples += len(samples_S)  # the pauses are no speech
            yield np.concatenate([samples_S, pause_S])

    segments = list(transcribe_blocks(recognizer, blocks()))
    found = false_accepts.count(segments, num_samples / SAMPLE_RATE / 60)
    parses = [parser.parse(segment.text) for segment in segments]
    parsed = sum(parse is not None and parse.is_exact for parse in parses)
    return {**dataclasses.asdict(found), "parsed": parsed}


def waits(
    recognizer: StreamingRecognizer, sound: str, recordings: Sequence[Recording], parser: Parser
) -> list[dict[str, Any]]:
    """Orders right after waits in a sound.

    Returns:
        For each wait `seconds`, `words` written meanwhile, and by parse the fields of `Change`.
    """
    commands = [Command(samples_S=r.samples_S, text="") for r in recordings]
    rows: list[dict[str, Any]] = []
    before: dict[str, list[bool]] = {}
    for heard in after_waits(recognizer, SOUNDS[sound], commands, WAITS):
        texts = dict(zip((r.name for r in recordings), heard.texts, strict=True))
        right = accepted(recordings, judge(recordings, texts, parser))
        before = before or right
        changes = {p: dataclasses.asdict(change(before[p], right[p])) for p in PARSES}
        rows.append({"seconds": heard.seconds, "words": heard.words, **changes})
    return rows


def accepted(recordings: Sequence[Recording], found: Mapping[str, Any]) -> dict[str, list[bool]]:
    """By parse, whether each recording was accepted."""
    return {p: [r.name not in found[p]["wrong"] for r in recordings] for p in PARSES}
