"""`todm transcribe` as on a device: in its own process, without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

WITHOUT_TORCH = """
import sys

ABSENT = {"torch", "torchaudio", "lhotse", "onnx", "sherpa_onnx", "sentencepiece", "scipy"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"a device has no {name}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def todm(repo):
    def call(*arguments, code="from todm.cli.main import main; sys.exit(main())"):
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", WITHOUT_TORCH + code, *map(str, arguments)],
            cwd=repo, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


@pytest.fixture
def wav(golden):
    return golden / "test_wavs" / "0.wav"


@pytest.fixture
def expected(golden):
    return json.loads((golden / "test_wavs" / "expected.json").read_text())


@pytest.mark.parametrize(
    "module",
    [
        "device.recognizer",
        "device.segments",
        "device.formats",
        "device.timing",
        "cli.transcribe",
        "artifact",
    ],
)
def test_imports_no_torch(todm, module):
    done = todm(code=f"import todm.{module}")
    assert done.returncode == 0, done.stderr


def test_text_of_several_files(todm, golden, wav, expected, tmp_path):
    samples, rate = soundfile.read(wav)
    soundfile.write(tmp_path / "b.flac", samples, rate)
    done = todm("transcribe", golden, wav, tmp_path / "b.flac")
    text = expected["fp32"]["streaming"]["text"]
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{wav}\t{text}\n{tmp_path / 'b.flac'}\t{text}\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "options", [["--offline"], ["--int8"], ["--offline", "--int8"], ["--beam", "4"]], ids="".join
)
def test_json(todm, golden, wav, expected, options):
    done = todm("transcribe", golden, wav, "--format", "json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["audio"] == str(wav)
    assert found["seconds"] == 3.68
    assert found["error"] is None
    assert found["text"] == " ".join(s["text"] for s in found["segments"])
    for segment in found["segments"]:
        assert segment["text"] == " ".join(w["text"] for w in segment["words"])
        assert all(0 <= w["confidence"] <= 1 for w in segment["words"])
        assert segment["start"] == segment["words"][0]["start"]
        assert segment["end"] == segment["words"][-1]["end"]
    if options == ["--offline"]:
        assert found["text"] == expected["fp32"]["offline"]["text"]


@pytest.fixture
def long_wav(tmp_path, wav):
    """28 s: the recording six times, with silence between, in stereo at 44.1 kHz."""
    from todm.device.audio import read_audio, resample

    once = resample(read_audio(wav), 16_000, 44_100)
    mono = np.concatenate([np.pad(once, (0, 44_100))] * 6)
    soundfile.write(tmp_path / "long.flac", np.stack([mono, mono], 1), 44_100)
    return tmp_path / "long.flac"


@pytest.mark.parametrize("form", ["txt", "srt", "json"])
def test_a_file_per_recording(todm, golden, wav, long_wav, tmp_path, form):
    done = todm("transcribe", golden, wav, long_wav, "--format", form, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = {p.name: p.read_text() for p in (tmp_path / "out").iterdir()}
    assert set(files) == {f"0.{form}", f"long.{form}"}
    if form == "txt":
        assert files["long.txt"].count("\n") == 2
    if form == "srt":
        assert files["long.srt"].startswith("1\n00:00:0")
        assert "\n2\n00:00:" in files["long.srt"]
    if form == "json":
        assert json.loads(files["long.json"])["seconds"] == pytest.approx(6 * 4.68, abs=0.01)


@pytest.mark.parametrize("mode", ["--streaming", "--offline"])
def test_of_a_damaged_recording_the_good_part_is_written(todm, golden, long_wav, mode):
    data = bytearray(long_wav.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    long_wav.write_bytes(data)
    done = todm("transcribe", golden, long_wav, "--format", "json", mode)
    assert done.returncode == 2
    assert "long.flac is damaged after" in done.stderr
    assert done.stderr.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["segments"]
    assert found["error"] in done.stderr
    assert 5 < found["seconds"] < 20


INTERRUPTED = """
import os, signal
import todm.cli.transcribe as verb
from todm.device import formats

add = formats.JsonWriter.add

def interrupting(self, segment):
    add(self, segment)
    os.kill(os.getpid(), signal.SIGINT)

formats.JsonWriter.add = interrupting
from todm.cli.main import main
sys.exit(main())
"""


def test_an_interrupt_leaves_the_segments_that_were_complete(todm, golden, long_wav, tmp_path):
    arguments = ("transcribe", golden, long_wav, "--format", "json", "--out", tmp_path / "out")
    done = todm(*arguments, code=INTERRUPTED)
    assert done.returncode == 130
    assert "interrupted; the segments that were complete are in" in done.stderr
    found = json.loads((tmp_path / "out" / "long.json").read_text())
    assert (len(found["segments"]), found["error"]) == (1, "interrupted")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.wav", "b.wav", "--format", "srt"], "give --out DIR"),
        (["x/a.wav", "y/a.flac", "--out", "out"], "two recordings are called 'a'"),
    ],
    ids=["srt", "names"],
)
def test_outputs_that_would_mix_are_refused(todm, golden, tmp_path, arguments, words):
    done = todm("transcribe", golden, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_bad_recording_does_not_stop_the_others(todm, golden, wav, tmp_path):
    (tmp_path / "bad.flac").write_bytes(b"fLaC and then nothing")
    done = todm("transcribe", golden, tmp_path / "bad.flac", wav)
    assert done.returncode == 2
    assert done.stdout.startswith(str(wav))
    assert done.stderr.count("\n") == 1
    assert "bad.flac cannot be read as audio" in done.stderr


def test_a_damaged_bundle_is_one_sentence(todm, spoilable, wav):
    file = spoilable / "encoder.onnx"
    file.write_bytes(file.read_bytes()[:-100])
    done = todm("transcribe", spoilable, wav)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "damaged: encoder.onnx" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--beam", "--threads"])
def test_numbers_below_one(todm, golden, wav, option):
    done = todm("transcribe", golden, wav, option, "0")
    assert done.returncode == 2
    assert f"{option} is 0" in done.stderr


def test_no_offline_encoder(todm, spoilable, wav):
    manifest = json.loads((spoilable / "manifest.json").read_text())
    names = [name for name in manifest["files"] if name.startswith("offline/")]
    for name in names:
        (spoilable / name).unlink()
        del manifest["files"][name]
    (spoilable / "manifest.json").write_text(json.dumps(manifest))
    done = todm("transcribe", spoilable, wav, "--offline")
    assert done.returncode == 2
    assert "has no offline encoder" in done.stderr
