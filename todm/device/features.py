"""The device's features: 80 log-mel bins by kaldi-native-fbank, exactly as sherpa-onnx computes them.

16 kHz samples in [-1, 1]; 25 ms povey windows every 10 ms, frames centred as with
`snip_edges=False`; 20 to 7600 Hz; natural log; no dither and no normalisation.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from todm.device.audio import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    import kaldi_native_fbank

NUM_BINS = 80
FRAMES_PER_SECOND = 100
SILENCE = -15.9423852  # digital silence: the log of the float32 epsilon

Frames = NDArray[np.float32]


def fbank_options() -> "kaldi_native_fbank.FbankOptions":
    """The options sherpa-onnx gives to kaldi-native-fbank for a transducer."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.samp_freq = SAMPLE_RATE
    frame.dither = 0.0
    frame.snip_edges = False
    frame.frame_shift_ms = 10.0
    frame.frame_length_ms = 25.0
    frame.remove_dc_offset = True
    frame.preemph_coeff = 0.97
    frame.window_type = "povey"
    frame.round_to_power_of_two = True
    mel.num_bins = NUM_BINS
    mel.low_freq = 20.0
    mel.high_freq = -400.0
    return options


class OnlineFeatures:
    """Features of one stream, computed as audio arrives."""

    def __init__(self) -> None:
        import kaldi_native_fbank

        self._fbank = kaldi_native_fbank.OnlineFbank(fbank_options())
        self._taken = 0

    @property
    def num_ready(self) -> int:
        """The number of frames computed and not yet taken."""
        return self._fbank.num_frames_ready - self._taken

    def accept(self, samples_S: Samples) -> None:
        """Add audio: float32 [S] at 16 kHz, in [-1, 1]."""
        self._fbank.accept_waveform(SAMPLE_RATE, samples_S.tolist())

    def finish(self) -> None:
        """End the audio: the last frames become ready."""
        self._fbank.input_finished()

    def take(self, num_frames: int, *, advance: int | None = None) -> Frames:
        """The next frames, float32 [num_frames, 80]; the stream moves on by `advance` (default: all)."""
        frames = np.empty((num_frames, NUM_BINS), np.float32)
        for row in range(num_frames):
            frames[row] = self._fbank.get_frame(self._taken + row)
        advance = num_frames if advance is None else advance
        self._fbank.pop(advance)  # frees the memory that `get_frame` returns views of
        self._taken += advance
        return frames


def fbank(samples_S: Samples) -> Frames:
    """Features of a whole recording.

    Args:
        samples_S: float32 [S] at 16 kHz, in [-1, 1].

    Returns:
        float32 [T, 80], 100 frames a second.
    """
    online = OnlineFeatures()
    online.accept(samples_S)
    online.finish()
    return online.take(online.num_ready)
