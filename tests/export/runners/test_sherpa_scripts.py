"""The bundle in every release of sherpa-onnx that is named, and on processors this machine is not.

They take minutes and run only on request (`pytest -m releases`, `pytest -m qemu`) and with TODM_LEGS=all.
"""

import os
import shutil
import subprocess

import pytest


@pytest.fixture
def script(repo, trained_bundle):
    """Runs a script of export/sherpa_onnx on a trained bundle; what it printed, a line each."""

    def run(name):
        command = ["bash", repo / "export" / "sherpa_onnx" / name, trained_bundle]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        return done.stdout.splitlines()

    return run


def asked_for(mark, request):
    if os.environ.get("CI"):
        pytest.skip(f"{mark}: not in CI, it takes minutes and installs packages")
    if mark not in (request.config.getoption("markexpr") or "") and "TODM_LEGS" not in os.environ:
        pytest.skip(f"{mark}: run  pytest -m {mark}")


@pytest.mark.releases
def test_old_and_new_releases(script, request):
    asked_for("releases", request)
    lines = script("releases.sh")
    assert lines[-1] == "releases: 5 tried, 0 failures"
    assert sum("fp32  streaming: as promised" in line for line in lines) == 5


@pytest.mark.qemu
def test_other_processors(script, request):
    asked_for("qemu", request)
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu: run  sudo apt-get install qemu-user-static")
    lines = script("qemu.sh")
    assert lines[-1] == "qemu: 3 processors, 0 failures"
