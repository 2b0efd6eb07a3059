import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from todm import artifact
from todm.errors import TrainingError
from todm.train import launch as module
from todm.train.launch import LOST, launch
from todm.train.loop import SUPERNET
from todm.train.monitor import METRICS, read_metrics


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 1.0)


def _program(text):
    """Quick processes, without torch; `rank` and `wait` are there for them."""
    head = "import os, signal, sys, time\nrank, wait = int(os.environ['RANK']), lambda: time.sleep(600)\n"
    return [sys.executable, "-c", head + text]


def test_processes_that_succeed(tmp_path):
    program = _program("print('hello', os.environ['WORLD_SIZE'], os.environ['MASTER_ADDR'])")
    assert launch(program, 3, log_dir=tmp_path / "new") == 0
    assert (tmp_path / "new" / "process-2.log").read_text() == "hello 3 127.0.0.1\n"
    assert not (tmp_path / "new" / "process-0.log").exists()


def test_a_process_that_dies_before_joining_does_not_leave_the_first_waiting(tmp_path):
    program = _program("wait() if rank == 0 else sys.exit('no module')")
    with pytest.raises(
        TrainingError,
        match=r"process 1 stopped with status 1 \(see .*process-1\.log\); run the same",
    ):
        launch(program, 2, log_dir=tmp_path)
    assert (tmp_path / "process-1.log").read_text() == "no module\n"


def test_an_error_that_the_first_has_shown_is_not_repeated(tmp_path):
    assert launch(_program("sys.exit(2)"), 2, log_dir=tmp_path, max_restarts=3) == 2


def test_the_error_of_another_is_in_its_log(tmp_path):
    program = _program(f"sys.exit(2 if rank else {LOST})")
    with pytest.raises(
        TrainingError, match=r"process 1 stopped with status 2 \(see .*process-1\.log"
    ):
        launch(program, 2, log_dir=tmp_path, max_restarts=3)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)"])
def test_a_lost_process_starts_all_again(tmp_path, capfd, rank, death):
    """The first time only: then a file says that it has happened."""
    program = _program(
        f"mark = {str(tmp_path / 'mark')!r}\n"
        f"if os.path.exists(mark): sys.exit()\n"
        f"if rank == {rank}: open(mark, 'w').close(); {death}\n"
        f"time.sleep(0.5); sys.exit({LOST})"
    )
    assert launch(program, 2, log_dir=tmp_path, max_restarts=1) == 0
    words = "was ended by SIGKILL" if "kill" in death else "stopped with status 1"
    err = capfd.readouterr().err
    assert err.startswith(f"training process {rank} {words}")
    assert err.endswith("all start again from the last checkpoint (1 of 1 times)\n")


def test_restarts_are_counted(tmp_path, capfd):
    program = _program("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(
        TrainingError, match="training process 0 was ended by SIGKILL; run the same"
    ):
        launch(program, 2, log_dir=tmp_path, max_restarts=2)
    assert capfd.readouterr().err.count("start again") == 2


def test_after_ctrl_c_nothing_starts_again(tmp_path, capfd):
    """The first process may die of it, as Python does while it starts."""
    program = _program(
        f"ready = {str(tmp_path / 'ready')!r}\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "if rank == 0: open(ready, 'w').close(); wait()\n"
        "while not os.path.exists(ready): time.sleep(0.01)\n"
        "time.sleep(0.2); os.kill(os.getppid(), signal.SIGINT); wait()"
    )
    assert launch(program, 2, log_dir=tmp_path, max_restarts=3) == 130
    assert "start again" not in capfd.readouterr().err


def test_ctrl_c_goes_to_the_first_which_ends_the_others(tmp_path):
    """None starts again, and the status is that of the first."""
    stop, ready = tmp_path / "stop", tmp_path / "ready"
    program = _program(
        f"stop, ready = {str(stop)!r}, {str(ready)!r}\n"
        "if rank == 0:\n"
        "    signal.signal(signal.SIGINT, lambda *_: (open(stop, 'w').close(), sys.exit(130)))\n"
        "    open(ready, 'w').close()\n"
        "while not os.path.exists(stop): time.sleep(0.01)\n"
        "sys.exit(130)"
    )

    def press():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert launch(program, 2, log_dir=tmp_path, max_restarts=3) == 130
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture(scope="module")
def straight(two_done):
    """The weights of two processes that are not killed."""
    return torch.load(two_done / "resumed-0.pt", weights_only=True)["straight"]


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def _same(out, straight):
    weights = artifact.load(out / SUPERNET).tensors()
    return all(torch.equal(weights[name], value) for name, value in straight.items())


@pytest.mark.slow
def test_a_killed_process_comes_back_and_all_end_where_the_others_do(
    fake, straight, tmp_path, capfd
):
    """The second process; bit by bit the weights of an undisturbed training."""
    out = tmp_path / "run"
    command = [sys.executable, fake.__file__, str(out), "1:17"]
    assert launch(command, 2, log_dir=out, max_restarts=1) == 0
    assert _same(out, straight)
    assert "training process 1 was ended by SIGKILL" in capfd.readouterr().err
    events = [r for r in read_metrics(out / METRICS) if r["kind"] == "event"]
    assert [e["event"] for e in events] == ["resumed"]


@pytest.mark.slow
def test_torchrun_brings_back_a_killed_process(fake, straight, tmp_path):
    """The first, in whose store the others have met."""
    out = tmp_path / "run"
    options = ["--nproc-per-node=2", "--max-restarts=1", "--standalone", "--local-addr=127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, fake.__file__, str(out)]
    done = subprocess.run([*command, "0:13"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died-0:13").exists()
    assert _same(out, straight)
    assert json.loads((out / SUPERNET / "manifest.json").read_text())["metrics"]["updates"] == 20
