import itertools

import numpy as np
import pytest
import torch

from todm.asr.augment import AugmentConfig, Augmenter
from todm.asr.data import (
    Batch,
    LoaderConfig,
    MapBatches,
    chop,
    eval_batches,
    fault,
    generator,
    pad_targets,
)
from todm.asr.features import PADDING, SILENCE_FLOOR
from todm.errors import ConfigError, CorpusError


def stream(store, encode, *, augmented=False, num_updates=None, rank=0, world_size=1, **settings):
    settings = {"batch_size": 8, "num_buckets": 5} | settings
    augment = Augmenter(AugmentConfig(join_prob=0.5), mean_F=store.mean_F) if augmented else None
    return MapBatches(
        store,
        encode,
        config=LoaderConfig(**settings),
        augment=augment,
        num_updates=num_updates,
        rank=rank,
        world_size=world_size,
    )


def take(batches, num):
    return list(itertools.islice(batches, num))


def same(a: Batch, b: Batch):
    return a.ids == b.ids and a.features_BTF.equal(b.features_BTF) and a.targets == b.targets


def test_an_epoch_holds_every_utterance_once(tiny_store, encode):
    batches = stream(tiny_store, encode)
    epoch = take(batches, batches.num_batches(0))
    assert sorted(i for b in epoch for i in b.ids) == sorted(u.id for u in tiny_store.utterances)
    batch = epoch[0]
    index = next(i for i, u in enumerate(tiny_store.utterances) if u.id == batch.ids[0])
    assert batch.features_BTF[0, : batch.feature_lens_B[0]].equal(tiny_store.features(index))
    assert batch.targets[0] == encode(batch.texts[0])


def test_epochs_differ_and_seeds_differ(tiny_store, encode):
    first, second = (stream(tiny_store, encode) for _ in range(2))
    assert all(same(a, b) for a, b in zip(take(first, 20), take(second, 20), strict=True))
    n = first.num_batches(0)
    epochs = take(stream(tiny_store, encode), 2 * n)
    assert [b.ids for b in epochs[:n]] != [b.ids for b in epochs[n:]]
    other = take(stream(tiny_store, encode, seed=1), n)
    assert [b.ids for b in epochs[:n]] != [b.ids for b in other]


@pytest.mark.parametrize("stop", [0, 1, 15, 22])
def test_resumed_streams_go_on_exactly(tiny_store, encode, stop):
    """15 batches make an epoch, so 15 stops between two of them."""
    whole = take(stream(tiny_store, encode, augmented=True), stop + 5)
    interrupted = stream(tiny_store, encode, augmented=True)
    take(interrupted, stop)
    state = dict(interrupted.state())
    resumed = stream(tiny_store, encode, augmented=True)
    resumed.load_state(state)
    assert all(same(a, b) for a, b in zip(whole[stop:], take(resumed, 5), strict=True))


def test_processes_get_different_batches_and_equally_many(tiny_store, encode):
    ranks = [stream(tiny_store, encode, rank=r, world_size=4) for r in range(4)]
    counts = {r.num_batches(0) for r in ranks}
    assert counts == {3}
    ids = [i for r in ranks for b in take(r, 3) for i in b.ids]
    assert len(ids) == len(set(ids)) == 96


def test_processes_step_through_like_lengths(tiny_store, encode):
    ranks = [take(stream(tiny_store, encode, rank=r, world_size=2), 7) for r in range(2)]
    longest = np.array([[int(b.feature_lens_B.max()) for b in rank] for rank in ranks])
    assert np.abs(longest[0] - longest[1]).mean() < 0.5 * longest.std()


def test_buckets_keep_padding_small(tiny_store, encode):
    def padding(num_buckets):
        epoch = take(stream(tiny_store, encode, num_buckets=num_buckets), 15)
        room = sum(b.features_BTF.shape[0] * b.features_BTF.shape[1] for b in epoch)
        return 1 - sum(int(b.feature_lens_B.sum()) for b in epoch) / room

    assert padding(15) < 0.08 < padding(1)


def test_batches_keep_within_max_frames(tiny_store, encode):
    batches = stream(tiny_store, encode, batch_size=None, max_frames=900)
    epoch = take(batches, batches.num_batches(0))
    assert all(b.features_BTF.shape[0] * b.features_BTF.shape[1] <= 900 for b in epoch)
    assert sum(len(b) for b in epoch) == 120


def test_a_chopped_sequence_is_whole():
    lens = np.array([5, 9, 2, 2, 2, 30, 1])
    batches = chop(np.arange(7), lens, batch_size=3, max_frames=18)
    assert [b.tolist() for b in batches] == [[0, 1], [2, 3, 4], [5], [6]]


def test_short_utterances_come_first(tiny_store, encode):
    batches = stream(tiny_store, encode, short_first=0.5, num_updates=30)
    sizes = [batches.num_batches(e) for e in range(4)]
    assert sizes == [5, 10, 15, 15]
    first = take(batches, 5)
    median = tiny_store.lens_N.float().median()
    assert max(int(b.feature_lens_B.max()) for b in first) < median


def test_what_cannot_be_trained_on_is_counted(tiny_store):
    def encode(text):
        return {"ON ON": [], "OFF OFF": [5, 2], "UP UP": [3] * 1000}.get(text, [3, 4])

    batches = stream(tiny_store, encode)
    texts = [u.text for u in tiny_store.utterances]
    assert batches.dropped == {
        reason: texts.count(text)
        for reason, text in {
            "empty transcript": "ON ON",
            "characters that the tokenizer cannot spell": "OFF OFF",
            "fewer frames than labels": "UP UP",
        }.items()
        if text in texts
    }
    assert batches.dropped.total() == 120 - batches.num_utterances > 0


@pytest.mark.parametrize(
    ("frames", "labels", "usable"), [(8, 2, True), (12, 3, True), (11, 3, False)]
)
def test_one_symbol_a_frame_bounds_the_labels(frames, labels, usable):
    assert (fault(frames, [5] * labels) is None) == usable


def test_too_few_utterances_are_an_error(tiny_store, encode):
    with pytest.raises(CorpusError, match="too few"):
        stream(tiny_store, encode, world_size=100)


def test_evaluation_sees_all_once_with_silence_behind(tiny_store, encode):
    batches = list(eval_batches(tiny_store, encode, batch_size=16, tail_seconds=0.5))
    assert sorted(i for b in batches for i in b.ids) == sorted(u.id for u in tiny_store.utterances)
    by_id = {u.id: i for i, u in enumerate(tiny_store.utterances)}
    for b in batches:
        for row, n, name in zip(b.features_BTF, b.feature_lens_B.tolist(), b.ids, strict=True):
            assert row[: n - 50].equal(tiny_store.features(by_id[name]))
            assert row[n - 50 : n].eq(torch.tensor(SILENCE_FLOOR)).all()
            assert row[n:].eq(torch.tensor(PADDING)).all()
    lens = torch.cat([b.feature_lens_B for b in batches])
    assert lens.equal(lens.sort().values)


def test_evaluation_can_be_limited(tiny_store, encode):
    batches = list(eval_batches(tiny_store, encode, batch_size=4, limit=10))
    assert sum(len(b) for b in batches) == 10


def test_generators_depend_on_every_number():
    draws = {
        torch.rand(1, generator=generator(*n)).item() for n in itertools.product((0, 1), repeat=4)
    }
    assert len(draws) == 16


def test_targets_are_padded():
    padded_BU, lens_B = pad_targets([[3, 4, 5], [], [6]])
    assert padded_BU.tolist() == [[3, 4, 5], [0, 0, 0], [6, 0, 0]]
    assert lens_B.tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    "settings", [{"batch_size": None}, {"batch_size": 0}, {"speeds": ()}, {"short_first": 2.0}]
)
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError):
        LoaderConfig(**settings)


def test_a_batch_goes_to_a_device(tiny_store, encode):
    batch = next(iter(stream(tiny_store, encode))).to("meta")
    assert batch.features_BTF.device.type == batch.target_lens_B.device.type == "meta"
    assert batch.ids
