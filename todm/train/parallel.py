"""One process or several: torchrun's environment, what processes tell each other, the wrapped objective."""

import contextlib
import datetime
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from todm.errors import TrainingError

PARENT = "TODM_PARENT"
"""Environment: the process that started this one and ends it, see `todm.train.launch`."""
_PAUSE = 0.5
"""Seconds before the processes part."""
_JOIN = datetime.timedelta(minutes=10)
_KNOCK = datetime.timedelta(seconds=2)
_PORT = "todm/port"
# Features and evaluations are made by rank 0 alone, and may take hours; the others wait in a collective.
_WAIT = datetime.timedelta(hours=24)


class LostProcess(TrainingError):
    """Another process of this training is gone; starting again goes on from the last checkpoint."""


class World:
    """The processes of this training. `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        # Those of this machine; `todm.train.launch` knows one machine only, and does not say.
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.size)))
        self.device = (
            torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        )
        self._parent = int(os.environ.get(PARENT, "0"))

    @contextlib.contextmanager
    def joined(self) -> Iterator["World"]:
        """Inside, the processes can talk to each other: NCCL between GPUs, else gloo.

        Raises:
            LostProcess: another process did not come, or is gone.
        """
        if self.size == 1:
            yield self
            return
        self._join()
        try:
            yield self
        except RuntimeError as error:
            if not _is_loss(error):
                raise
            raise LostProcess(
                "another process of this training is gone: run the same command again to go on from "
                "the last checkpoint"
            ) from error
        finally:
            # gloo's threads give back the tensors of the last messages under Python's lock, which the
            # destructor of DistributedDataParallel keeps while it waits for these threads: without
            # a pause in which they get it, both wait for ever.
            time.sleep(_PAUSE)
            distributed.destroy_process_group()

    def _join(self) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        try:
            store = self._meet()
        except distributed.DistError as error:
            raise LostProcess(
                f"the {self.size} processes of this training did not all come within {_JOIN}: look at "
                f"what the others said ({str(error).splitlines()[0]})"
            ) from error
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=distributed.PrefixStore("todm", store),
            rank=self.rank,
            world_size=self.size,
            timeout=_WAIT,
            device_id=self.device if on_gpu else None,
        )

    def _meet(self) -> distributed.Store:
        """The table in which processes find each other's addresses; all are there when it returns.

        That of torchrun outlives a restart, and with it the addresses of processes that are gone: the
        first process opens a new one there, and the others knock until they find it.
        """
        outer, _, _ = next(distributed.rendezvous("env://", timeout=_JOIN))  # pyright: ignore[reportAttributeAccessIssue]
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return outer
        store = self._open() if self.rank == 0 else self._knock(outer)
        if self.rank == 0:
            outer.set(_PORT, str(store.port))
        store.set(f"here/{self.rank}", "")
        store.wait([f"here/{rank}" for rank in range(self.size)], _JOIN)
        return store

    def _open(self, port: int = 0) -> distributed.TCPStore:
        """A table of rank 0 on a free port, or that on a given one."""
        return distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            port,
            self.size,
            is_master=self.rank == 0,
            timeout=_KNOCK if port else _JOIN,
            wait_for_workers=False,
        )

    def _knock(self, outer: distributed.Store) -> distributed.TCPStore:
        deadline = time.monotonic() + _JOIN.total_seconds()
        while True:
            try:
                return self._open(int(outer.get(_PORT)))
            except distributed.DistError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective, with gradients averaged over processes.

        Students leave out blocks, so parameters go unused in some passes; only the last backward of
        a step synchronises (`todm.supernet.sandwich`).
        """
        if self.size == 1:
            return objective
        # Buffers are constants: sending them would be one message more in every step.
        return DistributedDataParallel(
            objective, find_unused_parameters=True, broadcast_buffers=False
        )

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

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; the one small message of every update.

        Raises:
            LostProcess: the process that started this one is gone.
        """
        if self._parent and os.getppid() != self._parent:
            raise LostProcess("the process that started this training is gone")
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return sums.tolist()

    def gathered(self, value: object) -> list[Any]:
        """The value of every process, in the order of ranks; for rare, small things."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def agree(self, value: Any, *, what: str, hint: str) -> None:  # noqa: ANN401 - JSON
        """Make sure that a value is the same in every process, by comparing its hash.

        Args:
            value: plain JSON types.
            what: what it is, for the message.
            hint: what to do about a difference.

        Raises:
            TrainingError: it differs; in every process.
        """
        text = json.dumps(value, sort_keys=True)
        digests = self.gathered(hashlib.sha256(text.encode()).hexdigest())
        other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            raise TrainingError(
                f"training process {other[0]} has not the same {what} as process 0: {hint}"
            )


def _is_loss(error: RuntimeError) -> bool:
    """Whether a collective failed because a peer closed its connection; gloo has no class for it."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
