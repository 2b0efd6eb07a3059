"""The loop: against one by hand, and over an interruption."""

import copy
import itertools
import math
import signal
import subprocess
import sys

import pytest
import torch

from tests.compress.conftest import ToyAdapter
from todm.compress.config import TuneConfig
from todm.compress.train import tune as module
from todm.compress.train.distill import Distiller
from todm.compress.train.sr_ste import SrSte, SrSteConfig
from todm.compress.train.tune import Masks, Options, lr_factor, tune
from todm.errors import ConfigError, TrainingError
from todm.train.optim import for_tuning

CONFIG = TuneConfig(updates=12, lr=1e-2, weight_decay=0.1, clip_norm=0.5)
SPARSE = SrSteConfig(n=2, m=4, decay=1e-2, refresh=3, freeze=0.25)


def _trained(config=CONFIG, *, sparse=None, adapter=None, name="prune", **options):
    """A toy after its training: adapter, masks, curves."""
    toy = adapter or ToyAdapter()
    teacher = copy.deepcopy(toy.model)
    learnt = SrSte.of(toy.model, sparse or SrSteConfig(), num_updates=config.updates)
    distiller = Distiller(toy, toy.model, teacher=teacher, config=config, blocks={"blocks.1": 1.0})
    options = Options(optimizers={"scaled_adam": for_tuning}, **options)
    curves = tune(distiller, config, Masks(learnt, []), name=name, options=options)
    return toy, learnt, curves


def _weights(toy):
    return {name: value.clone() for name, value in toy.model.state_dict().items()}


def _assert_same(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_the_loop_one_would_write():
    config = CONFIG.replace(soft=0.5, feature=0.0)
    toy, _, curves = _trained(config, seed=4)
    other = ToyAdapter()
    model, teacher = other.model, copy.deepcopy(other.model)
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith("weight")]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    for update, batch in enumerate(itertools.islice(other.batches(4), 12)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * max(0, update - 1) / 11))
        optimizer.zero_grad()
        with torch.enable_grad():  # the toy's batches wait inside torch.no_grad()
            losses = other.losses(batch, model, teacher, temperature=1.0)
            loss = losses["hard"] + 0.5 * losses["soft"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert curves[update]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(toy.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert not toy.model.training
    assert all(p.grad is None for p in toy.model.parameters())


def test_the_learning_rate_rises_and_falls():
    factors = [lr_factor(u, 100) for u in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert 0 < factors[99] < 1e-3
    assert lr_factor(0, 1) == 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
def test_learnt_masks_are_renewed_and_logged(optimizer):
    config = CONFIG.replace(optimizer=optimizer)
    toy, learnt, curves = _trained(config, sparse=SPARSE)
    assert set(learnt.masks) == {"blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"}
    assert [line["update"] for line in curves] == list(range(1, 13))
    fields = {"loss", "hard", "soft", "feature", "lr", "grad_norm", "skipped", "flip_rate"}
    assert fields <= set(curves[-1])
    dense = toy.model.blocks[0].up.weight
    assert (dense != 0).all()  # `finish` is the caller's


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
@pytest.mark.parametrize("at", [1, 6, 12])
def test_interrupted_and_resumed_is_as_if_nothing_had_been(tmp_path, monkeypatch, optimizer, at):
    config = CONFIG.replace(optimizer=optimizer)
    straight, masks, curves = _trained(config, sparse=SPARSE)
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", -1.0)

    def interrupt(what, done, total):
        assert (what, total) == ("prune, training", 12)
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _trained(config, sparse=SPARSE, directory=tmp_path, progress=interrupt)
    seen = []
    again = _trained(
        config, sparse=SPARSE, directory=tmp_path, progress=lambda *told: seen.append(told[1])
    )
    assert seen == list(range(at + 1, 13))
    _assert_same(_weights(again[0]), _weights(straight))
    assert again[1].digest() == masks.digest()
    assert again[2] == curves


PROGRAM = """
import os, signal, sys
from pathlib import Path
from tests.compress.train import test_tune
test_tune.module._CHECKPOINT_SECONDS = -1.0
def kill(what, done, total):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
test_tune._trained(sparse=test_tune.SPARSE, directory=Path(sys.argv[1]), progress=kill)
"""


def test_killed_and_resumed_is_as_if_nothing_had_been(tmp_path, repo):
    straight, *_ = _trained(sparse=SPARSE)
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    assert subprocess.run(program, cwd=repo).returncode == -signal.SIGKILL
    seen = []
    again, *_ = _trained(
        sparse=SPARSE, directory=tmp_path, progress=lambda *told: seen.append(told[1])
    )
    assert seen == list(range(6, 13))
    _assert_same(_weights(again), _weights(straight))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    _trained(directory=tmp_path)
    for changed in (
        {"config": CONFIG.replace(lr=1e-3)},
        {"seed": 5},
        {"sparse": SPARSE},
        {"adapter": ToyAdapter(seed=1)},
    ):
        with pytest.raises(ConfigError, match="is a checkpoint of another training"):
            _trained(**({"directory": tmp_path} | changed))
    _trained(directory=tmp_path, name="int8", seed=5)  # a pass has a file of its own


class _Sick(ToyAdapter):
    """With infinite inputs in some batches, numbers that torch cannot train on."""

    sick = (3, 4)

    def batches(self, seed):
        for index, (x, labels) in enumerate(super().batches(seed)):
            yield (x * float("inf") if index in self.sick else x), labels


def test_updates_that_are_not_finite_are_skipped():
    toy, _, curves = _trained(adapter=_Sick())
    assert curves[-1]["skipped"] == 2
    assert all(value.isfinite().all() for value in _weights(toy).values())
    assert "loss" not in curves[3]
    assert all(math.isfinite(v) for line in curves for v in line.values())


def test_too_many_in_a_row_end_the_training(monkeypatch):
    monkeypatch.setattr(module, "MAX_BAD", 5)
    sick = _Sick()
    sick.sick = range(4, 12)
    with pytest.raises(TrainingError, match=r"5 updates in a row, the last 8: lower prune.tune.lr"):
        _trained(adapter=sick)


def test_an_optimizer_that_is_not_there_is_named():
    config = CONFIG.replace(optimizer="scaled_adam")
    toy = ToyAdapter()
    distiller = Distiller(toy, toy.model, teacher=toy.model, config=config, blocks={})
    masks = Masks(SrSte({}, SrSteConfig(), num_updates=12), [])
    with pytest.raises(ConfigError, match="'scaled_adam', and only adamw is available here"):
        tune(distiller, config, masks, name="int8", options=Options())


def test_batches_that_end_are_an_error():
    class Short(ToyAdapter):
        def batches(self, seed):
            return itertools.islice(super().batches(seed), 7)

    with pytest.raises(TrainingError, match="batches end after 7 of 12 updates"):
        _trained(adapter=Short())
