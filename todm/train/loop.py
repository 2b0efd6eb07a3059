"""The training loop: sandwich steps over resumable batches, one optimizer step each.

Knows no modality: it meets the model through `Backend`. Ctrl-C finishes the update, writes a
checkpoint and stops; after kill -9 training resumes from the last checkpoint with the same result as
without the interruption. A full disk costs checkpoints, not the training: the next one is due soon.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Backend
from todm.compress.int8_emulation import weight_outliers
from todm.errors import ConfigError, TrainingError
from todm.train import checkpoint
from todm.train.config import TrainConfig
from todm.train.evaluation import evaluate, int8_is_due, is_due
from todm.train.monitor import BAD_BATCHES, CURVES, METRICS, Monitor, plot_curves
from todm.train.parallel import World
from todm.train.step import Learner, StepResult
from todm.train.summary import differences, write_summary

CHECKPOINTS = "checkpoints"
SUPERNET = "supernet"
INIT_KINDS = ("supernet", "subnet")


def train(
    backend: Backend,
    config: TrainConfig,
    out: Path,
    *,
    recipe: dict[str, Any],
    parent: str,
    info: dict[str, Any] | None = None,
    init: Path | None = None,
    standard: dict[str, Any] | None = None,
) -> Artifact:
    """Train a supernet and write it to `out/supernet`; resumes where an earlier call stopped.

    Args:
        backend: the modality.
        config: this stage's settings.
        out: directory of the run: checkpoints, metrics, curves, the artifact.
        recipe: the whole configuration, kept in checkpoints and in the artifact.
        parent: hash of the corpus.
        info: anything a later stage needs, kept in the artifact.
        init: an earlier supernet or subnet to start from; no longer needed once there is a checkpoint.
        standard: the named recipe, for the summary's list of settings that differ.

    Raises:
        ConfigError: the run was started with other settings, or `init` does not fit.
        TrainingError: too many bad steps in a row, or unreadable checkpoints.
        LostProcess: another process of the training is gone.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    with World().joined() as world:
        state = checkpoint.read_latest(out / CHECKPOINTS)
        origin = {"recipe": recipe, "parent": parent, "num_processes": world.size}
        start = None
        if init is not None:
            start, origin["init"] = _origin(init, state)
        _check_origin(origin, state, out=out, world=world)
        trainer = _Trainer(Learner(backend, config, world, start=start), out, origin)
        trainer.restore(state)
        return trainer.run(info or {}, standard)


def _origin(init: Path, state: dict[str, Any] | None) -> tuple[Artifact | None, str]:
    """The artifact to start from (None if there is a checkpoint), and its hash."""
    if state is not None and "init" in state["origin"] and not (init / artifact.MANIFEST).is_file():
        return None, state["origin"]["init"]
    found = artifact.load(init, kind=INIT_KINDS)
    return (None if state else found), found.hash


def _check_origin(
    origin: dict[str, Any], state: dict[str, Any] | None, *, out: Path, world: World
) -> None:
    """Check that all processes, and the checkpoint, belong to this very training."""
    same = "start all with the same command, corpus and version of todm"
    world.assert_same(origin, what="settings", hint=same)
    if state is not None and state["origin"] != origin:
        # A new field that defaults to null is no difference.
        version = ("version of todm", "another", "this")
        name, then, now = next(differences(origin, state["origin"]), version)
        raise ConfigError(
            f"{out} holds a training with other settings ({name.removeprefix('recipe.')}: "
            f"{then!r} then, {now!r} now): choose another --out or remove it"
        )


@contextlib.contextmanager
def _deferred_interrupt(*, ignore: bool) -> Iterator[list[int]]:
    """Yields a list that the first Ctrl-C is added to, so that it never cuts an update; a second interrupts.

    Processes other than rank 0 ignore it: rank 0 tells them, and all stop after the same update.
    """
    pressed: list[int] = []

    def press(number: int, _frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = None
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignore else press)
    try:
        yield pressed
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@dataclasses.dataclass
class _Throughput:
    """Audio and time of some updates; evaluations and checkpoints are not counted."""

    updates: int = 0
    audio: float = 0.0
    seconds: float = 0.0

    def add(self, audio: float, seconds: float) -> None:
        self.updates += 1
        self.audio += audio
        self.seconds += seconds

    def figures(self, processes: int) -> dict[str, float]:
        """Hours of audio an hour, by all processes and by one."""
        rate = self.audio / max(self.seconds, 1e-9)
        return {
            "audio_hours_per_hour": rate,
            "audio_hours_per_hour_per_process": rate / processes,
        }


class _Trainer:
    """One training on one process: its position, and what it writes (rank 0 only)."""

    def __init__(self, learner: Learner, out: Path, origin: dict[str, Any]) -> None:
        self.learner, self.config, self.world = learner, learner.config, learner.world
        self.out, self.origin = out, origin
        self.update = 0
        self.monitor: Monitor | None = None
        self.recent, self.overall = _Throughput(), _Throughput()

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go to a checkpoint, if there is one, and check that all processes did the same."""
        if state is not None:
            self.update = state["update"]
            self.learner.load_state_dict(state)
        hint = "put --out on a disk that all machines share"
        self.world.assert_same(self.update, what="checkpoint", hint=hint)
        self.learner.check_weights()

    def run(self, info: dict[str, Any], standard: dict[str, Any] | None) -> Artifact:
        """Train to the end, and write what `train` promises."""
        is_rank_zero = self.world.rank == 0
        self.out.mkdir(parents=True, exist_ok=True)
        self.monitor = Monitor(self.out, self.config.num_updates) if is_rank_zero else None
        interrupt = _deferred_interrupt(ignore=not is_rank_zero)
        with self.monitor or contextlib.nullcontext(), interrupt as pressed:
            self._resume()
            saved = started = time.monotonic()
            for batch in self._remaining():
                due = is_rank_zero and (
                    time.monotonic() - saved > 60 * self.config.checkpoint_minutes
                )
                result = self._step(batch, [float(due), float(bool(pressed))])
                self._report(result, time.monotonic() - started)
                save, halt = (n > 0 for n in result.flags)
                if save or halt or self.update == self.config.num_updates:
                    self._save()
                    saved = time.monotonic()
                if halt:
                    raise KeyboardInterrupt
                started = time.monotonic()
            done = self._finish(info)
        if self.monitor is not None:
            with self.monitor.tolerate_full_disk("curves and summary"):
                plot_curves(self.out / METRICS, self.out / CURVES)
                write_summary(self.out, standard=standard)
        return done

    def _resume(self) -> None:
        if self.monitor is None:
            return
        self.monitor.resume(self.update)
        if self.update:
            self.monitor.log_event("resumed", processes=self.world.size)
        for line in self.learner.init_info:
            self.monitor.print(line)

    def _remaining(self) -> Iterator[Any]:
        stream = iter(self.learner.batches)
        while self.update < self.config.num_updates:
            yield next(stream)

    def _step(self, batch: Any, flags: list[float]) -> StepResult:  # noqa: ANN401 - the backend's own
        """One update; a skipped one is written down, and too many in a row stop the training."""
        learner, update = self.learner, self.update
        result = learner.step(batch, update, subnets=learner.subnets(update), flags=flags)
        self.update += 1
        if not result.skip_reason:
            return result
        optimizer, most = learner.optimizer, self.config.max_bad_steps
        own = {"loss": result.loss, "grad_norm": optimizer.last_norm, "ids": list(batch.ids)}
        parts = self.world.all_gather(own)
        if self.monitor is not None:
            self.monitor.log_skipped(update, result.skip_reason, parts)
        if optimizer.num_skipped_in_row >= most:
            ids = [name for part in parts for name in part["ids"]]
            raise TrainingError(
                f"{most} steps in a row were skipped, the last because {result.skip_reason} (update "
                f"{update}, batch {', '.join(ids[:4])}, ...): lower train.optim.lr, or look at "
                f"the utterances listed in {self.out / BAD_BATCHES}"
            )
        return result

    def _report(self, result: StepResult, seconds: float) -> None:
        """Show and log; evaluate when it is time."""
        self.recent.add(result.audio, seconds)
        self.overall.add(result.audio, seconds)
        if self.monitor is None:
            return
        config, update = self.config, self.update
        log = update % config.log_every == 0 or update == config.num_updates
        self.monitor.log_train(update, self._figures(result) if log else None)
        if result.renewed:
            self.monitor.log_masks(update, self.learner.sparse.by_layer)
        if is_due(update, config.num_updates, config.eval_every):
            with self.learner.eval_weights():
                figures = self._evaluate(int8=int8_is_due(update, config), limit=config.eval_limit)
            self.monitor.log_eval(update, figures)

    def _figures(self, result: StepResult) -> dict[str, Any]:
        """Of this update; time and throughput are means since the last figures."""
        learner, optimizer = self.learner, self.learner.optimizer
        recent, self.recent = self.recent, _Throughput()
        cap = self.config.quant.outlier_cap
        with learner.sparse.masked():
            outliers = weight_outliers(learner.model)
        return {
            **{k: float(v) for k, v in result.figures.items()},
            "seconds": recent.seconds / recent.updates,
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": optimizer.last_norm,
            "clip": optimizer.last_clip,
            "skipped": optimizer.num_skipped,
            **outliers,
            **({} if cap is None else {"num_capped": learner.num_capped}),
            **learner.sparse.figures,
            **recent.figures(self.world.size),
        }

    def _evaluate(self, *, int8: bool, limit: int) -> dict[str, dict[str, Any]]:
        learner, sandwich = self.learner, self.config.sandwich
        return evaluate(learner.backend, learner.model, sandwich=sandwich, int8=int8, limit=limit)

    def _save(self) -> None:
        """Write a checkpoint (rank 0); on a full disk the last ones stay, and training goes on."""
        self.learner.check_weights()
        if self.monitor is not None:
            position = {"update": self.update, "origin": self.origin}
            with self.monitor.tolerate_full_disk("a checkpoint"):
                state = {**position, **self.learner.state_dict()}
                checkpoint.write(self.out / CHECKPOINTS, self.update, state)

    def _finish(self, info: dict[str, Any]) -> Artifact:
        """Average, evaluate, write the artifact (rank 0; the others wait for it)."""
        self.learner.finish()
        if self.monitor is not None:
            figures = self._evaluate(int8=self.config.quant.every <= 1, limit=0)
            self.monitor.log_eval(self.update, figures)
            self._write(figures, info)
        self.world.barrier()
        return artifact.load(self.out / SUPERNET, kind="supernet")

    def _write(self, dev: dict[str, Any], info: dict[str, Any]) -> None:
        origin, learner = self.origin, self.learner
        init_info = {"init": origin["init"]} if "init" in origin else {}
        artifact.save(
            self.out / SUPERNET,
            kind="supernet",
            config=origin["recipe"],
            parent=origin["parent"],
            metrics={
                "dev": dev,
                "updates": self.update,
                "skipped": learner.optimizer.num_skipped,
                **(self.overall.figures(self.world.size) if self.overall.audio else {}),
            },
            info={"seed": self.config.seed, **init_info, **learner.sparse.info, **info},
            tensors=learner.model.state_dict(),
            write=learner.backend.write_assets,
        )
