"""A backend of a few numbers, and a program that trains on it so that a test can kill it.

python fake_backend.py RUN [RANK:UPDATE ...]: each of these processes is killed once, at that update.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from todm.supernet import sandwich
from todm.supernet.space import SearchSpace, SpaceConfig
from todm.train import loop
from todm.train.config import TrainConfig
from todm.train.launch import LOST
from todm.train.optim import OptimConfig
from todm.train.parallel import LostProcess

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


class Objective(sandwich.Objective):
    """Mean square error, and for students the distance from their teacher."""

    def __init__(self, net, seen):
        super().__init__()
        self.net, self.seen = net, seen

    def forward(self, batch, *, subnet, teacher, progress, common):
        self.seen.append((subnet, progress))
        y = self.net(batch.x, subnet)
        loss = ((y - batch.y) ** 2).mean()
        parts = {"rnnt": loss.detach()}
        if teacher is not None:
            parts["divergence"] = ((y - teacher) ** 2).mean()
            loss = loss + parts["divergence"]
        return {"loss": loss, **parts}, y.detach()


class Batch:
    """Rows of four numbers, and their targets."""

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

    hours, batches_per_epoch, limit = 0.5, 10, "fake.rows=8"

    def seconds(self, batch):
        return 0.5 * len(batch.x)

    def worst_batch(self):
        return next(iter(Batches(lambda index: None, self.rows.start, self.rows.step)))

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

    def preparation(self):
        return 0, Path("features")

    def init_from(self, model, earlier):
        model.load_state_dict(earlier.tensors())
        return ["all taken"]

    def objective(self, model):
        return Objective(model, self.seen)

    def batches(self, *, rank, world_size, num_updates):
        return Batches(self.before, rank, world_size)

    @torch.no_grad()
    def evaluate(self, model, *, subnet, split, limit):
        model.eval()
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(99))
        error = float(((model(x, subnet) - x.sin().sum(1)) ** 2).mean())
        return {"error": error, "low": error, "high": error}

    def write_assets(self, directory):
        (directory / "labels.txt").write_text("none\n")


def run(out, backend=None, *, config=CONFIG, recipe=None, parent="a corpus", init=None):
    """Train with the fake backend; returns the artifact."""
    recipe = {"train": config.to_json()} if recipe is None else recipe
    backend = backend or FakeBackend()
    return loop.train(backend, config, Path(out), recipe=recipe, parent=parent, init=init)


def _kill(out, *deaths):
    """A process that has died once leaves a file behind, and lives on when it is started again."""

    def before(index):
        death = f"{os.environ.get('RANK', '0')}:{index}"
        mark = Path(out).with_name(f"died-{death}")
        if death in deaths and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def draw_nothing():
    """A picture takes longer than these trainings."""
    loop.plot_curves = lambda metrics, out: None


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw_nothing()
    try:
        run(sys.argv[1], FakeBackend(_kill(*sys.argv[1:])))
    except LostProcess as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(LOST)
