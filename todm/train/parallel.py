"""One process or several: torchrun's environment, the wrapped objective, rank 0's privileges."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


class World:
    """The processes of this training. `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")

    @contextlib.contextmanager
    def joined(self) -> Iterator["World"]:
        """Inside, the processes can talk to each other."""
        if self.size == 1:
            yield self
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
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
