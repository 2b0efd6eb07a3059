"""One sample of each phrase by each engine, to listen to before hours are spoken.

FOLDER/ENGINE/NN.flac, and FOLDER/phrases.tsv with the engine, voice, phrase and phonemes of each.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from todm.asr.corpora.config import ENGINES, DataConfig
from todm.asr.corpora.script import Script, script_of
from todm.asr.corpora.voices import catalogue, dry, shares
from todm.asr.corpora.voices.engine import Manner
from todm.asr.corpora.voices.espeak import Espeak
from todm.device.audio import SAMPLE_RATE
from todm.errors import ConfigError, CorpusError
from todm.files import Progress, no_progress

INDEX = "phrases.tsv"
_MANNER = Manner(rate=175, pitch=50, pitch_range=50)
_MOST = 20
"""Sentences of a text."""
_TRIES = 2000


def write(config: DataConfig, folder: Path, progress: Progress = no_progress) -> int:
    """Speak every phrase by every engine into a folder; one of earlier samples is replaced.

    Returns:
        The number of samples.

    Raises:
        ConfigError: nothing is spoken in this configuration.
        CorpusError: the folder holds something else, or an engine cannot speak.
        MissingExtra: an engine is not installed.
    """
    config, script, _ = script_of(config)
    if script is None:
        raise ConfigError("--listen is for what is spoken here, not for --data: leave one out")
    if folder.exists() and not (folder / INDEX).is_file():
        raise CorpusError(f"{folder} holds something else: choose another --out or remove it")
    jobs = [(name, text) for name in _engines(config, script) for text in phrases(script)]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        rows: list[tuple[str, ...]] = [("file", "engine", "voice", "phrase", "phonemes")]
        for number, (name, text) in enumerate(jobs, 1):
            rows.append(_sample(config, script, temporary / name / f"{number:03d}.flac", text))
            progress("samples", number, len(jobs))
        table = "".join("\t".join(row) + "\n" for row in rows)
        (temporary / INDEX).write_text(table, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(jobs)


def phrases(script: Script) -> list[str]:
    """Sentences of every pattern of a grammar that together have all its words; of a text, the first."""
    if script.rules is None:
        return list(script.sentences["train"][:_MOST])
    rng = np.random.default_rng(0)
    chosen = [script.rules.sample(rng, number) for number in range(len(script.rules.patterns))]
    missing = script.rules.words() - {word for text in chosen for word in text.split()}
    for _ in range(_TRIES):
        if not missing:
            break
        text = script.rules.sample(rng)
        if found := missing & set(text.split()):
            chosen.append(text)
            missing -= found
    return chosen


def _engines(config: DataConfig, script: Script) -> list[str]:
    """Those of the corpus and the unseen ones, checked."""
    names = [*config.speech.voices, *script.unseen]
    for name in names:
        catalogue.engine(name, catalogue.setting(config.speech, script.lexicon)).check()
    return names


def _sample(config: DataConfig, script: Script, path: Path, text: str) -> tuple[str, ...]:
    """Speak a phrase by the first voice of an engine, which the folder is named after; a row of the index."""
    import soundfile

    setting = catalogue.setting(config.speech, script.lexicon)
    engine = catalogue.engine(path.parent.name, setting)
    voice = shares.unseen_voices(engine, ENGINES.index(engine.name), 1)[0]
    samples_S = dry.resampled(engine.speak(text, voice, _MANNER), voice)
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, samples_S, SAMPLE_RATE)
    [said] = Espeak(setting).phonemes([text])
    place = f"{engine.name}/{path.name}"
    return place, engine.name, voice.name, text, said
