"""Training material of the study: the grammar spoken by espeak-ng, and orders of natural voices beside it.

Sentences are drawn from the grammar with its optional parts at even odds and, of each choice, the rarest
word so far (`todm.asr.corpora.sentences`). Natural voices are put into the recipe's rooms and noise several
times each, at a random level.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies.orders.scoring import GRAMMAR
from todm import stages
from todm.asr.corpora.config import SPLITS, DataConfig
from todm.asr.corpora.prepare import audio_folder
from todm.asr.data.rooms import RoomConfig, disturb
from todm.device.audio import SAMPLE_RATE, Samples, read_audio
from todm.errors import ConfigError, CorpusError
from todm.files import Progress, no_progress, read_json, write_text
from todm.recipe import named

RECIPE = "commands"
FOLDER = "orders"
_META, _MADE = "meta.tsv", "made.json"
_PEAK_DB = (-40.0, -3.0)
_TALKERS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What to make.

    Attributes:
        natural: folder of natural voices with a `meta.tsv`; None for espeak-ng alone.
        renderings: of each natural recording; 0 leaves them as they are.
        dev_voices: of the natural ones, for dev; blends of these with others are left out.
        settings: of the corpus of espeak-ng, `asr.data.num_train=3500`.
    """

    natural: Path | None
    renderings: int = 3
    dev_voices: Sequence[str] = ()
    settings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.renderings < 0:
            raise ConfigError(f"--renderings is {self.renderings}: 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken:
    """A natural recording: its file, voice, words and split."""

    audio: Path
    voice: str
    text: str
    split: str


def make(out: Path, material: Material, *, progress: Progress = no_progress) -> Path:
    """Make the material, or what an interrupted run left; a folder for `todm prepare --data`.

    Args:
        out: for the corpus of espeak-ng, the renderings and the folder.
        material: what to make.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used, or `out` holds other material.
    """
    natural = list(_natural(material)) if material.natural else []
    _claim(out, material)
    made = stages.prepare(
        out / "espeak",
        config=RECIPE,
        grammar=str(GRAMMAR),
        settings=material.settings,
        progress=progress,
    )
    lines: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for split, line in _espeak(made.corpus.path):
        lines[split].append(line)
    for done, spoken in enumerate(natural, 1):
        for file in _rendered(spoken, out / "natural", material):
            line = {"audio": str(file.resolve()), "text": spoken.text, "speaker": spoken.voice}
            lines[spoken.split].append(line)
        progress("natural voices", done, len(natural))
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    for split, rows in lines.items():
        file, text = folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        if not file.is_file() or file.read_text() != text:  # a corpus knows its files by their time
            write_text(file, text)
    return folder


def _claim(out: Path, material: Material) -> None:
    """Mark a folder as that of some material.

    Raises:
        ConfigError: it is that of another.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(material), default=str))
    found = read_json(out / _MADE)
    if found and found != wanted:
        raise ConfigError(f"{out} holds material made with other flags: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / _MADE, json.dumps(wanted) + "\n")


def _espeak(corpus: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Split and line of every spoken utterance."""
    root = audio_folder(corpus)
    for split in SPLITS:
        for file in sorted((root / split).rglob("*.trans.txt")):
            for line in file.read_text().splitlines():
                name, _, text = line.partition(" ")
                audio = (file.parent / f"{name}.flac").resolve()
                speaker = name.partition("-")[0]
                yield split, {"audio": str(audio), "text": text, "speaker": speaker}


def _natural(material: Material) -> Iterator[Spoken]:
    """The natural recordings.

    Raises:
        CorpusError: the folder has no table of them.
        ConfigError: a voice for dev is not there.
    """
    assert material.natural is not None
    file = material.natural / _META
    if not file.is_file():
        raise CorpusError(f"{material.natural} has no {_META}: audio, voice and text by tabs")
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    kept = set(material.dev_voices)
    if unknown := sorted(kept - {voice for _, voices, _ in rows for voice in voices.split("+")}):
        raise ConfigError(f"--dev-voices has {unknown[0]!r}, which {file} does not have")
    for name, voice, text in rows:
        of_dev = [part in kept for part in voice.split("+")]
        if any(of_dev) and not all(of_dev):
            continue
        split = "dev" if all(of_dev) else "train"
        yield Spoken(audio=material.natural / name, voice=voice, text=text, split=split)


def _rendered(spoken: Spoken, folder: Path, material: Material) -> list[Path]:
    """The files of a recording's renderings, which are made if they are not there."""
    if not material.renderings:
        return [spoken.audio]
    folder.mkdir(parents=True, exist_ok=True)
    data: DataConfig = named(RECIPE).override(material.settings).asr.data
    files = [folder / f"{spoken.audio.stem}-{k}.flac" for k in range(material.renderings)]
    missing = [(k, file) for k, file in enumerate(files) if not file.is_file()]
    dry_S = read_audio(spoken.audio) if missing else np.empty(0, np.float32)
    for k, file in missing:
        rng = np.random.default_rng([data.seed, k, *spoken.audio.stem.encode()])
        _write(file, _render(dry_S, rng, data.room, spoken.audio.parent))
    return files


def _render(dry_S: Samples, rng: np.random.Generator, room: RoomConfig, folder: Path) -> Samples:
    """A recording in a random room with random noise, at a random peak level."""

    def babble(rng: np.random.Generator, num: int) -> np.ndarray:
        names = sorted(folder.glob("*.opus"))
        chosen = [names[i] for i in rng.integers(len(names), size=_TALKERS)]
        return np.sum([np.resize(read_audio(file), num) for file in chosen], axis=0)

    samples_S = disturb(dry_S, rng, room, babble=babble)
    peak = 10 ** (rng.uniform(*_PEAK_DB) / 20)
    return (samples_S * (peak / max(np.abs(samples_S).max(), 1e-6))).astype(np.float32)


def _write(file: Path, samples_S: Samples) -> None:
    """Write flac, whole or not at all."""
    import soundfile

    part = file.with_suffix(".part")
    soundfile.write(part, samples_S, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    part.replace(file)
