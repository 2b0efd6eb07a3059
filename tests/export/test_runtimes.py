"""The bundle in sherpa-onnx and in plain onnxruntime, with nothing of todm between."""

import json
import subprocess
import sys

import numpy as np
import pytest

from todm.device.audio import read_audio
from todm.device.bundle import open_bundle
from todm.device.recognizer import OfflineRecognizer, StreamingRecognizer, pad_tail
from todm.export import sherpa
from todm.export.sample import sample_signal
from todm.export.verify import three_streams


@pytest.fixture(scope="module")
def bundle(toy_bundle):
    return open_bundle(toy_bundle)


@pytest.fixture(scope="module")
def speech(toy_bundle):
    return read_audio(toy_bundle / "test_wavs" / "0.wav")


@pytest.mark.runtime
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8.rr"])
def test_streaming_equals_sherpa(bundle, precision, skip_elsewhere):
    skip_elsewhere(precision)
    speech = sample_signal(5.0)[::-1].copy()  # not what the export was checked with
    ours = StreamingRecognizer(bundle, precision=precision).transcribe(speech)
    recognizer = sherpa.online(bundle, precision)
    theirs = sherpa.decode_online(recognizer, [pad_tail(speech, bundle.tail_seconds)])[0]
    assert len(ours.tokens) > 10
    assert ours.tokens == theirs.tokens
    assert ours.text == theirs.text
    np.testing.assert_allclose(ours.timestamps, theirs.timestamps, atol=1e-3)
    np.testing.assert_allclose(
        ours.log_probs, theirs.log_probs, atol=1e-4 if precision == "fp32" else 5e-2
    )


@pytest.mark.runtime
def test_offline_batch_of_three_equals_sherpa(bundle, speech):
    recordings = three_streams(speech)
    ours = [OfflineRecognizer(bundle).transcribe(r) for r in recordings]
    theirs = sherpa.decode_offline(sherpa.offline(bundle, "fp32"), recordings)
    assert [t.tokens for t in ours] == [t.tokens for t in theirs]
    np.testing.assert_allclose(ours[1].log_probs, theirs[1].log_probs, atol=1e-4)


@pytest.mark.runtime
@pytest.mark.parametrize("silence", [0.0, 1.0], ids=["speech", "silence-after"])
def test_offline_equals_streaming(bundle, speech, silence):
    # Silence of our own after the speech: features at a recording's very end mirror it.
    padded = pad_tail(speech, silence + bundle.tail_seconds)
    streamed = StreamingRecognizer(bundle).transcribe(padded, tail_seconds=0)
    whole = OfflineRecognizer(bundle).transcribe(padded)
    shared = len(streamed.tokens)
    assert whole.tokens[:shared] == streamed.tokens
    np.testing.assert_allclose(whole.log_probs[:shared], streamed.log_probs, atol=1e-4)


@pytest.mark.runtime
def test_beam_search_equals_sherpa(bundle, speech):
    import sherpa_onnx

    files = {k: str(bundle.path / f"{k}.onnx") for k in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(bundle.path / "tokens.txt"),
        **files,
        num_threads=1,
        decoding_method="modified_beam_search",
        max_active_paths=4,
    )
    theirs = sherpa.decode_online(recognizer, [pad_tail(speech, bundle.tail_seconds)])[0]
    ours = StreamingRecognizer(bundle, beam=4).transcribe(speech)
    assert ours.tokens == theirs.tokens


def test_carried_state_matters(bundle, speech):
    """Otherwise the comparisons above would not see a state that is lost."""
    recognizer = StreamingRecognizer(bundle)
    whole = recognizer.transcribe(speech)
    stream = recognizer.create_stream()
    stream.accept(pad_tail(speech, bundle.tail_seconds))
    stream.finish()
    while recognizer.step([stream]):
        stream.states = [np.zeros_like(s) for s in stream.states]
    assert recognizer.result(stream).tokens != whole.tokens


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("target", "options", "key"),
    [
        ("sherpa_onnx", [], ("fp32", "streaming")),
        ("sherpa_onnx", ["--precision", "int8.rr"], ("int8.rr", "streaming")),
        ("sherpa_onnx", ["--offline"], ("fp32", "offline")),
        ("onnx", [], ("fp32", "streaming")),
    ],
    ids=["sherpa-streaming", "sherpa-int8", "sherpa-offline", "onnxruntime"],
)
def test_run_script_of_the_target(repo, toy_bundle, target, options, key):
    wav = toy_bundle / "test_wavs" / "0.wav"
    expected = json.loads((toy_bundle / "test_wavs" / "expected.json").read_text())
    command = [sys.executable, "run.py", str(toy_bundle), str(wav), *options]
    done = subprocess.run(
        command, cwd=repo / "export" / target, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{wav}\t{expected[key[0]][key[1]]['text']}"
