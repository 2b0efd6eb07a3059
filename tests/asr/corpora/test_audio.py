import numpy as np
import pytest
import soundfile

from todm.asr.corpora import audio
from todm.asr.corpora.config import DataConfig
from todm.asr.corpora.utterances import Candidate, Rejected


def look(path, **more):
    settings = {k: more.pop(k) for k in ("channel", "max_eval_seconds") if k in more}
    candidate = Candidate(**({"id": "a", "split": "train", "path": path, "text": "x"} | more))
    limits = audio.Limits.of(DataConfig(**settings))
    return audio.examine(candidate, limits=limits, decode=True)


@pytest.mark.parametrize(
    ("default", "named", "used"),
    [(None, None, (0, 1, 2)), (1, None, (1,)), (1, (2,), (2,)), (None, (0, 2), (0, 2))],
)
def test_channels(tone, default, named, used):
    assert look(tone("a.wav", channels=3), channel=default, channels=named).channels == used


def test_a_channel_that_is_not_there(tone):
    assert look(tone("a.wav"), channel=1).reason == "channel missing"


def test_channels_that_cancel_are_silence(tmp_path):
    wave = np.random.default_rng(0).normal(size=16000) * 0.1
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], 1), 16000, "FLOAT")
    assert look(tmp_path / "a.wav").reason == "audio silent"
    assert look(tmp_path / "a.wav", channel=0).channels == (0,)


@pytest.mark.parametrize(
    ("start", "seconds", "span"),
    [
        (0.0, None, (0, 32000)),
        (1.5, None, (24000, 8000)),
        (1.0, 1.05, (16000, 16000)),  # a manifest may round
        (1.0, 1.2, None),
        (2.0, None, None),
        (5.0, 1.0, None),
    ],
)
def test_parts_of_files(tone, start, seconds, span):
    found = look(tone("a.wav", 2.0), start=start, seconds=seconds)
    if span is None:
        assert found.reason == "segment outside the recording"
    else:
        assert (found.start, found.num_samples) == span


@pytest.mark.parametrize(
    ("split", "seconds", "reason"),
    [
        ("train", 21, "audio too long"),
        ("test", 21, None),
        ("test", 61, "audio too long"),
        ("train", 0.2, "audio too short"),
        ("dev", 0.2, None),
        ("dev", 0.02, "audio too short"),
    ],
)
def test_limits_of_training_do_not_shorten_the_test(tone, split, seconds, reason):
    found = look(tone("a.flac", seconds), split=split)
    assert (found.reason if isinstance(found, Rejected) else None) == reason
