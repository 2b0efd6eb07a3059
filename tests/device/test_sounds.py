"""Endless sounds: any part equals that part of the whole, at the level that was asked for."""

import numpy as np
import pytest

from todm.device import sounds

VOICES = [np.random.default_rng(n).normal(size=7000 + 37 * n).astype(np.float32) for n in range(4)]
SOUNDS = {
    "silence": sounds.silence(),
    "noise": sounds.white_noise(-60.0),
    "hum": sounds.hum(-40.0),
    "babble": sounds.babble(-45.0, VOICES),
    "looped": sounds.looped("a voice", VOICES[0]),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize(("start", "num"), [(0, 1), (159_999, 2), (160_000, 480), (7, 330_001)])
def test_a_part_is_that_part_of_the_whole(name, start, num):
    whole = SOUNDS[name].part(0, start + num)
    part = SOUNDS[name].part(start, num)
    assert part.dtype == np.float32
    assert part.shape == (num,)
    np.testing.assert_allclose(part, whole[start:], atol=1e-7)


@pytest.mark.parametrize("name", sorted(SOUNDS.keys() - {"silence"}))
def test_the_level_is_the_one_it_names(name):
    sound = SOUNDS[name]
    samples = sound.part(3_600 * 16_000, 320_000)  # an hour later
    assert sounds.decibels(sounds.rms(samples)) == pytest.approx(sound.level, abs=0.7)


def test_silence_is_digital():
    assert SOUNDS["silence"].level is None
    assert not SOUNDS["silence"].part(5, 1000).any()


def test_a_pause_does_not_lower_the_level_of_speech():
    loud = 0.1 * np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    paused = np.concatenate([np.zeros(48_000, np.float32), loud])
    assert sounds.speech_level(paused) == pytest.approx(-20, abs=0.5)
    assert sounds.speech_level(paused) == pytest.approx(sounds.speech_level(loud), abs=0.2)
