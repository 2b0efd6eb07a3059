"""Subnet or model -> a smaller one, or what each of its layers would cost."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.errors import ConfigError
from todm.files import Progress, no_progress, path_or_none

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.compress.adapter import ModelAdapter
    from todm.compress.analyse import Measure, Sensitivity
    from todm.compress.config import CompressConfig
    from todm.compress.report import PassReport

_REPORT, _PLOT = "report.md", "report.png"
_SENSITIVITY, _SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.png"
_LOSS_BATCHES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed model.

    Attributes:
        model: its artifact; `metrics` has the error `before` and `after` if it was evaluated.
        reports: one for each pass, with a row for each layer.
        existed: whether it was there already.
    """

    model: "Artifact"
    reports: "Sequence[PassReport]"
    existed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysed:
    """What each layer costs alone, and the files that hold it."""

    sensitivity: "Sensitivity"
    figures: Path
    plot: Path


@dataclasses.dataclass(frozen=True)
class _Request:
    """What `compress` and `analyse` take; see there."""

    model: str | Path
    passes: Sequence[str]
    settings: Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]
    _calibration: str | Path | None
    _corpus: str | Path | None
    evaluate: bool
    split: str
    limit: int

    @property
    def calibration(self) -> Path | None:
        """The user's own data."""
        return path_or_none(self._calibration)

    @property
    def corpus(self) -> Path | None:
        """Data of speech."""
        return path_or_none(self._corpus)

    def open(self) -> "tuple[Artifact, CompressConfig, dict[str, Any]]":
        """The model, the settings, and all that decides the result.

        Raises:
            TodmError: something given cannot be used.
        """
        from todm import artifact
        from todm.compress.config import CompressConfig
        from todm.compress.storage import KIND, refuse_compressed
        from todm.stages.adapters import DENSE

        found = artifact.load(self.model, kind=(*DENSE, KIND))
        refuse_compressed(found)
        if self.limit < 0:
            raise ConfigError(f"--limit is {self.limit}: 0 (all) or more")
        if self.calibration and not self.calibration.exists():
            raise ConfigError(f"--calibration {self.calibration} is not there: check the path")
        config = CompressConfig.parse(
            self.passes, self.settings, include=self.include, exclude=self.exclude
        )
        return (
            found,
            config,
            {
                "parent": found.hash,
                "settings": config.to_json(),
                "calibration": self.calibration and _fingerprint(self.calibration),
                "corpus": self.corpus and str(self.corpus.resolve()),
                "evaluate": [self.split, self.limit] if self.evaluate else None,
            },
        )

    def figures(self, adapter: "ModelAdapter", model: Any) -> dict[str, Any]:  # noqa: ANN401 - an nn.Module
        """The error of a model on the split."""
        return adapter.evaluate(model.eval(), split=self.split, limit=self.limit)


def compress(
    model: str | Path,
    *,
    passes: Sequence[str],
    out: str | Path,
    settings: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calibration: str | Path | None = None,
    corpus: str | Path | None = None,
    evaluate: bool = False,
    split: str = "test",
    limit: int = 0,
    progress: Progress = no_progress,
) -> Compressed:
    """Compress a model by passes, with a report on every layer.

        >>> few = ["num_calibration=16"]
        >>> made = stages.compress(run / "subnet", passes=["int8"], out=run / "s", settings=few)
        >>> made.reports[0].name
        'int8'

    Args:
        model: what  todm extract-subnet  or  todm import  wrote.
        passes: of prune (alias sparse24), int8, int4 and awq, in order; at most one quantises, the last.
        out: directory of the result.
        settings: such as `prune.method=wanda` or `awq.group=64`.
        include: layers to compress although they would stay dense.
        exclude: patterns of layers to leave as they are.
        calibration: text, images or audio of your own; by default the training data.
        corpus: data of speech; by default the corpus the model was trained on.
        evaluate: measure the error before and after.
        split: to evaluate on.
        limit: evaluate on at most so many examples; 0 for all.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm import artifact
    from todm.compress import driver, storage
    from todm.stages import adapters
    from todm.train.optim import for_tuning

    place = Path(out)
    request = _Request(
        model, passes, settings, include, exclude, calibration, corpus, evaluate, split, limit
    )  # fmt: skip
    found, config, asked = request.open()
    done = artifact.existing(place, kind=storage.KIND)
    if done is not None and done.info.get("asked") == asked:
        return Compressed(model=done, reports=storage.read(done).reports, existed=True)
    checkpoints = place.with_name(f".{place.name}.training")
    adapter = adapters.adapter_of(found, corpus=request.corpus)
    before = request.figures(adapter, adapter.model) if evaluate else None
    result = driver.compress(
        adapter,
        config,
        calibration=request.calibration,
        optimizers={"scaled_adam": for_tuning},
        checkpoints=checkpoints,
        progress=progress,
    )
    after = request.figures(adapter, adapter.model) if evaluate else None
    made = storage.save(
        place,
        adapter.model,
        parent=found,
        config=config,
        reports=result.reports,
        metrics={"before": before, "after": after} if evaluate else {},
        info={"asked": asked} | ({"corpus": str(corpus)} if corpus else {}),
        write=lambda folder: _write(folder, adapter, result.reports),
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Compressed(model=made, reports=result.reports, existed=False)


def _write(folder: Path, adapter: "ModelAdapter", reports: "Sequence[PassReport]") -> None:
    """What lies beside the weights: the modality's files, and the report as a table and a plot."""
    from todm.compress.plots import plot_report
    from todm.compress.report import table

    adapter.write_assets(folder)
    tables = "\n\n".join(table(report) for report in reports)
    (folder / _REPORT).write_text(f"{tables}\n", encoding="utf-8")
    plot_report(reports, folder / _PLOT)


def analyse(
    model: str | Path,
    *,
    passes: Sequence[str],
    out: str | Path,
    settings: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calibration: str | Path | None = None,
    corpus: str | Path | None = None,
    evaluate: bool = False,
    split: str = "test",
    limit: int = 0,
    tolerance: float = 0.01,
    progress: Progress = no_progress,
) -> Analysed:
    """Try the passes on every layer and every kind of layer alone; compresses nothing.

    Takes what `compress` takes; `out` is a directory of its own.

    Args:
        model: see `compress`, and so on down to `limit`.
        passes: none of them may train.
        out: directory of the figures; what an interrupted call measured is not measured again.
        settings: see `compress`.
        include: see `compress`.
        exclude: see `compress`.
        calibration: see `compress`.
        corpus: see `compress`.
        evaluate: measure the error on a split, instead of the loss on a few training batches.
        split: to evaluate on.
        limit: evaluate on at most so many examples; 0 for all.
        tolerance: relative increase that is allowed in all.
        progress: called with (what, done, all).

    Raises:
        TodmError: something given cannot be used; the message says what to do.
    """
    from todm import artifact
    from todm.compress.analyse import analyse as try_alone
    from todm.compress.plots import plot_sensitivity
    from todm.files import read_json, write_text
    from todm.stages import adapters

    if not tolerance >= 0:
        raise ConfigError(f"--tolerance is {tolerance}: 0 or more, as in 0.01")
    request = _Request(
        model, passes, settings, include, exclude, calibration, corpus, evaluate, split, limit
    )  # fmt: skip
    found, config, asked = request.open()
    place = Path(out)
    if (place / artifact.MANIFEST).is_file():
        raise ConfigError(f"{place} holds an artifact: give the analysis a place of its own")
    place.mkdir(parents=True, exist_ok=True)
    file, plot = place / _SENSITIVITY, place / _SENSITIVITY_PLOT

    def keep(values: dict[str, float], **more: object) -> None:
        content = {"asked": asked, "values": values, **more}
        write_text(file, json.dumps(content, indent=1) + "\n")

    known = read_json(file)
    adapter = adapters.adapter_of(found, corpus=request.corpus)
    sensitivity = try_alone(
        adapter,
        config,
        _measure(adapter, request, config.seed),
        tolerance=tolerance,
        calibration=request.calibration,
        known=known.get("values", {}) if known.get("asked") == asked else {},
        keep=keep,
        progress=progress,
    )
    keep(dict(sensitivity.values), **sensitivity.to_json())
    plot_sensitivity(sensitivity.increases, sensitivity.exclude, plot)
    return Analysed(sensitivity=sensitivity, figures=file, plot=plot)


def _fingerprint(path: Path) -> str:
    """Of a file's content; of a folder, of the names and sizes in it."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    names = sorted(f"{p.relative_to(path)} {p.stat().st_size}" for p in path.rglob("*"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _measure(adapter: "ModelAdapter", request: _Request, seed: int) -> "Measure":
    """The error on a split, or else the loss on a few training batches."""
    from itertools import islice

    if request.evaluate:
        return lambda model: float(request.figures(adapter, model)["error"])
    batches = list(islice(adapter.batches(seed), _LOSS_BATCHES))

    def loss(model: Any) -> float:  # noqa: ANN401 - an nn.Module
        model.eval()
        losses = [adapter.losses(b, model, None, temperature=1.0)["hard"] for b in batches]
        return sum(float(value) for value in losses) / len(losses)

    return loss
