"""The threshold of confidence: it spends the budget of lost commands, or less."""

import math

import numpy as np
import pytest

from todm.device.decision import confidence
from todm.device.recognizer import Transcript
from todm.export import calibration
from todm.export.calibration import Heard, Spoken, calibrate
from todm.export.decoding import threshold_line


def heard(commands, others=(), *, hours=0.0):
    return Heard(
        commands_N=np.sort(commands),
        others_M=np.sort(others),
        num_commands=len(commands),
        other_hours=hours,
    )


COMMANDS = np.linspace(0.5, 0.99, 100)


@pytest.mark.parametrize("max_lost", [0.0, 0.03, 0.1])
def test_no_more_than_the_budget_is_lost(max_lost):
    found = heard(COMMANDS)
    threshold = found.threshold(max_lost)
    assert found.lost(threshold) == pytest.approx(max_lost)
    assert threshold <= COMMANDS[round(100 * max_lost)] < threshold + 1e-4
    assert threshold == round(threshold, 4)


def test_less_is_lost_where_other_speech_shows_that_it_is_enough():
    others = [0.3, 0.4, 0.45]
    few = heard(COMMANDS, others, hours=0.1)  # too short to show anything
    assert few.threshold(0.1) == heard(COMMANDS).threshold(0.1)
    many = heard(COMMANDS, others, hours=2.0)  # three in two hours may be 4.4 an hour
    assert many.threshold(0.1) == 0.0
    some = heard(COMMANDS, others, hours=1.0)  # none in an hour may be 3.7, one 5.6
    assert some.threshold(0.1) == pytest.approx(0.4501)
    assert some.accepts(0.4501) == 0


def test_a_net_that_gets_nothing_right_has_no_threshold():
    assert heard([], [0.9] * 9, hours=1.0).threshold(0.03) == 0.0


def _transcript(text, *log_probs):
    tokens = tuple(f"\u2581{word}" for word in text.split())
    times = tuple(0.4 * i for i in range(len(tokens)))
    return Transcript(
        text=text, ids=(3,) * len(tokens), tokens=tokens, timestamps=times, log_probs=log_probs
    )


@pytest.fixture
def recognizer(monkeypatch):
    """A recogniser that is given its transcripts instead of samples; forms differ in how sure they are."""

    class Fake:
        pause_seconds = 0.6

        def __init__(self, bundle, *, precision):
            self.less = 0.5 if precision == "int8" else 0.0

        def transcribe_batch(self, recordings):
            return [
                _transcript(text, *(math.log(p) - self.less for p in probabilities))
                for text, probabilities in (found.said for found in recordings)
            ]

    monkeypatch.setattr(calibration, "StreamingRecognizer", Fake)


class _Second:
    """A second of audio in which the fake recogniser hears something."""

    def __init__(self, *said):
        self.said = said

    def __len__(self):
        return 16_000


def _spoken(text, recognised, *probabilities):
    return Spoken(text, lambda: _Second(recognised, probabilities))


def test_every_form_keeps_to_the_budget(recognizer):
    recordings = [_spoken("ON", "ON", p) for p in (0.6, 0.7, 0.8, 0.9)]
    recordings += [_spoken("ON", "OFF", 0.99), _spoken("", "OFF ON", 0.7, 0.6), _spoken("", "")]
    done = []
    found = calibrate(
        None, ["fp32", "int8"], recordings, max_lost=0.25, progress=lambda *at: done.append(at)
    )
    assert found.threshold == pytest.approx(confidence([math.log(0.7) - 0.5]), abs=1e-4)
    assert found.forms["int8"] == {
        "commands": 5,
        "exact": 4,
        "lost": 0.25,
        "other_hours": round(2 / 3600, 4),
        "accepts": 0,
    }
    assert (found.forms["fp32"]["lost"], found.forms["fp32"]["accepts"]) == (0.0, 1)
    rows = found.curve
    assert [row["threshold"] for row in rows] == sorted(row["threshold"] for row in rows)
    assert [row["lost"] for row in rows] == sorted(row["lost"] for row in rows)
    assert rows[0] == {"threshold": 0.0, "lost": 0.0, "accepts_per_hour": 1800.0}
    assert done[-1] == (14, 14)
    line = threshold_line(found)
    assert f"below {found.threshold:g} gives no text" in line
    assert "int8 loses 25.0% of 4 commands" in line
    assert "25.0% were allowed" in line
    assert threshold_line(None) == ""
