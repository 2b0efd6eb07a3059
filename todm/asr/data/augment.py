"""Augmentation of log-mel features: cheap, a batch at a time, from one generator.

Everything works on features that are already computed, so that a training step on a CPU does not
process audio. What is exact and what is an approximation:

- Gain is exact (a constant in the log domain), except that bins at the floor stay there and that
  loud speech does not clip as samples above 1 would.
- Noise, and the colour of a microphone, see `todm.asr.data.mixing`.
- A tail of the utterance's own noise is drawn frame by frame from its quietest frames: level and
  spectrum are right, the similarity of neighbouring frames is lost. It starts with a decay of the
  last frame, which stands for the room.
- Two joined utterances meet at a frame border; no window covers both.

Letters: B batch, T frames, F bins, M masks.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from todm.asr.data.batch import Batch, add_tail, join_pairs, without_speech
from todm.asr.data.features import NUM_BINS, PADDING, SILENCE_FLOOR
from todm.asr.data.mixing import (
    NATS_PER_DB,
    Draw,
    NoiseKinds,
    NoiseMixer,
    microphones,
    random_spectra,
)
from todm.asr.data.warping import other_tracts, warp_time
from todm.asr.model.encoder_config import FRAMES_PER_SECOND, SUBSAMPLING
from todm.asr.model.wait import Wait, loop_frames
from todm.config import Config
from todm.errors import ConfigError

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
        noises: which noise that is.
        colour_prob: share of utterances, noise included, that a microphone of random colour hears.
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
        tract_prob: share of utterances whose formants are moved, as a longer or shorter vocal tract does.
        tract: least and greatest factor of their frequencies.
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
    noises: NoiseKinds = dataclasses.field(default_factory=NoiseKinds)
    colour_prob: float = 0.0
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
    tract_prob: float = 0.0
    tract: tuple[float, float] = (0.85, 1.18)
    device_from: float = 0.0
    wait_prob: float = 0.0
    wait_seconds: tuple[float, float] = (0.5, 3600.0)
    context_reset: float = 0.0

    def __post_init__(self) -> None:
        shares = (
            "noise_prob",
            "colour_prob",
            "no_speech_prob",
            "digital_prob",
            "join_prob",
            "spec_prob",
        )
        shares += ("tract_prob", "time_mask_share", "device_from", "wait_prob", "context_reset")
        allowed = "a share from 0 to 1 is needed"
        self.check("augment", shares, holds=lambda v: 0 <= v <= 1, allowed=allowed)
        ranges, allowed = ("gain_db", "snr_db", "wait_seconds"), "the lower value comes first"
        self.check("augment", ranges, holds=lambda v: v[0] <= v[1], allowed=allowed)
        zeros = ("max_tail", "max_offset", "num_freq_masks", "num_time_masks", "warp_frames")
        self.check("augment", zeros, holds=lambda v: v >= 0, allowed="it must not be negative")
        waits, allowed = ("wait_seconds",), "more than 0 is needed"
        self.check("augment", waits, holds=lambda v: v[0] > 0, allowed=allowed)
        tracts, allowed = ("tract",), "from 0.5 to 2, the lower value first"
        self.check("augment", tracts, holds=lambda v: 0.5 <= v[0] <= v[1] <= 2, allowed=allowed)
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
        self._mixer = NoiseMixer(noise_NF, config.noises, config.snr_db)

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
        config, draw = self._config, Draw(generator)
        if progress < config.device_from:
            config = config.replace(noise_prob=0.0, wait_prob=0.0, context_reset=0.0)
        features_BTF, speech_lens_B = batch.features_BTF, batch.feature_lens_B
        if config.warp_frames:
            features_BTF = warp_time(features_BTF, speech_lens_B, config.warp_frames, draw)
        if config.tract_prob:
            features_BTF = other_tracts(features_BTF, config.tract, config.tract_prob, draw)
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
        self._mixer.mix(features_BTF, lens_B, speech_lens_B, draw, share=config.noise_prob)
        gain_B1 = draw.uniform((len(batch), 1), *config.gain_db) * NATS_PER_DB
        _apply_gain(features_BTF, gain_B1 + _colours(len(batch), config.colour_prob, draw))
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

    def _waits(self, num: int, seconds: float, draw: Draw) -> Tensor:
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

    def _noise(self, num: int, num_frames: int, draw: Draw) -> Tensor:
        """Noise of random colour at -75 to -20 dB, or digital silence: [num, num_frames, F]."""
        noise_BTF = self._mixer.alone(num, num_frames, draw)
        level_B = draw.uniform(num, -75.0, -20.0) * NATS_PER_DB
        level_B[draw.uniform(num) < self._config.digital_prob] = -100.0  # far below the floor
        noise_BTF = noise_BTF + (random_spectra(num, draw) + level_B[:, None])[:, None]
        return noise_BTF.clamp_(min=SILENCE_FLOOR)


def _resets(batch: Batch, share: float, draw: Draw) -> Tensor | None:
    """Where the predictor's context starts again, [B, U + 1]."""
    B, U = batch.targets_BU.shape
    return draw.uniform((B, U + 1)) < share if share else None


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
    draw, B = Draw(generator), len(lens_B)
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


def _stripes(width_BM: Tensor, ends_B: Tensor, draw: Draw) -> list[list[slice]]:
    """For each utterance, stripes of the given widths at random places before its end."""
    start_BM = (draw.uniform(tuple(width_BM.shape)) * (ends_B[:, None] - width_BM + 1)).long()
    stop_BM = start_BM + width_BM.long()
    pairs = zip(start_BM.tolist(), stop_BM.tolist(), strict=True)
    return [[slice(a, b) for a, b in zip(*row, strict=True) if a < b] for row in pairs]


def _add_silence(
    features_BTF: Tensor, lens_B: Tensor, config: AugmentConfig, draw: Draw, *, least: int
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


def _quiet_frames(features_BTF: Tensor, lens_B: Tensor, num: int, draw: Draw) -> Tensor:
    """[B, num] random frames among the quietest tenth (four at least) of each utterance."""
    B, T, _ = features_BTF.shape
    level_BT = features_BTF.mean(2).masked_fill_(_beyond(lens_B, T), math.inf)
    count_B = (lens_B * _QUIET_SHARE).ceil().clamp(min=4).minimum(lens_B)
    pick_BT = (draw.uniform((B, num)) * count_B[:, None]).long()
    return level_BT.argsort(1).gather(1, pick_BT)


def _add_decay(
    out_BTF: Tensor, start_B: Tensor, num_B: Tensor, last_BF: Tensor, draw: Draw
) -> None:
    """Let the last frame die away over the tail, 60 dB in 0.1 to 0.6 s, in place."""
    fall_B = 60 * NATS_PER_DB / (draw.uniform(len(last_BF), 0.1, 0.6) * 100)
    b, k = torch.nonzero(torch.arange(_DECAY_FRAMES) < num_B[:, None], as_tuple=True)
    t = start_B[b] + k
    decay_NF = last_BF[b] - (fall_B[b] * (k + 1))[:, None]
    out_BTF[b, t] = torch.logaddexp(out_BTF[b, t], decay_NF)


def _colours(num: int, share: float, draw: Draw) -> Tensor:
    """[num, F] colours of microphones for a share of the utterances, 0 for the others."""
    if not share:
        return torch.zeros(1, 1)
    return microphones(num, draw) * (draw.uniform((num, 1)) < share)


def _apply_gain(features_BTF: Tensor, gain_BF: Tensor) -> None:
    """Change the level in place; bins at the floor stay there, bins that fall below are lifted to it."""
    torch.threshold_(features_BTF, _AT_FLOOR, -math.inf)
    features_BTF.add_(gain_BF[:, None]).clamp_(min=SILENCE_FLOOR)


def _beyond(lens_B: Tensor, length: int) -> Tensor:
    """[B, length], true past the end."""
    return torch.arange(length) >= lens_B[:, None]
