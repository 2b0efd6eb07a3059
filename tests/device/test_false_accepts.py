"""False accepts: the sounds, the counting, the interval, and what goes into a bundle's card."""

import json
import shutil
import types

import numpy as np
import pytest
import soundfile
from scipy import stats

from todm.cli.main import main
from todm.device import false_accepts
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import Segment, Word
from todm.errors import CorpusError
from todm.export.measured import with_section


@pytest.fixture
def golden(repo):
    return repo / "tests" / "device" / "golden"


@pytest.fixture
def spoilable(golden, tmp_path):
    return shutil.copytree(golden, tmp_path / "bundle")


@pytest.mark.parametrize("count", [0, 1, 7, 250])
def test_the_interval_is_that_of_the_gamma_quantiles(count):
    low, high = false_accepts.poisson_interval(count)
    assert high == pytest.approx(stats.gamma.ppf(0.975, count + 1))
    assert low == pytest.approx(stats.gamma.ppf(0.025, count) if count else 0)


def segment(text, start, *confidences):
    words = tuple(
        Word(text=w, start=start, end=start, confidence=c)
        for w, c in zip(text.split(), confidences, strict=True)
    )
    return Segment(
        text=text,
        start=start,
        end=start,
        confidence=min(confidences),
        words=words,
        tokens=(),
        timestamps=(),
        log_probs=(),
    )


def test_counting():
    found = [segment("a b", 0, 0.95, 0.9), segment("a b", 9, 0.95, 0.8), segment("c", 20, 0.1)]
    figures = false_accepts.count(found, 30.0)
    assert (figures.accepts, figures.words, figures.sure) == (3, 5, 1)
    assert figures.per_hour == 6.0
    assert figures.common == [("a b", 2), ("c", 1)]
    assert figures.low < 6 < figures.high


def test_below_the_threshold_is_no_accept():
    found = [segment("a", 0, 0.95), segment("b", 9, 0.8), segment("b", 20, 0.8)]
    figures = false_accepts.count(found, 30.0, threshold=0.9, thresholds=[0.0, 0.8, 0.9, 1.0])
    assert (figures.accepts, figures.words, figures.per_hour) == (1, 1, 2.0)
    assert figures.common == [("a", 1)]
    assert [point["per_hour"] for point in figures.curve] == [6.0, 6.0, 2.0, 0.0]


@pytest.mark.parametrize("kind", false_accepts.noises())
def test_noise_is_finite_loud_as_asked_and_never_twice_the_same(kind):
    make = false_accepts.noises()[kind]
    clips = [make(np.random.default_rng(seed), 160_000) for seed in range(2)]
    assert not np.allclose(clips[0], clips[1])
    for clip in clips:
        level = false_accepts._at_level(clip, -40.0)
        assert level.dtype == np.float32
        assert level.shape == (160_000,)
        assert 20 * np.log10(np.sqrt(np.mean(level**2))) == pytest.approx(-40, abs=0.5)


@pytest.mark.parametrize(
    ("kind", "slope"), [("white noise", 0), ("pink noise", -3), ("brown noise", -6)]
)
def test_colours_fall_by_so_many_decibels_an_octave(kind, slope):
    power = (
        np.abs(np.fft.rfft(false_accepts.noises()[kind](np.random.default_rng(3), 160_000))) ** 2
    )
    octaves = [10 * np.log10(power[a * 10 : 2 * a * 10].mean()) for a in (100, 200, 400, 800, 1600)]
    assert np.diff(octaves) == pytest.approx(slope, abs=0.6)


def test_levels_are_those_of_the_clips(monkeypatch):
    heard = []

    def transcribe(recognizer, blocks, *, threshold):
        assert threshold == 0
        heard.extend(blocks)
        found = [segment("x", 25.0, 1.0), segment("x", 5.0, 1.0), segment("x", 59.9, 1.0)]
        return [*found, segment("x", 15.0, 0.4)]  # which is below the threshold

    monkeypatch.setattr(false_accepts, "transcribe_blocks", transcribe)
    recognizer = types.SimpleNamespace(threshold=0.5)
    figures = false_accepts.score_noise(recognizer, "white noise", minutes=0.9)
    assert figures.levels == {"-55": 1, "-40": 0, "-25": 2}
    assert figures.minutes == 1.0
    loud = [20 * np.log10(np.sqrt(np.mean(clip**2))) for clip in heard]
    assert loud == pytest.approx([-55, -40, -25] * 2, abs=0.5)


def test_speech_until_the_minutes_are_full(golden):
    recognizer = StreamingRecognizer(open_bundle(golden))
    drawn = []

    def utterances():
        for number in range(100):
            drawn.append(number)
            yield np.zeros(32_000, np.float32)

    figures = false_accepts.score_speech(recognizer, utterances(), minutes=0.1)
    assert (len(drawn), figures.minutes) == (2, 0.1)
    with pytest.raises(CorpusError, match="no speech"):
        false_accepts.score_speech(recognizer, [], minutes=1)


HEAD = "## False accepts"


def test_card_has_one_section_before_how_to_run_it():
    card = "# Name\n\ntext\n\n## Run it\nrun\n"
    once = with_section(card, HEAD, "## False accepts\nfigures\n\n")
    assert once == "# Name\n\ntext\n\n## False accepts\nfigures\n\n## Run it\nrun\n"
    again = with_section(once, HEAD, "## False accepts\nothers\n\n")
    assert again == once.replace("figures", "others")
    assert with_section("bare\n", HEAD, "## False accepts\nx\n") == "bare\n## False accepts\nx\n"


@pytest.mark.runtime
def test_the_verb_writes_figures_and_card(spoilable, tmp_path, capsys):
    speech = tmp_path / "talk"
    speech.mkdir()
    soundfile.write(speech / "a.wav", np.zeros(80_000, np.float32), 16_000)
    arguments = ["evaluate", str(spoilable), str(speech), "--reject", "--minutes", "0.05", "--card"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "false_accepts.json").read_text())
    kinds = found["results"]["fp32"]
    assert list(kinds) == ["silence", *false_accepts.noises(), "speech (talk)"]
    printed = capsys.readouterr().out
    assert printed in (spoilable / "README.md").read_text()
    open_bundle(spoilable)  # with the new hash of its card
    metrics = json.loads((spoilable / "manifest.json").read_text())["metrics"]
    assert metrics["false_accepts"] == found["results"]
    # The card is not what was scored: a second call finds the figures.
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert (spoilable / "README.md").read_text().count("## False accepts") == 1


def test_minutes_that_are_none(golden, capsys):
    assert main(["evaluate", str(golden), "--reject", "--minutes", "0"]) == 2
    assert "--minutes is 0.0" in capsys.readouterr().err
