"""Makes a corpus artifact of a grammar, of sentences, or of speech on disk.

The audio of a spoken corpus lies beside the artifact OUT, in OUT-audio, in LibriSpeech's layout. An
interrupted run is resumed, and nothing is done if OUT already holds the requested corpus.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from todm import artifact
from todm.artifact import Artifact
from todm.asr import tokens
from todm.asr.corpora import (
    announcement,
    commands,
    manifests,
    origins,
    provenance,
    script,
    shards,
    sources,
    synthesis,
    unseen,
)
from todm.asr.corpora.config import SPLITS, DataConfig
from todm.asr.corpora.sources import Found
from todm.asr.corpora.utterances import Rejected, Utterance
from todm.asr.data import shar
from todm.asr.data.audio import frames_at
from todm.asr.data.order import LEFT_OUT
from todm.asr.data.workers import Workers
from todm.asr.model.encoder_config import SUBSAMPLING
from todm.errors import ArtifactError, CorpusError
from todm.files import Announce, Progress, no_announcement, no_progress, only_one

KIND = "corpus"
REJECTED = "rejected.jsonl"


def prepare(
    config: DataConfig,
    out: str | Path,
    *,
    progress: Progress = no_progress,
    announce: Announce = no_announcement,
    processes: int | None = None,
) -> Artifact:
    """Make the corpus artifact `out`, or load it if it exists.

    A corpus of other limits or tokens is replaced, and its audio is reused; audio of other settings
    is never overwritten. Where the layout or the text rule is `auto`, the artifact's config names
    the detected one.

    Args:
        config: the corpus.
        out: directory of the artifact; spoken audio goes to `OUT-audio`.
        progress: called while audio is spoken, checked or written.
        announce: called before the work with a line on licences and cost, or a warning.
        processes: for speaking and checking audio; default all CPUs.

    Raises:
        CorpusError: the source cannot be read, a split has no usable utterance, or the place of the
            audio is taken.
        ArtifactError: `out` is not a corpus.
    """
    out = Path(out).absolute()
    mark = _fingerprint(config)
    with only_one(out, f"the corpus {out}"):
        existing = _existing(config, out, mark)
        if existing is not None:
            return existing
        workers = Workers(processes, progress)
        config, found = _read(config, out, workers, announce)
        if config.shar is not None:
            found = _in_shards(config, found, workers)
        return _save(config, out, mark=mark, found=found)


def _read(
    config: DataConfig, out: Path, workers: Workers, announce: Announce
) -> tuple[DataConfig, Found]:
    """The speech, synthesised first if need be, and the configuration with nothing left `auto`."""
    config, spoken, left_out = script.script_of(config)
    root = Path(config.data or audio_folder(out))
    if spoken is not None:
        synthesis.plan(config, spoken, root)  # refuses what cannot be spoken
        for line in announcement.lines(config, spoken):
            announce(line)
        chapters = synthesis.speak(config, spoken, root, workers)
        found = _timed(sources.read(_trusting(config), root, workers=workers), root)
        found = _silenced(found, spoken.other_speech)
        found = found._replace(unseen=unseen.utterances(chapters))
    else:
        config = config.replace(source=sources.source_of(config, root))
        found = sources.read(config, root, unpack=audio_folder(out), workers=workers)
    config = config.replace(tokens=config.tokens.replace(normalise=found.rule))
    return config, found._replace(rejected=left_out + found.rejected)


def _silenced(found: Found, others: frozenset[str]) -> Found:
    """The same with empty transcripts where other sentences than commands are said."""
    emptied = [
        dataclasses.replace(u, text="", word_times=()) if u.text in others else u
        for u in found.utterances
    ]
    return found._replace(utterances=emptied)


def _timed(found: Found, root: Path) -> Found:
    """The same with the times of words, which were kept when they were spoken."""
    times = synthesis.word_times(root)
    timed = [dataclasses.replace(u, word_times=times.get(u.id, ())) for u in found.utterances]
    return found._replace(utterances=timed)


def _in_shards(config: DataConfig, found: Found, workers: Workers) -> Found:
    """The same with the training split written to shards."""
    train = [u for u in found.utterances if u.split == "train"]
    others = [u for u in found.utterances if u.split != "train"]
    written, placed, damaged = shards.write(train, config, workers)
    return found._replace(
        utterances=placed + others, rejected=found.rejected + damaged, shards=written
    )


def audio_folder(out: str | Path) -> Path:
    """The directory with the audio of a spoken corpus."""
    out = Path(out).absolute()
    return out.with_name(f"{out.name}-audio")


def is_prepared(config: DataConfig, out: str | Path) -> bool:
    """Whether `prepare` would only load the corpus.

    Raises:
        CorpusError: the source cannot be read.
        ArtifactError: `out` is not a corpus.
    """
    return _existing(config, Path(out).absolute(), _fingerprint(config)) is not None


def _fingerprint(config: DataConfig) -> str:
    """A hash of the configuration and of all its inputs.

    Not of the unseen engines that are found: a corpus stays as it is when another engine is installed.
    """
    if not config.is_spoken:
        inputs = sources.fingerprint(_data_root(config))
    elif (path := config.grammar or config.text) is not None:
        inputs = _hash_file(Path(path))
    else:
        inputs = commands.TEXT
    parts = [config.identity(), synthesis.VERSION, inputs]
    for path in (config.speech.pronunciations, config.negative_text):
        if path:
            parts.append(_hash_file(Path(path)))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _data_root(config: DataConfig) -> Path:
    root = Path(config.data or "").resolve()
    if not root.exists():
        raise CorpusError(
            f"{root} does not exist: give a directory with speech, or a file of JSON lines"
        )
    return root


def _hash_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None


def _existing(config: DataConfig, out: Path, mark: str) -> Artifact | None:
    """The artifact at `out` if it has the same configuration and inputs, and is whole."""
    if not (out / artifact.MANIFEST).is_file():
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise ArtifactError(f"{out} holds something else: choose another --out or remove it")
        return None
    try:
        corpus = artifact.load(out)
    except ArtifactError:
        return None
    if corpus.kind != KIND:
        raise ArtifactError(f"{out} is a {corpus.kind}, not a corpus: choose another --out")
    whole = not config.is_spoken or audio_folder(out).is_dir()
    return corpus if corpus.info.get("fingerprint") == mark and whole else None


def _trusting(config: DataConfig) -> DataConfig:
    """Config to read our own audio: its layout is known and its files are whole, so trust headers."""
    settings = config.to_json() | {"source": "librispeech", "data": ".", "shar": None}
    settings |= {"grammar": None, "text": None, "hours": None, "splits": {}}
    settings |= {"negatives": 0.0, "negative_text": None}
    if config.verify_audio == "auto":
        settings["verify_audio"] = "header"
    return DataConfig.from_json(settings)


def _save(config: DataConfig, out: Path, *, mark: str, found: Found) -> Artifact:
    """Train the tokenizer, leave out what it cannot spell, and write the artifact."""
    info: dict[str, Any] = {"fingerprint": mark}
    utterances, rejected = found.utterances, found.rejected

    def write(folder: Path) -> None:
        texts = [u.text for u in utterances if u.split == "train" and u.text]
        tokenizer = tokens.train(texts, config.tokens, folder)
        usable, untrainable = _trainable(utterances, tokenizer)
        _check_left(usable, rejected + untrainable)
        for split in SPLITS:
            part = [u for u in usable if u.split == split]
            if found.shards and split == "train":
                _write_index(found.shards, part, tokenizer, folder / "shar_train.json")
            else:
                manifests.write_cuts(part, folder / f"cuts_{split}.jsonl.gz")
        for name, part in found.unseen.items():
            manifests.write_cuts(part, folder / unseen.CUTS.format(name))
        _write_rejected(rejected + untrainable, folder / REJECTED)
        info.update(_info(usable, rejected + untrainable), vocab_size=tokenizer.vocab_size)
        if config.is_spoken:
            heard = found.unseen.items()
            info["unseen"] = {name: _figures(part, usable) for name, part in heard}
        info["provenance"] = provenance.to_json(origins.of_corpus(config))

    _check_left(utterances, rejected)
    return artifact.save(out, kind=KIND, config=config.to_json(), info=info, write=write)


def _write_index(
    written: Sequence[shar.Shard],
    utterances: Sequence[Utterance],
    tokenizer: tokens.Tokenizer,
    path: Path,
) -> None:
    num = sum(shard.num for shard in written)
    seconds_M, labels_M = np.zeros(num), np.full(num, LEFT_OUT)
    for utterance in utterances:
        seconds_M[utterance.place] = utterance.seconds
        labels_M[utterance.place] = len(tokenizer.encode(utterance.text))
    shar.write_index(written, seconds_M, labels_M, path)


def _trainable(
    utterances: list[Utterance], tokenizer: tokens.Tokenizer
) -> tuple[list[Utterance], list[Rejected]]:
    """Utterances that can be spelt and, to train on, have an encoder frame for every label."""
    usable: list[Utterance] = []
    left_out: list[Rejected] = []
    for utterance in utterances:
        labels = tokenizer.encode(utterance.text)
        steps = int(frames_at(utterance.seconds, 1.0)) // SUBSAMPLING
        if tokens.UNK_ID in labels:
            reason = "transcript needs <unk>"
        elif utterance.split == "train" and steps < len(labels):
            reason = "fewer frames than labels"
        else:
            usable.append(utterance)
            continue
        left_out.append(Rejected(utterance.id, str(utterance.path), reason, utterance.text))
    return usable, left_out


def _check_left(utterances: list[Utterance], rejected: list[Rejected]) -> None:
    for split in SPLITS:
        if not any(u.split == split and u.text for u in utterances):
            counts = Counter(r.reason for r in rejected).most_common()
            why = ", ".join(f"{num} {reason}" for reason, num in counts)
            detail = f"left out were {why}" if why else "there was none"
            raise CorpusError(f"no usable utterance is left in {split}: {detail}")


def _write_rejected(rejected: list[Rejected], path: Path) -> None:
    lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejected]
    path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _info(utterances: list[Utterance], rejected: list[Rejected]) -> dict[str, Any]:
    """Figures of every split, and numbers of rejections by reason."""
    splits = {
        split: _figures([u for u in utterances if u.split == split], utterances) for split in SPLITS
    }
    return {"splits": splits, "rejected": dict(Counter(r.reason for r in rejected).most_common())}


def _figures(part: list[Utterance], utterances: list[Utterance]) -> dict[str, Any]:
    """Figures of some utterances of a corpus."""
    train = {u.text for u in utterances if u.split == "train"}
    with_text = [u for u in part if u.text]
    figures = {
        "num": len(part),
        "hours": round(sum(u.seconds for u in part) / 3600, 4),
        "speakers": len({u.speaker for u in part}),
        "words": len({w for u in part for w in u.text.split()}),
        "unseen_sentences": round(sum(u.text not in train for u in with_text) / len(with_text), 4),
    }
    others = len(part) - len(with_text)
    return {**figures, "other_speech": others} if others else figures
