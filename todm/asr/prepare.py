"""The stage `prepare`: speech from a grammar, from sentences or from disk becomes a corpus artifact.

Beside the artifact OUT the audio of spoken corpora lies in OUT-audio, in LibriSpeech's layout. The stage
continues where it was interrupted, and does nothing when OUT already holds what is asked for.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.asr import tokens
from todm.asr.corpora import commands, grammar, librispeech, manifests, sentences, synthesis
from todm.asr.corpora.config import SPLITS, DataConfig, Split
from todm.asr.corpora.librispeech import Rejected, Utterance
from todm.asr.corpora.workers import Progress
from todm.errors import ArtifactError, CorpusError

KIND = "corpus"
REJECTED = "rejected.jsonl"


def prepare(
    config: DataConfig,
    out: str | Path,
    *,
    progress: Progress | None = None,
    processes: int | None = None,
) -> Artifact:
    """Make the corpus artifact `out`, or load it if it is there already.

    A corpus made with other limits or tokens is replaced, and its audio is used again; audio made with
    other settings is never overwritten.

    Args:
        config: the corpus.
        out: directory of the artifact; spoken audio goes to `OUT-audio`.
        progress: called with what is being done, how much is done, and how much there is.
        processes: for speaking and checking audio; default all CPUs.

    Raises:
        CorpusError: the source cannot be read, nothing usable is left in a split, or the place of
            the audio is taken.
        ArtifactError: `out` is something else than a corpus.
    """
    out = Path(out).absolute()
    mark = _fingerprint(config)
    found = _existing(config, out, mark)
    if found is not None:
        return found
    spoken, left_out = _sentences(config)
    root = Path(config.data or audio_folder(out))
    if spoken is not None:
        synthesis.speak(config, spoken, root, processes=processes, progress=progress)
    utterances, rejected = librispeech.read(
        _trusting(config), root, processes=processes, progress=progress
    )
    return _save(config, out, mark=mark, utterances=utterances, rejected=left_out + rejected)


def audio_folder(out: str | Path) -> Path:
    """Where the audio of a spoken corpus lies."""
    out = Path(out).absolute()
    return out.with_name(f"{out.name}-audio")


def is_prepared(config: DataConfig, out: str | Path) -> bool:
    """Whether `prepare` would find its work done.

    Raises:
        CorpusError: the source cannot be read.
        ArtifactError: `out` is something else than a corpus.
    """
    return _existing(config, Path(out).absolute(), _fingerprint(config)) is not None


def _sentences(config: DataConfig) -> tuple[dict[Split, list[str]] | None, list[Rejected]]:
    """What is to be spoken (None: audio is there already), and lines of the text left out."""
    if config.source == "librispeech":
        return None, []
    if config.source == "commands":
        rules = grammar.read(config.grammar) if config.grammar else commands.commands()
        return sentences.from_grammar(rules, config), []
    assert config.text is not None
    chosen, left_out = sentences.from_lines(sentences.read_lines(config.text), config)
    path = str(Path(config.text).absolute())
    return chosen, [Rejected(f"line {n}", path, reason, line) for n, line, reason in left_out]


def _fingerprint(config: DataConfig) -> str:
    """A hash of the configuration and of all that it points to."""
    if config.source == "librispeech":
        inputs = librispeech.fingerprint(Path(config.data or "").resolve(), config.splits)
    elif path := config.grammar or config.text:
        inputs = _hash_file(Path(path))
    else:
        inputs = commands.TEXT
    text = json.dumps([config.to_json(), synthesis.VERSION, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from None


def _existing(config: DataConfig, out: Path, mark: str) -> Artifact | None:
    """The artifact at `out` if it was made from the same configuration and inputs, and is whole."""
    if not (out / artifact.MANIFEST).is_file():
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise ArtifactError(f"{out} holds something else: choose another --out or remove it")
        return None
    try:
        found = artifact.load(out)
    except ArtifactError:
        return None
    if found.kind != KIND:
        raise ArtifactError(f"{out} is a {found.kind}, not a corpus: choose another --out")
    whole = config.source == "librispeech" or audio_folder(out).is_dir()
    return found if found.info.get("fingerprint") == mark and whole else None


def _trusting(config: DataConfig) -> DataConfig:
    """Audio that we have just written whole needs no decoding, unless it is asked for."""
    if config.source != "librispeech" and config.verify_audio == "auto":
        return config.replace(verify_audio="header")
    return config


def _save(
    config: DataConfig,
    out: Path,
    *,
    mark: str,
    utterances: list[Utterance],
    rejected: list[Rejected],
) -> Artifact:
    """Train the tokenizer, leave out what it cannot write, and write the artifact."""
    info: dict[str, Any] = {"fingerprint": mark}

    def write(folder: Path) -> None:
        texts = [u.text for u in utterances if u.split == "train"]
        tokenizer = tokens.train(texts, config.tokens, folder)
        usable, unknown = _without_unknown(utterances, tokenizer)
        _check_left(usable, rejected + unknown)
        for split in SPLITS:
            part = [u for u in usable if u.split == split]
            manifests.write_cuts(part, folder / f"cuts_{split}.jsonl.gz")
        _write_rejected(rejected + unknown, folder / REJECTED)
        info.update(_info(usable, rejected + unknown), vocab_size=tokenizer.vocab_size)

    _check_left(utterances, rejected)
    return artifact.save(out, kind=KIND, config=config.to_json(), info=info, write=write)


def _without_unknown(
    utterances: list[Utterance], tokenizer: tokens.Tokenizer
) -> tuple[list[Utterance], list[Rejected]]:
    usable: list[Utterance] = []
    unknown: list[Rejected] = []
    for utterance in utterances:
        if tokens.UNK_ID in tokenizer.encode(utterance.text):
            reason = "transcript needs <unk>"
            unknown.append(Rejected(utterance.id, str(utterance.path), reason, utterance.text))
        else:
            usable.append(utterance)
    return usable, unknown


def _check_left(utterances: list[Utterance], rejected: list[Rejected]) -> None:
    for split in SPLITS:
        if not any(u.split == split for u in utterances):
            counts = Counter(r.reason for r in rejected).most_common()
            why = ", ".join(f"{num} {reason}" for reason, num in counts) or "there were none"
            raise CorpusError(f"no usable utterance is left in {split}: left out were {why}")


def _write_rejected(rejected: list[Rejected], path: Path) -> None:
    lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejected]
    path.write_text("".join(lines), encoding="utf-8")


def _info(utterances: list[Utterance], rejected: list[Rejected]) -> dict[str, Any]:
    """Figures of every split, and rejections by reason."""
    train = {u.text for u in utterances if u.split == "train"}
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        part = [u for u in utterances if u.split == split]
        splits[split] = {
            "num": len(part),
            "hours": round(sum(u.seconds for u in part) / 3600, 4),
            "speakers": len({u.speaker for u in part}),
            "words": len({w for u in part for w in u.text.split()}),
            "unseen_sentences": round(sum(u.text not in train for u in part) / len(part), 4),
        }
    return {"splits": splits, "rejected": dict(Counter(r.reason for r in rejected).most_common())}
