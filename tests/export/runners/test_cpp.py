"""export/onnx/run.cc, built by its own script: the transcripts of the device, and nothing unchecked."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from todm.artifact import MANIFEST
from todm.device.audio import read_audio, write_wav
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer

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
    for name in ("run.cc", "manifest.h", "run.py"):
        assert len((repo / "export" / "onnx" / name).read_text().splitlines()) < 300
