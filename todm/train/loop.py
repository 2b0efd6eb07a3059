"""The training loop: sandwich steps over resumable batches, one optimizer step each.

Knows no modality: it meets the model through `Backend`. Ctrl-C finishes the update, writes a
checkpoint and stops; after kill -9 training goes on from the last checkpoint, exactly as it would
have. A full disk costs checkpoints, not the training: each is tried again when the next is due.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from todm import artifact
from todm.artifact import Artifact
from todm.backend import Backend
from todm.compress.int8_emulation import weight_outliers
from todm.errors import ConfigError, TrainingError
from todm.files import is_full
from todm.train import checkpoint
from todm.train.config import TrainConfig
from todm.train.evaluation import evaluate, int8_is_due, is_due
from todm.train.interrupt import StopFlag
from todm.train.monitor import CURVES, METRICS, Monitor, plot_curves
from todm.train.parallel import World
from todm.train.spikes import BAD_BATCHES, BadBatches
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
    """Train a supernet and write it to `out/supernet`; continues where an earlier call stopped.

    Args:
        backend: the modality.
        config: this stage's settings.
        out: directory of the run: checkpoints, metrics, curves, the artifact.
        recipe: the whole configuration, kept in checkpoints and in the artifact.
        parent: hash of the corpus.
        info: anything a later stage needs, kept in the artifact.
        init: an earlier supernet or subnet to begin from; no longer needed once there is a checkpoint.
        standard: the recipe by name, so that the summary can tell what differs.

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
        trainer = _Trainer(backend, config, out, world, origin)
        trainer.begin(state, start)
        return trainer.run(info or {}, standard)


def _origin(init: Path, state: dict[str, Any] | None) -> tuple[Artifact | None, str]:
    """What to begin from, if that is still to be done, and its hash."""
    if state is not None and "init" in state["origin"] and not (init / artifact.MANIFEST).is_file():
        return None, state["origin"]["init"]
    found = artifact.load(init, kind=INIT_KINDS)
    return (None if state else found), found.hash


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
    """One training on one process: its position, and what it writes."""

    def __init__(
        self, backend: Backend, config: TrainConfig, out: Path, world: World, origin: dict[str, Any]
    ) -> None:
        self.backend, self.config, self.out = backend, config, out
        self.world, self.origin = world, origin
        self.update = 0
        self.bad = BadBatches(out)
        self.monitor: Monitor | None = None
        self.recent, self.overall = _Throughput(), _Throughput()

    def begin(self, state: dict[str, Any] | None, start: Artifact | None) -> None:
        """Build everything, take up a checkpoint, and see that all processes do the same."""
        agree = self.world.agree
        same = "start all with the same command, corpus and version of todm"
        agree(self.origin, what="settings", hint=same)
        if state is not None and state["origin"] != self.origin:
            # No setting differs where one that is null was not there at all.
            version = ("version of todm", "another", "this")
            name, then, now = next(differences(self.origin, state["origin"]), version)
            raise ConfigError(
                f"{self.out} holds a training with other settings ({name.removeprefix('recipe.')}: "
                f"{then!r} then, {now!r} now): choose another --out or remove it"
            )
        with self.world.lead_first():
            self.backend.prepare()
        self.learner = Learner(self.backend, self.config, self.world, start=start)
        self.batches = self.backend.batches(
            rank=self.world.rank,
            world_size=self.world.size,
            num_updates=self.config.num_updates,
        )
        self.learner.set_pace(self.batches)
        if state is not None:
            self.update = state["update"]
            self.learner.load_state_dict(state)
            self.batches.load_state_dict(state["batches"])
        agree(self.update, what="checkpoint", hint="put --out on a disk that all machines share")
        self.learner.check_draws(self.update)

    def run(self, info: dict[str, Any], standard: dict[str, Any] | None) -> Artifact:
        """Train to the end, and leave what `train` promises."""
        lead = self.world.rank == 0
        self.out.mkdir(parents=True, exist_ok=True)
        self.monitor = Monitor(self.out, self.config.num_updates) if lead else None
        with self.monitor or contextlib.nullcontext(), StopFlag(ignore=not lead) as stop:
            self._resume()
            saved = began = time.monotonic()
            for batch in self._remaining():
                due = lead and time.monotonic() - saved > 60 * self.config.checkpoint_minutes
                result = self._step(batch, [float(due), float(stop.raised)])
                seconds = time.monotonic() - began
                self._report(result, seconds)
                save, halt = (n > 0 for n in result.flags)
                if save or halt or self.update == self.config.num_updates:
                    self.learner.check_draws(self.update)
                    self._save()
                    saved = time.monotonic()
                if halt:
                    raise KeyboardInterrupt
                began = time.monotonic()
            done = self._finish(info)
        if lead:
            with self._spared("curves and summary"):
                plot_curves(self.out / METRICS, self.out / CURVES)
                write_summary(self.out, standard=standard)
        return done

    def _resume(self) -> None:
        if self.monitor is None:
            return
        self.monitor.resume(self.update)
        self.bad.resume(self.update)
        if self.update:
            self.monitor.note("resumed", processes=self.world.size)
        for line in self.learner.init_info:
            self.monitor.say(line)

    def _remaining(self) -> Iterator[Any]:
        stream = iter(self.batches)
        while self.update < self.config.num_updates:
            yield next(stream)

    def _step(self, batch: Any, flags: list[float]) -> StepResult:  # noqa: ANN401 - the backend's own
        """One update; a skipped one is written down, and too many in a row stop the training."""
        learner, update = self.learner, self.update
        result = learner.step(
            batch,
            update,
            subnets=learner.subnets(update),
            audio=self.batches.seconds(batch),
            flags=flags,
        )
        self.update += 1
        if result.skip_reason:
            self._skipped(batch, result)
        return result

    def _skipped(self, batch: Any, result: StepResult) -> None:  # noqa: ANN401 - the backend's own
        optimizer, most = self.learner.optimizer, self.config.max_bad_steps
        own = {"loss": result.loss, "grad_norm": optimizer.last_norm, "ids": list(batch.ids)}
        parts = self.world.gathered(own)
        rows = [
            {"update": self.update - 1, "process": rank, "reason": result.skip_reason, **part}
            for rank, part in enumerate(parts)
        ]
        if self.monitor is not None:
            with self._spared("a skipped batch"):
                self.bad.add(rows)
                self.monitor.note("skipped", update=self.update, reason=result.skip_reason)
        if optimizer.num_skipped_in_row >= most:
            ids = [name for part in parts for name in part["ids"]]
            raise TrainingError(
                f"{most} steps in a row were skipped, the last because {result.skip_reason} (update "
                f"{self.update - 1}, batch {', '.join(ids[:4])}, ...): lower train.optim.lr, or look at "
                f"the utterances listed in {self.out / BAD_BATCHES}"
            )

    def _report(self, result: StepResult, seconds: float) -> None:
        """Show and log; evaluate when it is time."""
        self.recent.add(result.audio, seconds)
        self.overall.add(result.audio, seconds)
        if self.monitor is None:
            return
        config, update = self.config, self.update
        log = update % config.log_every == 0 or update == config.num_updates
        figures = self._figures(result) if log else None
        with self._spared("metrics"):
            self.monitor.trained(update, figures)
            if result.renewed:
                self.monitor.masked(update, self.learner.sparse.by_layer)
        if is_due(update, config.num_updates, config.eval_every):
            int8 = int8_is_due(update, config)
            with self.learner.eval_weights():
                found = self._evaluate(int8=int8, limit=config.eval_limit)
            with self._spared("metrics"):
                self.monitor.evaluated(update, found)

    def _figures(self, result: StepResult) -> dict[str, Any]:
        """Of this update; time and throughput are means since the last figures."""
        learner, optimizer = self.learner, self.learner.optimizer
        recent, self.recent = self.recent, _Throughput()
        capped = {} if self.config.quant.outlier_cap is None else {"capped": learner.capped}
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
            **capped,
            **learner.sparse.figures,
            **recent.figures(self.world.size),
        }

    def _evaluate(self, *, int8: bool, limit: int) -> dict[str, dict[str, Any]]:
        return evaluate(
            self.backend,
            self.learner.model,
            sandwich=self.config.sandwich,
            int8=int8,
            limit=limit,
        )

    def _save(self) -> None:
        """Write a checkpoint (rank 0); on a full disk the last ones stay, and training goes on."""
        if self.monitor is None:
            return
        state = {
            "update": self.update,
            "origin": self.origin,
            "batches": self.batches.state_dict(),
            **self.learner.state_dict(),
        }
        with self._spared("a checkpoint"):
            checkpoint.write(self.out / CHECKPOINTS, self.update, state)

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Inside, a disk without room costs `what` and a sentence, not the training."""
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise
            assert self.monitor is not None
            self.monitor.say(
                f"update {self.update}: the disk of {self.out} is full, {what} could not be written "
                f"({error.strerror}); training goes on, free some space"
            )
            with contextlib.suppress(OSError):
                self.monitor.note("disk full", lost=what)

    def _finish(self, info: dict[str, Any]) -> Artifact:
        """Average, evaluate, write the artifact (rank 0; the others wait for it)."""
        self.learner.finish()
        if self.monitor is not None:
            self._write(self.monitor, info)
        self.world.barrier()
        return artifact.load(self.out / SUPERNET, kind="supernet")

    def _write(self, monitor: Monitor, info: dict[str, Any]) -> None:
        """The last evaluation, and the artifact."""
        figures = self._evaluate(int8=self.config.quant.every <= 1, limit=0)
        with self._spared("metrics"):
            monitor.evaluated(self.update, figures)
        rates = self.overall.figures(self.world.size) if self.overall.audio else {}
        begun = {"init": self.origin["init"]} if "init" in self.origin else {}
        artifact.save(
            self.out / SUPERNET,
            kind="supernet",
            config=self.origin["recipe"],
            parent=self.origin["parent"],
            metrics={
                "dev": figures,
                "updates": self.update,
                "skipped": self.learner.optimizer.num_skipped,
                **rates,
            },
            info={"seed": self.config.seed, **begun, **self.learner.sparse.info, **info},
            tensors=self.learner.model.state_dict(),
            write=self.backend.write_assets,
        )
