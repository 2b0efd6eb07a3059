"""A backend of a few numbers, and a program that trains on it so that a test can kill it.

python fake_backend.py RUN KILL_AT
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from todm.supernet.space import SearchSpace, SpaceConfig
from todm.train.loop import TrainConfig, train
from todm.train.optim import OptimConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3), widths={"w": (2, 4)}))
CONFIG = TrainConfig(
    num_updates=20,
    seed=3,
    sandwich_from=0.25,
    eval_every=0.25,
    log_every=2,
    checkpoint_minutes=0.0,  # after every update
    optim=OptimConfig(lr=0.02),
)


class Net(nn.Module):
    """Three layers of which a subnet keeps some, and of their outputs a prefix."""

    def __init__(self, dropout):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(4))
        self.scale._plain_adam = True
        self.dropout = dropout

    def forward(self, x, subnet):
        for at, index in enumerate(subnet.blocks):
            width = subnet.width("w", at)
            y = F.dropout(torch.tanh(self.layers[index](x)), self.dropout, self.training)
            x = x + F.pad(y[:, :width], (0, 4 - width))
        return (x * self.scale).sum(1)


class Objective(nn.Module):
    """Mean square error, and for students the distance from their teacher."""

    def __init__(self, net, seen):
        super().__init__()
        self.net, self.seen = net, seen

    def forward(self, batch, *, subnet, teacher, progress):
        self.seen.append((subnet, progress))
        y = self.net(batch.x, subnet)
        loss = ((y - batch.y) ** 2).mean()
        parts = {"rnnt": loss.detach()}
        if teacher is not None:
            parts["divergence"] = ((y - teacher) ** 2).mean()
            loss = loss + parts["divergence"]
        return {"loss": loss, **parts}, y.detach()


class Batch:
    """Four numbers and what is to be made of them."""

    def __init__(self, x, y, ids):
        self.x, self.y, self.ids = x, y, ids

    def to(self, device):
        return Batch(self.x.to(device), self.y.to(device), self.ids)


class Batches:
    """Every process has its share of the same eight rows. `before(index)` is called for each batch."""

    def __init__(self, before, rank, world_size):
        self.before, self.rows = before, slice(rank, None, world_size)
        self.index = 0

    def __iter__(self):
        while True:
            index, self.index = self.index, self.index + 1
            draws = torch.Generator().manual_seed(index)
            x = torch.randn(8, 4, generator=draws)
            x = x * (self.before(index) or 1)
            ids = [f"row-{index}-{i}" for i in range(8)]
            yield Batch(x[self.rows], x.sin().sum(1)[self.rows], ids[self.rows])

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


class FakeBackend:
    """`todm.backend.Backend`, as far as training needs it."""

    space = SPACE

    def __init__(self, before=lambda index: None, *, dropout=0.2):
        self.before, self.dropout = before, dropout
        self.prepared, self.seen = 0, []

    def prepare(self):
        self.prepared += 1

    def build(self, subnet):
        return Net(self.dropout)

    def objective(self, model):
        return Objective(model, self.seen)

    def batches(self, *, rank, world_size, num_updates):
        return Batches(self.before, rank, world_size)

    @torch.no_grad()
    def evaluate(self, model, *, subnet, split, limit):
        model.eval()
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(99))
        return {"error": float(((model(x, subnet) - x.sin().sum(1)) ** 2).mean())}

    def write_assets(self, directory):
        (directory / "labels.txt").write_text("none\n")


def run(out, backend=None, *, config=CONFIG, recipe=None, parent="a corpus"):
    """Train with the fake backend; returns the artifact."""
    recipe = {"train": config.to_json()} if recipe is None else recipe
    return train(backend or FakeBackend(), config, Path(out), recipe=recipe, parent=parent)


def _kill(at):
    def before(index):
        if index == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


if __name__ == "__main__":
    run(sys.argv[1], FakeBackend(_kill(int(sys.argv[2]))))
