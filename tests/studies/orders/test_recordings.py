"""Labels on disk, and noise at the ratio that it says."""

import json

import numpy as np
import pytest

from benchmarks.studies.orders import recordings
from benchmarks.studies.orders.recordings import Condition, Recording, conditions, disturbed, mix
from todm.device.audio import write_wav
from todm.errors import CorpusError


def _loudest(samples):
    return max(
        float((samples[i : i + 2048].astype(np.float64) ** 2).sum())
        for i in range(0, len(samples) - 2047, 2048)
    )


@pytest.fixture
def speech():
    rng = np.random.default_rng(1)
    swell = np.sin(np.linspace(0, 3.1, 20_000)) ** 2
    return (0.3 * rng.normal(size=20_000) * swell).astype(np.float32)


@pytest.mark.parametrize("snr", [6, 24])
def test_the_loudest_frames_have_the_ratio_and_the_peak_is_a_half(speech, snr):
    noise = np.random.default_rng(2).normal(size=50_000).astype(np.float32)
    mixed = mix(speech, noise, snr, np.random.default_rng(3))
    assert np.abs(mixed).max() == pytest.approx(0.5)
    # What is left without the speech, whose scale in the sum is that of the least squares.
    start = int(np.random.default_rng(3).integers(len(noise) - len(speech)))
    piece = noise[start : start + len(speech)]
    scales, *_ = np.linalg.lstsq(np.stack([speech, piece], 1).astype(np.float64), mixed, rcond=None)
    ratio = _loudest(scales[0] * speech) / _loudest(scales[1] * piece)
    assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.01)


def test_noise_shorter_than_the_speech_goes_round(speech):
    noise = np.ones(100, np.float32)
    assert len(mix(speech, noise, 6, np.random.default_rng(0))) == len(speech)


def test_a_recording_has_its_own_noise_which_is_always_the_same(speech):
    noise = np.random.default_rng(2).normal(size=50_000).astype(np.float32)
    first, other = (
        Recording(name=name, samples_S=speech, intent="orderDrink", slots={}) for name in "ab"
    )
    condition = Condition(noise="running_tap", snr_db=6)
    again = disturbed(first, noise, condition)
    np.testing.assert_array_equal(disturbed(first, noise, condition), again)
    assert np.abs(disturbed(other, noise, condition) - again).max() > 0.01
    np.testing.assert_array_equal(disturbed(first, noise, Condition()), speech)


def test_the_conditions_are_clean_and_each_noise_at_each_ratio():
    names = [str(c) for c in conditions()]
    assert len(names) == len(set(names)) == 1 + 3 * 7
    assert names[:2] == ["clean", "doing_the_dishes 6 dB"]
    assert [str(c) for c in conditions(["babble"], [6])] == ["clean", "babble 6 dB"]


def test_recordings_come_with_their_labels_in_the_order_of_names(tmp_path, speech):
    rows = [{"audio": f"{n}.wav", "intent": "orderDrink", "slots": {"size": n}} for n in "ba"]
    for row in rows:
        write_wav(tmp_path / row["audio"], speech)
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = recordings.read(tmp_path)
    assert [r.name for r in found] == ["a.wav", "b.wav"]
    assert found[0].slots == {"size": "a"}
    assert len(found[0].samples_S) == len(speech)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no labels.jsonl"),
        ("", "has no lines"),
        ('{"audio": "a.wav", "intent": "orderDrink"}\n', "labels.jsonl:1 is not a JSON table"),
        ("[]\n", "labels.jsonl:1 is not a JSON table"),
    ],
    ids=["no file", "empty", "no slots", "a list"],
)
def test_bad_labels_are_a_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(CorpusError, match=message):
        recordings.read(tmp_path)


def test_babble_is_of_the_speakers_of_whom_there_is_most(tmp_path, shared_data):
    found = recordings.babble(shared_data / "librispeech-mini" / "test")
    assert len(found) > 10 * 16_000
    assert np.abs(found).max() == pytest.approx(1)
    with pytest.raises(CorpusError, match="has 17 speakers: babble needs 18"):
        recordings.babble(shared_data / "librispeech-mini" / "test", 18)


def test_shared_data_that_is_not_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("TODM_SHARED_DATA", str(tmp_path))
    with pytest.raises(CorpusError, match="orders/dev does not exist"):
        recordings.shared("orders", "dev")
    monkeypatch.delenv("TODM_SHARED_DATA")
    with pytest.raises(CorpusError, match="TODM_SHARED_DATA is not set"):
        recordings.shared("orders", "dev")
