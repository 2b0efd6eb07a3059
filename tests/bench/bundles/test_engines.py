from pathlib import Path

import pytest

from todm.bench.bundles.engines import Onnxruntime, open_engine
from todm.device.audio import read_audio
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer, pad_tail

GOLDEN = Path(__file__).parents[2] / "device/golden"
WAV = GOLDEN / "test_wavs/0.wav"


class _Clock:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.runtime
def test_an_engine_counts_every_chunk_once():
    bundle, clock = open_bundle(GOLDEN), _Clock()
    engine = Onnxruntime(bundle, precision="fp32", num_threads=1, clock=clock)
    samples = read_audio(WAV)
    found = engine.decode(samples)
    recognizer = StreamingRecognizer(bundle)
    spec = recognizer.spec
    stream = recognizer.create_stream()
    stream.accept(pad_tail(samples, bundle.tail_seconds))
    stream.finish()
    steps = 0
    while recognizer.step([stream]):
        steps += 1
    assert found.chunks == [1.0] * steps
    assert found.seconds == 1.0 + steps + 1.0  # features, chunks, and the look that finds no more
    assert found.text == recognizer.result(stream).text
    first = min(recognizer.result(stream).timestamps)
    shift = spec.shift_frames / 100
    assert found.first == pytest.approx((first // shift + 1) * shift)


@pytest.mark.runtime
def test_sherpa_onnx_gives_the_same_text_and_first_symbol():
    pytest.importorskip("sherpa_onnx")
    bundle, samples = open_bundle(GOLDEN), read_audio(WAV)
    ours, theirs = (
        open_engine(name, bundle, precision="fp32", num_threads=1).decode(samples)
        for name in ("onnxruntime", "sherpa-onnx")
    )
    assert theirs.text == ours.text
    assert len(theirs.chunks) == len(ours.chunks)
    assert theirs.first == ours.first
