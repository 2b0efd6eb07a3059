"""Noise and the colour of a microphone, in log-mel features.

Powers are added, log(exp(x) + exp(n)): the cross term of the two signals, zero on average, is left out. At 3
to 25 dB of speech to noise that is 0.15 nats (0.6 dB) from the features of added samples (docs/log.md).
A constant factor per bin stands for a filter.

Letters: B batch, T frames, F bins, N frames of noise.
"""

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from todm.asr.data.batch import generator
from todm.asr.data.features import NUM_BINS, SAMPLE_RATE, bin_hertz, fbank
from todm.config import Config

NATS_PER_DB = math.log(10) / 10
_TALKERS = (3, 6)
_BURST = (0.1, 0.6)
"""Least and greatest part of an utterance that a burst lasts for."""


class Draw:
    """Random numbers from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers from `low` to `high`."""
        shape = (shape,) if isinstance(shape, int) else shape
        return torch.rand(shape, generator=self._generator) * (high - low) + low

    def integers(self, num: int, end: int) -> Tensor:
        """`num` integers below `end`."""
        return torch.randint(end, (num,), generator=self._generator)

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.uniform(1).item() < probability


def white_noise(seconds: float = 40.0) -> Tensor:
    """Features of white Gaussian noise at 0 dB per sample, [N, 80]; always the same."""
    wave_S = torch.randn(int(seconds * SAMPLE_RATE), generator=generator(0))
    return fbank(wave_S)


def random_spectra(
    num: int, draw: Draw, *, tilt: tuple[float, float] = (-32, 8), ripple: float = 6
) -> Tensor:
    """[num, F] smooth random colours in nats: a tilt, and three ripples of up to `ripple` dB."""
    at_F = torch.linspace(0, 1, NUM_BINS)
    tilt_B = draw.uniform(num, *tilt) * NATS_PER_DB
    ripple_BM = draw.uniform((num, 3), -ripple, ripple) * NATS_PER_DB
    phase_BM = draw.uniform((num, 3), 0, 2 * math.pi)
    turns_M = torch.tensor([1.0, 2.0, 3.0]) * math.pi
    waves_BMF = torch.cos(turns_M[:, None] * at_F + phase_BM[..., None])
    return tilt_B[:, None] * at_F + (ripple_BM[..., None] * waves_BMF).sum(1)


def microphones(num: int, draw: Draw) -> Tensor:
    """[num, F] colours of microphones in nats.

    A smooth curve (a tilt of 8 dB and ripples of 3 dB either way), for half of them a high-pass of second
    order at 50 to 400 Hz, and for half a low-pass of eighth order at 3 to 7.6 kHz.
    """
    hertz_F = bin_hertz()
    colour_BF = random_spectra(num, draw, tilt=(-8, 8), ripple=3)
    high_B1 = draw.uniform((num, 1), math.log(50), math.log(400)).exp()
    low_B1 = draw.uniform((num, 1), math.log(3000), math.log(7600)).exp()
    cut_2B1 = draw.uniform((2, num, 1)) < 0.5
    colour_BF -= cut_2B1[0] * torch.log1p((high_B1 / hertz_F) ** 4)
    return colour_BF - cut_2B1[1] * torch.log1p((hertz_F / low_B1) ** 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseKinds(Config):
    """Which noise is added, in shares.

    Attributes:
        synthetic: of the noises, Gaussian noise of random colour although there are recordings.
        babble: of the noises, three to six other utterances of the batch at once.
        second: of the noisy utterances, those with a second noise at a ratio of its own.
        burst: of the noises, those that last for a part of the utterance only.
    """

    synthetic: float = 0.0
    babble: float = 0.0
    second: float = 0.0
    burst: float = 0.0

    def __post_init__(self) -> None:
        names, allowed = ("synthetic", "babble", "second", "burst"), "a share from 0 to 1 is needed"
        self.check("augment.noises", names, holds=lambda v: 0 <= v <= 1, allowed=allowed)


class NoiseMixer:
    """Adds noise to features: recorded, Gaussian, or other utterances of the batch."""

    def __init__(
        self, noise_NF: Tensor | None, kinds: NoiseKinds, snr_db: tuple[float, float]
    ) -> None:
        """Keep the noise as power, because it is added in the power domain.

        Args:
            noise_NF: frames of recorded noise (`todm.asr.data.noise`); if None, all is Gaussian.
            kinds: how often each kind comes.
            snr_db: least and greatest ratio of speech to noise, drawn uniformly.
        """
        self._kinds, self._snr_db = kinds, snr_db
        # White noise gets a random colour; a user's own noise keeps its own.
        self._shape_noise = noise_NF is None
        self._noise_NF = (white_noise() if noise_NF is None else noise_NF).exp()
        synthetic = noise_NF is not None and kinds.synthetic
        self._white_NF = white_noise().exp() if synthetic else None

    def alone(self, num: int, num_frames: int, draw: Draw) -> Tensor:
        """[num, num_frames, F] log-mel noise at no particular level."""
        return _pieces(self._noise_NF, num, num_frames, draw).log()

    def mix(
        self,
        features_BTF: Tensor,
        lens_B: Tensor,
        speech_lens_B: Tensor,
        draw: Draw,
        *,
        share: float,
    ) -> None:
        """Add noise from random places, at random ratios, to a share of the utterances in place.

        Args:
            features_BTF: log-mel, with silence before and after the speech.
            lens_B: their lengths.
            speech_lens_B: frames of speech in each.
            draw: of all draws.
            share: of the utterances that get noise.
        """
        numbers = torch.nonzero(draw.uniform(len(lens_B)) < share).flatten()
        if not len(numbers):
            return
        # Log-mel energies lie in [-16, 16): their powers cannot overflow.
        mixed_BTF = features_BTF[numbers].exp()
        inside_BT = torch.arange(mixed_BTF.shape[1]) < lens_B[numbers, None]
        power_B = (mixed_BTF.sum(2) * inside_BT).sum(1) / speech_lens_B[numbers]
        noisy = _Noisy(features_BTF, lens_B, numbers, power_B)
        mixed_BTF.addcmul_(*self._noise(noisy, draw))
        if self._kinds.second:
            two = torch.nonzero(draw.uniform(len(numbers)) < self._kinds.second).flatten()
            again = noisy._replace(numbers=numbers[two], power_B=power_B[two])
            mixed_BTF[two] = mixed_BTF[two].addcmul_(*self._noise(again, draw))
        features_BTF[numbers] = mixed_BTF.log_()

    def _noise(self, noisy: "_Noisy", draw: Draw) -> tuple[Tensor, Tensor]:
        """Power of a noise for each noisy utterance, [B, T, F], and its factors, [B, 1, F]."""
        kinds, B, T = self._kinds, len(noisy.numbers), noisy.features_BTF.shape[1]
        noise_BTF = _pieces(self._noise_NF, B, T, draw)
        scale_BF = random_spectra(B, draw).exp() if self._shape_noise else torch.ones(B, NUM_BINS)
        if self._white_NF is not None:
            rows = torch.nonzero(draw.uniform(B) < kinds.synthetic).flatten()
            noise_BTF[rows] = _pieces(self._white_NF, len(rows), T, draw)
            scale_BF[rows] = random_spectra(len(rows), draw).exp()
        if kinds.babble and len(noisy.lens_B) > 1:
            for row in torch.nonzero(draw.uniform(B) < kinds.babble).flatten().tolist():
                noise_BTF[row] = _babble(noisy, int(noisy.numbers[row]), draw)
                scale_BF[row] = 1
        noise_B = (noise_BTF.mean(1) * scale_BF).sum(1)
        snr_B = (draw.uniform(B, *self._snr_db) * NATS_PER_DB).exp()
        scale_BF *= (noisy.power_B / (noise_B * snr_B))[:, None]
        if kinds.burst:
            noise_BTF *= _bursts(noisy.lens_B[noisy.numbers], T, kinds.burst, draw)[..., None]
        return noise_BTF, scale_BF[:, None]


class _Noisy(NamedTuple):
    """A batch, the numbers of the utterances in it that get noise, and the power of their speech."""

    features_BTF: Tensor
    lens_B: Tensor
    numbers: Tensor
    power_B: Tensor


def _pieces(noise_NF: Tensor, num: int, num_frames: int, draw: Draw) -> Tensor:
    """[num, num_frames, F] from random places."""
    rows = draw.integers(num, len(noise_NF))[:, None] + torch.arange(num_frames)
    rows %= len(noise_NF)
    return noise_NF.index_select(0, rows.flatten()).view(num, num_frames, noise_NF.shape[1])


def _babble(noisy: _Noisy, number: int, draw: Draw) -> Tensor:
    """Power of several other utterances of the batch at once, all equally loud, [T, F]."""
    B, T, F = noisy.features_BTF.shape
    num = _TALKERS[0] + int(draw.integers(1, _TALKERS[1] - _TALKERS[0] + 1))
    talkers = (number + 1 + draw.integers(num, B - 1)) % B
    babble_TF = torch.zeros(T, F)
    for talker, place in zip(talkers.tolist(), draw.uniform(num).tolist(), strict=True):
        length = int(noisy.lens_B[talker])
        rows = (int(place * length) + torch.arange(T)) % length
        talk_TF = noisy.features_BTF[talker].index_select(0, rows).exp_()
        babble_TF += talk_TF / talk_TF.sum(1).mean()
    return babble_TF


def _bursts(lens_B: Tensor, num_frames: int, share: float, draw: Draw) -> Tensor:
    """[B, T]: 1 where there is noise, which for a share of the utterances is a random part."""
    B = len(lens_B)
    length_B1 = (lens_B * draw.uniform(B, *_BURST))[:, None]
    start_B1 = draw.uniform((B, 1)) * (lens_B[:, None] - length_B1)
    at_T = torch.arange(num_frames)
    inside_BT = (at_T >= start_B1) & (at_T < start_B1 + length_B1)
    return (inside_BT | (draw.uniform((B, 1)) >= share)).float()
