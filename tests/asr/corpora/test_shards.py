import dataclasses
import tarfile

import pytest
from lhotse import CutSet

from todm.asr.corpora import manifests, shards
from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.utterances import Utterance
from todm.asr.data.workers import Workers
from todm.errors import CorpusError


@pytest.fixture
def utterances(tone):
    """Seven parts of a stereo recording of 8 s at 8 kHz."""
    path = tone("long.wav", 8.0, rate=8000, channels=2)
    return [
        Utterance(f"u{i}", "train", "anna", path, f"WORD {i}", 4000, 8000, i * 8000, 64000, (0, 1))
        for i in range(7)
    ]


def config(tmp_path, **more):
    return DataConfig(shar=str(tmp_path / "shar"), shard_size=3, **more)


def write(tmp_path, utterances, **more):
    return shards.write(utterances, config(tmp_path, **more), Workers(1))


# lhotse's reader leaves its files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lhotse_reads_what_is_written(tmp_path, utterances):
    written, placed, damaged = write(tmp_path, utterances)
    assert [shard.num for shard in written] == [3, 3, 1]
    assert damaged == []
    cuts = list(CutSet.from_shar(in_dir=tmp_path / "shar" / "train"))
    assert [cut.id for cut in cuts] == [u.id for u in placed] != sorted(u.id for u in placed)
    assert [u.place for u in placed] == list(range(7))
    whole = manifests.cut_of(utterances[0]).recording.to_cut()
    for cut, u in zip(cuts, placed, strict=True):
        assert cut.supervisions[0].text == u.text
        want = whole.truncate(offset=u.start / 8000, duration=0.5).load_audio().mean(0)
        got = cut.load_audio()
        assert got.shape == (1, 8000)
        assert got[0, 500:7500] == pytest.approx(want[500:7500], abs=2e-2)


def test_finished_shards_stay_and_missing_ones_are_made(tmp_path, utterances):
    written, placed, _ = write(tmp_path, utterances)
    kept, lost = written[0].recording, written[1].cuts
    before = (tmp_path / kept).stat().st_mtime_ns
    (tmp_path / lost).unlink()
    assert write(tmp_path, utterances)[:2] == (written, placed)
    assert (tmp_path / kept).stat().st_mtime_ns == before


def test_damaged_audio_is_left_out_and_listed(tmp_path, utterances):
    utterances[2] = dataclasses.replace(utterances[2], path=tmp_path / "gone.wav")
    written, placed, damaged = write(tmp_path, utterances)
    assert sum(shard.num for shard in written) == len(placed) == 6
    assert [(r.id, r.reason) for r in damaged] == [("u2", "audio unreadable")]
    assert write(tmp_path, utterances) == (written, placed, damaged)


def test_a_place_that_is_taken(tmp_path, utterances):
    write(tmp_path, utterances)
    with pytest.raises(CorpusError, match="shards of another corpus"):
        write(tmp_path, utterances[:3])
    (tmp_path / "shar" / "todm-shar.json").unlink()
    with pytest.raises(CorpusError, match="other files"):
        write(tmp_path, utterances)


@pytest.fixture
def foreign(tmp_path, utterances):
    """A corpus in Shar for all three splits."""
    for split, part in {"train": slice(0, 4), "dev": slice(4, 5), "test": slice(5, 7)}.items():
        out = config(tmp_path).replace(shar=str(tmp_path / "one" / split))
        chosen = [dataclasses.replace(u, split=split) for u in utterances[part]]
        shards.write(chosen, out, Workers(1))
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "one" / split / "train").rename(tmp_path / "data" / split)
    return tmp_path / "data"


def test_shards_of_others_are_read(foreign, read, tmp_path):
    usable, rejected = read(foreign, min_seconds=0.1)
    assert rejected == {}
    train = [u for u in usable.values() if u.split == "train"]
    assert sorted(u.place for u in train) == [0, 1, 2, 3]
    dev = next(u for u in usable.values() if u.split == "dev")
    assert dev.path.is_relative_to(tmp_path / "unpacked")
    assert (dev.num_samples, dev.rate, dev.speaker) == (8000, 16000, "anna")


def test_limits_hold_for_shards(foreign, read):
    usable, rejected = read(foreign, min_seconds=0.6)
    assert not any(u.split == "train" for u in usable.values())
    assert set(rejected.values()) == {"audio too short"}


@pytest.mark.parametrize("what", ["pair", "cuts", "tar"])
def test_a_damaged_shard_is_an_error(foreign, read, what):
    if what == "pair":
        (foreign / "train" / "recording.000001.tar").unlink()
    elif what == "cuts":
        (foreign / "train" / "cuts.000000.jsonl.gz").write_bytes(b"x\n")
    else:
        with tarfile.open(foreign / "dev" / "recording.000000.tar", "w"):
            pass
    message = {"pair": "lacks its cuts or its recording", "cuts": "damaged in line 1"}
    with pytest.raises(CorpusError, match=message.get(what, "damaged")):
        read(foreign)
