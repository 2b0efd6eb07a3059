"""Warping of features against tones, whose frequencies are known."""

import math

import pytest
import torch

from todm.asr.data.batch import generator
from todm.asr.data.features import NUM_BINS, SAMPLE_RATE, bin_hertz, fbank
from todm.asr.data.mixing import Draw
from todm.asr.data.warping import other_tracts


def tone(hertz):
    """Features of a tone, [1, T, F]."""
    time_S = torch.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    return fbank(0.5 * torch.sin(2 * math.pi * hertz * time_S))[None]


def peak(features_BTF):
    """The frequency of the loudest bin in the middle frame."""
    frame_F = features_BTF[0, features_BTF.shape[1] // 2]
    return float(bin_hertz()[frame_F.argmax()])


def warped(features_BTF, factor, share=1.0, seed=0):
    return other_tracts(features_BTF, (factor, factor), share, Draw(generator(seed)))


def test_the_loudest_bin_of_a_tone_has_its_frequency():
    for hertz in (300, 800, 2000, 4000, 6500):
        spacing = torch.diff(bin_hertz())[(bin_hertz() < hertz).sum() - 1]
        assert abs(peak(tone(hertz)) - hertz) <= spacing


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.2])
@pytest.mark.parametrize("hertz", [500, 1000, 2000, 3500])
def test_tones_move_by_the_factor(factor, hertz):
    moved = peak(warped(tone(hertz), factor))
    assert moved == pytest.approx(factor * hertz, rel=0.06)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_the_order_of_frequencies_stays_and_so_do_both_ends(factor):
    ramp = torch.arange(float(NUM_BINS)).expand(1, 3, NUM_BINS)
    moved_F = warped(ramp, factor)[0, 0]
    assert (moved_F.diff() >= 0).all()
    assert moved_F[-1] == pytest.approx(NUM_BINS - 1, abs=1.0)
    assert moved_F[0] == pytest.approx(0, abs=1.0)
    assert (moved_F - ramp[0, 0]).abs().max() > 2


def test_factor_one_changes_nothing():
    features_BTF = torch.randn(3, 20, NUM_BINS)
    torch.testing.assert_close(warped(features_BTF, 1.0), features_BTF, atol=1e-4, rtol=0)


def test_a_share_of_the_utterances_is_warped():
    features_BTF = torch.randn(400, 2, NUM_BINS)
    changed = (warped(features_BTF, 1.2, share=0.3) - features_BTF).abs().amax((1, 2)) > 0.1
    assert 80 < int(changed.sum()) < 160
