"""Speech on disk in any layout: detects the layout, lists the utterances, keeps the usable ones."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from todm.asr import tokens
from todm.asr.corpora import audio, jsonl, kaldi, lhotse_manifests, librispeech, shards
from todm.asr.corpora.config import SPLITS, DataConfig
from todm.asr.corpora.utterances import Candidate, Rejected, Utterance, unique
from todm.asr.data.shar import Shard
from todm.asr.data.workers import ALL_CPUS, Workers
from todm.asr.tokens import FixedRule
from todm.errors import CorpusError

Scan = Callable[[Path, Mapping[str, str]], Iterator[Candidate | Rejected]]
_SCANS: dict[str, Scan] = {
    "librispeech": librispeech.scan,
    "kaldi": kaldi.scan,
    "jsonl": jsonl.scan,
    "lhotse": lhotse_manifests.scan,
}
NAMES = {
    "librispeech": "LibriSpeech's layout",
    "kaldi": "Kaldi data directories",
    "jsonl": "JSON lines",
    "lhotse": "lhotse manifests",
    "shar": "lhotse Shar",
}


class Found(NamedTuple):
    """Contents of a directory: usable utterances by split and id, the rest, and the text rule.

    `shards` are those of the utterances that have a place; `unseen` are tests by voices that training
    does not hear, by engine.
    """

    utterances: list[Utterance]
    rejected: list[Rejected]
    rule: FixedRule
    shards: list[Shard]
    unseen: Mapping[str, list[Utterance]] = MappingProxyType({})


def detect(root: Path) -> str:
    """The layout of a directory or file, one of `NAMES`.

    Raises:
        CorpusError: there is no such place, or its layout is unknown.
    """
    if root.is_file():
        if jsonl.fits(root):
            return "jsonl"
        raise CorpusError(
            f'{root} is not a file of JSON lines with "audio" and "text": give one, or a directory'
        )
    if not root.is_dir():
        raise CorpusError(
            f"{root} is not a directory: give one with speech, or a file of JSON lines"
        )
    folders = [p for p in root.iterdir() if p.is_dir()]
    if any(shards.fits(p) for p in folders):
        return "shar"
    if any(kaldi.fits(p) for p in folders):
        return "kaldi"
    if any(jsonl.fits(p) for p in jsonl.files(root)):
        return "jsonl"
    if lhotse_manifests.fits(root):
        return "lhotse"
    if any(librispeech.fits(p) for p in folders):
        return "librispeech"
    raise CorpusError(
        f"{root} is in no known layout ({', '.join(NAMES.values())}): see  todm prepare --help"
    )


def source_of(config: DataConfig, root: Path) -> str:
    """The layout that a configuration names, or that is detected.

    Raises:
        CorpusError: as `detect`, or `root` is a file and the layout needs a directory.
    """
    if root.is_file() and config.source not in ("auto", "jsonl"):
        raise CorpusError(f"{root} is a file: {NAMES[config.source]} are read from a directory")
    return detect(root) if config.source == "auto" else config.source


def fingerprint(root: Path) -> str:
    """A hash of names, sizes and times of all files, which changes with the corpus."""
    digest = hashlib.sha256()
    for path in [root] if root.is_file() else librispeech.files(root):
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def read(
    config: DataConfig,
    root: Path,
    *,
    unpack: Path | None = None,
    workers: Workers = ALL_CPUS,
) -> Found:
    """All usable utterances under `root`, in the order of split and id, and the rest.

    Args:
        config: the corpus.
        root: where it lies.
        unpack: where the audio of dev and test goes, as single files, if the corpus is in shards.
        workers: for checking audio.

    Raises:
        CorpusError: the layout is unknown, a split is missing, or the data contain a command.
    """
    root = root.resolve()
    source = source_of(config, root)
    places: dict[str, int] = {}
    used: list[Shard] = []
    if source == "shar":
        assert unpack is not None
        listed, places, used = shards.scan(root, config.splits, unpack, workers)
    else:
        listed = list(_SCANS[source](root, config.splits))
    candidates, rejected = unique(listed)
    rule = tokens.resolve(
        config.tokens.normalise, (c.text for c in candidates if c.split == "train" and c.text)
    )
    candidates, foreign = _normalised(candidates, rule, keep_empty=config.keep_empty)
    in_shards = [c for c in candidates if c.id in places]
    usable, bad = audio.look([c for c in candidates if c.id not in places], config, workers)
    sharded, out_of_limits = shards.accept(in_shards, places, config)
    order = {split: i for i, split in enumerate(SPLITS)}
    return Found(
        sorted(usable + sharded, key=lambda u: (order[u.split], u.id)),
        sorted(rejected + foreign + bad + out_of_limits, key=lambda r: r.id),
        rule,
        used,
    )


def _normalised(
    candidates: list[Candidate], rule: FixedRule, *, keep_empty: bool
) -> tuple[list[Candidate], list[Rejected]]:
    """Candidates with normalised transcripts, and rejections of those that have none or may not be empty."""
    kept: list[Candidate] = []
    rejected: list[Rejected] = []
    for candidate in candidates:
        try:
            text = tokens.normalise(candidate.text, rule)
        except ValueError as error:
            rejected.append(candidate.reject("transcript outside the alphabet", str(error)))
            continue
        if text or (keep_empty and not candidate.text.strip()):
            kept.append(dataclasses.replace(candidate, text=text))
        else:
            rejected.append(candidate.reject("empty transcript"))
    return kept, rejected
