"""One process or several: torchrun's environment, helpers of our own, the wrapped objective."""

import contextlib
import datetime
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from todm.errors import TrainingError


@contextlib.contextmanager
def helpers(num_processes: int, verb: Sequence[str], log_dir: Path) -> Iterator[None]:
    """On a CPU, start the other processes of a data-parallel training; this one becomes rank 0.

    Two processes of one thread are faster than one of two threads: they meet once a step instead of
    at every operation, and lose little when something else wants a core. Does nothing under
    `torchrun`, on a GPU, or with one process.

    Args:
        num_processes: processes in all.
        verb: arguments of `todm` that start this very training.
        log_dir: what a helper says goes to `process-N.log` there.

    Raises:
        TrainingError: a helper stopped.
    """
    if num_processes == 1 or "WORLD_SIZE" in os.environ or torch.cuda.is_available():
        yield
        return
    log_dir.mkdir(parents=True, exist_ok=True)
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(num_processes),
    }
    started: list[subprocess.Popen[bytes]] = []
    os.environ.update(place, RANK="0")
    try:
        for rank in range(1, num_processes):
            with (log_dir / f"process-{rank}.log").open("wb") as log:
                command = [sys.executable, "-m", "todm.cli.main", *verb]
                env = {**os.environ, "RANK": str(rank)}
                started.append(
                    subprocess.Popen(
                        command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                )
        yield
    except RuntimeError as error:  # what gloo raises when a peer is gone
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        gone = [rank for rank, process in enumerate(started, 1) if process.poll()]
        if not gone:
            raise
        raise TrainingError(
            f"training process {gone[0]} stopped: see {log_dir / f'process-{gone[0]}.log'}; "
            "run the same command again to continue"
        ) from error
    finally:
        for process in started:
            process.terminate()
            process.wait()
        for name in (*place, "RANK"):
            os.environ.pop(name, None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class World:
    """The processes of this training. `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = (
            torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        )

    @contextlib.contextmanager
    def joined(self) -> Iterator["World"]:
        """Inside, the processes can talk to each other."""
        if self.size == 1:
            yield self
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        # Features and the last evaluation are made by rank 0 alone, and may take hours.
        distributed.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=24)
        )
        try:
            yield self
        finally:
            distributed.destroy_process_group()

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective, with gradients averaged over processes.

        Students leave out blocks, so parameters go unused in some passes; only the last backward of
        a step synchronises (`todm.supernet.sandwich`).
        """
        if self.size == 1:
            return objective
        return DistributedDataParallel(objective, find_unused_parameters=True)

    @contextlib.contextmanager
    def lead_first(self) -> Iterator[None]:
        """Rank 0 runs the body, then the others do: for work whose result is kept on disk."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()
