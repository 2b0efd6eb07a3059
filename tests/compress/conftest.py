import contextlib
import itertools

import pytest
import torch
from torch import nn

from todm.compress.adapter import Fold


class ToyBlock(nn.Module):
    """Norm, two linear layers with a ReLU between, a residual: everything folds."""

    def __init__(self, width, inner):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x, scale=1.0):
        return x + scale * self.down(torch.relu(self.up(self.norm(x))))


class ToyModel(nn.Module):
    """A convolution in front, a block_list of blocks, a head; [B, 3, T] -> [B, T, classes]."""

    def __init__(self, width=24, inner=40, depth=2, classes=5):
        super().__init__()
        self.front = nn.Conv1d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(ToyBlock(width, inner) for _ in range(depth))
        self.gain = nn.Parameter(torch.ones(2, 2))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        h = self.front(x).transpose(1, 2)
        for block in self.blocks:
            h = block(h, scale=0.5)
        return self.head(h)


class ToyAdapter:
    """`todm.compress.adapter.ModelAdapter` of a model that learns to copy a fixed random one."""

    backend = "toy"
    block_lists = ("blocks",)

    def __init__(self, model=None, seed=0):
        self.kept = {"front": "the front end", "head": "the head"}
        torch.manual_seed(seed)
        self.model = (model or ToyModel()).eval()
        self.truth = ToyModel()
        self.entered = []

    def folds(self, block):
        return [
            Fold(layers=("up",), inspect="up", into="norm"),
            Fold(layers=("down",), inspect="down", into="up"),
        ]

    @contextlib.contextmanager
    def resident(self, prefix):
        self.entered.append(prefix)
        yield

    def calibration(self, num, file):
        return [batch[0] for batch in itertools.islice(self.batches(7), num // 4)]

    def run(self, model, batch):
        return model(batch[0] if isinstance(batch, tuple) else batch)

    def batches(self, seed):
        draws = torch.Generator().manual_seed(seed)
        while True:
            x = torch.randn(4, 3, 11, generator=draws) * torch.tensor([0.2, 1.0, 3.0])[:, None]
            with torch.no_grad():
                labels = self.truth(x).argmax(-1)
            yield x, labels

    def losses(self, batch, student, teacher, *, temperature):
        x, labels = batch
        logits = student(x).flatten(0, 1)
        found = {"hard": nn.functional.cross_entropy(logits, labels.flatten())}
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(x).flatten(0, 1)
            found["soft"] = temperature**2 * nn.functional.kl_div(
                (logits / temperature).log_softmax(-1),
                (wanted / temperature).log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            )
        return found

    def evaluate(self, model, *, split, limit=0):
        x, labels = next(self.batches(99))
        with torch.no_grad():
            wrong = (model(x).argmax(-1) != labels).float().mean()
        return {"error": float(wrong), "metric": "error rate"}

    def graphs(self, model):
        return []

    def write_assets(self, directory):
        (directory / "labels.txt").write_text("a b c d e\n")


@pytest.fixture
def toy():
    return ToyAdapter()
