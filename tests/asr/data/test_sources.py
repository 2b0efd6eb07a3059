import itertools

import numpy as np
import pytest
import torch

from todm.asr.data.augment import AugmentConfig, Augmenter
from todm.asr.data.batch import LoaderConfig
from todm.asr.data.loader import Loader
from todm.asr.data.order import Schedule
from todm.asr.data.sources import Listed
from todm.errors import CorpusError


def stream(cuts, encode, *, rank=0, world_size=1, augment=None, chunks=(0,), **settings):
    settings = {"batch_size": 8, "num_buckets": 4, "num_workers": 0} | settings
    config = LoaderConfig(feature_mode="on_the_fly", **settings)
    source = Listed.of_manifest(cuts, config.speeds)
    schedule = Schedule(None, rank, world_size)
    parts = {"augment": augment, "chunks": chunks, "schedule": schedule}
    return Loader(source, encode, config=config, **parts)


def epoch(batches):
    first = batches.state_dict()["epoch"]
    found = []
    for batch in batches:
        if batches.state_dict()["epoch"] != first:
            break
        found.append(batch)
    return found


def test_features_are_those_of_the_map(tiny_cuts, tiny_store, encode):
    index = {u.id: i for i, u in enumerate(tiny_store.utterances)}
    batches = epoch(stream(tiny_cuts, encode))
    assert sorted(i for b in batches for i in b.ids) == sorted(index)
    for batch in batches[:3]:
        for row, n, name in zip(batch.features_BTF, batch.feature_lens_B, batch.ids, strict=True):
            want = tiny_store.features(index[name])
            assert abs(n - len(want)) <= 1
            both = min(int(n), len(want)) - 3  # the end may differ by a sample
            assert row[:both].allclose(want[:both], atol=1e-3)


@pytest.mark.parametrize("stop", [1, 9])
def test_resumed_streams_go_on_exactly(tiny_cuts, encode, stop):
    whole = list(itertools.islice(stream(tiny_cuts, encode), stop + 12))
    interrupted = stream(tiny_cuts, encode)
    list(itertools.islice(interrupted, stop))
    resumed = stream(tiny_cuts, encode)
    resumed.load_state_dict(interrupted.state_dict())
    rest = list(itertools.islice(resumed, 12))
    assert [b.ids for b in rest] == [b.ids for b in whole[stop:]]
    assert rest[0].features_BTF.equal(whole[stop].features_BTF)


def test_epochs_differ(tiny_cuts, encode):
    batches = stream(tiny_cuts, encode)
    first = [b.ids for b in epoch(batches)]
    batches.load_state_dict({"epoch": 1, "index": 0})
    assert first != [b.ids for b in epoch(batches)]


def test_processes_get_different_batches_and_equally_many(tiny_cuts, encode):
    ranks = [epoch(stream(tiny_cuts, encode, rank=r, world_size=2)) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    ids = [i for rank in ranks for b in rank for i in b.ids]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_loader_processes_give_the_same(tiny_cuts, encode):
    config, chunks = AugmentConfig(wait_prob=1.0, context_reset=0.3), (8, 12)
    mean_F, noise_NF = torch.full((80,), -7.0), torch.randn(500, 80) - 8
    augment = Augmenter(config, mean_F=mean_F, noise_NF=noise_NF, chunks=chunks)
    given = {"augment": augment, "chunks": chunks}
    alone, loaded = (
        list(itertools.islice(stream(tiny_cuts, encode, num_workers=n, **given), 6)) for n in (0, 1)
    )
    assert {b.chunk for b in alone} == {8, 12}
    for a, b in zip(alone, loaded, strict=True):
        assert (a.ids, a.chunk, a.wait.frames) == (b.ids, b.chunk, b.wait.frames)
        assert a.features_BTF.equal(b.features_BTF)
        assert a.wait.times_B.equal(b.wait.times_B)
        assert a.reset_BU.equal(b.reset_BU)


def test_damaged_audio_is_listed_and_left_out(make_corpus, tmp_path, encode):
    cuts = make_corpus(tmp_path, num=6)
    (tmp_path / "utt-003.flac").write_bytes(b"this is no audio")
    batches = stream(cuts, encode, speeds=(1.0,), batch_size=2)
    assert sum(len(b) for b in epoch(batches)) == 5
    assert list(batches.rejected) == ["utt-003"]


def test_what_cannot_be_trained_on_is_counted(tiny_cuts):
    reason = "characters that the tokenizer cannot spell"
    batches = stream(tiny_cuts, lambda text: [2] if text.startswith("ON") else [3])
    assert batches.num_utterances == 120 - batches.dropped[reason] < 120
    with pytest.raises(CorpusError, match="0 usable utterances"):
        stream(tiny_cuts, lambda _: [2])


def test_short_utterances_come_first(tiny_cuts, encode):
    settings = {"batch_size": 8, "num_buckets": 5, "num_workers": 0, "short_first": 0.5}
    config = LoaderConfig(feature_mode="on_the_fly", **settings)
    source = Listed.of_manifest(tiny_cuts, config.speeds)
    batches = Loader(source, encode, config=config, schedule=Schedule(num_updates=30))
    assert [batches.num_batches(e) for e in range(4)] == [5, 10, 15, 15]
    longest = max(int(b.feature_lens_B.max()) for b in epoch(batches))
    assert longest < np.median(source.frames_N)


def test_a_batch_without_readable_audio_is_replaced(make_corpus, tmp_path, encode):
    """Every process must give as many batches as the others, whatever its audio is like."""
    cuts = make_corpus(tmp_path, num=8)
    settings = {"speeds": (1.0,), "batch_size": 1, "world_size": 2}
    for number in (1, 2, 5):
        (tmp_path / f"utt-00{number}.flac").write_bytes(b"")
    ranks = [stream(cuts, encode, rank=r, **settings) for r in range(2)]
    taken = [list(itertools.islice(rank, 4)) for rank in ranks]
    assert [rank.state_dict() for rank in ranks] == [{"epoch": 0, "index": 4, "world_size": 2}] * 2
    assert sum(len(rank.rejected) for rank in ranks) == 3
    for batch in itertools.chain(*taken):
        assert len(batch) == 1
        assert batch.ids[0] not in {"utt-001", "utt-002", "utt-005"}


def test_a_disk_that_is_gone_stops_the_run(make_corpus, tmp_path, encode):
    cuts = make_corpus(tmp_path, num=4)
    for path in tmp_path.glob("*.flac"):
        path.unlink()
    with pytest.raises(CorpusError, match="batches in a row hold no readable audio"):
        next(iter(stream(cuts, encode, speeds=(1.0,), batch_size=1)))


def test_both_ways_give_the_same_batches(tiny_cuts, tiny_store, encode):
    config = LoaderConfig(batch_size=8, num_buckets=4)
    mapped = Loader(Listed.of_store(tiny_store), encode, config=config)
    for ours, theirs in zip(epoch(stream(tiny_cuts, encode)), mapped, strict=False):
        assert ours.ids == theirs.ids
        assert ours.targets == theirs.targets
        assert ours.seconds == pytest.approx(theirs.seconds)


def test_the_random_state_of_the_training_is_left_alone(tiny_cuts, encode):
    before = torch.get_rng_state()
    next(iter(stream(tiny_cuts, encode)))
    assert torch.get_rng_state().equal(before)
