"""Streams: pieces, batches, precisions, and audio that says nothing."""

import dataclasses
import json

import numpy as np
import pytest

from todm.device.audio import read_audio
from todm.device.bundle import open_bundle
from todm.device.decode import log_softmax
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer, detokenize, pad_tail
from todm.device.timing import time_bundle


@pytest.fixture(scope="module")
def bundle(golden):
    return open_bundle(golden)


@pytest.fixture(scope="module")
def speech(golden):
    return read_audio(golden / "test_wavs" / "0.wav")


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "test_wavs" / "expected.json").read_text())


# Full-range int8 overflows on x86 without VNNI, so its result depends on the processor.
@pytest.mark.parametrize("precision", ["fp32", "int8.rr"])
def test_streaming_gives_what_the_bundle_promises(bundle, speech, expected, precision):
    found = StreamingRecognizer(bundle, precision=precision).transcribe(speech)
    wanted = expected[precision]["streaming"]
    assert list(found.tokens) == wanted["tokens"]
    assert list(found.timestamps) == wanted["timestamps"]
    assert found.text == wanted["text"]
    np.testing.assert_allclose(
        found.log_probs, wanted["log_probs"], atol=1e-3 if precision == "fp32" else 5e-2
    )


def test_offline_gives_what_the_bundle_promises(bundle, speech, expected):
    found = OfflineRecognizer(bundle).transcribe(speech)
    assert list(found.tokens) == expected["fp32"]["offline"]["tokens"]


def test_full_range_int8_runs(bundle, speech):
    assert StreamingRecognizer(bundle, precision="int8").transcribe(speech).tokens


def test_pieces_as_from_a_microphone(bundle, speech):
    recognizer = StreamingRecognizer(bundle)
    stream = recognizer.create_stream()
    lengths = []
    padded = pad_tail(speech, bundle.tail_seconds)
    for start in range(0, len(padded), 1600):
        stream.accept(padded[start : start + 1600])
        recognizer.step([stream])
        lengths.append(len(recognizer.result(stream).tokens))
    stream.finish()
    while recognizer.step([stream]):
        pass
    assert recognizer.result(stream) == recognizer.transcribe(speech)
    assert lengths == sorted(lengths)
    assert 0 < lengths[len(lengths) // 2] < lengths[-1]


@pytest.mark.parametrize("beam", [1, 4])
def test_batch_of_three_equals_one_by_one(bundle, speech, beam):
    recognizer = StreamingRecognizer(bundle, beam=beam)
    recordings = [speech, speech[20_000:], speech[:15_000]]
    for batched, recording in zip(recognizer.transcribe_batch(recordings), recordings, strict=True):
        alone = recognizer.transcribe(recording)
        assert batched.tokens == alone.tokens
        assert batched.timestamps == alone.timestamps
        np.testing.assert_allclose(batched.log_probs, alone.log_probs, atol=1e-5)


@pytest.mark.parametrize("num_samples", [0, 1, 100, 5_000])
@pytest.mark.parametrize("kind", [StreamingRecognizer, OfflineRecognizer])
def test_very_short_audio(bundle, num_samples, kind):
    transcript = kind(bundle).transcribe(np.zeros(num_samples, np.float32))
    assert isinstance(transcript.text, str)


def test_without_a_tail_the_end_is_lost(bundle, speech):
    cut = speech[: 3 * 16_000]  # the file has its tail already
    recognizer = StreamingRecognizer(bundle)
    lost = recognizer.transcribe(cut, tail_seconds=0)
    assert len(lost.tokens) < len(recognizer.transcribe(cut).tokens)


def test_beam_of_one_hypothesis_is_greedy(bundle, speech):
    from todm.device.decode import BeamDecoder

    recognizer = StreamingRecognizer(bundle)
    greedy = recognizer.transcribe(speech)
    networks = bundle.networks()
    recognizer._decoder = BeamDecoder(networks, 2, bundle.path, max_active=1)
    assert recognizer.transcribe(speech).tokens == greedy.tokens


@pytest.mark.parametrize("kind", [StreamingRecognizer, OfflineRecognizer])
def test_the_context_starts_again_after_the_seconds_of_the_bundle(bundle, speech, kind):
    def tokens(**info):
        changed = dataclasses.replace(bundle, info={**bundle.info, **info})
        return kind(changed).transcribe(speech).tokens

    assert tokens(endpoint_seconds=9.0) == tokens()
    assert tokens(endpoint_seconds=0.2) != tokens()


def test_beam_finds_no_worse_paths(bundle, speech):
    """With the scores of merged paths summed, more hypotheses never lose probability."""
    scores = []
    for beam in (1, 8):
        recognizer = StreamingRecognizer(bundle, beam=max(beam, 2))
        recognizer._decoder._max_active = beam
        stream = recognizer.create_stream()
        stream.accept(speech)
        while recognizer.step([stream]):
            pass
        scores.append(max(h.score for h in stream.decoder_state.hypotheses))
    assert scores[1] >= scores[0]


def test_first_symbol_comes_from_the_start_context(bundle):
    """-1 is nothing, not the last row of the embedding."""
    decoder = bundle.session("decoder.onnx")
    names = [p.name for p in decoder.get_inputs()]
    run = {k: decoder.run(None, {names[0]: np.array([k])})[0] for k in ((-1, 0), (23, 0), (0, 0))}
    assert not np.allclose(run[(-1, 0)], run[(23, 0)])
    assert not np.allclose(run[(-1, 0)], run[(0, 0)])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["▁GO", "▁LE", "FT"], "GO LEFT"),
        ([], ""),
        (["▁", "<0xC3>", "<0xA9>", "T", "É"], "éTÉ"),
        (["<0xC3>"], ""),
    ],
    ids=["pieces", "nothing", "bytes", "half-a-character"],
)
def test_detokenize(tokens, text):
    assert detokenize(tokens) == text


def test_log_softmax_of_large_logits():
    found = log_softmax(np.array([[1e4, 0.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(found, [[0.0, -1e4], [-np.log(2), -np.log(2)]])


def test_timing_has_all_figures(bundle, speech):
    timing = time_bundle(bundle, [speech], precision="int8", repeats=1)
    assert timing.chunk_seconds == 0.32
    assert 0 < timing.p50_ms <= timing.p95_ms
    assert timing.rtf > 0
    assert timing.audio_seconds == pytest.approx(len(speech) / 16_000 + 0.68)
