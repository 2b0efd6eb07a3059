"""Waits before utterances and resets of the predictor's context, as augmentation draws them."""

import math

import pytest
import torch

from todm.asr.data.augment import AugmentConfig, Augmenter
from todm.asr.data.batch import Batch, generator, join_pairs, pad_targets
from todm.asr.data.features import PADDING, SILENCE_FLOOR
from todm.asr.model.wait import Wait

NOTHING = AugmentConfig(
    gain_db=(0, 0), noise_prob=0, max_tail=0, max_offset=0, join_prob=0, spec_prob=0
)
WAITS = NOTHING.replace(wait_prob=1.0)
LENS = torch.tensor([300, 120, 211, 60, 90])


@pytest.fixture
def batch():
    """Five utterances between -8 and -2 with a quiet stretch of -12 at frames 20 to 55."""
    features = torch.rand(5, 300, 80) * 6 - 8
    features[:, 20:55] = -12 + 0.1 * torch.rand(5, 35, 80)
    for row, n in zip(features, LENS, strict=True):
        row[n:] = PADDING
    targets = pad_targets([[3, 4], [5], [6, 7, 8], [9], [3]])
    return Batch(features, LENS, *targets, list("abcde"), ["A B", "C", "D E F", "G", "A"])


def augment(batch, config, *, chunk, seed=0):
    chunks = (chunk, 8)
    return Augmenter(config, mean_F=torch.full((80,), -7.0), chunks=chunks)(
        batch, generator(seed), chunk=chunk
    )


@pytest.mark.parametrize("digital", [0.0, 1.0], ids=["noise", "digital"])
@pytest.mark.parametrize(("chunk", "loop"), [(1, 8), (4, 8), (7, 14), (8, 8), (16, 16), (32, 32)])
def test_a_loop_is_whole_chunks_without_speech(batch, chunk, loop, digital):
    out = augment(batch, WAITS.replace(digital_prob=digital), chunk=chunk)
    assert out.wait.frames == loop
    assert (out.feature_lens_B - LENS).tolist() == [4 * loop] * 5
    for row, old, n in zip(out.features_BTF, batch.features_BTF, LENS, strict=True):
        heard = row[: 4 * loop]
        assert (heard == SILENCE_FLOOR).all() if digital else (heard < -11.8).all()
        assert row[4 * loop : 4 * loop + n].equal(old[:n])


def test_silence_after_the_loop_is_as_ever(batch):
    config = WAITS.replace(max_offset=20, max_tail=30)
    added = [augment(batch, config, chunk=16, seed=s).feature_lens_B - LENS for s in range(40)]
    added = torch.stack(added) - 64
    assert added.min() >= 0
    assert 40 < added.max() <= 50


def test_whole_utterances_and_the_other_batches_do_not_wait(batch):
    assert augment(batch, WAITS, chunk=0).wait is None
    assert augment(batch, WAITS, chunk=0).feature_lens_B.equal(LENS)
    config = WAITS.replace(wait_prob=0.3)
    waits = [augment(batch, config, chunk=8, seed=s).wait is not None for s in range(300)]
    assert sum(waits) / 300 == pytest.approx(0.3, abs=0.08)
    out = augment(batch, NOTHING, chunk=8)
    assert (out.wait, out.reset_BU) == (None, None)


@pytest.mark.parametrize("chunk", [8, 32])
def test_waits_are_spread_over_their_range_in_octaves(batch, chunk):
    loop = chunk / 25
    times = torch.cat([augment(batch, WAITS, chunk=chunk, seed=s).wait.times_B for s in range(200)])
    assert round(0.5 / loop) <= times.min() <= times.max() <= round(3600 / loop)
    below = [(times * loop < seconds).float().mean() for seconds in (5, 50, 500)]
    want = [math.log(seconds / 0.5) / math.log(7200) for seconds in (5, 50, 500)]
    assert torch.stack(below).tolist() == pytest.approx(want, abs=0.05)


def test_a_pair_waits_as_its_first(batch):
    alone, paired = (augment(batch, WAITS.replace(join_prob=p), chunk=8) for p in (0, 1))
    assert paired.wait.times_B.tolist() == alone.wait.times_B.tolist()[::2]
    assert len(paired) == 3
    assert join_pairs(batch).wait is None
    batch.wait = Wait(8, torch.arange(5))
    assert join_pairs(batch).wait.frames == 8


@pytest.mark.parametrize("chunks", [(0,), (7, 8), (8, 16), (0, 8, 32)], ids=str)
def test_no_silence_is_longer_than_promised(batch, chunks):
    config = WAITS.replace(max_offset=10, max_tail=20)
    augmenter = Augmenter(config, mean_F=torch.zeros(80), chunks=chunks)
    most = max(
        int((augmenter(batch, generator(s), chunk=c).feature_lens_B - LENS).max())
        for s in range(40)
        for c in chunks
    )
    assert augmenter.silence - 8 <= most <= augmenter.silence
    without = Augmenter(config.replace(wait_prob=0.0), mean_F=torch.zeros(80), chunks=chunks)
    assert without.silence == 30


def test_the_largest_batch_waits_if_any_does(batch):
    wait = Augmenter(WAITS, mean_F=torch.zeros(80), chunks=(8, 16)).worst(batch, chunk=16).wait
    assert (wait.frames, len(wait.times_B)) == (16, 5)
    assert Augmenter(WAITS, mean_F=torch.zeros(80), chunks=(0, 8)).worst(batch).wait is None
    assert Augmenter(NOTHING, mean_F=torch.zeros(80)).worst(batch, chunk=8).wait is None
    joined = WAITS.replace(join_prob=0.1)
    wait = Augmenter(joined, mean_F=torch.zeros(80), chunks=(8,)).worst(batch, chunk=8).wait
    assert len(wait.times_B) == 3


@pytest.mark.parametrize("join_prob", [0, 1])
def test_a_share_of_nodes_starts_again(batch, join_prob):
    config = NOTHING.replace(context_reset=0.2, join_prob=join_prob, no_speech_prob=0.3)
    found = [augment(batch, config, chunk=0, seed=s) for s in range(150)]
    for out in found:
        assert out.reset_BU.dtype == torch.bool
        assert out.reset_BU.shape == (len(out), out.targets_BU.shape[1] + 1)
    share = torch.cat([out.reset_BU.flatten() for out in found]).float().mean()
    assert share == pytest.approx(0.2, abs=0.03)


def test_draws_are_the_generators(batch):
    config = AugmentConfig(wait_prob=0.5, context_reset=0.3)
    for seed in range(10):
        one, two = (augment(batch, config, chunk=8, seed=seed) for _ in range(2))
        assert one.features_BTF.equal(two.features_BTF)
        assert one.reset_BU.equal(two.reset_BU)
        assert (one.wait is None) == (two.wait is None)
        assert one.wait is None or one.wait.times_B.equal(two.wait.times_B)


def test_nothing_of_a_device_comes_before_its_time(batch):
    """Neither noise nor waits nor resets; all else as ever."""
    config = WAITS.replace(device_from=0.4, context_reset=0.5, noise_prob=1.0, spec_prob=1.0)
    augmenter = Augmenter(config, mean_F=torch.zeros(80), chunks=(8,))
    early = augmenter(batch, generator(0), chunk=8, progress=0.39)
    assert (early.wait, early.reset_BU) == (None, None)
    heard = (early.features_BTF == batch.features_BTF) | (early.features_BTF == 0)  # or masked
    assert heard.all()
    late = augmenter(batch, generator(0), chunk=8, progress=0.4)
    assert late.wait is not None
    assert late.reset_BU.any()
    assert augmenter(batch, generator(0), chunk=8).wait is not None
