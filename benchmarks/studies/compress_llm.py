"""AWQ, round-to-nearest and GPTQ on a small Llama and real text: perplexity at 4 and 3 bits.

    python -m benchmarks.studies.compress_llm --text DIR --out DIR

trains the model on LibriSpeech's transcripts (`small_llama.py`), imports it, compresses it in every way
below, and writes DIR/study.json, study.md and study.png. Finished parts are not repeated. Each result is
a perplexity over chapters of test-clean, with a bootstrap interval over chapters that is paired with the
model in float32, and with round-to-nearest of the same bits and group.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.studies.results import keep, write
from benchmarks.studies.small_llama import SPLITS, SmallLlama, read_chapters, train
from todm import artifact
from todm.artifact import Artifact
from todm.compress.calibrate import Block, Call, Means, collect
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.errors import ConfigError
from todm.files import markdown_table, write_text
from todm.kernels.matmul_w4 import quantise_rtn
from todm.llm.adapter import LlmAdapter
from todm.llm.data import read_texts
from todm.llm.importing import import_checkpoint, text_file
from todm.llm.perplexity import Interval, Losses, bootstrap, compare

WINDOWS = 32
"""Of calibration, 128 tokens each, by default."""
METHODS: Mapping[str, dict[str, Any]] = {
    "round to nearest": {"passes": ["int4"]},
    "GPTQ": {"passes": ["int4"], "int4": {"method": "gptq"}},
    "AWQ, scales alone": {"passes": ["awq"], "awq": {"clip": False}},
    "AWQ + clip": {"passes": ["awq"]},
}
PLAIN, BEST = "round to nearest", "AWQ + clip"
CHANNELS = ("activation", "weight", "random")
SHARE_KEPT = 0.01
OTHER = "the help texts of Python (pydoc_data.topics)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One way to compress, on one model.

    Attributes:
        bits: 4 or 3; 32 for the model as it is.
        group: of inputs.
        method: of `METHODS`.
        kept: how the 1 % of input channels that stays in float16 is chosen; empty for none.
        windows: of calibration.
        other: whether calibration is on text of another domain.
        settings: further ones, as of `--set`.
    """

    bits: int
    group: int = 128
    method: str = PLAIN
    kept: str = ""
    windows: int = WINDOWS
    other: bool = False
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File stem."""
        words = [f"int{self.bits} g{self.group} {self.method} {self.windows}", self.kept]
        words += ["other" * self.other, *self.settings]
        return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")

    def config(self) -> CompressConfig:
        """Settings of the passes."""
        settings = json.loads(json.dumps(METHODS[self.method]))
        settings.setdefault(settings["passes"][0], {}).update(bits=self.bits, group=self.group)
        found = CompressConfig.from_json({**settings, "num_calibration": self.windows})
        return found.override(list(self.settings))


FLOAT = Case(bits=32)
MAIN = (
    *(Case(bits=bits, method=m) for bits in (4, 3) for m in METHODS),
    *(Case(bits=3, group=g, method=m) for g in (64, 32) for m in (PLAIN, BEST)),
)
KEPT = tuple(Case(bits=3, kept=how) for how in CHANNELS)
CALIBRATION = (
    *(Case(bits=3, method=BEST, windows=w) for w in (16, 32, 64, 128, 256)),
    Case(bits=3, method=BEST, other=True),
)

ATTEMPTS = (
    Case(bits=4, method=BEST, settings=("sequential=false",)),
    Case(bits=4, method=BEST, settings=("awq.grid=40",)),
    Case(bits=4, method=BEST, windows=128),
)
"""At int4, where clipping does not help on this model."""


def prepare(text: Path, out: Path, settings: SmallLlama, show: Callable[[str], None]) -> Artifact:
    """The trained and imported model, made if it does not exist yet.

    Raises:
        CorpusError: transcripts that cannot be read.
    """
    place = out / "model"
    if (place / artifact.MANIFEST).is_file():
        return artifact.load(place, kind="model")
    (out / "text").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write_text(text_file(out / "text", split), "\n\n".join(read_chapters(text, split)) + "\n")
    if not (out / "llama").is_dir():
        train(read_texts(text_file(out / "text", "train")), out / "llama", settings, progress=show)
    return import_checkpoint(out / "llama", place, text=out / "text")


def other_domain(out: Path) -> Path:
    """Text of another domain in the model's alphabet."""
    from pydoc_data.topics import topics

    file = out / "other.txt"
    words = (" ".join(re.findall(r"[A-Z']+", topic.upper())) for topic in topics.values())
    write_text(file, "\n\n".join(words) + "\n")
    return file


def measure(case: Case, model: Artifact, out: Path, texts: int) -> Losses:
    """Losses of the compressed model on test chapters, kept in a file.

    Args:
        case: how it is compressed.
        model: the model in float32.
        out: directory of results.
        texts: number of chapters, spread over all; 0 for all.

    Raises:
        ConfigError: the results in the file are of another model or of other texts.
    """
    file = out / "results" / f"{case.name}.json"
    inputs = {"case": {**vars(case), "settings": list(case.settings)}}
    inputs |= {"model": model.hash, "texts": texts}
    kept = keep(file, lambda: {"inputs": inputs, **_measured(case, model, out, texts)})
    if kept.get("inputs") != inputs:
        raise ConfigError(f"{file} is of another model or other texts: choose another --out")
    return Losses(nats=tuple(kept["nats"]), tokens=tuple(kept["tokens"]))


def _measured(case: Case, model: Artifact, out: Path, texts: int) -> dict[str, Any]:
    start = time.monotonic()
    adapter = LlmAdapter.load(model)
    errors = _compress(case, adapter, out)
    middle = time.monotonic()
    chapters = read_texts(text_file(model.path, "test"))
    step = max(1, len(chapters) // texts) if texts else 1
    losses = adapter.text_losses(adapter.model, chapters[::step][: texts or None])
    seconds = {"compress": middle - start, "evaluate": time.monotonic() - middle}
    return {"seconds": seconds, "errors": errors, **dataclasses.asdict(losses)}


def keep_channels(adapter: LlmAdapter, case: Case) -> None:
    """Round every layer of the blocks, except 1 % of its input channels in float16 (AWQ, table 1).

    Args:
        adapter: its model is changed; layers stay dense modules with rounded weights.
        case: `kept` says which channels: of the largest mean input (`activation`), of the largest
            weights (`weight`), or any (`random`).
    """
    draws = torch.Generator().manual_seed(0)
    layers = {
        name: module
        for name, module in adapter.model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(adapter.block_lists[0])
    }
    means = _means(adapter, layers, case.windows)
    with torch.no_grad():
        for name, layer in layers.items():
            weight_NK = layer.weight.clone()
            size_K = {
                "activation": lambda name=name: means[name],
                "weight": lambda weight_NK=weight_NK: weight_NK.norm(dim=0),
                "random": lambda K=weight_NK.shape[1]: torch.rand(K, generator=draws),
            }[case.kept]()
            kept = size_K.topk(max(1, round(SHARE_KEPT * len(size_K)))).indices
            rounded_NK = quantise_rtn(weight_NK, case.bits, group=case.group).dequantise()
            rounded_NK[:, kept] = weight_NK[:, kept].half().float()
            layer.weight.copy_(rounded_NK)


def table(found: Mapping[Case, Losses]) -> str:
    """The study in Markdown."""
    float_losses = found[FLOAT]
    head = bootstrap(float_losses)
    lines = [
        f"float32: perplexity {head.value:.3f} ({head.low:.3f} to {head.high:.3f}) on "
        f"{len(float_losses.nats)} chapters of test-clean, "
        f"{sum(float_losses.tokens)} tokens.",
        "",
        _table("bits, group", MAIN, found, lambda c: (f"int{c.bits} g{c.group}", c.method)),
        "",
        *_aims(found),
        "",
        "One per cent of input channels in float16 and the rest rounded to nearest; activations are "
        f"means over {WINDOWS} windows:",
        "",
        _table("int3 g128", KEPT, found, lambda c: ("channels kept by", c.kept)),
        "",
        f"Attempts to make {BEST} better at int4:",
        "",
        _table(
            "int4 g128", ATTEMPTS, found, lambda c: (f"{c.windows} windows", " ".join(c.settings))
        ),
        "",
        f"Calibration of {BEST} (windows of 128 tokens of train-clean-100, or of {OTHER}):",
        "",
        _table("int3 g128", CALIBRATION, found, _calibration_cells),
    ]
    return "\n".join(lines) + "\n"


def plot(found: Mapping[Case, Losses], out: Path) -> None:
    """Perplexity against float32 of each method, with intervals."""
    from matplotlib.figure import Figure

    shown = [case for case in all_cases() if case in found and case != FLOAT]
    figure = Figure(figsize=(8, 0.3 * len(shown) + 1.2), layout="constrained")
    axis = figure.subplots()
    for place, case in enumerate(reversed(shown)):
        got = compare(found[case], found[FLOAT])
        value = 100 * (got.value - 1)
        spread = [[value - 100 * (got.low - 1)], [100 * (got.high - 1) - value]]
        colour = {PLAIN: "grey", "GPTQ": "tab:green"}.get(case.method, "tab:blue")
        axis.errorbar([value], [place], xerr=spread, fmt="o", capsize=3, color=colour)
    labels = [_label(case) for case in reversed(shown)]
    axis.set_yticks(range(len(shown)), labels)
    axis.set_xlabel("perplexity above float32, %, with 95 % intervals over chapters")
    axis.axvline(0, color="black", lw=0.8)
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(out, dpi=110)


def run(text: Path, out: Path, *, texts: int, settings: SmallLlama) -> int:
    """Run the study, or continue an interrupted one.

    Raises:
        ConfigError: results of another model lie in `out`.
        CorpusError: transcripts that cannot be read.
    """
    model = prepare(text, out, settings, lambda line: _say(f"{line}\n"))
    found: dict[Case, Losses] = {}
    # Slow cases come last; all are compared with round-to-nearest, so it comes first.
    for case in sorted(all_cases(), key=lambda case: max(case.windows, WINDOWS)):
        found[case] = measure(case, model, out, texts)
        _say(f"{_label(case)}: {found[case].perplexity:.3f}\n")
        write_text(out / "study.md", table(found))
    rows = [
        {**dataclasses.asdict(c), "perplexity": dataclasses.asdict(bootstrap(losses))}
        | {"against_float": dataclasses.asdict(compare(losses, found[FLOAT]))}
        for c, losses in found.items()
    ]
    write(out / "study.json", {"model": model.hash, "rows": rows}, indent=1)
    plot(found, out / "study.png")
    _say(table(found))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="LibriSpeech's transcripts")
    parser.add_argument("--out", type=Path, required=True, help="directory of results")
    parser.add_argument("--texts", type=int, default=0, help="test chapters; 0: all 87")
    parser.add_argument("--updates", type=int, default=SmallLlama().updates, help="of training")
    args = parser.parse_args(argv)
    return run(args.text, args.out, texts=args.texts, settings=SmallLlama(updates=args.updates))


def _compress(case: Case, adapter: LlmAdapter, out: Path) -> dict[str, float | None]:
    """Compress the adapter's model; error of every layer's output."""
    if case == FLOAT:
        return {}
    if case.kept:
        keep_channels(adapter, case)
        return {}
    file = other_domain(out) if case.other else None
    (report,) = compress(adapter, case.config(), calibration=file).reports
    return {row.name: row.after for row in report.rows if row.done}


def _means(
    adapter: LlmAdapter, layers: Mapping[str, nn.Module], windows: int
) -> dict[str, torch.Tensor]:
    """Mean magnitudes of the inputs of layers."""
    model = adapter.model
    calls = [Call((batch,), {}) for batch in adapter.calibration(windows, None)]
    run = lambda call: adapter.run(model, call.input)  # noqa: E731
    block = Block("", model, layers=list(layers), calls=calls, masks={}, run=run)
    return {n: seen.parts[0].abs_K for n, seen in collect(block, list(layers), Means).items()}


def _calibration_cells(case: Case) -> tuple[str, ...]:
    return f"{case.windows} windows", "other text" if case.other else "same text"


def _table(
    head: str,
    cases: Sequence[Case],
    found: Mapping[Case, Losses],
    cells: Callable[[Case], tuple[str, ...]],
) -> str:
    rows = []
    for case in (case for case in cases if case in found):
        plain = found[Case(bits=case.bits, group=case.group)]
        above = _change(compare(found[case], found[FLOAT]))
        against = "" if found[case] is plain else _change(compare(found[case], plain))
        rows.append((*cells(case), f"{found[case].perplexity:.3f}", above, against))
    heads = (head, "", "perplexity", "above float32", "against rounding to nearest")
    return markdown_table(heads, rows)


def _aims(found: Mapping[Case, Losses]) -> list[str]:
    """Whether AWQ is better than rounding to nearest in each."""
    lines = []
    for case in (c for c in MAIN if c.method.startswith("AWQ") and c in found):
        got = compare(found[case], found[Case(bits=case.bits, group=case.group)])
        held = "met" if got.value < 1 else "MISSED"
        sure = "the interval excludes zero" if got.high < 1 or got.low > 1 else "within noise"
        lines.append(
            f"- int{case.bits} g{case.group}, {case.method} better than {PLAIN}: {held} "
            f"({_change(got)}; {sure})"
        )
    return lines


def all_cases() -> list[Case]:
    """Each case once, in the order of the tables."""
    return list(dict.fromkeys((FLOAT, *MAIN, *KEPT, *ATTEMPTS, *CALIBRATION)))


def _label(case: Case) -> str:
    if case == FLOAT:
        return "float32"
    words = f"int{case.bits} g{case.group} {case.method}"
    if case.kept:
        return f"{words}, 1 % kept by {case.kept}"
    words += f", {case.windows} windows{', other text' * case.other}"
    return " ".join([words, *case.settings])


def _change(got: Interval) -> str:
    low, value, high = (f"{100 * (v - 1):+.2f}" for v in (got.low, got.value, got.high))
    return f"{value} % ({low} to {high})"


def _say(words: str) -> None:
    sys.stdout.write(words)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
