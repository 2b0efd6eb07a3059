"""GPUSQ-ViT's distillation terms (arXiv 2305.10727) on small vision transformers and real digits.

    python -m benchmarks.studies.compress_vision --out DIR --seeds 1 2 3

trains dense models, compresses each to every target with every choice of terms, and writes
DIR/study.json, study.md and study.png. Finished parts are not repeated.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.studies.results import read, write
from todm import artifact
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.files import markdown_table, write_text
from todm.vision.adapter import VisionAdapter
from todm.vision.config import VisionConfig, build
from todm.vision.scores import mean_iou

GREY = {"channels": 1, "mean": (0.3,), "std": (0.38,)}
NETWORKS = {
    "digits": VisionConfig(
        architecture="vit_tiny_patch16_224",
        arguments={"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 4}
        | {"num_heads": 4},
        classes=tuple(map(str, range(10))),
        size=(8, 8),
        data="digits",
        shift=1,
        **GREY,
    ),
    "canvas": VisionConfig(
        architecture="vit_tiny_patch16_224",
        arguments={"img_size": 24, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 4}
        | {"num_heads": 4},
        task="segmentation",
        classes=("background", *map(str, range(10))),
        size=(24, 24),
        data="canvas",
        batch=32,
        **GREY,
    ),
}
DENSE_UPDATES = {"digits": 4000, "canvas": 2500}
TERMS = {
    "no training": {},
    "hard": {"hard": 1.0, "soft": 0.0, "feature": 0.0},
    "hard + soft": {"hard": 1.0, "soft": 1.0, "feature": 0.0},
    "hard + feature": {"hard": 1.0, "soft": 0.0, "feature": 1.0},
    "hard + soft + feature": {"hard": 1.0, "soft": 1.0, "feature": 1.0},
    "soft": {"hard": 0.0, "soft": 1.0, "feature": 0.0},
    "soft + feature": {"hard": 0.0, "soft": 1.0, "feature": 1.0},
    "hard + 10 feature": {"hard": 1.0, "soft": 0.0, "feature": 10.0},
    "hard + 10 soft + 5 feature": {"hard": 1.0, "soft": 10.0, "feature": 5.0},
}
"""Weights of the losses; terms without `hard` are the unsupervised forms."""
ORDER = ("hard + soft + feature", "hard + feature", "hard + soft", "hard")
"""From best to worst, according to the paper's ablation."""
PAIRS = [
    *itertools.pairwise(ORDER),
    (ORDER[0], ORDER[-1]),
    ("soft + feature", "soft"),
    ("soft + feature", "hard"),
    ("hard + 10 feature", "hard + soft"),
    ("hard + 10 soft + 5 feature", ORDER[0]),
]
"""Compared pairs; the first is expected to be better."""
TARGETS = {
    "2:4": {"passes": ["prune"]},
    "2:4 + int8": {"passes": ["prune", "int8"]},
    "2:4 + int4": {"passes": ["prune", "int4"]},
    "1:4": {"passes": ["prune"], "prune": {"n": 1}},
    "1:4 + int4": {"passes": ["prune", "int4"], "prune": {"n": 1}},
}
EXCLUSIONS = {"": (), "first block dense": ("encoder.blocks.0.*",)}
UPDATES = {"prune": 60, "int8": 30, "int4": 30}
RATES = {"prune": 3e-4, "int8": 1e-4, "int4": 1e-4}
CANVAS_SEEDS = 2
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Run:
    """One compression of one dense model."""

    network: str
    seed: int
    target: str
    terms: str
    exclusion: str = ""

    @property
    def name(self) -> str:
        """File stem."""
        words = f"{self.network} {self.seed} {self.target} {self.terms} {self.exclusion}"
        return "-".join(words.replace("+", " ").replace(":", "of").split())

    def config(self) -> CompressConfig:
        """Settings of the passes."""
        settings = json.loads(json.dumps(TARGETS[self.target]))
        settings.setdefault("prune", {})["method"] = "magnitude"
        for name in settings["passes"]:
            own = settings.setdefault(name, {})
            if TERMS[self.terms]:
                budget = {"updates": UPDATES[name], "lr": RATES[name], "temperature": 2.0}
                own["tune"] = {**budget, **TERMS[self.terms]}
        if "int4" in settings["passes"]:
            settings["int4"] |= {"group": 32, "symmetric": True}
        exclude = list(EXCLUSIONS[self.exclusion])
        return CompressConfig.from_json({**settings, "exclude": exclude, "seed": self.seed})


def plan(seeds: Sequence[int]) -> list[Run]:
    """All compressions: every target and choice of terms for digits, some of them for canvases."""
    runs = [Run("digits", s, t, k) for s in seeds for t in TARGETS for k in TERMS]
    for seed in seeds[:CANVAS_SEEDS]:
        for terms in ("no training", *reversed(ORDER)):
            runs += [Run("canvas", seed, "2:4 + int4", terms, e) for e in EXCLUSIONS]
    return runs


def dense(network: str, seed: int, out: Path) -> VisionAdapter:
    """A dense model, trained if it does not exist yet."""
    place = out / f"dense-{network}-{seed}"
    if (place / artifact.MANIFEST).is_file():
        return VisionAdapter.load(artifact.load(place, kind="model"))
    torch.manual_seed(seed)
    adapter = VisionAdapter(NETWORKS[network], build(NETWORKS[network]))
    model, total = adapter.model.train(), DENSE_UPDATES[network]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total, pct_start=0.1)
    for _, batch in zip(range(total), adapter.batches(seed), strict=False):
        loss = adapter.losses(batch, model, None, temperature=1.0)["hard"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    adapter.save(place, metrics=adapter.evaluate(model.eval(), split="test"))
    return adapter


def measure(adapter: VisionAdapter) -> dict[str, np.ndarray]:
    """For every test image, its `scores` (see `VisionAdapter.score`) and its cross `entropy` [I]."""
    scores: list[np.ndarray] = []
    entropy: list[np.ndarray] = []
    for logits, labels in adapter.outputs(adapter.model.eval(), split="test"):
        scores.append(adapter.score(logits, labels))
        losses = F.cross_entropy(logits, labels, reduction="none")
        entropy.append(losses.flatten(1).mean(1).numpy() if losses.ndim > 1 else losses.numpy())
    return {"scores": np.concatenate(scores), "entropy": np.concatenate(entropy)}


def perform(run: Run, out: Path) -> None:
    """Compress and measure, unless that was done before."""
    place = out / "runs" / f"{run.name}.json"
    if place.is_file():
        return
    adapter = dense(run.network, run.seed, out)
    torch.manual_seed(run.seed)
    result = compress(adapter, run.config())
    totals = [dataclasses.asdict(report.totals) for report in result.reports]
    found = measure(adapter)
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(place.with_suffix(".npz"), scores=found["scores"], entropy=found["entropy"])
    figures = {**dataclasses.asdict(run), "config": run.config().to_json(), "totals": totals[-1]}
    write(place, figures)


class Results:
    """Figures of every test image by compression, and the statistics of them."""

    def __init__(self, runs: Sequence[Run], out: Path) -> None:
        self.runs, self.out = runs, out
        self.seeds = {n: sorted({r.seed for r in runs if r.network == n}) for n in NETWORKS}
        self._figures: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        self.totals: dict[tuple[str, str, str], dict[str, float]] = {}
        for run in runs:
            key = (run.network, run.target, run.terms, run.exclusion)
            if key not in self._figures:
                self._figures[key] = self._load(run)
            found = read(out / "runs" / f"{run.name}.json")
            self.totals[run.network, run.target, run.exclusion] = found["totals"]

    def _load(self, run: Run) -> dict[str, np.ndarray]:
        """`scores` and `entropy` with a first axis for seeds."""
        names = [dataclasses.replace(run, seed=s).name for s in self.seeds[run.network]]
        found = [np.load(self.out / "runs" / f"{name}.npz") for name in names]
        return {key: np.stack([one[key] for one in found]) for key in ("scores", "entropy")}

    def dense(self, network: str) -> np.ndarray:
        """Errors of the dense models, one for each seed."""
        places = [self.out / f"dense-{network}-{seed}" for seed in self.seeds[network]]
        return np.array([artifact.load(p, kind="model").metrics["error"] for p in places])

    def errors(self, network: str, target: str, terms: str, exclusion: str = "") -> np.ndarray:
        """Error of each seed."""
        scores = self._figures[network, target, terms, exclusion]["scores"]
        return np.array([_error(one.sum(0), len(one)) for one in scores])

    def difference(
        self, ours: tuple[str, ...], theirs: tuple[str, ...], figure: str = "scores"
    ) -> tuple[float, float, float]:
        """Difference of a figure between two compressions, with its 95 % interval over seeds and images.

        Args:
            ours: network, target, terms and exclusion ("" for none).
            theirs: the same, of what is subtracted.
            figure: scores, for the error, or entropy.
        """
        first, second = (self._figures[key][figure].astype(np.float64) for key in (ours, theirs))
        draw = np.random.default_rng(0)
        seeds, images = first.shape[:2]
        once = np.ones(images)
        found = []
        for _ in range(RESAMPLES):
            rows = draw.integers(0, seeds, seeds)
            times = np.bincount(draw.integers(0, images, images), minlength=images).astype(float)
            found.append(_mean(first[rows], times) - _mean(second[rows], times))
        low, high = np.quantile(found, [0.025, 0.975])
        return _mean(first, once) - _mean(second, once), float(low), float(high)


def table(results: Results) -> Iterator[str]:
    """The study in Markdown."""
    yield f"Seeds {results.seeds['digits']}; means over them, intervals over seeds and test images."
    base = results.dense("digits")
    yield ""
    yield f"Digits, dense: error {_rates(base)}, accuracy {1 - base.mean():.2%}."
    yield ""
    ratios = {t: f"{results.totals['digits', t, '']['size_ratio']:.2f}" for t in TARGETS}
    means = {t: [f"{results.errors('digits', t, k).mean():.2%}" for k in TERMS] for t in TARGETS}
    yield markdown_table(
        ("target", "size ratio", *TERMS), [(t, ratios[t], *means[t]) for t in TARGETS]
    )
    yield ""
    yield "Differences, of error and of cross entropy on the test split, with 95 % intervals:"
    yield ""
    heads = (
        "target",
        "better, as the paper has it",
        "than",
        "error",
        "verdict",
        "cross entropy",
        "verdict",
    )
    rows = []
    for target in TARGETS:
        for better, worse in PAIRS:
            ours, theirs = ("digits", target, better, ""), ("digits", target, worse, "")
            error = results.difference(ours, theirs)
            entropy = _entropy_cells(results, ours, theirs)
            rows.append((target, better, worse, _change(error), _verdict(error), *entropy))
    yield markdown_table(heads, rows)
    yield ""
    base = results.dense("canvas")
    yield f"Segmentation, seeds {results.seeds['canvas']}, dense: mIoU {_rates(1 - base)}."
    yield ""
    heads = (
        "target",
        "left dense",
        "size ratio",
        "terms",
        "mIoU",
        "to hard",
        "verdict",
        *heads[-2:],
    )
    first = [
        r for r in results.runs if (r.network, r.seed) == ("canvas", results.seeds["canvas"][0])
    ]
    yield markdown_table(heads, [_canvas_cells(results, run) for run in first])


def _canvas_cells(results: Results, run: Run) -> tuple[str, ...]:
    ours = ("canvas", run.target, run.terms, run.exclusion)
    theirs = ("canvas", run.target, "hard", run.exclusion)
    error = results.difference(ours, theirs)
    return (
        run.target,
        run.exclusion or "none",
        f"{results.totals['canvas', run.target, run.exclusion]['size_ratio']:.2f}",
        run.terms,
        f"{1 - results.errors(*ours).mean():.2%}",
        _change((-error[0], -error[2], -error[1])),
        _verdict(error),
        *_entropy_cells(results, ours, theirs),
    )


def _entropy_cells(
    results: Results, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> tuple[str, str]:
    entropy = results.difference(ours, theirs, "entropy")
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*entropy), _verdict(entropy)


def plot(results: Results, out: Path) -> None:
    """Errors by terms, a line for each target; a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis = figure.subplots()
    names = [t for t in TERMS if TERMS[t]]
    for index, target in enumerate(TARGETS):
        errors = np.stack([results.errors("digits", target, t) for t in names]) * 100
        line = axis.plot(names, errors.mean(1), marker="o", label=target)[0]
        places = np.arange(len(names)) + 0.04 * (index - 2)
        for seed in errors.T:
            axis.plot(places, seed, ".", color=line.get_color(), alpha=0.4)
    axis.axhline(100 * results.dense("digits").mean(), color="black", linestyle=":", label="dense")
    axis.set(ylabel="error on the test split, %", ylim=(0, None))
    axis.set_xticks(range(len(names)), [name.replace(" + ", "\n+ ") for name in names])
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(out, dpi=110)


def _error(summed: np.ndarray, num_images: float) -> float:
    """Of one seed: a mean, or what the confusions [C, C] of all images make."""
    return float(summed) / num_images if summed.ndim == 0 else 1 - mean_iou(summed)


def _mean(figures_SI: np.ndarray, times_I: np.ndarray) -> float:
    """Mean over seeds, each image counted so many times."""
    summed_S = np.tensordot(figures_SI, times_I, axes=(1, 0))
    return float(np.mean([_error(one, times_I.sum()) for one in summed_S]))


def _rates(values: np.ndarray) -> str:
    return ", ".join(f"{v:.2%}" for v in values)


def _change(found: Sequence[float]) -> str:
    value, low, high = (100 * v for v in found)
    return f"{value:+.2f} points ({low:+.2f} to {high:+.2f})"


def _verdict(found: Sequence[float]) -> str:
    _, low, high = found
    return "better" if high < 0 else "worse" if low > 0 else "undecided"


def _collect(results: Results) -> Mapping[str, Any]:
    """All errors, for study.json."""
    rows = {
        " / ".join(filter(None, key)): results.errors(*key).tolist()
        for key in {(r.network, r.target, r.terms, r.exclusion): None for r in results.runs}
    }
    bases = {network: results.dense(network).tolist() for network in NETWORKS}
    return {"seeds": results.seeds, "dense": bases, "errors": rows}


def main() -> None:
    """Do what is missing, and write the study."""
    parser = argparse.ArgumentParser(description="distillation terms on small vision transformers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run for run in plan(args.seeds) if run.network in args.networks]
    for run in runs:
        perform(run, args.out)
    if set(args.networks) < set(NETWORKS):
        return  # part of the work, which another process completes
    results = Results(runs, args.out)
    write(args.out / "study.json", _collect(results), indent=1)
    text = "\n".join(table(results)) + "\n"
    write_text(args.out / "study.md", text)
    plot(results, args.out / "study.png")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
