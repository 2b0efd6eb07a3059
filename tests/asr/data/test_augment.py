import dataclasses

import pytest
import torch

from todm.asr.data.augment import AugmentConfig, Augmenter, mask
from todm.asr.data.batch import Batch, from_store, generator, join_pairs, pad_targets
from todm.asr.data.features import PADDING, SILENCE_FLOOR, fbank
from todm.asr.data.mixing import white_noise
from todm.asr.data.noise import noise_of_store
from todm.errors import ConfigError

NOTHING = AugmentConfig(
    gain_db=(0, 0), noise_prob=0, max_tail=0, max_offset=0, join_prob=0, spec_prob=0
)
MEAN = torch.full((80,), -7.0)
LENS = torch.tensor([300, 120, 211, 60])


@pytest.fixture
def batch():
    """Four utterances between -8 and -2 with a quiet stretch of -12 at frames 20 to 55."""
    features = torch.rand(4, 300, 80) * 6 - 8
    features[:, 20:55] = -12 + 0.1 * torch.rand(4, 35, 80)
    for row, n in zip(features, LENS, strict=True):
        row[n:] = PADDING
    targets = pad_targets([[3, 4], [5], [6, 7, 8], [9]])
    return Batch(features, LENS, *targets, list("abcd"), ["A B", "C", "D E F", "G"])


def augment(batch, seed=0, noise=None, **settings):
    config = NOTHING.replace(**settings)
    return Augmenter(config, mean_F=MEAN, noise_NF=noise)(batch, generator(seed))


def power(features):
    return features.exp().sum(-1).mean()


def test_nothing_changes_nothing(batch):
    before = batch.features_BTF.clone()
    out = augment(batch)
    assert out.features_BTF.equal(before)
    assert out.feature_lens_B.equal(LENS)


def test_the_given_batch_is_left_alone(batch):
    before = batch.features_BTF.clone()
    Augmenter(AugmentConfig(join_prob=1, warp_frames=10), mean_F=MEAN)(batch, generator(0))
    assert batch.features_BTF.equal(before)


def test_draws_are_the_generators(batch):
    augmenter = Augmenter(AugmentConfig(), mean_F=MEAN)
    one, two, other = (augmenter(batch, generator(s)).features_BTF for s in (5, 5, 6))
    assert one.equal(two)
    assert one.shape != other.shape or not one.equal(other)


@pytest.mark.parametrize("seed", range(5))
def test_padding_and_floor_hold_whatever_is_drawn(batch, seed):
    config = AugmentConfig(join_prob=0.5, warp_frames=10)
    out = Augmenter(config, mean_F=MEAN)(batch, generator(seed))
    assert out.features_BTF.shape[1] == out.feature_lens_B.max()
    for row, n in zip(out.features_BTF, out.feature_lens_B, strict=True):
        assert (row[n:] == PADDING).all()
        assert (row[:n] >= SILENCE_FLOOR).all()
        assert row.isfinite().all()


def test_gain_is_that_of_the_waveform():
    wave = torch.randn(16000) * 0.05
    wave[4000:8000] = 0
    features = fbank(wave)
    one = Batch(features[None], torch.tensor([100]), *pad_targets([[3]]), ["a"], ["A"])
    louder = augment(one, gain_db=(10, 10)).features_BTF[0]
    assert (louder - fbank(wave * 10**0.5)).abs().max() < 1e-3


def test_quiet_speech_stops_at_the_floor(batch):
    out = augment(batch, gain_db=(-200, -200))
    assert all((r[:n] == SILENCE_FLOOR).all() for r, n in zip(out.features_BTF, LENS, strict=True))


def test_noise_has_its_ratio(batch):
    clean = batch.features_BTF[0].exp()
    for snr in (0.0, 10.0):
        noisy = augment(batch, noise_prob=1, snr_db=(snr, snr)).features_BTF[0].exp()
        ratio = clean.sum() / (noisy - clean).sum()
        assert 10 * ratio.log10() == pytest.approx(snr, abs=1.5)  # a stretch against its mean


def test_noise_in_the_power_domain_is_noise_in_the_waveform():
    """But for the cross term: equal on average, with a scatter where both are as loud."""
    wave, noise = torch.randn(64000) * 0.1, torch.randn(64000) * 0.05
    both, apart = fbank(wave + noise), torch.logaddexp(fbank(wave), fbank(noise))
    assert (both.exp().mean() / apart.exp().mean()).item() == pytest.approx(1, abs=0.02)
    assert (both - apart).abs().mean() < 0.5


def test_noise_may_be_the_users(batch, tiny_store):
    noise = noise_of_store(tiny_store, max_frames=1000)
    assert noise.shape == (1000, 80)
    out = augment(batch, noise=noise, noise_prob=1, snr_db=(0, 0))
    assert power(out.features_BTF[0]) > 1.5 * power(batch.features_BTF[0])


def test_white_noise_is_white_and_always_the_same():
    assert white_noise(1.0).equal(white_noise(1.0))


def test_silence_is_put_around_the_speech(batch):
    out = augment(batch, max_tail=130, max_offset=64, digital_prob=1)
    for row, n, old, size in zip(
        out.features_BTF, out.feature_lens_B, batch.features_BTF, LENS, strict=True
    ):
        speech = torch.nonzero(row[:n, 0] != SILENCE_FLOOR).flatten()
        first, last = int(speech[0]), int(speech[-1])
        assert last - first + 1 == size
        assert first <= 64
        assert n - last - 1 <= 130
        assert row[first : last + 1].equal(old[:size])


def test_half_of_the_silence_is_the_utterances_own(batch):
    digital, lens = 0, []
    augmenter = Augmenter(NOTHING.replace(max_tail=130), mean_F=MEAN)
    for seed in range(100):
        out = augmenter(batch, generator(seed))
        lens += (out.feature_lens_B - LENS).tolist()
        for row, n, size in zip(out.features_BTF, out.feature_lens_B, LENS, strict=True):
            tail = row[size:n]
            digital += bool((tail == SILENCE_FLOOR).all())
            if len(tail) > 70 and not (tail == SILENCE_FLOOR).any():
                assert tail[60:].mean() == pytest.approx(-12, abs=0.2)
                assert tail[0].mean() > -10  # the last frame still sounds
    assert digital / 400 == pytest.approx(0.5, abs=0.08)
    assert min(lens) == 0
    assert sum(lens) / len(lens) == pytest.approx(65, abs=6)


def test_joined_utterances_follow_each_other(batch):
    out = join_pairs(batch)
    assert out.ids == ["a+b", "c+d"]
    assert out.texts == ["A B C", "D E F G"]
    assert out.targets == [[3, 4, 5], [6, 7, 8, 9]]
    assert out.feature_lens_B.tolist() == [420, 271]
    assert out.features_BTF[0, 300:420].equal(batch.features_BTF[1, :120])
    assert (out.features_BTF[1, 271:] == PADDING).all()


def test_an_odd_utterance_stays_alone(batch):
    three = dataclasses.replace(
        batch,
        features_BTF=batch.features_BTF[:3],
        feature_lens_B=LENS[:3],
        targets_BU=batch.targets_BU[:3],
        target_lens_B=batch.target_lens_B[:3],
        ids=batch.ids[:3],
        texts=batch.texts[:3],
    )
    assert join_pairs(three).ids == ["a+b", "c"]


def test_a_share_of_batches_is_joined(batch):
    augmenter = Augmenter(NOTHING.replace(join_prob=0.15), mean_F=MEAN)
    joined = [len(augmenter(batch, generator(s))) == 2 for s in range(400)]
    assert sum(joined) / 400 == pytest.approx(0.15, abs=0.05)


def masked(lens, seed, **settings):
    features = torch.zeros(len(lens), int(max(lens)), 80)
    config = AugmentConfig(**settings)
    mask(
        features,
        torch.tensor(lens),
        mean_F=torch.arange(1.0, 81.0),
        config=config,
        generator=generator(seed),
    )
    return features


def test_masks_hold_the_mean_of_their_bins():
    hidden = masked([400, 100], 0)
    assert ((hidden == 0) | (hidden == torch.arange(1.0, 81.0))).all()
    assert (hidden[1, 100:] == 0).all()


def test_time_masks_keep_to_their_share():
    lens = [40, 150, 700, 3000]
    shares = torch.stack(
        [
            (masked(lens, s, num_freq_masks=0)[:, :, 0] != 0).sum(1) / torch.tensor(lens)
            for s in range(100)
        ]
    )
    assert shares.max() <= 0.15
    assert ((shares.mean(0) > 0.05) & (shares.mean(0) < 0.09)).all()


def test_frequency_masks_have_their_width():
    counts = torch.stack(
        [(masked([50], s, num_time_masks=0)[0, 0] != 0).sum() for s in range(300)]
    ).float()
    assert counts.max() <= 54
    assert counts.mean() == pytest.approx(25, abs=2.5)  # two of 13.5 on average, a little overlap


def test_warped_time_keeps_both_ends(batch):
    ramp = torch.arange(300.0)[None, :, None].expand(4, 300, 80) / 100 - 5
    out = augment(dataclasses.replace(batch, features_BTF=ramp.contiguous()), warp_frames=20)
    for row, n in zip(out.features_BTF, LENS, strict=True):
        assert row[0, 0] == pytest.approx(-5, abs=1e-4)
        assert row[n - 1, 0] == pytest.approx(-5 + (n.item() - 1) / 100, abs=1e-3)
        assert (row[:n, 0].diff() >= 0).all()
    assert (out.features_BTF[0, :300, 0] - ramp[0, :, 0]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_prob": 1.5}, "augment.noise_prob is 1.5: a share from 0 to 1"),
        (
            {"gain_db": (5.0, -5.0)},
            r"augment.gain_db is \(5.0, -5.0\): the lower value comes first",
        ),
        ({"max_tail": -1}, "augment.max_tail is -1: it must not be negative"),
        ({"freq_mask_bins": 90}, "freq_mask_bins is 90: from 0 to 80"),
        ({"wait_prob": -0.1}, "augment.wait_prob is -0.1: a share from 0 to 1"),
        ({"context_reset": 2.0}, "augment.context_reset is 2.0: a share from 0 to 1"),
        ({"wait_seconds": (9.0, 1.0)}, "augment.wait_seconds is .*: the lower value comes first"),
        ({"wait_seconds": (0.0, 1.0)}, r"augment.wait_seconds is \(0.0, 1.0\): more than 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        AugmentConfig(**settings)


def test_utterances_without_speech_have_nothing_to_recognise(tiny_store, encode):
    batch = from_store(tiny_store, [0, 1, 2], encode)
    config = AugmentConfig(no_speech_prob=1.0, join_prob=0, spec_prob=0, noise_prob=0)
    out = Augmenter(config, mean_F=tiny_store.mean_F)(batch, generator(1))
    assert out.target_lens_B.tolist() == [0, 0, batch.target_lens_B[2]]
    assert out.texts == ["", "", batch.texts[2]]
    inside = out.features_BTF[0, : int(out.feature_lens_B[0])]
    assert inside.isfinite().all()
    assert inside.mean() < batch.features_BTF[0, : int(batch.feature_lens_B[0])].mean()
    kept = Augmenter(config.replace(no_speech_prob=0.0), mean_F=tiny_store.mean_F)(
        batch, generator(1)
    )
    assert kept.target_lens_B.tolist() == batch.target_lens_B.tolist()
