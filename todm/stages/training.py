"""Corpus -> supernet."""

import dataclasses
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todm.errors import ConfigError, TrainingError
from todm.files import Progress, no_progress, path_or_none

if TYPE_CHECKING:
    from todm.artifact import Artifact
    from todm.recipe import Recipe
    from todm.train.dry_run import DryRunReport

_log = logging.getLogger(__name__)


class ProcessFailed(TrainingError):
    """One of the processes that were started has failed, and has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"training stopped with status {status}; the reason is printed above")
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained supernet.

    Attributes:
        supernet: its artifact; `metrics["dev"]` has the WER of the subnets that were evaluated.
        run: directory with curves.png and summary.md.
        existed: whether it was finished already.
        reported: whether another process of the training has reported it.
    """

    supernet: "Artifact"
    run: Path
    existed: bool
    reported: bool


def train(
    corpus: str | Path,
    *,
    out: str | Path,
    config: str = "commands",
    init: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Trained:
    """Train a supernet, or continue training it from its last checkpoint.

    On a CPU, `train.num_processes` processes are started.

        >>> stages.train(run / "corpus", out=run, config="debug", settings=small).existed
        True

    Args:
        corpus: what  todm prepare  wrote.
        out: directory of the run.
        config: the recipe: debug, commands, clean100 or full960.
        init: an earlier supernet or subnet to begin from, perhaps with another vocabulary.
        settings: changes to the recipe, such as `train.num_updates=500`.
        progress: called with (what, done, all) while features are computed.

    Raises:
        TodmError: something given cannot be used; the message says what to do.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    import torch

    from todm import artifact
    from todm.asr.backend import AsrBackend
    from todm.recipe import named
    from todm.train.loop import SUPERNET
    from todm.train.loop import train as train_supernet

    run, start = Path(out), path_or_none(init)
    recipe, data = _recipe(corpus, config, settings)
    standard = _plain(named(config))
    if done := _finished(run, recipe, data, start):
        if _is_rank_zero():
            _restore(run, standard)
        return Trained(supernet=done, run=run, existed=True, reported=not _is_rank_zero())
    run.mkdir(parents=True, exist_ok=True)  # fails now, not after hours of features
    backend = AsrBackend(recipe.asr, data.path, corpus=data.path, report=progress)
    if _is_standalone():  # else the first process goes first, in the training itself
        backend.prepare()
        if recipe.train.num_processes > 1 and not torch.cuda.is_available():
            command = _command(corpus, run, config, init, settings)
            _launch(command, recipe, run)
            made = artifact.load(run / SUPERNET, kind="supernet")
            return Trained(supernet=made, run=run, existed=False, reported=True)
    if _is_rank_zero():
        _advise(recipe, run, start)
    made = train_supernet(
        backend,
        recipe.train,
        run,
        recipe=_plain(recipe),
        parent=data.hash,
        info={"corpus": str(data.path.absolute()), "provenance": _provenance(data, recipe, start)},
        init=start,
        standard=standard,
    )
    return Trained(supernet=made, run=run, existed=False, reported=not _is_rank_zero())


def dry_run(
    corpus: str | Path,
    *,
    out: str | Path,
    config: str = "commands",
    init: str | Path | None = None,
    settings: Sequence[str] = (),
    progress: Progress = no_progress,
) -> "DryRunReport | None":
    """Check everything a training needs, and try its worst batch; writes nothing to `out`.

    Args:
        corpus: as for `train`, and so are the others.
        out: directory of the run that is planned.
        config: the recipe.
        init: an earlier supernet or subnet to begin from.
        settings: changes to the recipe.
        progress: called with (what, done, all) while features are computed.

    Returns:
        Time, memory and disk that the training will need; None in a process that does not report.
    """
    import torch

    from todm.asr.backend import AsrBackend
    from todm.train.dry_run import dry_run as rehearse

    run, start = Path(out), path_or_none(init)
    recipe, data = _recipe(corpus, config, settings)
    backend = AsrBackend(recipe.asr, data.path, corpus=data.path, report=progress)
    if _is_standalone() and recipe.train.num_processes > 1 and not torch.cuda.is_available():
        command = [*_command(corpus, run, config, init, settings), "--dry-run"]
        with tempfile.TemporaryDirectory() as logs:
            _launch(command, recipe, Path(logs), restart=False)
        return None
    if _is_rank_zero():
        _advise(recipe, run, start)
    found = rehearse(backend, recipe.train, run, init=start)
    return found if _is_rank_zero() else None


def _recipe(corpus: str | Path, config: str, settings: Sequence[str]) -> "tuple[Recipe, Artifact]":
    """The recipe, with the data settings that the corpus was really made with; and the corpus."""
    from todm import artifact
    from todm.asr.corpora.config import DataConfig
    from todm.recipe import named

    recipe = named(config).override(settings)
    found = artifact.load(corpus, kind="corpus")
    data = DataConfig.from_json(found.config, where="asr.data.")
    return recipe.replace(asr=recipe.asr.replace(data=data)), found


def _provenance(corpus: "Artifact", recipe: "Recipe", init: Path | None) -> list[dict[str, Any]]:
    """All that the net learns from: the corpus's sources, noise, rooms, and those of the first net."""
    from todm import artifact
    from todm.asr.corpora.provenance import from_info, of_folder, to_json

    sources = from_info(corpus.info)
    if recipe.asr.noise:
        sources.append(of_folder("noise", recipe.asr.noise))
    if recipe.asr.acoustics.rirs:
        sources.append(of_folder("room", recipe.asr.acoustics.rirs))
    if init is not None and (init / artifact.MANIFEST).is_file():
        sources += from_info(artifact.load(init).info)
    return to_json(sources)


def _is_standalone() -> bool:
    """Whether this was not started as one process of several."""
    return "WORLD_SIZE" not in os.environ


def _is_rank_zero() -> bool:
    """Whether this process reports for all."""
    return os.environ.get("RANK", "0") == "0"


def _advise(recipe: "Recipe", run: Path, init: Path | None) -> None:
    """Before the first update from an earlier net."""
    from todm.train.loop import CHECKPOINTS

    until = recipe.asr.objective.align_until
    if init is not None and until and not (run / CHECKPOINTS).exists():
        _log.warning(
            "asr.objective.align_until is %g: this flat start unlearns the alignment of the net given "
            "with --init; consider  --set asr.objective.align_until=0",
            until,
        )


def _restore(run: Path, standard: dict[str, Any]) -> None:
    """Make what a finished run has lost of its curves and summary."""
    from todm.train.monitor import CURVES, METRICS, plot_curves
    from todm.train.summary import SUMMARY, write_summary

    if not (run / CURVES).exists():
        plot_curves(run / METRICS, run / CURVES)
    if not (run / SUMMARY).exists():
        write_summary(run, standard=standard)


def _finished(
    run: Path, recipe: "Recipe", corpus: "Artifact", start: Path | None
) -> "Artifact | None":
    """The supernet, if this very training is finished.

    Raises:
        ConfigError: another training is.
    """
    from todm import artifact
    from todm.train.loop import INIT_KINDS, SUPERNET

    done = artifact.existing(run / SUPERNET, kind="supernet")
    if done is None:
        return None
    init = done.info.get("init")
    if start is None:
        wanted = None
    elif init and not (start / artifact.MANIFEST).is_file():
        wanted = init  # no longer needed once there is a checkpoint
    else:
        wanted = artifact.load(start, kind=INIT_KINDS).hash
    if (done.config, done.parent, init) != (_plain(recipe), corpus.hash, wanted):
        raise ConfigError(
            f"{run} holds a supernet of another corpus, other settings or another --init: "
            "choose another --out or remove it"
        )
    return done


def _command(
    corpus: str | Path,
    run: Path,
    config: str,
    init: str | Path | None,
    settings: Sequence[str],
) -> list[str]:
    """What every process runs: the command line, which says errors and handles interrupts."""
    words = ["train", str(corpus), "--config", config, "--out", str(run)]
    words += [word for item in settings for word in ("--set", item)]
    words += ["--init", str(init)] if init else []
    return [sys.executable, "-m", "todm.cli.main", *words]


def _launch(command: list[str], recipe: "Recipe", logs: Path, *, restart: bool = True) -> None:
    """Run several processes to their end.

    Raises:
        ProcessFailed: the first of them has failed, and has said why.
        TrainingError: another one has.
    """
    from todm.train.launch import launch

    restarts = recipe.train.max_restarts if restart else 0
    num = recipe.train.num_processes
    if status := launch(command, num, log_dir=logs, max_restarts=restarts):
        raise ProcessFailed(status)


def _plain(recipe: "Recipe") -> dict[str, Any]:
    """As it stands in manifests: JSON types only, lists for tuples."""
    return json.loads(json.dumps(recipe.to_json()))
