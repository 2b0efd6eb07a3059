"""export/onnx/run.cc, built by its own script: the transcripts of the device, and nothing unchecked."""

import io
import itertools
import json
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from todm.artifact import MANIFEST
from todm.device.audio import read_audio, write_wav
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import transcribe_blocks

pytestmark = pytest.mark.cpp


@pytest.fixture(scope="module")
def program(repo, tmp_path_factory):
    """The runner, compiled."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++: apt-get install g++")
    out = tmp_path_factory.mktemp("cpp") / "run"
    done = subprocess.run(
        ["env", f"PYTHON={sys.executable}", str(repo / "export" / "onnx" / "setup.sh"), str(out)],
        capture_output=True,
        text=True,
    )
    if "no onnxruntime_c_api.h" in done.stderr:
        pytest.skip("needs onnxruntime's headers: unpack a release and set ORT_HOME to it")
    assert done.returncode == 0, done.stderr
    return out


def _run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8.rr"])
def test_its_transcript_is_the_devices(program, golden_bundle, precision):
    wav = golden_bundle / "test_wavs" / "0.wav"
    wanted = StreamingRecognizer(open_bundle(golden_bundle), precision=precision).transcribe(
        read_audio(wav)
    )
    assert len(wanted.tokens) > 10
    done = _run(program, golden_bundle, wav, "--precision", precision)
    assert done.stdout == f"{wav}\t{wanted.text}\n", done.stderr


def test_words_and_several_recordings(program, trained_bundle, tmp_path):
    samples = read_audio(trained_bundle / "test_wavs" / "0.wav")
    paths = [tmp_path / "whole.wav", tmp_path / "stereo.wav", tmp_path / "silence.wav"]
    write_wav(paths[0], samples)
    soundfile.write(paths[1], np.stack([samples, samples], 1), 16_000, subtype="PCM_16")
    write_wav(paths[2], np.zeros(16_000, np.float32))
    recognizer = StreamingRecognizer(open_bundle(trained_bundle))
    done = _run(program, trained_bundle, *paths)
    wanted = [recognizer.transcribe(read_audio(p)).text for p in paths]
    assert wanted[0]
    assert done.stdout.splitlines() == [
        f"{p}\t{text}" for p, text in zip(paths, wanted, strict=True)
    ]


def test_real_speech(program, golden_bundle, shared_data, tmp_path):
    """Ten seconds and more of it, on weights that emit at nearly every frame."""
    speech = max(shared_data.glob("librispeech-mini/**/*.opus"), key=lambda p: p.stat().st_size)
    wav = tmp_path / "a.wav"
    write_wav(wav, read_audio(speech))
    wanted = StreamingRecognizer(open_bundle(golden_bundle)).transcribe(read_audio(wav))
    assert len(wanted.tokens) > 50
    assert _run(program, golden_bundle, wav).stdout == f"{wav}\t{wanted.text}\n"


def _segments(bundle, samples):
    """What the program prints for a stream."""
    found = transcribe_blocks(StreamingRecognizer(open_bundle(bundle)), [samples])
    return [f"{s.start:.2f}\t{s.end:.2f}\t{s.text}" for s in found]


def _fields(lines):
    return [line.split("\t") for line in lines]


def _raw(samples):
    return np.rint(2**15 * samples).astype("<i2").tobytes()


def _pipe(program, bundle, data, sizes=(1 << 20,)):
    """The lines it prints for bytes that arrive in pieces."""
    process = subprocess.Popen([program, bundle, "-"], stdin=-1, stdout=-1, stderr=-1, bufsize=0)
    sizes = itertools.cycle(sizes)
    while data:
        size = next(sizes)
        process.stdin.write(data[:size])
        data = data[size:]
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    return out.decode().splitlines()


def test_the_context_starts_again_as_on_the_device(
    program, golden_bundle, endpoint_bundle, bursts, tmp_path
):
    wav = tmp_path / "a.wav"
    write_wav(wav, bursts)
    texts = {
        b: StreamingRecognizer(open_bundle(b)).transcribe(bursts).text
        for b in (golden_bundle, endpoint_bundle)
    }
    assert texts[golden_bundle] != texts[endpoint_bundle]
    for bundle, text in texts.items():
        assert _run(program, bundle, wav).stdout == f"{wav}\t{text}\n"


@pytest.mark.parametrize("sizes", [(1 << 20,), (1, 2, 3, 1281, 5, 4001)], ids=["at once", "odd"])
def test_a_stream_has_the_segments_of_the_device(program, endpoint_bundle, bursts, sizes):
    wanted = _segments(endpoint_bundle, bursts)
    assert len(wanted) >= 5
    assert max(float(end) - float(start) for start, end, _ in _fields(wanted)) > 19  # by its length
    assert _pipe(program, endpoint_bundle, _raw(bursts), sizes) == wanted


@pytest.fixture
def vector_program(repo, tmp_path):
    """Prints the confidence of each line of log-probabilities; needs no onnxruntime."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++: apt-get install g++")
    source = """
    #include <iostream>
    #include <sstream>
    #include "segments.h"
    int main() {
      for (std::string line; std::getline(std::cin, line);) {
        std::istringstream values(line);
        std::vector<Symbol> symbols;
        for (double value; values >> value;) symbols.push_back({3, 0, value});
        std::printf("%.12f\\n", confidence(symbols, symbols.size()));
      }
    }
    """
    (tmp_path / "vectors.cc").write_text(source)
    command = ["g++", "-std=c++17", "-I", repo / "export" / "onnx", "vectors.cc", "-o", "vectors"]
    subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path / "vectors"


def test_confidence_equals_the_devices(vector_program, repo):
    vectors = json.loads((repo / "tests" / "device" / "confidences.json").read_text())
    lines = "".join(" ".join(map(repr, v["log_probs"])) + "\n" for v in vectors)
    done = subprocess.run([vector_program], input=lines, capture_output=True, text=True, check=True)
    found = [float(line) for line in done.stdout.splitlines()]
    assert found == pytest.approx([v["confidence"] for v in vectors], abs=1e-8)


@pytest.mark.parametrize("given", [True, False], ids=["flag", "manifest"])
def test_a_segment_below_the_threshold_gives_no_text(
    program, endpoint_bundle, bursts, tmp_path, given
):
    segments = list(transcribe_blocks(StreamingRecognizer(open_bundle(endpoint_bundle)), [bursts]))
    sure = sorted(s.confidence for s in segments)
    threshold = (sure[0] + sure[-1]) / 2
    folder, flags = endpoint_bundle, ["--threshold", str(threshold)]
    if not given:
        folder, flags = shutil.copytree(endpoint_bundle, tmp_path / "bundle"), []
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["info"]["decision_threshold"] = threshold
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    wav = tmp_path / "a.wav"
    write_wav(wav, bursts)
    wanted = [s for s in segments if s.confidence >= threshold]
    assert 0 < len(wanted) < len(segments)
    done = _run(program, folder, wav, *flags)
    assert done.stdout == f"{wav}\t{' '.join(s.text for s in wanted)}\n", done.stderr
    with wav.open("rb") as audio:
        done = subprocess.run([program, folder, "-", *flags], stdin=audio, capture_output=True)
    assert done.stdout.decode().splitlines() == [
        f"{s.start:.2f}\t{s.end:.2f}\t{s.text}" for s in wanted
    ]


@pytest.mark.parametrize("wrong", ["2", "-1", "much"])
def test_a_wrong_threshold_is_refused(program, golden_bundle, wrong):
    wav = golden_bundle / "test_wavs" / "0.wav"
    done = _run(program, golden_bundle, wav, "--threshold", wrong)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a confidence from 0 to 1 is needed" in done.stderr


def test_older_bundles_have_segments_too(program, golden_bundle, bursts):
    assert _pipe(program, golden_bundle, _raw(bursts)) == _segments(golden_bundle, bursts)


@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_stream_with_a_header(program, endpoint_bundle, bursts, length):
    file = io.BytesIO()
    stereo = np.stack([bursts, bursts], 1)
    soundfile.write(file, stereo, 16_000, subtype="PCM_16", format="WAV")
    data = file.getvalue()
    if length == "unknown":
        at = data.index(b"data") + 4
        data = data[:at] + b"\xff" * 4 + data[at + 4 :]
    assert _pipe(program, endpoint_bundle, data, (977,)) == _segments(endpoint_bundle, bursts)


def test_a_segment_comes_while_the_stream_goes_on(program, endpoint_bundle, bursts):
    wanted = _segments(endpoint_bundle, bursts)
    process = subprocess.Popen([program, endpoint_bundle, "-"], stdin=-1, stdout=-1, bufsize=0)
    # Its end, the endpoint, a chunk and the frame behind it.
    heard = round((float(_fields(wanted)[0][1]) + 0.2 + 0.04 + 0.32 + 0.04) * 16_000)
    process.stdin.write(_raw(bursts[:heard]))
    assert select.select([process.stdout], [], [], 60)[0]
    assert process.stdout.readline().decode() == f"{wanted[0]}\n"
    process.kill()
    process.communicate()


def test_memory_does_not_grow(program, endpoint_bundle, tmp_path):
    """In 20 minutes of silence, within which the random weights emit all the time."""
    minute, used = bytes(60 * 32_000), []
    with (tmp_path / "lines").open("wb") as lines:
        process = subprocess.Popen([program, endpoint_bundle, "-"], stdin=-1, stdout=lines)
        status = Path(f"/proc/{process.pid}/status")
        for count in (2, 18):
            for _ in range(count):
                process.stdin.write(minute)
            process.stdin.flush()
            used.append(int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text())[1]))
        process.communicate()
    assert process.returncode == 0
    assert used[1] - used[0] < 512  # kB; the samples have 69 MB, their features 35


def test_other_streams_are_refused(program, golden_bundle):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800), 8_000, subtype="PCM_16", format="WAV")
    done = subprocess.run([program, golden_bundle, "-"], input=file.getvalue(), capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"standard input is not 16 kHz in 16 bits: convert it\n"


@pytest.mark.parametrize("wrong", ["soon", None, -1, 101, [], True])
def test_a_wrong_endpoint_is_refused(program, spoiled, wrong):
    manifest = json.loads((spoiled / MANIFEST).read_text())
    manifest["info"]["endpoint_seconds"] = wrong
    (spoiled / MANIFEST).write_text(json.dumps(manifest, indent=1))
    done = _run(program, spoiled, spoiled / "test_wavs" / "0.wav")
    assert (done.returncode, done.stdout) == (1, "")
    assert "for endpoint_seconds, which is 0 to 100 seconds" in done.stderr


@pytest.fixture
def spoiled(golden_bundle, tmp_path):
    """A copy of the bundle."""
    return shutil.copytree(golden_bundle, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["encoder.onnx", "joiner.onnx", "tokens.txt"])
def test_a_damaged_file_is_refused(program, spoiled, name):
    data = bytearray((spoiled / name).read_bytes())
    data[len(data) // 2] ^= 1
    (spoiled / name).write_bytes(data)
    done = _run(program, spoiled, spoiled / "test_wavs" / "0.wav")
    assert done.returncode == 1
    assert done.stderr == f"{spoiled} is damaged: {name} does not match its manifest\n"
    assert done.stdout == ""


def test_another_kind_is_refused(program, spoiled):
    manifest = json.loads((spoiled / MANIFEST).read_text())
    (spoiled / MANIFEST).write_text(json.dumps({**manifest, "kind": "subnet"}, indent=1))
    done = _run(program, spoiled, spoiled / "test_wavs" / "0.wav")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not a bundle of format 1" in done.stderr


def test_other_audio_is_refused(program, golden_bundle, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8_000)
    (tmp_path / "b.wav").write_text("no audio")
    for name, sentence in (("a.wav", "is not 16 kHz in 16 bits"), ("b.wav", "is not a wav file")):
        done = _run(program, golden_bundle, tmp_path / name)
        assert done.returncode == 1
        assert sentence in done.stderr


def test_it_is_short(repo):
    for name in ("run.cc", "segments.h", "manifest.h", "run.py"):
        assert len((repo / "export" / "onnx" / name).read_text().splitlines()) <= 400
