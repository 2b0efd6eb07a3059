"""What sherpa-onnx does at an endpoint, and export/sherpa_onnx/run.py on audio without end."""

import hashlib
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import transcribe_blocks

pytestmark = pytest.mark.runtime
RESET_AFTER = 12  # chunks


@pytest.fixture(scope="module")
def runner(repo):
    """The module `run`, which `pauses.py` beside it imports too."""
    pytest.importorskip("sherpa_onnx", reason="needs sherpa_onnx")
    file = repo / "export" / "sherpa_onnx" / "run.py"
    spec = importlib.util.spec_from_file_location("run_sherpa", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sparse_bundle(endpoint_bundle, tmp_path_factory):
    """The same with likelier blanks: its pauses are longer than a chunk, after which sherpa-onnx looks."""
    path = shutil.copytree(endpoint_bundle, tmp_path_factory.mktemp("sparse") / "bundle")
    joiner = onnx.load(path / "joiner.onnx")
    bias = next(t for t in joiner.graph.initializer if t.name == "output.bias")
    values = numpy_helper.to_array(bias).copy()
    values[0] += 4
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(joiner, path / "joiner.onnx")
    data = (path / "joiner.onnx").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["joiner.onnx"] = entry
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return path


@pytest.fixture
def paused(bursts):
    """Noise between silences of many lengths."""
    return bursts[25 * 16_000 :]


def _after_reset(recognizer, samples, num_resets):
    """The tokens from a chunk on, at which the stream is reset."""
    stream, count = recognizer.create_stream(), 0
    stream.accept_waveform(16_000, samples)
    before = 0
    while recognizer.is_ready(stream):
        if count == RESET_AFTER:
            before = len(recognizer.tokens(stream))
            for _ in range(num_resets):
                recognizer.reset(stream)
        recognizer.decode_stream(stream)
        count += 1
    return recognizer.tokens(stream)[before if num_resets == 0 else 0 :]


def test_reset_keeps_states_and_context(runner, sparse_bundle, paused):
    """If it did not, tokens would differ from those of a stream that was not reset."""
    recognizer = runner.recogniser(sparse_bundle, "fp32")
    wanted = _after_reset(recognizer, paused, 0)
    assert len(wanted) > 10
    assert _after_reset(recognizer, paused, 1) == wanted


def test_reset_encoder_is_for_resets_after_which_nothing_was_heard(runner, sparse_bundle, paused):
    recognizer = runner.recogniser(sparse_bundle, "fp32", reset_encoder=True)
    wanted = _after_reset(recognizer, paused, 0)
    assert _after_reset(recognizer, paused, 1) == wanted  # after words: nothing
    assert _after_reset(recognizer, paused, 2) != wanted


def _in_pieces(listener, samples):
    for start in range(0, len(samples), 1_600):
        yield from listener.accept(samples[start : start + 1_600])


def test_after_an_endpoint_a_new_stream_hears_the_last_moment_again(runner, sparse_bundle, paused):
    recognizer = runner.recogniser(sparse_bundle, "fp32")
    listener = runner.Listener(recognizer, replay=0.1)
    began = []
    for start, _, text in itertools.islice(_in_pieces(listener, paused), 3):
        began.append(listener.began)
        alone = runner.Listener(recognizer, replay=0.1)
        found = next(_in_pieces(alone, paused[began[-1] :]))
        assert found[2] == text
        assert found[0] + began[-1] / 16_000 == pytest.approx(start)
    assert began[0] == 0
    assert began == sorted(set(began))


def test_standard_input_gives_segments(repo, sparse_bundle, paused):
    script = repo / "export" / "sherpa_onnx" / "run.py"
    raw = np.rint(2**15 * paused).astype("<i2").tobytes()
    done = subprocess.run(
        [sys.executable, script, sparse_bundle, "-"], input=raw, capture_output=True
    )
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    recognizer = StreamingRecognizer(open_bundle(sparse_bundle))
    wanted = next(iter(transcribe_blocks(recognizer, [paused])))
    assert lines[0] == [f"{wanted.start:.2f}", f"{wanted.end:.2f}", wanted.text], done.stderr
    assert len(lines) > 3
    times = [float(time) for start, end, _ in lines for time in (start, end)]
    assert times == sorted(times)
