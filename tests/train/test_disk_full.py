"""A disk that fills up: good files stay, training goes on, and only a missing artifact is an error."""

import contextlib
import errno
import os
import resource

import pytest
import torch

from todm import artifact
from todm.files import append, is_full, write_text
from todm.train import checkpoint, loop
from todm.train.loop import CHECKPOINTS, SUPERNET
from todm.train.monitor import METRICS, read_metrics


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", lambda metrics, out: None)


class Disk:
    """Fails to sync anything while it is full, as a disk that finds out late."""

    def __init__(self, monkeypatch):
        self.full, sync = False, os.fsync

        def fsync(handle):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(handle)

        monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def _names(directory):
    return sorted(p.name for p in directory.iterdir())


def _filling(disk, *, first, last, crash_at=None):
    def before(index):
        if index == crash_at:
            raise InterruptedError
        disk.full = first <= index <= last

    return before


def test_training_goes_on_without_checkpoints_and_writes_the_next(fake, disk, tmp_path):
    want = fake.run(tmp_path / "straight").tensors()
    done = fake.run(tmp_path / "run", fake.FakeBackend(_filling(disk, first=8, last=12)))
    assert all(torch.equal(v, want[k]) for k, v in done.tensors().items())
    assert _names(tmp_path / "run" / CHECKPOINTS) == ["update-00000019.pt", "update-00000020.pt"]
    events = [r for r in read_metrics(tmp_path / "run" / METRICS) if r["kind"] == "event"]
    assert [(e["event"], e["lost"]) for e in events] == [("disk full", "a checkpoint")] * 5


def test_training_resumes_from_the_last_good_checkpoints(fake, disk, tmp_path):
    want = fake.run(tmp_path / "straight").tensors()
    full = _filling(disk, first=8, last=99, crash_at=11)
    with pytest.raises(InterruptedError):
        fake.run(tmp_path / "run", fake.FakeBackend(full))
    assert _names(tmp_path / "run" / CHECKPOINTS) == ["update-00000007.pt", "update-00000008.pt"]
    disk.full = False
    done = fake.run(tmp_path / "run")
    assert all(torch.equal(v, want[k]) for k, v in done.tensors().items())


def test_only_an_artifact_that_cannot_be_written_is_an_error(fake, disk, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        fake.run(tmp_path / "run", fake.FakeBackend(_filling(disk, first=19, last=99)))
    assert not (tmp_path / "run" / SUPERNET).exists()
    assert not [name for name in _names(tmp_path / "run") if name.endswith(".tmp")]
    disk.full = False
    backend = fake.FakeBackend()
    assert fake.run(tmp_path / "run", backend).kind == "supernet"
    assert len(backend.seen) == 3  # the update whose checkpoint was lost, and no other


def test_other_errors_of_the_disk_are_errors(fake, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "write", refuse)
    with pytest.raises(PermissionError):
        fake.run(tmp_path)


@contextlib.contextmanager
def _limit(size):
    """The kernel cuts a file short that would be longer, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at below
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_full(caught.value)


def test_a_real_limit_of_file_sizes_is_met_as_a_full_disk(tmp_path):
    checkpoint.write(tmp_path, 1, {"w": torch.zeros(1000)})
    with _limit(100_000):
        checkpoint.write(tmp_path, 2, {"w": torch.zeros(100_000)})
    assert _names(tmp_path) == ["update-00000001.pt"]
    assert len(checkpoint.read_latest(tmp_path)["w"]) == 1000


def test_a_record_is_never_written_by_half(tmp_path):
    append(tmp_path / "rows", b"whole\n")
    with _limit(10):
        append(tmp_path / "rows", b"too long\n")
    assert (tmp_path / "rows").read_bytes() == b"whole\n"
    append(tmp_path / "rows", b"next\n")
    assert (tmp_path / "rows").read_bytes() == b"whole\nnext\n"


def test_an_artifact_is_not_replaced_by_one_that_does_not_fit(disk, tmp_path):
    artifact.save(tmp_path / "a", kind="subnet", config={"x": 1})
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        artifact.save(tmp_path / "a", kind="subnet", config={"x": 2})
    assert artifact.load(tmp_path / "a").config == {"x": 1}
    assert _names(tmp_path) == ["a"]


def test_an_artifact_is_put_back_if_the_new_name_does_not_fit(monkeypatch, tmp_path):
    artifact.save(tmp_path / "a", kind="subnet", config={"x": 1})
    rename = type(tmp_path).rename

    def full(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.save(tmp_path / "a", kind="subnet", config={"x": 2})
    monkeypatch.undo()
    assert artifact.load(tmp_path / "a").config == {"x": 1}
    assert _names(tmp_path) == ["a"]


def test_a_text_is_not_replaced_by_half_of_one(disk, tmp_path):
    write_text(tmp_path / "t", "whole")
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "t", "other")
    assert (tmp_path / "t").read_text() == "whole"
    assert _names(tmp_path) == ["t"]


@pytest.mark.parametrize(
    ("number", "full"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EFBIG, True), (errno.EIO, False)],
    ids=["disk", "quota", "file size", "damage"],
)
def test_what_counts_as_full(number, full):
    assert is_full(OSError(number, "")) is full
