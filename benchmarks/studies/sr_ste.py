"""SR-STE against plain STE, and N:M trainings from scratch against dense ones, on real images.

    python -m benchmarks.studies.sr_ste --out DIR --seeds 1 2 3

trains a small vision transformer on scikit-learn's handwritten digits: at 2:4 with several decays of
pruned weights (0 is plain STE) and without masks, with AdamW and with ScaledAdam; at 1:4 and 4:8 with
a weak and a strong decay. Writes every run as JSON, `sr_ste.md` with means and ranges over seeds, and
plots of flip rates and of SAD. Finished runs are not repeated.

Letters: B images, T patches, D width.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.studies.results import keep
from todm.compress.train.sr_ste import SrSte, SrSteConfig
from todm.files import markdown_table, write_text
from todm.train.optim import OptimConfig, build_optimizer, set_lr

DECAYS = (0.0, 2e-5, 6e-5, 2e-4, 2e-3, 2e-2, 0.1, 0.5)
"""At 2:4. The last four are larger than usual, which suits trainings a hundred times as long."""
PATTERNS = ((1, 4), (4, 8))
PATTERN_DECAYS = (6e-5, 2e-2)
OPTIMIZERS = {
    "adamw": OptimConfig(name="adamw", adamw_lr=4e-3, weight_decay=0.05),
    "scaled_adam": OptimConfig(name="scaled_adam", lr=0.03),
}
NUM_TRAIN, BATCH = 1297, 64
REFRESH, FREEZE = 10, 0.15
_TAIL = 0.1  # of the updates: final losses are means over these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training: n of m weights kept (n = 0: dense), the decay, the optimizer's name, the seed."""

    n: int
    m: int
    decay: float
    optimizer: str
    seed: int
    updates: int

    @property
    def case(self) -> str:
        """Its name, without the seed."""
        kept = f"{self.n}of{self.m}-{self.decay:g}" if self.n else "dense"
        return f"{self.optimizer}-{kept}"

    def path(self, out: Path) -> Path:
        """File of its figures."""
        return out / "runs" / f"{self.case}-{self.updates}-{self.seed}.json"


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a norm before it and a residual around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to the same."""
        qkv = self.qkv(self.norm1(x_BTD)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTD = x_BTD + self.proj(mixed)
        return x_BTD + self.fc2(F.gelu(self.fc1(self.norm2(x_BTD))))


class Vit(nn.Module):
    """A vision transformer for images of 8 by 8 in patches of 2 by 2."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Linear(4, width)
        self.position = nn.Parameter(0.1 * torch.randn(16, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images_BHW: Tensor) -> Tensor:
        """Logits [B, 10]."""
        patches_BTP = images_BHW.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
        x_BTD = self.patches(patches_BTP) + self.position
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD).mean(1))


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images [B, 8, 8] with values from -1 to 1, and their classes."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Digits, Digits]:
    """The training and the test images, the same in every run."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order] / 8 - 1
    labels = torch.tensor(found.target)[order]
    return (
        Digits(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
        Digits(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
    )


def plan(seeds: Sequence[int], updates: int) -> list[Run]:
    """All trainings, seed by seed."""
    others = [(n, m, d) for n, m in PATTERNS for d in PATTERN_DECAYS]
    cases = [(0, 4, 0.0), *((2, 4, d) for d in DECAYS), *others]
    return [
        Run(n=n, m=m, decay=decay, optimizer=optimizer, seed=seed, updates=updates)
        for seed in seeds
        for optimizer in OPTIMIZERS
        for n, m, decay in cases
    ]


def train(run: Run, out: Path) -> dict[str, Any]:
    """Figures of a run, which is trained if it has none yet."""
    return keep(run.path(out), lambda: _train(run))


def _train(run: Run) -> dict[str, Any]:
    began = time.monotonic()
    train_set, test_set = digits()
    torch.manual_seed(run.seed)
    model = Vit()
    optimizer = build_optimizer(OPTIMIZERS[run.optimizer], model)
    settings = {"n": run.n, "m": run.m, "decay": run.decay, "refresh": REFRESH, "freeze": FREEZE}
    sparse = SrSte.of(model, SrSteConfig(**settings), num_updates=run.updates)
    optimizer.after_clip = lambda clip: sparse.pull(optimizer, clip=clip)
    losses, renewals = [], []
    for update, (images, labels) in enumerate(_batches(train_set, run)):
        set_lr(optimizer, _factor(update, run.updates))
        optimizer.zero_grad(set_to_none=True)
        if sparse.enter(update):
            renewals.append({"update": update, **sparse.figures})
        with sparse.masked():
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    pruned = _pruned_rms(model, sparse)
    sparse.finish()
    tail = losses[-max(1, round(_TAIL * run.updates)) :]
    final = {"train_loss": statistics.mean(tail), **evaluate(model, test_set), "pruned_rms": pruned}
    seconds = time.monotonic() - began
    figures = {
        **dataclasses.asdict(run),
        **final,
        "skipped": optimizer.num_skipped,
        "losses": losses,
    }
    return {**figures, "renewals": renewals, "seconds": seconds}


def _batches(data: Digits, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Images shifted by up to a pixel each way; without that, the model memorises them."""
    draws = torch.Generator().manual_seed(run.seed)
    padded = F.pad(data.images, (1, 1, 1, 1), value=-1.0)
    for _ in range(run.updates):
        chosen = torch.randint(len(data.labels), (BATCH,), generator=draws)
        down, right = torch.randint(3, (2, BATCH, 1, 1), generator=draws)
        rows, columns = torch.arange(8)[:, None] + down, torch.arange(8) + right
        yield padded[chosen[:, None, None], rows, columns], data.labels[chosen]


def _factor(update: int, total: int) -> float:
    """A warm-up of a twentieth, then a straight line to nearly zero."""
    warm = max(1, total // 20)
    return min((update + 1) / warm, max(0.01, (total - update) / (total - warm)))


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> dict[str, float]:
    """Loss and accuracy."""
    logits = model(data.images)
    right = (logits.argmax(1) == data.labels).float().mean()
    loss = F.cross_entropy(logits, data.labels)
    return {"test_loss": float(loss), "accuracy": float(right)}


def _pruned_rms(model: nn.Module, sparse: SrSte) -> float:
    """Root mean square of the dense weights outside the last masks, over that of the others."""
    layers = dict(model.named_modules())
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, mask in sparse.masks.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        for kept, entries in parts.items():
            entries.append(weight.detach()[mask == kept])
    if not sparse.masks:
        return 1.0
    sizes = {k: torch.cat(entries).square().mean().sqrt() for k, entries in parts.items()}
    return float(sizes[False] / sizes[True])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each case in Markdown: means over seeds, with the range of the accuracy."""
    heads = ("optimizer", "weights", "decay", "accuracy, %", "(least to most)", "training loss")
    heads += ("test loss", "flips at a renewal, %: 2nd fifth", "last before freezing")
    heads += ("SAD to the first mask, %", "pruned / kept rms")
    lines = []
    for case in _cases(rows):
        accuracy = [100 * r["accuracy"] for r in case]
        first = case[0]
        cells = [first["optimizer"], f"{first['n']}:{first['m']}" if first["n"] else "dense"]
        cells += [f"{first['decay']:g}" if first["n"] else "", f"{statistics.mean(accuracy):.2f}"]
        cells += [f"{min(accuracy):.1f} to {max(accuracy):.1f}"]
        cells += [f"{_mean(case, name):.4f}" for name in ("train_loss", "test_loss")]
        if first["n"]:
            early, late = zip(*(_flips(r) for r in case), strict=True)
            drift = [r["renewals"][-1]["mask_drift"] for r in case]
            cells += [f"{100 * statistics.mean(v):.2f}" for v in (early, late, drift)]
            cells.append(f"{_mean(case, 'pruned_rms'):.2f}")
        else:
            cells += [""] * 4
        lines.append(cells)
    return markdown_table(heads, lines)


def _cases(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups of runs that differ only in the seed."""
    keys = ("optimizer", "n", "m", "decay")
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in keys), []).append(row)
    return [found[key] for key in sorted(found)]


def _mean(case: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(row[name] for row in case)


def _flips(row: dict[str, Any]) -> tuple[float, float]:
    """Mean flip rates of the second fifth of the renewals (the warm-up is over) and of the last."""
    rates = [r["flip_rate"] for r in row["renewals"]][1:]  # no masks precede the first
    fifth = max(1, len(rates) // 5)
    second = rates[fifth : 2 * fifth] or rates
    return statistics.mean(second), statistics.mean(rates[-fifth:])


def plot(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Flip rates at 2:4 by decay, and SAD to the first mask by pattern, for each optimizer."""
    from matplotlib.figure import Figure

    styles = dict(zip(PATTERN_DECAYS, (":", "-"), strict=True))
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, len(OPTIMIZERS))
    for column, optimizer in enumerate(OPTIMIZERS):
        cases = [c for c in _cases(rows) if c[0]["optimizer"] == optimizer and c[0]["n"]]
        for case in cases:
            first = case[0]
            updates = [r["update"] for r in first["renewals"]]
            if (first["n"], first["m"]) == (2, 4):
                rates = _curve(case, "flip_rate")[1:]
                label = f"decay {first['decay']:g}" if first["decay"] else "plain STE"
                axes[0, column].plot(updates[1:], [100 * r for r in rates], label=label)
            if first["decay"] in styles:
                drift = [100 * r for r in _curve(case, "mask_drift")]
                label = f"{first['n']}:{first['m']}, decay {first['decay']:g}"
                axes[1, column].plot(updates, drift, styles[first["decay"]], label=label)
        axes[0, column].set(title=f"{optimizer}: flips at a renewal, % (2:4)", yscale="log")
        axes[1, column].set(title=f"{optimizer}: SAD to the first mask, %", xlabel="updates")
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize=8)
    figure.savefig(out, dpi=110)


def _curve(case: Sequence[dict[str, Any]], name: str) -> list[float]:
    """The mean over seeds at every renewal."""
    parts = ([r[name] for r in row["renewals"]] for row in case)
    return [statistics.mean(values) for values in zip(*parts, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing; write DIR/sr_ste.md and DIR/sr_ste.png. Returns the exit status."""
    parser = argparse.ArgumentParser(description="SR-STE on handwritten digits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=int, default=600)
    args = parser.parse_args(argv)
    runs = plan(args.seeds, args.updates)
    rows = []
    for at, run in enumerate(runs, 1):
        rows.append(train(run, args.out))
        sys.stderr.write(f"{at} of {len(runs)}: {run.case}, seed {run.seed}\n")
    text = f"{table(rows)}\n"
    write_text(args.out / "sr_ste.md", text)
    plot(rows, args.out / "sr_ste.png")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
