import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from todm.asr.corpora import shards
from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.utterances import Utterance
from todm.asr.data import shar
from todm.asr.data.augment import AugmentConfig, Augmenter
from todm.asr.data.batch import LoaderConfig
from todm.asr.data.loader import Loader, open_source
from todm.asr.data.order import Schedule
from todm.asr.data.statistics import compute_features
from todm.asr.data.workers import Workers
from todm.errors import ConfigError, CorpusError

SPEEDS = (0.9, 1.0, 1.1)


@pytest.fixture(scope="module")
def index(tiny_cuts, encode, tmp_path_factory):
    """40 utterances in 10 shards, and their index."""
    root = tmp_path_factory.mktemp("shar")
    utterances = [
        Utterance(c.id, "train", "", c.recording.sources[0].source, c.supervisions[0].text,
                  c.num_samples, 16000)
        for c in CutSet.from_file(tiny_cuts)
    ]  # fmt: skip
    config = DataConfig(shar=str(root / "audio"), shard_size=4)
    written, placed, _ = shards.write(utterances, config, Workers(1))
    seconds = np.array([u.seconds for u in placed])
    labels = np.array([len(encode(u.text)) for u in placed])
    shar.write_index(written, seconds, labels, root / "shar_train.json")
    return root / "shar_train.json"


def stream(index, encode, *, rank=0, world_size=1, augment=None, **settings):
    settings = {"batch_size": 4, "num_buckets": 2, "num_workers": 0, "shards": 2} | settings
    config = LoaderConfig(feature_mode="on_the_fly", **settings)
    source = shar.Shards.open(index, config.speeds)
    schedule = Schedule(None, rank, world_size)
    return Loader(source, encode, config=config, augment=augment, schedule=schedule)


def epoch(batches):
    return list(itertools.islice(batches, batches.num_batches(batches.state_dict()["epoch"])))


def names(batches):
    return [name for batch in batches for name in batch.ids]


def test_an_epoch_holds_every_utterance_at_every_speed(index, encode):
    batches = stream(index, encode)
    found = names(epoch(batches))
    assert len(found) == len(set(found)) == 120
    assert {n.partition("_sp")[2] for n in found} == {"0.9", "", "1.1"}
    assert batches.hours * 3600 == pytest.approx(sum(b.seconds for b in epoch(batches)), rel=0.01)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_get_disjoint_batches_equally_many(index, encode, world):
    ranks = [epoch(stream(index, encode, rank=r, world_size=world)) for r in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    found = names(itertools.chain(*ranks))
    assert len(found) == len(set(found))
    lost = 120 - len(found)  # what the rank with the most has more than the one with the fewest
    assert lost <= (0 if world == 2 else 120 // world)
    homes = [{n.partition("_sp")[0] for n in names(rank)} for rank in ranks]
    assert not set.intersection(*homes)  # a shard is always read by the same process


@pytest.mark.parametrize("stop", [1, 7, 29, 31, 40])
def test_resumed_streams_go_on_exactly(index, encode, stop):
    augment = Augmenter(AugmentConfig(), mean_F=torch.full((80,), -7.0))
    whole = list(itertools.islice(stream(index, encode, augment=augment), stop + 6))
    interrupted = stream(index, encode, augment=augment)
    list(itertools.islice(interrupted, stop))
    resumed = stream(index, encode, augment=augment)
    resumed.load_state_dict(interrupted.state_dict())
    for got, want in zip(itertools.islice(resumed, 6), whole[stop:], strict=True):
        assert got.ids == want.ids
        assert got.features_BTF.equal(want.features_BTF)


@pytest.mark.slow
def test_loader_processes_give_the_same(index, encode):
    alone, loaded = (
        list(itertools.islice(stream(index, encode, num_workers=n), 4)) for n in (0, 2)
    )
    assert [b.ids for b in alone] == [b.ids for b in loaded]
    assert alone[3].features_BTF.equal(loaded[3].features_BTF)


def test_epochs_differ(index, encode):
    batches = stream(index, encode)
    assert names(epoch(batches)) != names(epoch(batches))


def test_shards_are_read_from_beginning_to_end_and_once_a_pass(index, encode, monkeypatch):
    reads, real = [], shar.read_shard
    monkeypatch.setattr(shar, "read_shard", lambda s: reads.append(s.recording) or real(s))
    epoch(stream(index, encode))
    per_pass = len(reads) // 3
    assert per_pass == 10
    assert all(len(set(reads[k * 10 : k * 10 + 10])) == 10 for k in range(3))


def test_short_utterances_come_first(index, encode):
    config = {"short_first": 0.5, "speeds": (1.0,)}
    settings = LoaderConfig(
        feature_mode="on_the_fly", batch_size=4, num_workers=0, num_buckets=2, **config
    )
    source = shar.Shards.open(index, (1.0,))
    batches = Loader(source, encode, config=settings, schedule=Schedule(num_updates=30))
    sizes = []
    for number in range(4):
        batches.load_state_dict({"epoch": number, "index": 0})
        sizes.append(len(names(epoch(batches))))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 40


def test_a_damaged_shard_is_left_out_and_the_number_of_batches_stays(
    index, encode, tmp_path, caplog
):
    copy = broken(index, tmp_path)
    batches = stream(copy, encode, speeds=(1.0,))
    want = stream(index, encode, speeds=(1.0,))
    assert len(epoch(batches)) == len(epoch(want))
    assert "left out" in caplog.text


def broken(index, tmp_path):
    """The same index with one shard cut short and one gone."""
    source = shar.Shards.open(index, (1.0,))
    shards_ = list(source.shards)
    data = tmp_path / "recording.0.tar"
    data.write_bytes(Path(shards_[0].recording).read_bytes()[:20_000])
    shards_[0] = shards_[0]._replace(recording=str(data))
    shards_[1] = shards_[1]._replace(recording=str(tmp_path / "gone.tar"))
    with np.load(index.with_suffix(".npz")) as arrays:
        shar.write_index(shards_, arrays["seconds"], arrays["labels"], tmp_path / index.name)
    return tmp_path / index.name


def test_fewer_shards_than_processes(index, encode):
    with pytest.raises(CorpusError, match="10 shards cannot be split over 11 processes"):
        stream(index, encode, world_size=11)


def test_a_damaged_index(index, tmp_path):
    (tmp_path / "shar_train.json").write_text(index.read_text())
    with pytest.raises(CorpusError, match="is damaged"):
        shar.Shards.open(tmp_path / "shar_train.json", SPEEDS)


def test_the_corpus_says_that_it_lies_in_shards(index, encode, tmp_path):
    cuts = index.with_name("cuts_train.jsonl.gz")
    config = LoaderConfig(feature_mode="on_the_fly", batch_size=4, num_workers=0)
    statistics = compute_features(cuts, tmp_path, config=config)
    assert statistics.mean_F.isfinite().all()
    batches = Loader(open_source(cuts, tmp_path, config), encode, config=config)
    assert batches.worst_batch().features_BTF.shape[0] == 4
    with pytest.raises(ConfigError, match="feature_mode=on_the_fly"):
        compute_features(cuts, tmp_path, config=config.replace(feature_mode="map"))
