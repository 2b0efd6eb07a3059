"""export/sherpa_onnx/run.py: a bundle in sherpa-onnx alone."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from todm.device.audio import read_audio


@pytest.mark.runtime
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8.rr"])
def test_it_prints_what_the_bundle_promises(repo, toy_bundle, tmp_path, precision, skip_elsewhere):
    skip_elsewhere(precision)
    wav = toy_bundle / "test_wavs" / "0.wav"
    expected = json.loads((toy_bundle / "test_wavs" / "expected.json").read_text())
    script = repo / "export" / "sherpa_onnx" / "run.py"
    command = [sys.executable, script, toy_bundle, wav, "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"{wav}\t{expected[precision]['streaming']['text']}\n", done.stderr


@pytest.mark.runtime
def test_the_microphone_of_the_card(toy_bundle, monkeypatch, capsys):
    """Its code, as it stands there, hears the first words as a stream of their own has them."""
    import sherpa_onnx

    card = (toy_bundle / "README.md").read_text()
    code = card.split("A microphone, for hours")[1].split("```python\n")[1].split("```")[0]
    assert "rule2_min_trailing_silence=0.8" in code  # this bundle states no endpoint
    samples = read_audio(toy_bundle / "test_wavs" / "0.wav")
    pieces = [samples[start : start + 1_600] for start in range(0, len(samples), 1_600)]
    monkeypatch.chdir(toy_bundle)
    code = code.replace("=0.8,", "=0.04,")  # random weights pause seldom
    exec(code, {"np": np, "sherpa_onnx": sherpa_onnx, "microphone": pieces})
    lines = capsys.readouterr().out.splitlines()
    expected = json.loads((toy_bundle / "test_wavs" / "expected.json").read_text())
    assert len(lines) > 1
    assert "".join(expected["fp32"]["streaming"]["text"]).startswith(lines[0].strip())


@pytest.mark.parametrize("target", ["onnx", "sherpa_onnx"])
def test_a_runner_needs_no_todm(repo, target):
    source = (repo / "export" / target / "run.py").read_text()
    imports = [
        line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))
    ]
    assert not {"todm", "torch"} & {name.partition(".")[0] for name in imports}


@pytest.fixture
def script(repo, monkeypatch):
    """export/sherpa_onnx/run.py as a module."""
    pytest.importorskip("sherpa_onnx")
    monkeypatch.syspath_prepend(str(repo / "export" / "sherpa_onnx"))
    return importlib.import_module("run")


def test_confidence_equals_the_devices(script, repo):
    for vector in json.loads((repo / "tests" / "device" / "confidences.json").read_text()):
        found = script.confidence(vector["log_probs"])
        assert found == pytest.approx(vector["confidence"], abs=1e-8), vector["name"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], []),
        ([0.0], [(0, 1)]),
        ([0.4, 1.0, 1.64], [(0, 2), (2, 3)]),
        ([0.0, 9.0], [(0, 1), (1, 2)]),
    ],
)
def test_a_pause_ends_a_segment(script, times, expected):
    assert script.spans(times, 0.6) == expected


@pytest.mark.runtime
@pytest.mark.parametrize(("threshold", "kept"), [(0.0, True), (1.0, False)])
def test_segments_below_the_threshold_give_no_text(repo, toy_bundle, tmp_path, threshold, kept):
    wav = toy_bundle / "test_wavs" / "0.wav"
    expected = json.loads((toy_bundle / "test_wavs" / "expected.json").read_text())
    text = expected["fp32"]["streaming"]["text"]
    runner = repo / "export" / "sherpa_onnx" / "run.py"
    command = [sys.executable, runner, toy_bundle, wav, "--threshold", str(threshold)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"{wav}\t{text if kept else ''}\n", done.stderr
