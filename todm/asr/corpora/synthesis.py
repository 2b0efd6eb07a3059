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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from todm.asr.corpora.claim import claim
from todm.asr.corpora.config import ENGINES, SPLITS, DataConfig, Split
from todm.asr.corpora.script import Script
from todm.asr.corpora.voices import catalogue, dry, shares
from todm.asr.corpora.voices.engine import Engine, Manner, Setting, Voice
from todm.asr.data import rooms
from todm.asr.data.workers import ALL_CPUS, Workers
from todm.errors import CorpusError
from todm.files import write_text

MARKER = "todm-speech.json"
UNSEEN = "unseen-{}"
"""Folder of what an engine speaks that training does not hear."""
_PER_CHAPTER = 40
_NUM_TALKERS = 4
_TIMES = ".times.txt"
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


@dataclasses.dataclass(frozen=True)
class _Studio:
    """What a process needs to speak chapters."""

    config: DataConfig
    setting: Setting
    cache: Path

    def engine(self, voice: Voice) -> Engine:
        return catalogue.engine(voice.engine, self.setting)


def fingerprint(config: DataConfig, script: Script) -> str:
    """A hash of everything that the audio of the splits depends on."""
    known = config.identity()
    sentences = {split: list(lines) for split, lines in script.sentences.items()}
    parts = [VERSION, config.seed, known["speech"], config.room.to_json(), sentences]
    for name in ("unseen", "num_unseen", "pronunciations"):  # they change nothing else
        known["speech"].pop(name, None)
    if script.lexicon:
        parts.append(sorted(script.lexicon.items()))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def speak(
    config: DataConfig, script: Script, root: Path, workers: Workers = ALL_CPUS
) -> list[Chapter]:
    """Speak all sentences under `root`; existing chapters are kept.

    Returns:
        All chapters.

    Raises:
        CorpusError: `root` holds something else, or a voice is missing.
        MissingExtra: an engine is not installed.
    """
    studio = _Studio(config, catalogue.setting(config.speech, script.lexicon), _cache(config, root))
    chapters = plan(config, script, root)
    foreign = "speech made with other settings"
    if claim(root, MARKER, fingerprint(config, script), foreign=foreign, flag="--out"):
        for leftover in root.glob("*/*/.*.tmp"):  # half a chapter, of a run that was killed
            shutil.rmtree(leftover)
    dry.tidy(studio.cache)
    _write_speakers(root, chapters)
    missing = [c for c in chapters if _spoken(c) != c.sentences]
    for chapter in missing:  # an unseen engine spoke fewer sentences before
        shutil.rmtree(chapter.folder, ignore_errors=True)
    work = functools.partial(_speak_chapter, studio=studio)
    for _ in workers.spread(work, missing, "speaking"):
        pass
    return chapters


def _spoken(chapter: Chapter) -> tuple[str, ...]:
    """The sentences that the folder of a chapter holds; empty if there is none."""
    path = chapter.folder / f"{chapter.voice.speaker}-{chapter.number}.trans.txt"
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.partition(" ")[2] for line in lines)


def plan(config: DataConfig, script: Script, root: Path) -> list[Chapter]:
    """Deal the sentences of each split to engines by their shares, and to the voices of each in turn.

    Each voice's share is cut into chapters.

    Raises:
        CorpusError: an engine cannot speak here, or the engines have no voice for a split.
        MissingExtra: an engine is not installed.
    """
    chapters: list[Chapter] = []
    setting = catalogue.setting(config.speech, script.lexicon)
    for split in SPLITS:
        lines = script.sentences[split]
        cast = _cast(config, setting, split, len(lines))
        crowd = max(cast, key=lambda name: catalogue.engine(name, setting).speed)
        dealt = shares.deal(len(lines), {n: config.speech.voices[n] for n in cast})
        for name, who in cast.items():
            share = [lines[i] for i in dealt[name]]
            chapters += _chapters(root / split, who[: len(share)], share, cast[crowd])
    for name, lines in script.unseen.items():
        engine = catalogue.engine(name, setting)
        who = shares.unseen_voices(engine, ENGINES.index(name), config.speech.test_voices)
        others = next(c.talkers for c in chapters if c.folder.parts[-3] == "test")
        chapters += _chapters(root / UNSEEN.format(name), who[: len(lines)], lines, others)
    return chapters


def _cast(config: DataConfig, setting: Setting, split: Split, num: int) -> dict[str, list[Voice]]:
    """The voices of a split by engine; an engine with too few voices for all splits leaves some to others."""
    cast: dict[str, list[Voice]] = {}
    for name in config.speech.voices:
        engine = catalogue.engine(name, setting)
        engine.check()
        most = min(config.num_voices(split), num)
        who = shares.voices(engine, ENGINES.index(name), split, most)
        if who:
            cast[name] = who
    if not cast:
        names = ", ".join(config.speech.voices)
        raise CorpusError(
            f"the voices {names} are too few to leave one to {split}, as no voice is in two splits:"
            " add an engine, as in  --voices espeak=50,hibari=50"
        )
    return cast


def _chapters(
    folder: Path, who: Sequence[Voice], lines: Sequence[str], crowd: Sequence[Voice]
) -> list[Chapter]:
    chapters: list[Chapter] = []
    for index, voice in enumerate(who):
        share = lines[index :: len(who)]
        others = tuple(crowd[(index + 1 + 3 * k) % len(crowd)] for k in range(_NUM_TALKERS))
        for number, start in enumerate(range(0, len(share), _PER_CHAPTER), 1):
            place = folder / str(voice.speaker) / str(number)
            part = tuple(share[start : start + _PER_CHAPTER])
            chapters.append(Chapter(place, number, voice, others, part))
    return chapters


def _cache(config: DataConfig, root: Path) -> Path:
    place = config.speech.cache
    return Path(place).expanduser().absolute() if place else root.parent / dry.FOLDER


def _write_speakers(root: Path, chapters: list[Chapter]) -> None:
    lines = [";ID  |SEX| SUBSET  |MINUTES| NAME\n"]
    seen: set[int] = set()
    for chapter in chapters:
        voice = chapter.voice
        if voice.speaker not in seen:
            seen.add(voice.speaker)
            split = chapter.folder.parts[-3]
            name = f"espeak-ng {voice.name}" if voice.engine == "espeak" else str(voice)
            lines.append(f"{voice.speaker} | - | {split} | 0 | {name}\n")
    write_text(root / "SPEAKERS.TXT", "".join(lines))


def _speak_chapter(chapter: Chapter, *, studio: _Studio) -> None:
    import soundfile

    temporary = chapter.folder.with_name(f".{chapter.folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    stem = f"{chapter.voice.speaker}-{chapter.number}"
    try:
        crowd = _Crowd(chapter, studio)
        lines: list[str] = []
        times: list[str] = []
        for index, sentence in enumerate(chapter.sentences):
            name = f"{stem}-{index:04d}"
            key = [studio.config.seed, 3, chapter.voice.speaker, chapter.number, index]
            rng = np.random.default_rng(key)
            samples, seconds = utterance(sentence, chapter.voice, studio, rng=rng, crowd=crowd)
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
    text: str,
    voice: Voice,
    studio: _Studio,
    *,
    rng: np.random.Generator,
    crowd: "_Crowd",
) -> tuple[np.ndarray, list[float]]:
    """One utterance: spoken, with silence around it, in a room with noise.

    Returns:
        Float32 (S,) at 16 kHz, and the times of its words as `word_times` gives them.
    """
    config = studio.config
    spoken, times = _speak(text, voice, studio, rng)
    before, after = (int(rng.uniform(*config.speech.silence) * rooms.SAMPLE_RATE) for _ in range(2))
    samples = rooms.disturb(np.pad(spoken, (before, after)), rng, config.room, babble=crowd.babble)
    level = 10 ** (rng.uniform(*config.speech.level_db) / 20)
    scaled = samples * np.float32(level / max(float(np.abs(samples).max(initial=0)), 1e-6))
    return scaled, [before / rooms.SAMPLE_RATE + second for second in times]


def _speak(
    text: str, voice: Voice, studio: _Studio, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, ...]]:
    """The words alone, float32 (S,) at 16 kHz, and their times."""
    speech = studio.config.speech
    ranges = (speech.rate, speech.pitch, speech.pitch_range)
    manner = Manner(*(int(rng.integers(low, high + 1)) for low, high in ranges))
    return dry.speech(studio.engine(voice), text, voice, manner=manner, cache=studio.cache)


class _Crowd:
    """Other voices of the same split, each repeating one of this chapter's sentences."""

    def __init__(self, chapter: Chapter, studio: _Studio) -> None:
        self._chapter, self._studio = chapter, studio

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
        seed = self._studio.config.seed
        rng = np.random.default_rng([seed, 4, chapter.voice.speaker, chapter.number])
        texts = [str(rng.choice(chapter.sentences)) for _ in chapter.talkers]
        return [
            _speak(text, voice, self._studio, rng)[0]
            for text, voice in zip(texts, chapter.talkers, strict=True)
        ]
