"""Features computed once: a flat memory map on disk, read by training without loader processes.

A store is a directory: `features.i16` holds the frames of every utterance at every speed, one after
the other; `index.jsonl` says where each lies; `rejected.jsonl` lists the audio that could not be
used, with reasons; `done.json`, written last, holds the settings of the store and the mean and
standard deviation of every bin. Until then `journal.jsonl` lists the finished parts, so that an
interrupted build can be resumed.

Frames are int16 in steps of 1/2048: log-mel energies lie in [-16, 16), so the error is at most
2.5e-4 everywhere; float16 takes the same space, and its error reaches 3.9e-3 between 8 and 16.
"""

import contextlib
import dataclasses
import errno
import functools
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from todm.asr.data.acoustics import AS_IT_IS, Acoustics
from todm.asr.data.audio import cut_text, frames_at, speed_id
from todm.asr.data.features import NUM_BINS
from todm.asr.data.workers import Workers
from todm.errors import ArtifactError, CorpusError
from todm.files import Progress, is_full, no_progress, only_one, sync_file, write_text

STEPS_PER_UNIT = 2048
_FORMAT = 1
_FRAME_BYTES = 2 * NUM_BINS
_CUTS_PER_PART = 64
_FEATURES, _INDEX, _REJECTED = "features.i16", "index.jsonl", "rejected.jsonl"
_JOURNAL, _DONE = "journal.jsonl", "done.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """Where one utterance at one speed lies in the store; its renderings lie one behind the other."""

    id: str
    text: str
    speaker: str
    speed: float
    offset: int
    num_frames: int


class FeatureStore:
    """A finished store: `build` makes and opens one, `open` opens it again.

    Attributes:
        path: its directory.
        utterances: where each lies, in the order of the corpus.
        mean_F: mean of every bin over all frames, [80] float32.
        std_F: standard deviation of every bin, [80] float32.
        rejected: rows {id, reason} of the audio that was left out.
        num_renderings: of every utterance, beside itself.
    """

    def __init__(
        self,
        path: Path,
        utterances: list[Utterance],
        rejected: list[dict[str, str]],
        done: dict[str, Any],
    ) -> None:
        self.path = path
        self.utterances = utterances
        self.rejected = rejected
        self.num_renderings = int(done.get("renderings", 0))
        self.mean_F = torch.tensor(done["mean"])
        self.std_F = torch.tensor(done["std"])
        # Mode "c": torch wants writable memory; nothing is ever written back.
        self._frames_NF = np.memmap(path / _FEATURES, np.int16, "c").reshape(-1, NUM_BINS)

    @classmethod
    def build(
        cls,
        cuts_path: str | Path,
        out_dir: str | Path,
        *,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        acoustics: Acoustics = AS_IT_IS,
        num_jobs: int | None = None,
        label: str = "features",
        progress: Progress = no_progress,
    ) -> Self:
        """Compute the features of every cut at every speed; a finished store is only opened.

        An interrupted build is resumed; a store of other cuts, audio, speeds or renderings is built
        anew. Audio that cannot be read or framed is left out, and listed in `rejected`. If several
        processes build the same store, one does the work and the others wait.

        Args:
            cuts_path: a lhotse CutSet (`cuts_train.jsonl.gz` of a corpus).
            out_dir: the store's directory, made if need be; anything else in it is an error.
            speeds: factors of tempo and pitch, by resampling; 1.0 is the audio as it is.
            acoustics: renderings to hold beside the audio as it is.
            num_jobs: processes; the CPUs this process may use if None. Processes are spawned, so a
                script that calls this needs its `if __name__ == "__main__"`.
            label: what `progress` calls the work.
            progress: called with the number of cuts done.

        Raises:
            CorpusError: no cuts, none usable, no room on the disk, a worker was killed, or a folder of
                impulse responses cannot be used.
        """
        from lhotse import CutSet

        cuts_path, out_dir = Path(cuts_path), Path(out_dir)
        if not cuts_path.is_file():
            raise CorpusError(f"{cuts_path} does not exist: run  todm prepare  first")
        cuts = list(CutSet.from_file(cuts_path))
        corpus = _fingerprint(cuts_path, cuts)
        settings = {"format": _FORMAT, "speeds": list(speeds), "corpus": corpus}
        if acoustics.config.renderings:
            settings["acoustics"] = acoustics.settings
        if not cuts:
            raise CorpusError(f"{cuts_path} holds no utterances: nothing to compute features of")
        with only_one(out_dir, f"the feature store {out_dir}"):
            if _read_done(out_dir).get("settings") != settings:
                _start(out_dir, settings)
                with _room(out_dir):
                    parts = _plan(cuts, speeds, acoustics)
                    for done in _fill(out_dir, parts, Workers(num_jobs)):
                        progress(label, done, len(cuts))
                    _finish(out_dir, settings)
            return cls.open(out_dir)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a finished store.

        Raises:
            ArtifactError: there is none at `path`, or it is damaged.
        """
        path = Path(path)
        done = _read_done(path)
        if not done:
            raise ArtifactError(f"{path} is not a finished feature store: build it (again)")
        try:
            size = (path / _FEATURES).stat().st_size
            utterances = [Utterance(**row) for row in _read_lines(path / _INDEX)]
            rejected = _read_lines(path / _REJECTED)
        except (OSError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): remove it, build again") from None
        if size != done["num_frames"] * _FRAME_BYTES or len(utterances) != done["num_utterances"]:
            raise ArtifactError(f"{path} is incomplete: remove it and build it again")
        return cls(path, utterances, rejected=rejected, done=done)

    def __len__(self) -> int:
        return len(self.utterances)

    def features(self, index: int, rendering: int = 0) -> Tensor:
        """[T, 80] float32 of one utterance; rendering 0 is the utterance as it is."""
        assert rendering <= self.num_renderings
        place = self.utterances[index]
        start = place.offset + rendering * place.num_frames
        frames_TF = self._frames_NF[start : start + place.num_frames]
        return torch.from_numpy(frames_TF) * (1 / STEPS_PER_UNIT)

    @property
    def lens_N(self) -> Tensor:
        """The length of every utterance in frames, [N] int64."""
        return torch.tensor([u.num_frames for u in self.utterances])


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some cuts in a row, and where their utterances go: places[cut][speed] is (offset, room)."""

    number: int
    cuts: list[Any]
    places: list[list[tuple[int, int]]]
    speeds: tuple[float, ...]
    acoustics: Acoustics


def _plan(cuts: list[Any], speeds: Sequence[float], acoustics: Acoustics) -> list[_Part]:
    """Give every utterance its place by its length in the manifest: parts are independent."""
    parts, offset, times = [], 0, acoustics.config.renderings + 1
    for start in range(0, len(cuts), _CUTS_PER_PART):
        group, places = cuts[start : start + _CUTS_PER_PART], []
        for cut in group:
            rooms = [times * int(frames_at(cut.duration, speed)) for speed in speeds]
            places.append([(offset + sum(rooms[:k]), room) for k, room in enumerate(rooms)])
            offset += sum(rooms)
        parts.append(_Part(len(parts), group, places, tuple(speeds), acoustics))
    return parts


def _fill(out_dir: Path, parts: list[_Part], workers: Workers) -> Iterator[int]:
    """Compute every part that the journal does not list; the number of cuts done after each."""
    finished = {entry["part"] for entry in _read_lines(out_dir / _JOURNAL)[1:]}
    todo = [p for p in parts if p.number not in finished]
    last = parts[-1].places[-1][-1]
    _allocate(out_dir / _FEATURES, sum(last) * _FRAME_BYTES)
    done = sum(len(p.cuts) for p in parts if p.number in finished)
    with (out_dir / _JOURNAL).open("a") as journal:
        try:
            for entry in workers.spread(functools.partial(_compute, out_dir / _FEATURES), todo):
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
                done += len(parts[entry["part"]].cuts)
                yield done
        except BrokenProcessPool:
            raise CorpusError(
                "a process that computes features was killed, perhaps for want of memory: "
                "run again with fewer jobs; finished work is kept"
            ) from None


def _compute(file: Path, part: _Part) -> dict[str, Any]:
    """Write the features of one part, and return its entry in the journal."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the other processes have the other CPUs
    rows, rejected, numbers = [], [], range(part.acoustics.config.renderings + 1)
    totals = np.zeros((2, NUM_BINS))
    with file.open("r+b") as out:
        for cut, places in zip(part.cuts, part.places, strict=True):
            try:
                features = part.acoustics.features(cut, part.speeds, numbers)
            except CorpusError as error:
                rejected.append({"id": cut.id, "reason": str(error)})
                continue
            text, speaker = cut_text(cut)
            for speed, (offset, room), renderings in zip(
                part.speeds, places, features, strict=True
            ):
                num = min(len(renderings[0]), room // len(numbers))
                # Not through a memory map: on a full disk a write raises, and a map crashes.
                out.seek(offset * _FRAME_BYTES)
                for frames_TF in renderings:
                    values = frames_TF[:num].numpy()
                    out.write(_quantise(values).tobytes())
                    wide = values.astype(np.float64)
                    totals += wide.sum(0), np.square(wide).sum(0)
                rows.append([speed_id(cut.id, speed), text, speaker, speed, offset, num])
    return {"part": part.number, "rows": rows, "rejected": rejected, "totals": totals.tolist()}


def _quantise(values_TF: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values_TF * STEPS_PER_UNIT), -32768, 32767).astype("<i2")


def _start(out_dir: Path, settings: dict[str, Any]) -> None:
    """Make an empty store with a journal, or keep the unfinished one of the same settings."""
    known = {_FEATURES, _INDEX, _REJECTED, _JOURNAL, _DONE}
    present = list(out_dir.iterdir()) if out_dir.is_dir() else [out_dir] * out_dir.exists()
    # Hidden files are left by a `write_text` that was killed.
    if any(p.name not in known and not p.name.startswith(".") for p in present):
        raise CorpusError(f"{out_dir} exists and is not a feature store: choose another place")
    entries = _read_lines(out_dir / _JOURNAL)
    if entries[:1] != [settings]:
        shutil.rmtree(out_dir, ignore_errors=True)
        entries = [settings]
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / _DONE).unlink(missing_ok=True)
    # Rewritten, because a killed build may have left half a line at its end.
    write_text(out_dir / _JOURNAL, "".join(json.dumps(e) + "\n" for e in entries))


def _finish(out_dir: Path, settings: dict[str, Any]) -> None:
    entries = sorted(_read_lines(out_dir / _JOURNAL)[1:], key=lambda e: e["part"])
    names = [f.name for f in dataclasses.fields(Utterance)]
    rows = [dict(zip(names, row, strict=True)) for e in entries for row in e["rows"]]
    rejected = [r for e in entries for r in e["rejected"]]
    if not rows:
        first = rejected[0]
        raise CorpusError(f"no audio could be used; the first: {first['id']}, {first['reason']}")
    renderings = settings.get("acoustics", {}).get("renderings", 0)
    num_frames = (renderings + 1) * sum(r["num_frames"] for r in rows)
    sums, squares = np.sum([e["totals"] for e in entries], 0) / num_frames
    sync_file(out_dir / _FEATURES)
    write_text(out_dir / _INDEX, "".join(json.dumps(r) + "\n" for r in rows))
    write_text(out_dir / _REJECTED, "".join(json.dumps(r) + "\n" for r in rejected))
    done = {
        "settings": settings,
        "renderings": renderings,
        "num_utterances": len(rows),
        "num_frames": (out_dir / _FEATURES).stat().st_size // _FRAME_BYTES,
        "mean": sums.tolist(),
        "std": np.sqrt(np.maximum(squares - sums**2, 1e-4)).tolist(),
    }
    write_text(out_dir / _DONE, json.dumps(done) + "\n")
    (out_dir / _JOURNAL).unlink()


def _allocate(file: Path, num_bytes: int) -> None:
    """Reserve the whole file, so that a full disk is noticed before the work and not after."""
    free = shutil.disk_usage(file.parent).free
    present = file.stat().st_blocks * 512 if file.exists() else 0
    if num_bytes - present > free:
        raise OSError(errno.ENOSPC, f"{num_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")
    with file.open("ab") as out:
        out.truncate(num_bytes)
        if num_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), 0, num_bytes)


@contextlib.contextmanager
def _room(out_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise CorpusError(
            f"no room for the features in {out_dir} ({error.strerror}): free some space or choose "
            "another disk, then run again; finished work is kept"
        ) from None


def _fingerprint(cuts_path: Path, cuts: list[Any]) -> str:
    """A hash of the manifest's text and of every audio file's size and time of change."""
    opener = gzip.open if cuts_path.suffix == ".gz" else open
    with opener(cuts_path, "rb") as file:
        digest = hashlib.sha256(file.read())
    for source in sorted({s.source for c in cuts for s in c.recording.sources if s.type == "file"}):
        try:
            stat = os.stat(source)
            digest.update(f"{source} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{source} missing\n".encode())
    return digest.hexdigest()


def _read_done(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / _DONE).read_text())
    except (OSError, ValueError):
        return {}


def _read_lines(file: Path) -> list[Any]:
    """The JSON lines of a file up to the first incomplete one; none if there is no file."""
    rows = []
    with contextlib.suppress(OSError, ValueError), file.open() as lines:
        for line in lines:
            rows.append(json.loads(line))
    return rows
