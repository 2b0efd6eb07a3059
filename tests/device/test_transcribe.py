"""`todm transcribe` as a device runs it: in a process of its own that has no torch."""

import json
import subprocess
import sys

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
    "module", ["device.recognizer", "device.timing", "bench.runtime", "cli.transcribe", "artifact"]
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
    assert found["seconds"] == 3.68
    assert len(found["tokens"]) == len(found["timestamps"]) == len(found["log_probs"]) > 0
    if options == ["--offline"]:
        assert found["text"] == expected["fp32"]["offline"]["text"]


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
