"""One process or several: torchrun's environment, and the messages between processes.

Gradients are averaged by one all-reduce after the last pass of a step. DistributedDataParallel would
overlap its messages with the last backward alone, and has to search that pass for unused parameters:
subnets leave out blocks.
"""

import contextlib
import datetime
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn

from todm.errors import TrainingError

PARENT = "TODM_PARENT"
"""Environment variable: the process that started this one, see `todm.train.launch`."""
_JOIN = datetime.timedelta(minutes=10)
_CONNECT = datetime.timedelta(seconds=2)
_PORT = "todm/port"
# Rank 0 alone computes features and evaluates, which may take hours; the others wait in a collective.
_WAIT = datetime.timedelta(hours=24)


class LostProcess(TrainingError):
    """Another process of this training is gone; starting again goes on from the last checkpoint."""

    status = 75  # EX_TEMPFAIL


class World:
    """The processes of this training. `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        # On this machine; `todm.train.launch` uses one machine only and does not set it.
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.size)))
        self.device = (
            torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        )
        self._parent = int(os.environ.get(PARENT, "0"))

    @contextlib.contextmanager
    def joined(self) -> Iterator["World"]:
        """Inside, the processes can exchange messages: NCCL between GPUs, else gloo.

        Raises:
            LostProcess: another process did not start, or is gone.
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
            distributed.destroy_process_group()

    def _join(self) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        try:
            store = self._rendezvous()
        except distributed.DistError as error:
            raise LostProcess(
                f"the {self.size} processes of this training did not all start within {_JOIN}: look at "
                f"the output of the others ({str(error).splitlines()[0]})"
            ) from error
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=distributed.PrefixStore("todm", store),
            rank=self.rank,
            world_size=self.size,
            timeout=_WAIT,
            device_id=self.device if on_gpu else None,
        )

    def _rendezvous(self) -> distributed.Store:
        """The store in which processes find each other's addresses; all have joined when it returns.

        torchrun's store keeps stale addresses after a restart, so rank 0 opens a new one and publishes
        its port there.
        """
        outer, _, _ = next(distributed.rendezvous("env://", timeout=_JOIN))  # pyright: ignore[reportAttributeAccessIssue]
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return outer
        store = self._open() if self.rank == 0 else self._connect(outer)
        if self.rank == 0:
            outer.set(_PORT, str(store.port))
        store.set(f"joined/{self.rank}", "")
        store.wait([f"joined/{rank}" for rank in range(self.size)], _JOIN)
        return store

    def _open(self, port: int = 0) -> distributed.TCPStore:
        """As rank 0 a new store on a free port; else a connection to the one on `port`."""
        return distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            port,
            self.size,
            is_master=self.rank == 0,
            timeout=_CONNECT if port else _JOIN,
            wait_for_workers=False,
        )

    def _connect(self, outer: distributed.Store) -> distributed.TCPStore:
        deadline = time.monotonic() + _JOIN.total_seconds()
        while True:
            try:
                return self._open(int(outer.get(_PORT)))
            except distributed.DistError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their means over the processes; one message for each dtype.

        A missing gradient counts as zeros where another process has one. One that is missing in all
        processes stays None.
        """
        if self.size == 1:
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for p in params:
            if p.requires_grad:
                by_dtype.setdefault(p.dtype, []).append(p)
        for group in by_dtype.values():
            self._average(group)

    @torch.no_grad()
    def _average(self, params: Sequence[nn.Parameter]) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        present = torch.tensor([p.grad is not None for p in params]).to(grads[0])
        flat = torch.cat([*(g.reshape(-1) for g in grads), present]).div_(self.size)
        distributed.all_reduce(flat)
        *means, present = flat.split([*(p.numel() for p in params), len(params)])
        for p, grad, mean, used in zip(params, grads, means, present.tolist(), strict=True):
            # Not a view of `mean`: the rounding of a dot product depends on the alignment.
            p.grad = grad.copy_(mean.view_as(p)) if used else None

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Rank 0 runs the body, then the others do: for work whose result stays on disk."""
        if self.rank:
            self.barrier()
        yield
        if not self.rank:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            distributed.barrier()

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; one small message in every update.

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

    def all_gather(self, value: object) -> list[Any]:
        """The value of every process, in the order of ranks; for small values, now and then."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def assert_same(self, value: Any, *, what: str, hint: str) -> None:  # noqa: ANN401 - JSON
        """Check that a value is the same in every process, by comparing its hash.

        Args:
            value: plain JSON types.
            what: its name in the message.
            hint: what to do about a difference.

        Raises:
            TrainingError: it differs; raised in every process.
        """
        text = json.dumps(value, sort_keys=True)
        digests = self.all_gather(hashlib.sha256(text.encode()).hexdigest())
        other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            raise TrainingError(
                f"training process {other[0]} disagrees with process 0 on: {what}; {hint}"
            )


def _is_loss(error: RuntimeError) -> bool:
    """Whether a collective failed because a peer closed its connection; gloo has no error class."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
