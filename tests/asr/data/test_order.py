from collections import Counter

import numpy as np
import pytest

from todm.asr.data.batch import LoaderConfig
from todm.asr.data.order import (
    LEFT_OUT,
    UNSPELLABLE,
    Lengths,
    MixedOrder,
    Schedule,
    chop,
    left_out,
)


def lengths(lens, labels, usable):
    return Lengths(lens, lens, labels, usable, Counter())


def test_a_chopped_sequence_is_whole():
    lens = np.array([5, 9, 2, 2, 2, 30, 1])
    batches = chop(np.arange(7), lens, batch_size=3, max_frames=18)
    assert [b.tolist() for b in batches] == [[0, 1], [2, 3, 4], [5], [6]]


@pytest.mark.parametrize(
    ("frames", "labels", "one_symbol", "reason"),
    [
        (8, 2, True, None),
        (11, 3, True, "fewer frames than labels"),
        (11, 3, False, None),
        (3, 1, False, "too short for a frame of the encoder"),
        (40, 0, True, None),
        (40, UNSPELLABLE, True, "characters that the tokenizer cannot spell"),
        (40, LEFT_OUT, True, "left out by  todm prepare"),
        (101, 2, True, "longer than max_frames"),
    ],
)
def test_what_cannot_be_trained_on_has_one_reason(frames, labels, one_symbol, reason):
    arrays = np.array([frames]), np.array([labels])
    usable, counts = left_out(*arrays, most_frames=100, one_symbol=one_symbol)
    assert counts == ({reason: 1} if reason else {})
    assert usable.tolist() == [reason is None]


@pytest.mark.parametrize("world", [1, 3, 8])
@pytest.mark.parametrize("limits", [{"batch_size": 4}, {"batch_size": None, "max_frames": 900}])
def test_ranks_are_disjoint_and_equal_in_number(world, limits):
    lens = np.random.default_rng(0).integers(50, 300, 200)
    config = LoaderConfig(num_buckets=6, **limits)
    corpus = lengths(lens, lens * 0 + 1, lens > 60)
    orders = [MixedOrder(corpus, config, Schedule(None, r, world)) for r in range(world)]
    ranks = [list(order.batches(3)) for order in orders]
    assert {len(rank) for rank in ranks} == {orders[0].num_batches(3)}
    items = np.concatenate([batch for rank in ranks for batch in rank])
    assert len(items) == len(set(items.tolist()))
    assert lens[items].min() > 60
    last = sum(len(batch) for batch in chop(items, lens[items], batch_size=world, max_frames=None))
    assert last >= (lens > 60).sum() - world * 18  # what no full step is left for


def test_the_largest_batch_is_of_the_longest_with_the_most_labels():
    lens, labels = np.array([100, 100, 50, 70, 900]), np.array([3, 5, 9, 2, 4])
    usable = np.array([True, True, True, True, False])
    corpus = lengths(lens, labels, usable)
    found = corpus.largest(LoaderConfig(batch_size=3))
    assert found == (3, 100, 2)
    found = corpus.largest(LoaderConfig(batch_size=None, max_frames=140))
    assert found == (2, 70, 2)
