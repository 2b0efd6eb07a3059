"""txt, srt and json, segment by segment."""

import io
import json

import pytest

from todm.device.formats import open_writer
from todm.device.segments import Segment, Word


def segment(text, start, end):
    word = Word(text=text, start=start, end=end, confidence=0.5)
    return Segment(
        text=text, start=start, end=end, confidence=0.5, words=(word,),
        tokens=(f"▁{text}",), timestamps=(start,), log_probs=(-0.69,),
    )  # fmt: skip


SEGMENTS = [segment("ÉINS", 0.2, 0.24), segment("ZWEI", 3661.5, 3663.0)]


def written(form, segments, *, lines=False, **end):
    stream = io.StringIO()
    writer = open_writer(form, stream, "a b.wav", lines=lines)
    for segment in segments:
        writer.add(segment)
    writer.close(3700.0, **end)
    return stream.getvalue()


def test_txt_is_a_line_a_recording_or_a_line_a_segment():
    assert written("txt", SEGMENTS) == "a b.wav\tÉINS ZWEI\n"
    assert written("txt", SEGMENTS, lines=True) == "ÉINS\nZWEI\n"


def test_txt_of_nothing():
    assert written("txt", []) == "a b.wav\t\n"
    assert written("txt", [], error="damaged") == ""


def test_srt():
    assert written("srt", SEGMENTS) == (
        "1\n00:00:00,200 --> 00:00:00,700\nÉINS\n\n2\n01:01:01,500 --> 01:01:03,000\nZWEI\n\n"
    )


@pytest.mark.parametrize("num", [0, 1, 2])
def test_json_is_one_line_with_all_there_is(num):
    text = written("json", SEGMENTS[:num], error="damaged after 1 s")
    assert text.count("\n") == 1
    found = json.loads(text)
    assert found["audio"] == "a b.wav"
    assert found["seconds"] == 3700.0
    assert found["error"] == "damaged after 1 s"
    assert found["text"] == " ".join(s.text for s in SEGMENTS[:num])
    assert [s["text"] for s in found["segments"]] == [s.text for s in SEGMENTS[:num]]
    if num:
        word = {"text": "ÉINS", "start": 0.2, "end": 0.24, "confidence": 0.5}
        assert found["segments"][0]["words"] == [word]
