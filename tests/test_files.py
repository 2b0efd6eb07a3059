import signal
import subprocess
import sys
import threading
import time

import pytest

from todm.files import only_one

HOLD = """
import sys, time
from pathlib import Path
from todm.files import only_one
with only_one(Path(sys.argv[1]), "the work"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path, repo):
    """A process that holds the lock of tmp_path/store."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repo) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_waits_and_a_killed_owner_leaves_nothing_behind(tmp_path, owner, caplog):
    taken = threading.Event()

    def take():
        with only_one(tmp_path / "store", "the work"):
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.3)
    assert f"the work is being done by process {owner.pid}" in caplog.text
    owner.send_signal(signal.SIGKILL)
    assert taken.wait(30)
    thread.join()


def test_different_places_do_not_wait_for_each_other(tmp_path, owner):
    begin = time.monotonic()
    with only_one(tmp_path / "other", "the work"):
        assert owner.poll() is None
    assert time.monotonic() - begin < 30


def test_only_the_lock_stays_when_the_work_is_done(tmp_path):
    with only_one(tmp_path / "store", "the work"):
        assert (tmp_path / ".store.owner").read_text().startswith("process ")
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]
