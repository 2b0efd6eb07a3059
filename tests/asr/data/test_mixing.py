import pytest
import torch

from todm.asr.data.batch import generator
from todm.asr.data.features import PADDING
from todm.asr.data.mixing import Draw, NoiseKinds, NoiseMixer, microphones
from todm.errors import ConfigError

LENS = torch.tensor([300, 240, 200, 180])
BINS = torch.tensor([10, 30, 50, 70])


@pytest.fixture
def tones():
    """Four utterances, each with power in a bin of its own."""
    features = torch.full((4, 300, 80), -14.0)
    for row, n, b in zip(features, LENS, BINS, strict=True):
        row[:n, b] = -3.0
        row[n:] = PADDING
    return features


def mixed(features, seed=0, *, share=1.0, snr_db=(10.0, 10.0), noise=None, **kinds):
    """What is added, as power, [4, 300, 80]."""
    noise = torch.full((50, 80), -9.0) if noise is None else noise
    out = features.clone()
    mixer = NoiseMixer(noise, NoiseKinds(**kinds), snr_db)
    mixer.mix(out, LENS, LENS, Draw(generator(seed)), share=share)
    return out.exp() - features.exp()


def snr_db(features, added, row, frames):
    speech = features[row, : LENS[row]].exp().sum(1).mean()
    return (10 * torch.log10(speech / added[row, frames].sum(1).mean())).item()


def test_recorded_noise_keeps_its_colour(tones):
    added = mixed(tones)
    assert snr_db(tones, added, 0, slice(None)) == pytest.approx(10, abs=0.1)
    assert added[0].max() / added[0].min() < 1.1


def test_synthetic_noise_comes_beside_recordings(tones):
    spread = torch.stack([mixed(tones, s, synthetic=0.5) for s in range(20)]).mean(2).std(2)
    coloured = (spread / mixed(tones).mean() > 0.2).float().mean()
    assert coloured == pytest.approx(0.5, abs=0.15)


def test_babble_is_made_of_the_others(tones):
    own, others = 0.0, 0.0
    for seed in range(10):
        added = mixed(tones, seed, babble=1.0)
        assert snr_db(tones, added, 1, slice(None)) == pytest.approx(10, abs=0.5)
        own += added[1, :, BINS[1]].sum()
        others += added[1][:, BINS[[0, 2, 3]]].sum(1).sum()
    assert own < 0.01 * others


def test_one_utterance_alone_gets_other_noise(tones):
    out = tones[:1].clone()
    mixer = NoiseMixer(torch.full((50, 80), -9.0), NoiseKinds(babble=1.0), (10.0, 10.0))
    mixer.mix(out, LENS[:1], LENS[:1], Draw(generator(0)), share=1.0)
    assert (out[0] > tones[0]).all()


def test_two_noises_are_louder_than_one(tones):
    one, two = (mixed(tones, second=share).sum((1, 2)) for share in (0.0, 1.0))
    assert torch.allclose(two / one, torch.full((4,), 2.0), rtol=0.05)


def test_a_burst_lasts_for_a_part(tones):
    for seed in range(10):
        added = mixed(tones, seed, burst=1.0)
        for row, n in enumerate(LENS.tolist()):
            heard = torch.nonzero(added[row, :, 5] > 1e-9).flatten()
            first, last = int(heard[0]), int(heard[-1])
            assert len(heard) == last - first + 1
            assert 0.1 * n - 2 <= len(heard) <= 0.6 * n + 2
            assert last < n
            assert snr_db(tones, added, row, heard) == pytest.approx(10, abs=0.5)


def test_a_share_of_the_utterances_gets_noise(tones):
    noisy = sum((mixed(tones, s, share=0.3).sum((1, 2)) > 1e-6).sum().item() for s in range(100))
    assert noisy / 400 == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("seed", range(8))
def test_all_kinds_go_together(tones, seed):
    kinds = {"synthetic": 0.3, "babble": 0.3, "second": 0.4, "burst": 0.5}
    added = mixed(tones, seed, share=0.6, **kinds)
    assert added.isfinite().all()
    assert (added >= -1e-6).all()


def test_microphones_are_smooth_and_cut_both_ends():
    colour = microphones(400, Draw(generator(0))) * 10 / torch.log(torch.tensor(10.0))
    assert colour[:, 25:50].diff(dim=1).abs().max() < 6
    low, middle, high = colour[:, 0], colour[:, 30:40].mean(1), colour[:, -1]
    assert (middle - low > 20).float().mean() == pytest.approx(0.4, abs=0.15)
    assert (middle - high > 20).float().mean() == pytest.approx(0.35, abs=0.15)
    assert colour[:, 30:40].std() < 8


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"augment.noises.babble is 2.0: a share from 0 to 1"):
        NoiseKinds(babble=2.0)
