import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile
import torch

from todm.asr.data.features import (
    MIN_SAMPLES,
    NUM_BINS,
    PADDING,
    SILENCE_FLOOR,
    fbank,
    num_frames,
    pad,
)
from todm.errors import CorpusError


def device_fbank(wave, chunk=None):
    """What sherpa-onnx computes, all at once or as samples come in."""
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400
    computer = knf.OnlineFbank(options)
    for start in range(0, len(wave), chunk or len(wave)):
        computer.accept_waveform(16000, wave[start : start + (chunk or len(wave))].tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def speech(shared_data, corpus):
    paths = sorted((shared_data / corpus / "dev").rglob("*.opus"))[::40][:3]
    return [soundfile.read(p, dtype="float32")[0] for p in paths]


@pytest.mark.parametrize("corpus", ["librispeech-mini", "fsdd-connected"])
def test_features_equal_the_devices_on_real_speech(shared_data, corpus):
    for wave in speech(shared_data, corpus):
        ours, device = fbank(torch.from_numpy(wave)).numpy(), device_fbank(wave)
        assert ours.shape == device.shape
        assert np.abs(ours - device).max() < 1e-3


def test_features_equal_the_devices_as_samples_come_in(shared_data):
    wave = speech(shared_data, "librispeech-mini")[0]
    assert np.abs(fbank(torch.from_numpy(wave)).numpy() - device_fbank(wave, 1234)).max() < 1e-3


def test_digital_silence_lies_on_the_floor():
    assert fbank(torch.zeros(8000)).allclose(torch.tensor(SILENCE_FLOOR))
    assert pytest.approx(-15.942, abs=1e-3) == SILENCE_FLOOR
    assert pytest.approx(-23.0258509, abs=1e-6) == PADDING


@pytest.mark.parametrize("size", [400, 401, 479, 480, 559, 560, 16000])
def test_the_number_of_frames_is_known_beforehand(size):
    assert fbank(torch.randn(size)).shape == (num_frames(size), NUM_BINS)


def test_a_batch_is_its_utterances_padded():
    features = [torch.randn(n, NUM_BINS) for n in (4, 9, 6)]
    for row_TF, frames_TF in zip(pad(features), features, strict=True):
        assert row_TF[: len(frames_TF)].equal(frames_TF)
        assert (row_TF[len(frames_TF) :] == PADDING).all()


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (torch.zeros(MIN_SAMPLES - 1), 16000, "too few"),
        (torch.zeros(8000), 8000, "resample"),
        (torch.zeros(2, 8000), 16000, "one channel"),
    ],
    ids=["short", "rate", "stereo"],
)
def test_what_cannot_be_framed_is_a_clear_error(wave, rate, words):
    with pytest.raises(CorpusError, match=words):
        fbank(wave, rate)
