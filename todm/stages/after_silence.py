"""Bundle -> commands right after minutes and hours of silence, noise and other speech."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.errors import ConfigError
from todm.files import Progress, no_progress, path_or_none, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from todm.device.after_silence import Command
    from todm.device.audio import Samples
    from todm.device.bundle import Bundle, Precision
    from todm.device.recognizer import StreamingRecognizer
    from todm.device.sounds import Sound

_FIGURES = "after_silence.json"
_SHORT, _FULL = (0.0, 60.0), (0.0, 10.0, 60.0, 600.0, 3600.0)
_PAUSES = (0.5, 1.0, 3.0)
_SPEECH_SECONDS = 1200.0
_NUM_COMMANDS, _MOST_SECONDS = 300, 1200.0
_NUM_REPEATS = {False: 60, True: _NUM_COMMANDS}
_BABBLERS = 6
_HOUR_NOISE = -60.0  # dB


def measure_after_silence(
    bundle: str | Path,
    corpus: str | Path | None = None,
    *,
    full: bool = False,
    other_speech: str | Path | None = None,
    out: str | Path | None = None,
    card: bool = False,
    progress: Progress = no_progress,
) -> dict[str, dict[str, Any]]:
    """Count the commands that a bundle gets right after waits, against the same with no wait.

    The short form takes about a minute on short commands: int8 for this processor, two sounds, a wait
    of a minute. The full one adds the other forms and sounds, other speech if there are
    recordings of it, waits of 10 minutes and an hour.

    Args:
        bundle: what  todm export  wrote.
        corpus: whose test utterances are the commands; by default the one the model was trained on.
        full: all forms, sounds and waits.
        other_speech: folder of recordings; by default LibriSpeech-mini of TODM_SHARED_DATA;
            without either there is none.
        out: directory for the figures.
        card: put them into the bundle's card and manifest too.
        progress: called with (what, done, all).

    Returns:
        By form: `commands`, their number; `waits`, a list of rows (sound, seconds, right and its change
        in points with a 95 % interval, words written during the wait); `repeats`, right when repeated,
        against at first, by pause; and with `full` `hour`, right in one long recording with pauses,
        noise and other speech (if `other_speech`), against one by one.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm.device.bundle import forms_here, open_bundle
    from todm.device.recognizer import StreamingRecognizer

    opened = open_bundle(bundle)
    commands = _commands(opened, path_or_none(corpus))
    others = _other_speech(path_or_none(other_speech)) if full else []
    sounds = list(_sounds(commands, others, full=full))
    file = Path(out) / _FIGURES if out else None
    forms = _forms(forms_here(opened), full=full)
    asked = {
        "bundle": _key(opened),
        "commands": _hash_of(commands),
        "forms": list(forms),
        "sounds": [[sound.name, sound.level] for sound, _ in sounds],
    }
    found = read_json(file) if file else {}
    if found.get("asked") != asked:
        results = {}
        for form in forms:
            recognizer = StreamingRecognizer(opened, precision=form)
            results[form] = _measure(
                recognizer, form, commands, sounds, full=full, progress=progress
            )
            if full:
                results[form]["hour"] = _hour(recognizer, form, commands, others, progress)
        found = {"asked": asked, "results": results}
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(found, indent=1) + "\n")
    if card:
        from todm.export.after_silence import write_after_silence

        write_after_silence(opened.path, found["results"])
    return found["results"]


def _measure(
    recognizer: "StreamingRecognizer",
    form: "Precision",
    commands: "Sequence[Command]",
    sounds: "Sequence[tuple[Sound, bool]]",
    *,
    full: bool,
    progress: Progress,
) -> dict[str, Any]:
    """All sounds, waits and pauses through one form."""
    from todm.device.after_silence import after_waits, change, repeats

    rows: list[dict[str, Any]] = []
    for sound, under_words in sounds:
        what = f"{form} {sound.name}, seconds of audio"
        heard = after_waits(
            recognizer,
            sound,
            commands,
            _FULL if full else _SHORT,
            under_words=under_words,
            batch_size=32 if form == "fp32" else 1,
            progress=lambda done, total, what=what: progress(what, done, total),
        )
        for wait in heard:
            changed = dataclasses.asdict(change(heard[0].right, wait.right))
            row = {"sound": sound.name, "seconds": wait.seconds, "words": wait.words}
            rows.append({**row, **changed})
    again = []
    for done, pause in enumerate(_PAUSES, 1):
        step = max(1, len(commands) // _NUM_REPEATS[full])
        changed = change(*repeats(recognizer, commands[::step], pause))
        again.append({"pause": pause, **dataclasses.asdict(changed)})
        progress(f"{form} repeated commands", done, len(_PAUSES))
    return {"commands": len(commands), "waits": rows, "repeats": again}


def _commands(bundle: "Bundle", corpus: Path | None) -> "list[Command]":
    """Utterances evenly spread over the test split, that last `_MOST_SECONDS` at most or so.

    Raises:
        ConfigError: there are none with speech in it.
    """
    from todm import artifact
    from todm.asr.decode.evaluate import references
    from todm.asr.loading import corpus_of
    from todm.device.after_silence import Command

    found = artifact.load(bundle.path, kind="bundle")
    data = corpus_of(found, corpus)
    spoken = [u for u in references(found, data, "test") if u.text]
    if not spoken:
        raise ConfigError(f"{data.path} has no test utterances with words: prepare another corpus")
    fitting = int(len(spoken) * _MOST_SECONDS / sum(u.cut.duration for u in spoken))
    num = max(1, min(_NUM_COMMANDS, len(spoken), fitting))
    chosen = [spoken[i * len(spoken) // num] for i in range(num)]
    return [Command(samples_S=u.samples(), text=u.text) for u in chosen]


def _hour(
    recognizer: "StreamingRecognizer",
    form: "Precision",
    commands: "Sequence[Command]",
    others: "Sequence[Samples]",
    progress: Progress,
) -> dict[str, Any]:
    """Commands among pauses, noise and other speech, against the same one by one."""
    from todm.device.after_silence import busy_hour, change
    from todm.device.sounds import white_noise

    what = f"{form} commands in one long recording"
    found = busy_hour(
        recognizer,
        white_noise(_HOUR_NOISE),
        commands,
        others,
        progress=lambda done, total: progress(what, done, total),
    )
    return {**dataclasses.asdict(change(*found)), "other_speech": bool(others)}


def _sounds(
    commands: "Sequence[Command]", others: "Sequence[Samples]", *, full: bool
) -> "Iterator[tuple[Sound, bool]]":
    """What is heard during the waits, and whether it goes on under the words."""
    import numpy as np

    from todm.device import sounds

    yield sounds.silence(), True
    if not full:
        yield sounds.white_noise(-60.0), True
        return
    for level in (-80.0, -60.0, -40.0):
        yield sounds.white_noise(level), True
    yield sounds.hum(-40.0), True
    # Backwards, so that nothing in it is a command.
    voices = [command.samples_S[::-1] for command in commands[:_BABBLERS]]
    yield sounds.babble(-45.0, voices), True
    if others:
        yield sounds.looped("other speech", np.concatenate(others)), False


def _other_speech(folder: Path | None) -> "list[Samples]":
    """Recordings of `_SPEECH_SECONDS` together; none if there is no folder of them."""
    from todm.device.audio import SAMPLE_RATE
    from todm.device.false_accepts import folder_of_speech, shared_speech

    place, chosen, seconds = folder or shared_speech(), [], 0.0
    for samples in folder_of_speech(place) if place else ():
        chosen.append(samples)
        seconds += len(samples) / SAMPLE_RATE
        if seconds >= _SPEECH_SECONDS:
            break
    return chosen


def _forms(here: "tuple[Precision, ...]", *, full: bool) -> "tuple[Precision, ...]":
    """All that suit this processor, or int8 alone (fp32 if there is no int8)."""
    int8: tuple[Precision, ...] = tuple(form for form in here if form.startswith("int8"))
    return here if full or not int8 else int8[:1]


def _hash_of(commands: "Sequence[Command]") -> str:
    digest = hashlib.sha256()
    for command in commands:
        digest.update(command.samples_S.tobytes() + command.text.encode())
    return digest.hexdigest()


def _key(bundle: "Bundle") -> str:
    """A hash of what is measured: not of the card, which this changes."""
    digest = hashlib.sha256(json.dumps(dict(bundle.info), sort_keys=True).encode())
    for file in sorted([*bundle.path.glob("*.onnx"), bundle.file("tokens.txt")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()
