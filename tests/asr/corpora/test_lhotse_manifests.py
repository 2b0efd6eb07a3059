import gzip
import json

import pytest
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

from todm.errors import CorpusError


@pytest.fixture
def recordings(tone):
    """Three recordings of 4 s, one for each split; the training one has two channels."""
    return {
        split: Recording.from_file(
            tone(f"audio/{split}.wav", 4.0, channels=1 + (split == "train")), recording_id=split
        )
        for split in ("train", "dev", "test")
    }


def said(recording, name, **more):
    settings = {"start": 1.0, "duration": 2.0, "text": "Ça va", "speaker": "anna"} | more
    return SupervisionSegment(id=name, recording_id=recording.id, **settings)


@pytest.fixture
def pairs(tmp_path, recordings):
    """Recordings and supervisions, named as lhotse's recipes name them."""
    for split, recording in recordings.items():
        RecordingSet.from_recordings([recording]).to_file(
            tmp_path / f"mine_recordings_{split}.jsonl.gz"
        )
        SupervisionSet.from_segments([said(recording, f"{split}-1")]).to_file(
            tmp_path / f"mine_supervisions_{split}.jsonl.gz"
        )
    return tmp_path


@pytest.fixture
def cuts(tmp_path, recordings):
    """Cuts in a folder for each split."""
    for split, recording in recordings.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        cut = recording.to_cut()
        cut.supervisions = [said(recording, f"{split}-1", channel=cut.channel)]
        cut = cut.trim_to_supervisions()[0]
        cut.id = f"{split}-1"
        CutSet.from_cuts([cut]).to_file(tmp_path / "data" / split / "cuts.jsonl.gz")
    return tmp_path / "data"


def rewrite(path, change):
    """Change the only row of a manifest."""
    row = json.loads(gzip.decompress(path.read_bytes()))
    change(row)
    path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))


@pytest.mark.parametrize(("kind", "channels"), [("pairs", (0,)), ("cuts", (0, 1))])
def test_parts_of_recordings(request, read, kind, channels):
    usable, rejected = read(request.getfixturevalue(kind))
    assert rejected == {}
    train = usable["train-1"]
    assert (train.start, train.num_samples, train.text) == (16000, 32000, "Ça va")
    assert (train.channels, train.speaker) == (channels, "anna")
    assert {u.split for u in usable.values()} == {"train", "dev", "test"}


def test_paths_are_looked_for_beside_the_manifest(pairs, read):
    file = pairs / "mine_recordings_dev.jsonl.gz"
    rewrite(file, lambda row: row["sources"][0].update(source="audio/dev.wav"))
    assert "dev-1" in read(pairs)[0]


def test_a_command_is_refused_and_not_run(pairs, read):
    command = {"type": "command", "source": f"touch {pairs / 'pwned'}"}
    file = pairs / "mine_recordings_train.jsonl.gz"
    rewrite(file, lambda row: row["sources"][0].update(command))
    with pytest.raises(CorpusError, match="commands in data are never run"):
        read(pairs)
    assert not (pairs / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row["recording"]["sources"][0].update(type="url"), "audio is not a file"),
        (lambda row: row["recording"]["sources"][0].update(source="x.wav"), "audio missing"),
        (lambda row: row.update(start=3.5), "segment outside the recording"),
        (lambda row: row.update(start="soon"), "manifest unreadable"),
        (lambda row: row.update(channel=4), "manifest unreadable"),
        (lambda row: row.update(start=float("nan")), "segment unreadable"),
        (lambda row: row["recording"].update(sources=[1]), "manifest unreadable"),
        (lambda row: row["recording"].update(transforms="Speed"), "audio to be changed"),
        (lambda row: row.update(recording=None), "no recording"),
        (lambda row: row.update(supervisions=[]), "empty transcript"),
        (
            lambda row: row["recording"].update(transforms=[{"name": "Speed"}]),
            "audio to be changed",
        ),
    ],
)
def test_what_cannot_be_used_is_listed_with_its_reason(cuts, read, change, reason):
    rewrite(cuts / "train" / "cuts.jsonl.gz", change)
    _, rejected = read(cuts)
    assert rejected == {"train-1": reason}


def test_supervisions_without_their_recordings(pairs, read):
    rewrite(pairs / "mine_recordings_train.jsonl.gz", lambda row: row.update(id="other"))
    assert read(pairs)[1] == {"train-1": "no recording"}
    (pairs / "mine_recordings_train.jsonl.gz").unlink()
    with pytest.raises(CorpusError, match="no recordings beside it"):
        read(pairs)
