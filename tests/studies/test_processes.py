"""Processes of todm: their time, their status, and one at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.studies import processes
from todm.errors import ConfigError


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_time_is_noted_while_a_process_runs(monkeypatch):
    monkeypatch.setattr(processes, "_NOTE_EVERY", 0.3)
    busy = "import time\nwhile time.process_time() < 1: pass"
    process = subprocess.Popen([sys.executable, "-c", busy])
    noted = list(processes._cpu_seconds(process))
    assert len(noted) > 1
    assert noted == sorted(noted)
    assert noted[-1] >= 1
    assert process.returncode == 0


def test_a_verb_is_run_with_its_log_and_its_status(tmp_path):
    noted = []
    with processes.locked(tmp_path) as lock:
        status = processes.run_verb(
            ["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "bundle")],
            tmp_path / "export.log",
            note=lambda seconds, status: noted.append((seconds, status)),
            lock=lock,
        )
        with (
            pytest.raises(ConfigError, match="another process is training"),
            processes.locked(tmp_path),
        ):
            pass
    assert status == 2
    assert "nowhere" in (tmp_path / "export.log").read_text()
    assert noted[-1][0] > 0
    assert noted[-1][1] == 2
