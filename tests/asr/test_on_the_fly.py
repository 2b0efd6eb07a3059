import itertools

import pytest

from todm.asr.data import LoaderConfig
from todm.asr.on_the_fly import OnTheFlyBatches
from todm.errors import CorpusError


def stream(cuts, encode, *, rank=0, world_size=1, **settings):
    settings = {"batch_size": 8, "num_buckets": 4, "num_workers": 0} | settings
    config = LoaderConfig(feature_mode="on_the_fly", **settings)
    return OnTheFlyBatches(cuts, encode, config=config, rank=rank, world_size=world_size)


def epoch(batches):
    first = batches.state()["epoch"]
    found = []
    for batch in batches:
        if batches.state()["epoch"] != first:
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
    resumed.load_state(interrupted.state())
    rest = list(itertools.islice(resumed, 12))
    assert [b.ids for b in rest] == [b.ids for b in whole[stop:]]
    assert rest[0].features_BTF.equal(whole[stop].features_BTF)


def test_epochs_differ(tiny_cuts, encode):
    batches = stream(tiny_cuts, encode)
    first = [b.ids for b in epoch(batches)]
    batches.load_state({"epoch": 1, "index": 0})
    assert first != [b.ids for b in epoch(batches)]


def test_processes_get_different_batches_and_equally_many(tiny_cuts, encode):
    ranks = [epoch(stream(tiny_cuts, encode, rank=r, world_size=2)) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    ids = [i for rank in ranks for b in rank for i in b.ids]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_loader_processes_give_the_same(tiny_cuts, encode):
    alone = list(itertools.islice(stream(tiny_cuts, encode), 4))
    loaded = list(itertools.islice(stream(tiny_cuts, encode, num_workers=1), 4))
    assert [b.ids for b in alone] == [b.ids for b in loaded]
    assert alone[3].features_BTF.equal(loaded[3].features_BTF)


def test_damaged_audio_is_listed_and_left_out(make_corpus, tmp_path, encode):
    cuts = make_corpus(tmp_path, num=6)
    (tmp_path / "utt-003.flac").write_bytes(b"this is no audio")
    batches = stream(cuts, encode, speeds=(1.0,), batch_size=2)
    assert sum(len(b) for b in epoch(batches)) == 5
    assert list(batches.rejected) == ["utt-003"]


def test_what_cannot_be_trained_on_is_counted(tiny_cuts):
    batches = stream(tiny_cuts, lambda text: [] if text.startswith("ON") else [3])
    assert batches.num_utterances == 3 * (40 - batches.dropped["empty transcript"])
    with pytest.raises(CorpusError, match="no usable utterance"):
        stream(tiny_cuts, lambda _: [])
