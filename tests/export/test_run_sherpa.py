"""export/sherpa_onnx/run.py: a bundle in sherpa-onnx alone."""

import json
import subprocess
import sys

import pytest


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


@pytest.mark.parametrize("target", ["onnx", "sherpa_onnx"])
def test_a_runner_needs_no_todm(repo, target):
    source = (repo / "export" / target / "run.py").read_text()
    imports = [
        line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))
    ]
    assert not {"todm", "torch"} & {name.partition(".")[0] for name in imports}
