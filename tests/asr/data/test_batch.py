import itertools

import pytest
import torch

from todm.asr.data.batch import (
    Batch,
    LoaderConfig,
    eval_batches,
    from_store,
    generator,
    pad_targets,
)
from todm.asr.data.features import PADDING, SILENCE_FLOOR
from todm.errors import ConfigError


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


def test_features_of_a_store_are_padded(tiny_store, encode):
    batch = from_store(tiny_store, [0, 7, 3], encode)
    lens_B = batch.feature_lens_B
    assert batch.features_BTF.shape == (3, int(lens_B.max()), 80)
    for row, n, i in zip(batch.features_BTF, lens_B, [0, 7, 3], strict=True):
        assert row[:n].equal(tiny_store.features(i))
        assert (row[n:] == PADDING).all()


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
    batch = from_store(tiny_store, [0, 1], encode).to("meta")
    assert batch.features_BTF.device.type == batch.target_lens_B.device.type == "meta"
    assert batch.ids


def test_seconds_are_those_of_the_features_unless_given():
    batch = Batch(torch.zeros(2, 9, 80), torch.tensor([9, 5]), *pad_targets([[3], [4]]), [], [])
    assert batch.seconds == pytest.approx(0.14)
    assert Batch(*vars(batch).values()).seconds == batch.seconds
