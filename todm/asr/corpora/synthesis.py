"""Speaks sentences into a directory in LibriSpeech's layout.

ROOT/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac and SPEAKER-CHAPTER.trans.txt; beside them the
times of the words, SPEAKER-CHAPTER.times.txt (`word_times`). A chapter is one voice's share of
utterances; it is written under a hidden name and then renamed, so an existing chapter is whole, and an
interrupted run continues with the missing ones. An utterance depends only on the seed, its speaker,
chapter and number, so the result is the same for any number of processes.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from todm.asr.corpora.claim import claim
from todm.asr.corpora.config import SPLITS, DataConfig, Split
from todm.asr.corpora.voices import SAMPLE_RATE as VOICE_RATE
from todm.asr.corpora.voices import Manner, Synthesizer, Voice, voices
from todm.asr.data import rooms
from todm.asr.data.workers import ALL_CPUS, Workers
from todm.errors import CorpusError
from todm.files import write_text

MARKER = "todm-speech.json"
_PER_CHAPTER = 40
_NUM_TALKERS = 4
_TIMES = ".times.txt"
_SYNTHESIZER = functools.cache(Synthesizer)  # one for each process
VERSION = 2
"""Changes whenever the same configuration would give other files than before."""


@dataclasses.dataclass(frozen=True)
class Chapter:
    """One voice's share of sentences. `talkers` are the voices in its babble noise."""

    folder: Path
    number: int
    voice: Voice
    talkers: tuple[Voice, ...]
    sentences: tuple[str, ...]


def fingerprint(config: DataConfig, sentences: dict[Split, list[str]]) -> str:
    """A hash of everything that the audio depends on."""
    parts = [VERSION, config.seed, config.speech.to_json(), config.room.to_json(), sentences]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def speak(
    config: DataConfig,
    sentences: dict[Split, list[str]],
    root: Path,
    workers: Workers = ALL_CPUS,
) -> int:
    """Speak all sentences of all splits under `root`; existing chapters are kept.

    Returns:
        The number of chapters that were missing.

    Raises:
        CorpusError: `root` holds something else, or a voice is missing.
    """
    chapters = plan(config, sentences, root)
    foreign = "speech made with other settings"
    if claim(root, MARKER, fingerprint(config, sentences), foreign=foreign, flag="--out"):
        for leftover in root.glob("*/*/.*.tmp"):  # half a chapter, of a run that was killed
            shutil.rmtree(leftover)
    _write_speakers(root, chapters)
    missing = [c for c in chapters if not c.folder.is_dir()]
    work = functools.partial(_speak_chapter, config=config)
    for _ in workers.spread(work, missing, "speaking"):
        pass
    return len(missing)


def plan(config: DataConfig, sentences: dict[Split, list[str]], root: Path) -> list[Chapter]:
    """Deal the sentences of each split to its voices in turn, and cut each share into chapters."""
    chapters: list[Chapter] = []
    for split in SPLITS:
        who = voices(split, min(config.num_voices(split), len(sentences[split])))
        for index, voice in enumerate(who):
            share = sentences[split][index :: len(who)]
            others = tuple(who[(index + 1 + 3 * k) % len(who)] for k in range(_NUM_TALKERS))
            for number, start in enumerate(range(0, len(share), _PER_CHAPTER), 1):
                folder = root / split / str(voice.speaker) / str(number)
                part = tuple(share[start : start + _PER_CHAPTER])
                chapters.append(Chapter(folder, number, voice, others, part))
    return chapters


def _write_speakers(root: Path, chapters: list[Chapter]) -> None:
    lines = [";ID  |SEX| SUBSET  |MINUTES| NAME\n"]
    seen: set[int] = set()
    for chapter in chapters:
        if chapter.voice.speaker not in seen:
            seen.add(chapter.voice.speaker)
            split = chapter.folder.parts[-3]
            lines.append(
                f"{chapter.voice.speaker} | - | {split} | 0 | espeak-ng {chapter.voice.name}\n"
            )
    write_text(root / "SPEAKERS.TXT", "".join(lines))


def _speak_chapter(chapter: Chapter, *, config: DataConfig) -> None:
    import soundfile

    temporary = chapter.folder.with_name(f".{chapter.folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    stem = f"{chapter.voice.speaker}-{chapter.number}"
    try:
        crowd = _Crowd(chapter, config)
        lines: list[str] = []
        times: list[str] = []
        for index, sentence in enumerate(chapter.sentences):
            name = f"{stem}-{index:04d}"
            key = [config.seed, 3, chapter.voice.speaker, chapter.number, index]
            rng = np.random.default_rng(key)
            samples, seconds = utterance(sentence, chapter.voice, config, rng, crowd)
            soundfile.write(temporary / f"{name}.flac", samples, rooms.SAMPLE_RATE)
            lines.append(f"{name} {sentence}\n")
            times.append(" ".join([name, *(f"{second:.4f}" for second in seconds)]) + "\n")
        (temporary / f"{stem}.trans.txt").write_text("".join(lines), encoding="utf-8")
        (temporary / f"{stem}{_TIMES}").write_text("".join(times), encoding="utf-8")
        temporary.rename(chapter.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def word_times(root: Path) -> dict[str, tuple[float, ...]]:
    """For each utterance the second at which its first word begins, and those at which its words end.

    Empty if they are unknown, see `Spoken.word_times`.
    """
    times: dict[str, tuple[float, ...]] = {}
    for path in root.glob(f"*/*/*/*{_TIMES}"):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, *seconds = line.split()
            times[name] = tuple(map(float, seconds))
    return times


def utterance(
    text: str, voice: Voice, config: DataConfig, rng: np.random.Generator, crowd: "_Crowd"
) -> tuple[np.ndarray, list[float]]:
    """One utterance: spoken, with silence around it, in a room with noise.

    Returns:
        Float32 (S,) at 16 kHz, and the times of its words as `word_times` gives them.
    """
    spoken, times = _speak(text, voice, config, rng)
    before, after = (int(rng.uniform(*config.speech.silence) * rooms.SAMPLE_RATE) for _ in range(2))
    samples = rooms.disturb(np.pad(spoken, (before, after)), rng, config.room, babble=crowd.babble)
    level = 10 ** (rng.uniform(*config.speech.level_db) / 20)
    scaled = samples * np.float32(level / max(float(np.abs(samples).max(initial=0)), 1e-6))
    return scaled, [before / rooms.SAMPLE_RATE + second for second in times]


def _speak(
    text: str, voice: Voice, config: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, ...]]:
    """The words alone, float32 (S,) at 16 kHz, and their times."""
    from scipy.signal import resample_poly

    ranges = (config.speech.rate, config.speech.pitch, config.speech.pitch_range)
    manner = Manner(*(int(rng.integers(low, high + 1)) for low, high in ranges))
    spoken = _SYNTHESIZER()(text, voice, manner)
    if not spoken.samples_S.size:
        raise CorpusError(f"espeak-ng says nothing for {text!r}: leave the sentence out")
    # 22050 : 16000 = 441 : 320
    assert VOICE_RATE * 320 == rooms.SAMPLE_RATE * 441
    samples_S = resample_poly(spoken.samples_S, 320, 441, window=_low_pass()).astype(np.float32)
    return samples_S, spoken.word_times(text)


@functools.cache
def _low_pass() -> np.ndarray:
    """The filter that `resample_poly` would otherwise design for every utterance."""
    from scipy.signal import firwin

    taps = firwin(2 * 10 * 441 + 1, 1 / 441, window=("kaiser", 5.0))  # pyright: ignore[reportArgumentType]
    return np.asarray(taps)


class _Crowd:
    """Other voices of the same split, each repeating one of this chapter's sentences."""

    def __init__(self, chapter: Chapter, config: DataConfig) -> None:
        self._chapter, self._config = chapter, config

    def babble(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """`num` samples from a random place."""
        loops = self._loops
        starts = rng.integers([len(loop) for loop in loops])
        turns = [np.arange(start, start + num) for start in starts]
        talk = [np.take(x, i, mode="wrap") for x, i in zip(loops, turns, strict=True)]
        return np.sum(talk, axis=0)

    @functools.cached_property
    def _loops(self) -> list[np.ndarray]:
        """Each talker's sentence; spoken only if an utterance needs it."""
        chapter = self._chapter
        rng = np.random.default_rng([self._config.seed, 4, chapter.voice.speaker, chapter.number])
        texts = [str(rng.choice(chapter.sentences)) for _ in chapter.talkers]
        return [
            _speak(text, voice, self._config, rng)[0]
            for text, voice in zip(texts, chapter.talkers, strict=True)
        ]
