"""Augmentation of log-mel features: cheap, a batch at a time, from one generator.

Everything works on features that are already computed, so that a training step on a CPU does not
process audio. What is exact and what is an approximation:

- Gain is exact (a constant in the log domain), except that bins at the floor stay there and that
  loud speech does not clip as samples above 1 would.
- Noise is added in the power domain, log(exp(x) + exp(n)): the cross term of the two signals, zero
  on average, is left out. A constant factor per bin stands for a filter of the noise.
- A tail of the utterance's own noise is drawn frame by frame from its quietest frames: level and
  spectrum are right, the similarity of neighbouring frames is lost. It starts with a decay of the
  last frame, which stands for the room.
- Two joined utterances meet at a frame border; no window covers both.

Letters: B batch, T frames, F bins, M masks, N frames of noise.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from todm.asr.data.batch import Batch, add_tail, generator, join_pairs, without_speech
from todm.asr.data.features import NUM_BINS, PADDING, SAMPLE_RATE, SILENCE_FLOOR, fbank
from todm.asr.model.encoder_config import FRAMES_PER_SECOND, SUBSAMPLING
from todm.asr.model.wait import Wait, loop_frames
from todm.config import Config
from todm.errors import ConfigError

_NATS_PER_DB = math.log(10) / 10
_AT_FLOOR = SILENCE_FLOOR + 1e-3
_QUIET_SHARE = 0.1
_DECAY_FRAMES = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """How much augmentation of each kind. A probability of 0 switches one off.

    Attributes:
        gain_db: least and greatest gain, drawn uniformly per utterance.
        noise_prob: share of utterances that get noise.
        snr_db: least and greatest ratio of speech to noise, drawn uniformly.
        max_tail: greatest silence after the speech, in frames.
        max_offset: greatest silence before the speech, in frames; one chunk of 640 ms is 64.
        digital_prob: share of silences that are digital; the others are the utterance's own noise.
        no_speech_prob: share of utterances that become noise or digital silence, with nothing to
            recognise: without any of these, a transducer hears words in both.
        join_prob: share of batches in which utterances are joined in pairs.
        spec_prob: share of batches with masks.
        num_freq_masks: masks over bins, per utterance.
        freq_mask_bins: greatest width of each.
        num_time_masks: most masks over frames, per utterance; short utterances get fewer.
        time_mask_frames: greatest length of each.
        time_mask_share: greatest share of an utterance's frames that they cover together.
        warp_frames: greatest shift of the point about which time is warped; 0 for no warping.
        device_from: share of the planned updates before which there is no added noise, no wait and no
            reset: a net that does not yet hear words learns nothing from them (docs/log.md).
        wait_prob: share of batches whose utterances come after a wait, of which only the sound of a
            chunk is computed (`todm.asr.model.wait.Wait`).
        wait_seconds: shortest and longest wait, drawn uniformly on a log scale.
        context_reset: share of labels before which the predictor's context starts again, as it does
            on a device after a pause: in the middle of a sentence too, if somebody hesitates.
    """

    gain_db: tuple[float, float] = (-15.0, 10.0)
    noise_prob: float = 0.5
    snr_db: tuple[float, float] = (5.0, 30.0)
    max_tail: int = 130
    max_offset: int = 64
    digital_prob: float = 0.5
    no_speech_prob: float = 0.0
    join_prob: float = 0.15
    spec_prob: float = 0.9
    num_freq_masks: int = 2
    freq_mask_bins: int = 27
    num_time_masks: int = 10
    time_mask_frames: int = 100
    time_mask_share: float = 0.15
    warp_frames: int = 0
    device_from: float = 0.0
    wait_prob: float = 0.0
    wait_seconds: tuple[float, float] = (0.5, 3600.0)
    context_reset: float = 0.0

    def __post_init__(self) -> None:
        shares = ("noise_prob", "no_speech_prob", "digital_prob", "join_prob", "spec_prob")
        shares += ("time_mask_share", "device_from", "wait_prob", "context_reset")
        allowed = "a share from 0 to 1 is needed"
        self.check("augment", shares, holds=lambda v: 0 <= v <= 1, allowed=allowed)
        ranges, allowed = ("gain_db", "snr_db", "wait_seconds"), "the lower value comes first"
        self.check("augment", ranges, holds=lambda v: v[0] <= v[1], allowed=allowed)
        zeros = ("max_tail", "max_offset", "num_freq_masks", "num_time_masks", "warp_frames")
        self.check("augment", zeros, holds=lambda v: v >= 0, allowed="it must not be negative")
        waits, allowed = ("wait_seconds",), "more than 0 is needed"
        self.check("augment", waits, holds=lambda v: v[0] > 0, allowed=allowed)
        if not 0 <= self.freq_mask_bins <= NUM_BINS:
            raise ConfigError(f"freq_mask_bins is {self.freq_mask_bins}: from 0 to {NUM_BINS}")
        if self.num_time_masks:
            frames, allowed = ("time_mask_frames",), "at least 1 is needed"
            self.check("augment", frames, holds=lambda v: v >= 1, allowed=allowed)


class Augmenter:
    """All augmentation, in the order of a real recording: silence, noise, level, session; then masks."""

    def __init__(
        self,
        config: AugmentConfig,
        *,
        mean_F: Tensor,
        noise_NF: Tensor | None = None,
        chunks: Sequence[int] = (0,),
    ) -> None:
        """Prepare.

        Args:
            config: how much of each kind.
            mean_F: what masks replace speech with: the training mean, which the encoder's
                normalisation turns into zeros.
            noise_NF: frames of noise (`todm.asr.data.noise`); if None, shaped Gaussian noise.
            chunks: those that batches are cut into, in frames of the encoder.
        """
        self._config, self._mean_F = config, mean_F
        self._longest_loop = max(map(loop_frames, chunks)) * SUBSAMPLING if config.wait_prob else 0
        # White noise gets a random colour; a user's own noise keeps its own.
        self._shape_noise = noise_NF is None
        # Kept as power, because it is added in the power domain.
        self._noise_NF = (white_noise() if noise_NF is None else noise_NF).exp()

    def __call__(
        self, batch: Batch, generator: torch.Generator, *, chunk: int = 0, progress: float = 1.0
    ) -> Batch:
        """A changed copy of a batch; with joining, of half as many utterances.

        Args:
            batch: utterances.
            generator: of all draws.
            chunk: frames of the encoder that the batch will be cut into; whole utterances (0) do not
                wait, since they are no stream.
            progress: share of the planned updates done.
        """
        config, draw = self._config, _Draw(generator)
        if progress < config.device_from:
            config = config.replace(noise_prob=0.0, wait_prob=0.0, context_reset=0.0)
        features_BTF, speech_lens_B = batch.features_BTF, batch.feature_lens_B
        if config.warp_frames:
            features_BTF = _warp(features_BTF, speech_lens_B, config.warp_frames, draw)
        removed = torch.nonzero(draw.uniform(len(batch)) < config.no_speech_prob).flatten()
        removed = removed[: len(batch) - 1]  # a loss per label needs one
        if len(removed):
            features_BTF = features_BTF.index_copy(
                0, removed, self._noise(len(removed), features_BTF.shape[1], draw)
            )
            batch = without_speech(batch, removed.tolist())
        waits = chunk > 0 and draw.chance(config.wait_prob)
        loop = loop_frames(chunk) if waits else 0
        features_BTF, lens_B, digital = _add_silence(
            features_BTF, speech_lens_B, config, draw, least=loop * SUBSAMPLING
        )
        noisy = torch.nonzero(draw.uniform(len(batch)) < config.noise_prob).flatten()
        if len(noisy):
            mixed = self._mix(features_BTF[noisy], lens_B[noisy], speech_lens_B[noisy], draw)
            features_BTF[noisy] = mixed
        gain_B = draw.uniform(len(batch), *config.gain_db) * _NATS_PER_DB
        _apply_gain(features_BTF, gain_B)
        for row_TF, spans, end in zip(features_BTF, digital, lens_B.tolist(), strict=True):
            for span in spans:
                row_TF[span] = SILENCE_FLOOR
            row_TF[end:] = PADDING
        batch = dataclasses.replace(batch, features_BTF=features_BTF, feature_lens_B=lens_B)
        if waits:
            batch.wait = Wait(loop, self._waits(len(batch), loop / FRAMES_PER_SECOND, draw))
        if draw.chance(config.join_prob):
            batch = join_pairs(batch)
        batch.reset_BU = _resets(batch, config.context_reset, draw)
        if draw.chance(config.spec_prob):
            masks = {"mean_F": self._mean_F, "config": config, "generator": generator}
            mask(batch.features_BTF, batch.feature_lens_B, **masks)
        return batch

    def _waits(self, num: int, seconds: float, draw: "_Draw") -> Tensor:
        """How often each utterance heard a loop of so many seconds."""
        low, high = (math.log(limit) for limit in self._config.wait_seconds)
        return (draw.uniform(num, low, high).exp() / seconds).round().long()

    @property
    def silence(self) -> int:
        """The greatest number of frames of silence that an utterance gets."""
        return self._longest_loop + self._config.max_offset + self._config.max_tail

    @property
    def joins(self) -> bool:
        """Whether utterances may be joined in pairs."""
        return self._config.join_prob > 0

    def worst(self, batch: Batch, *, chunk: int = 0) -> Batch:
        """The largest batch that a batch can become: all the silence, and joined if any batch is."""
        batch = add_tail(batch, self.silence)
        if chunk and self._config.wait_prob:
            batch.wait = Wait(loop_frames(chunk), torch.ones(len(batch), dtype=torch.int64))
        return join_pairs(batch) if self.joins else batch

    def _noise(self, num: int, num_frames: int, draw: "_Draw") -> Tensor:
        """Noise of random colour at -75 to -20 dB, or digital silence: [num, num_frames, F]."""
        rows = draw.integers(num, len(self._noise_NF))[:, None] + torch.arange(num_frames)
        noise_BTF = self._noise_NF[rows % len(self._noise_NF)].log()
        level_B = draw.uniform(num, -75.0, -20.0) * _NATS_PER_DB
        level_B[draw.uniform(num) < self._config.digital_prob] = -100.0  # far below the floor
        noise_BTF = noise_BTF + (_random_spectra(num, draw) + level_B[:, None])[:, None]
        return noise_BTF.clamp_(min=SILENCE_FLOOR)

    def _mix(
        self, speech_BTF: Tensor, lens_B: Tensor, speech_lens_B: Tensor, draw: "_Draw"
    ) -> Tensor:
        """Speech with noise from random places, at random ratios; log-mel again."""
        B, T, F = speech_BTF.shape
        # Log-mel energies lie in [-16, 16): their powers cannot overflow.
        speech_BTF = speech_BTF.exp()
        inside_BT = torch.arange(T) < lens_B[:, None]
        speech_B = (speech_BTF.sum(2) * inside_BT).sum(1) / speech_lens_B
        rows_BT = draw.integers(B, len(self._noise_NF))[:, None] + torch.arange(T)
        rows_BT %= len(self._noise_NF)
        noise_BTF = self._noise_NF.index_select(0, rows_BT.flatten()).view(B, T, F)
        scale_BF = _random_spectra(B, draw).exp() if self._shape_noise else torch.ones(B, F)
        noise_B = (noise_BTF.mean(1) * scale_BF).sum(1)
        snr_B = (draw.uniform(B, *self._config.snr_db) * _NATS_PER_DB).exp()
        scale_BF *= (speech_B / (noise_B * snr_B))[:, None]
        return speech_BTF.addcmul_(noise_BTF, scale_BF[:, None]).log_()


class _Draw:
    """Random numbers from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        shape = (shape,) if isinstance(shape, int) else shape
        return torch.rand(shape, generator=self._generator) * (high - low) + low

    def integers(self, num: int, end: int) -> Tensor:
        return torch.randint(end, (num,), generator=self._generator)

    def chance(self, probability: float) -> bool:
        return self.uniform(1).item() < probability


def _resets(batch: Batch, share: float, draw: _Draw) -> Tensor | None:
    """Where the predictor's context starts again, [B, U + 1]."""
    B, U = batch.targets_BU.shape
    return draw.uniform((B, U + 1)) < share if share else None


def white_noise(seconds: float = 40.0) -> Tensor:
    """Features of white Gaussian noise at 0 dB per sample, [N, 80]; always the same."""
    wave_S = torch.randn(int(seconds * SAMPLE_RATE), generator=generator(0))
    return fbank(wave_S)


def mask(
    features_BTF: Tensor,
    lens_B: Tensor,
    *,
    mean_F: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
) -> None:
    """SpecAugment's masks (Park et al. 2019), in place: hidden speech becomes the mean.

    An utterance of n frames gets at most ceil(share * n / longest) masks over time, and each has at
    most share * n / number frames, so that together they never hide more than the share.
    """
    draw, B = _Draw(generator), len(lens_B)
    room_B = config.time_mask_share * lens_B
    num_B = (room_B / config.time_mask_frames).ceil().clamp(1, max(config.num_time_masks, 1))
    longest_B1 = (room_B / num_B).clamp(max=config.time_mask_frames).floor()[:, None]
    width_BM = (draw.uniform((B, config.num_time_masks)) * (longest_B1 + 1)).floor()
    width_BM = width_BM * (torch.arange(config.num_time_masks) < num_B[:, None])
    in_time = _stripes(width_BM, lens_B, draw)
    width_BM = (draw.uniform((B, config.num_freq_masks)) * (config.freq_mask_bins + 1)).floor()
    in_freq = _stripes(width_BM, torch.full((B,), NUM_BINS), draw)
    # Slices of each row: filling only the hidden parts costs less than a mask over everything.
    for row_TF, n, times, freqs in zip(
        features_BTF, lens_B.tolist(), in_time, in_freq, strict=True
    ):
        for span in times:
            row_TF[span] = mean_F
        for span in freqs:
            row_TF[:n, span] = mean_F[span]


def _stripes(width_BM: Tensor, ends_B: Tensor, draw: _Draw) -> list[list[slice]]:
    """For each utterance, stripes of the given widths at random places before its end."""
    start_BM = (draw.uniform(tuple(width_BM.shape)) * (ends_B[:, None] - width_BM + 1)).long()
    stop_BM = start_BM + width_BM.long()
    pairs = zip(start_BM.tolist(), stop_BM.tolist(), strict=True)
    return [[slice(a, b) for a, b in zip(*row, strict=True) if a < b] for row in pairs]


def _add_silence(
    features_BTF: Tensor, lens_B: Tensor, config: AugmentConfig, draw: _Draw, *, least: int
) -> tuple[Tensor, Tensor, list[list[slice]]]:
    """Put silence before (`least` frames or more) and after the speech.

    Returns:
        features [B, T', F], lengths [B], and for each utterance the spans that are digital silence;
        frames there and beyond the end are not set yet.
    """
    B, T, F = features_BTF.shape
    front_B = least + draw.integers(B, config.max_offset + 1)
    tail_B = draw.integers(B, config.max_tail + 1)
    end_B, new_lens_B = front_B + lens_B, front_B + lens_B + tail_B
    at_BT = torch.arange(int(new_lens_B.max())) - front_B[:, None]
    own_BT = (at_BT < 0) | (at_BT >= lens_B[:, None])
    quiet_BT = _quiet_frames(features_BTF, lens_B, at_BT.shape[1], draw)
    rows_BT = torch.where(own_BT, quiet_BT, at_BT) + torch.arange(B)[:, None] * T
    flat_NF = features_BTF.reshape(B * T, F)
    out_BTF = flat_NF.index_select(0, rows_BT.flatten()).view(B, -1, F)
    digital_B2 = draw.uniform((B, 2)) < config.digital_prob
    last_BF = flat_NF[torch.arange(B) * T + lens_B - 1]
    decaying_B = ~digital_B2[:, 1]
    _add_decay(out_BTF, end_B, tail_B * decaying_B, last_BF, draw)
    spans = [
        [slice(0, front)] * first + [slice(end, stop)] * second
        for front, end, stop, (first, second) in zip(
            front_B.tolist(), end_B.tolist(), new_lens_B.tolist(), digital_B2.tolist(), strict=True
        )
    ]
    return out_BTF, new_lens_B, spans


def _quiet_frames(features_BTF: Tensor, lens_B: Tensor, num: int, draw: _Draw) -> Tensor:
    """[B, num] random frames among the quietest tenth (four at least) of each utterance."""
    B, T, _ = features_BTF.shape
    level_BT = features_BTF.mean(2).masked_fill_(_beyond(lens_B, T), math.inf)
    count_B = (lens_B * _QUIET_SHARE).ceil().clamp(min=4).minimum(lens_B)
    pick_BT = (draw.uniform((B, num)) * count_B[:, None]).long()
    return level_BT.argsort(1).gather(1, pick_BT)


def _add_decay(
    out_BTF: Tensor, start_B: Tensor, num_B: Tensor, last_BF: Tensor, draw: _Draw
) -> None:
    """Let the last frame die away over the tail, 60 dB in 0.1 to 0.6 s, in place."""
    fall_B = 60 * _NATS_PER_DB / (draw.uniform(len(last_BF), 0.1, 0.6) * 100)
    b, k = torch.nonzero(torch.arange(_DECAY_FRAMES) < num_B[:, None], as_tuple=True)
    t = start_B[b] + k
    decay_NF = last_BF[b] - (fall_B[b] * (k + 1))[:, None]
    out_BTF[b, t] = torch.logaddexp(out_BTF[b, t], decay_NF)


def _random_spectra(num: int, draw: _Draw) -> Tensor:
    """[num, F] smooth random colours: a tilt of -32 to 8 dB and three ripples of up to 6 dB."""
    at_F = torch.linspace(0, 1, NUM_BINS)
    tilt_B = draw.uniform(num, -32, 8) * _NATS_PER_DB
    ripple_BM = draw.uniform((num, 3), -6, 6) * _NATS_PER_DB
    phase_BM = draw.uniform((num, 3), 0, 2 * math.pi)
    turns_M = torch.tensor([1.0, 2.0, 3.0]) * math.pi
    waves_BMF = torch.cos(turns_M[:, None] * at_F + phase_BM[..., None])
    return tilt_B[:, None] * at_F + (ripple_BM[..., None] * waves_BMF).sum(1)


def _apply_gain(features_BTF: Tensor, gain_B: Tensor) -> None:
    """Change the level in place; bins at the floor stay there, bins that fall below are lifted to it."""
    torch.threshold_(features_BTF, _AT_FLOOR, -math.inf)
    features_BTF.add_(gain_B[:, None, None]).clamp_(min=SILENCE_FLOOR)


def _warp(features_BTF: Tensor, lens_B: Tensor, most: int, draw: _Draw) -> Tensor:
    """Warp time about a random point of each utterance, which moves by up to `most` frames.

    Utterances of fewer than 2 * most + 2 frames are not changed. Frames are interpolated linearly,
    in the log domain.
    """
    B, T, F = features_BTF.shape
    wide_B = lens_B > 2 * most + 1
    from_B = most + 1 + draw.uniform(B) * (lens_B - 2 * most - 2)
    to_B = torch.where(wide_B, from_B + draw.uniform(B, -most, most), 1.0)
    from_B = torch.where(wide_B, from_B, 1.0)
    at_BT = torch.arange(T).expand(B, T).float()
    end_B = (lens_B - 1).float()
    left_BT = at_BT * (from_B / to_B)[:, None]
    slope_B = (end_B - from_B) / (end_B - to_B)
    right_BT = end_B[:, None] - (end_B[:, None] - at_BT) * slope_B[:, None]
    source_BT = torch.where(at_BT < to_B[:, None], left_BT, right_BT)
    source_BT = torch.where(_beyond(lens_B, T) | ~wide_B[:, None], at_BT, source_BT)
    low_BT = source_BT.floor().long().clamp_(0, T - 1)
    base_B1 = torch.arange(B)[:, None] * T
    rows_N = (low_BT + base_B1).flatten()
    next_N = ((low_BT + 1).minimum(lens_B[:, None] - 1) + base_B1).flatten()
    flat_NF, part_N1 = features_BTF.reshape(B * T, F), (source_BT - low_BT).flatten()[:, None]
    return torch.lerp(flat_NF[rows_N], flat_NF[next_N], part_N1).view(B, T, F)


def _beyond(lens_B: Tensor, length: int) -> Tensor:
    """[B, length], true past the end."""
    return torch.arange(length) >= lens_B[:, None]
