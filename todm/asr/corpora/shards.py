"""Reads speech in lhotse Shar, and writes the training split of any corpus to it.

ROOT/SPLIT/cuts.NNNNNN.jsonl.gz and recording.NNNNNN.tar. Training reads the shards themselves (see
`todm.asr.data.shar`); dev and test are small, and are unpacked to single files.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from todm.asr.corpora import jsonl, manifests
from todm.asr.corpora.audio import Limits, length_problem
from todm.asr.corpora.claim import claim
from todm.asr.corpora.config import DataConfig, Split
from todm.asr.corpora.utterances import Candidate, Rejected, Utterance, assign_splits
from todm.asr.data.audio import cut_samples, cut_text, json_text
from todm.asr.data.features import SAMPLE_RATE
from todm.asr.data.shar import Shard, read_shard
from todm.asr.data.workers import ALL_CPUS, Workers
from todm.errors import CorpusError

MARKER = "todm-shar.json"
_SUFFIXES = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}
"""By the first bytes of a file."""


class Scanned(NamedTuple):
    """A corpus in shards: its utterances, their numbers in the training split, and its shards."""

    listed: list[Candidate | Rejected]
    places: dict[str, int]
    shards: list[Shard]


def fits(folder: Path) -> bool:
    """Whether a folder contains shards."""
    return any(folder.glob("cuts.*.jsonl*")) and any(folder.glob("recording.*.tar*"))


def scan(
    root: Path,
    splits: Mapping[str, str],
    unpack: Path,
    workers: Workers = ALL_CPUS,
) -> Scanned:
    """The utterances of all splits.

    Args:
        root: the corpus.
        splits: maps folders to splits; if empty, their names decide.
        unpack: where the audio of dev and test goes.
        workers: for reading shards.

    Raises:
        CorpusError: a split is missing, or a shard cannot be read.
    """
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and fits(p))
    listed: list[Candidate | Rejected] = []
    places: dict[str, int] = {}
    shards: list[Shard] = []
    for split, name in assign_splits(root, names, splits):
        pairs = _pairs(root / name)
        if split != "train":
            work = functools.partial(_unpack, split=split, out=unpack / name)
            for part in workers.spread(work, enumerate(pairs), f"unpacking {split}"):
                listed += part
            continue
        for cuts, recording in pairs:
            start = sum(shard.num for shard in shards)
            candidates = list(_candidates(cuts, recording))
            shards.append(Shard(str(cuts), str(recording), len(candidates)))
            for place, candidate in enumerate(candidates, start):
                listed.append(candidate)
                places.setdefault(candidate.id, place)
    return Scanned(listed, places, shards)


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The two files of every shard."""
    cuts = {p.name.split(".")[1]: p for p in folder.glob("cuts.*.jsonl*")}
    recordings = {p.name.split(".")[1]: p for p in folder.glob("recording.*.tar*")}
    alone = sorted(cuts.keys() ^ recordings.keys())
    if alone:
        raise CorpusError(
            f"shard {alone[0]} in {folder} lacks its cuts or its recording: bring it back"
        )
    return [(cuts[n], recordings[n]) for n in sorted(cuts)]


def _candidates(cuts: Path, recording: Path) -> Iterator[Candidate]:
    """The utterances of a shard of the training split, from its manifest."""
    for number, row in jsonl.rows(cuts):
        if isinstance(row, Rejected):
            raise CorpusError(f"{cuts} is damaged in line {number}: bring the shard back")
        try:
            name, (text, speaker), seconds = (
                str(row.get("id")),
                json_text(row),
                float(row["duration"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CorpusError(
                f"{cuts} holds no cut in line {number}: bring the shard back"
            ) from None
        yield Candidate(name, "train", recording, text, speaker, seconds=seconds)


def _unpack(
    job: tuple[int, tuple[Path, Path]], *, split: Split, out: Path
) -> list[Candidate | Rejected]:
    """Write the audio of a shard to single files, with numbers as names because ids may be anything."""
    number, (cuts, recording) = job
    listed: list[Candidate | Rejected] = []
    folder = out / f"{number:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    for place, cut in enumerate(read_shard(Shard(str(cuts), str(recording), 0))):
        if cut.recording is None:
            listed.append(Rejected(cut.id, str(recording), "audio missing"))
            continue
        data = cut.recording.sources[0].source
        path = folder / f"{place:06d}{_SUFFIXES.get(data[:4], '.mp3')}"
        if not path.is_file() or path.stat().st_size != len(data):
            path.write_bytes(data)
        listed.append(Candidate(cut.id, split, path, *cut_text(cut), cut.start, cut.duration))
    return listed


def accept(
    candidates: Sequence[Candidate], places: Mapping[str, int], config: DataConfig
) -> tuple[list[Utterance], list[Rejected]]:
    """Check utterances in shards by their manifests alone; their audio is checked in training."""
    usable: list[Utterance] = []
    rejected: list[Rejected] = []
    limits = Limits.of(config)
    for c in candidates:
        utterance = Utterance(
            id=c.id,
            split=c.split,
            speaker=c.speaker,
            path=c.path,
            text=c.text,
            num_samples=round((c.seconds or 0.0) * SAMPLE_RATE),
            rate=SAMPLE_RATE,
            place=places[c.id],
        )
        if (problem := length_problem(utterance, limits)) is None:
            usable.append(utterance)
        else:
            rejected.append(c.reject(*problem))
    return usable, rejected


def write(
    utterances: Sequence[Utterance],
    config: DataConfig,
    workers: Workers = ALL_CPUS,
) -> tuple[list[Shard], list[Utterance], list[Rejected]]:
    """Write utterances in random order to shards in `config.shar`; finished shards are kept.

    Args:
        utterances: of the training split.
        config: the corpus.
        workers: for reading and writing audio.

    Returns:
        The shards, the utterances with their places in them, and those with damaged audio.

    Raises:
        CorpusError: the directory holds other files, or shards of other utterances.
    """
    assert config.shar is not None
    root = Path(config.shar).absolute()
    parts = [config.seed, config.shard_size, *utterances]
    mark = hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()
    claim(root, MARKER, mark, foreign="shards of another corpus", flag="--shar")
    mixed = np.random.default_rng([config.seed, 5]).permutation(len(utterances)).tolist()
    size = config.shard_size
    groups = [[utterances[i] for i in mixed[s : s + size]] for s in range(0, len(mixed), size)]
    work = functools.partial(_write_shard, folder=root / "train")
    for _ in workers.spread(work, enumerate(groups), "writing shards"):
        pass
    shards: list[Shard] = []
    placed: list[Utterance] = []
    rejected: list[Rejected] = []
    for number, group in enumerate(groups):
        cuts, recording = _files(root / "train", number)
        with gzip.open(cuts, "rt", encoding="utf-8") as lines:
            written = {str(json.loads(line)["id"]) for line in lines}
        for utterance in group:  # in the order of the shard
            if utterance.id in written:
                placed.append(dataclasses.replace(utterance, place=len(placed)))
            else:
                path = str(utterance.path)
                rejected.append(Rejected(utterance.id, path, "audio unreadable"))
        if written:
            shards.append(Shard(str(cuts), str(recording), len(written)))
    return shards, placed, rejected


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"cuts.{number:06d}.jsonl.gz", folder / f"recording.{number:06d}.tar"


def _write_shard(job: tuple[int, list[Utterance]], *, folder: Path) -> None:
    """Write one shard; its manifest is moved to its place last and shows that the shard is whole."""
    number, group = job
    cuts_path, tar_path = _files(folder, number)
    if cuts_path.is_file() and tar_path.is_file():
        return
    temporary = folder / f".{number:06d}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        (temporary / "recording.tar").touch()  # lhotse makes none if no audio is usable
        _write_files(group, temporary / "cuts.jsonl.gz", temporary / "recording.tar")
        (temporary / "recording.tar").replace(tar_path)
        (temporary / "cuts.jsonl.gz").replace(cuts_path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(group: list[Utterance], cuts_path: Path, tar_path: Path) -> None:
    from lhotse.shar.utils import to_shar_placeholder
    from lhotse.shar.writers import AudioTarWriter

    with (
        AudioTarWriter(str(tar_path), shard_size=None, format="flac") as tar,
        gzip.open(cuts_path, "wt", encoding="utf-8") as lines,
    ):
        for utterance in group:
            try:
                samples = cut_samples(manifests.cut_of(utterance))
            except CorpusError:
                continue  # its absence is noticed later
            num = len(samples)
            alone = dataclasses.replace(
                utterance,
                num_samples=num,
                rate=SAMPLE_RATE,
                start=0,
                file_samples=num,
                channels=(0,),
            )
            cut = manifests.cut_of(alone)
            cut.recording = to_shar_placeholder(cut.recording, cut)
            tar.write(utterance.id, samples[None], SAMPLE_RATE, cut.recording)
            lines.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
