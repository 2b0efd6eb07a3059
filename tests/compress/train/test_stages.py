"""Passes that train, through `compress` itself."""

import copy

import pytest
import torch

from tests.compress.conftest import ToyAdapter
from todm.compress.config import (
    CompressConfig,
    Int4Config,
    Int8Config,
    PruneConfig,
    TuneConfig,
)
from todm.compress.driver import compress
from todm.compress.masks import is_nm
from todm.compress.packed import Int8Linear, SparseLinear, W4Linear
from todm.compress.train import distill
from todm.train.optim import for_tuning

TUNE = TuneConfig(updates=30, lr=3e-3, feature_blocks=0.5)
LAYERS = [f"blocks.{i}.{n}" for i in (0, 1) for n in ("up", "down")]


def _run(*passes, toy=None, scratch=None, **settings):
    toy = toy or ToyAdapter()
    config = CompressConfig(passes=passes, num_calibration=32, **settings)
    result = compress(toy, config, optimizers={"scaled_adam": for_tuning}, checkpoints=scratch)
    return toy, result


def _loss(toy):
    """Cross entropy and distance from the dense model on batches that no pass has seen."""
    dense = ToyAdapter().model
    with torch.no_grad():
        x = torch.cat([next(toy.batches(s))[0] for s in range(50, 60)])
        return float((toy.model(x) - dense(x)).square().mean())


def _rows(result, at=-1):
    return {row.name: row for row in result.reports[at].rows}


@pytest.mark.parametrize("optimizer", ["adamw", "scaled_adam"])
@pytest.mark.parametrize("method", ["magnitude", "sr_ste"])
def test_sparse_training_ends_in_packed_layers_that_are_better(method, optimizer):
    lr = {"adamw": 3e-3, "scaled_adam": 0.02}[optimizer]
    tune = TUNE.replace(optimizer=optimizer, lr=lr, hard=0.0, updates=60)
    settings = PruneConfig(method=method, tune=tune, refresh=5)
    toy, result = _run("prune", prune=settings)
    plain, _ = _run("prune", prune=PruneConfig(method="magnitude"))
    assert set(result.masks) == set(LAYERS)
    for name in LAYERS:
        layer = toy.model.get_submodule(name)
        assert isinstance(layer, SparseLinear)
        assert is_nm(layer.dense_weight(), 2, 4), name
        row = _rows(result)[name]
        assert row.done == f"2:4 {method} trained"
        assert row.figures["density"] == 0.5
        assert ("flip_rate" in row.figures) == (method == "sr_ste")
    assert _loss(toy) < 0.7 * _loss(plain)
    curves = result.reports[0].curves
    assert curves[-1]["update"] == 60
    assert ("flip_rate" in curves[-1]) == (method == "sr_ste")


def test_a_fixed_mask_stays_and_learnt_ones_move():
    before, _ = _run("prune", prune=PruneConfig(method="magnitude"))
    wanted = {n: before.model.get_submodule(n).dense_weight() != 0 for n in LAYERS}
    _, fixed = _run("prune", prune=PruneConfig(method="magnitude", tune=TUNE))
    assert all(torch.equal(fixed.masks[n], wanted[n]) for n in LAYERS)
    free = PruneConfig(method="sr_ste", tune=TUNE.replace(lr=2e-2), refresh=5)
    _, learnt = _run("prune", prune=free)
    assert not all(torch.equal(learnt.masks[n], wanted[n]) for n in LAYERS)


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("int8", Int8Config(tune=TUNE), Int8Linear),
        ("int8", Int8Config(activations="static", tune=TUNE), Int8Linear),
        ("int4", Int4Config(bits=3, group=32, tune=TUNE), W4Linear),
        (
            "int4",
            Int4Config(bits=3, group=32, method="gptq", learn_zeros=True, tune=TUNE),
            W4Linear,
        ),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_quantised_training_keeps_masks_and_packs(name, settings, kind, sparse):
    passes = ("prune", name) if sparse else (name,)
    toy, result = _run(*passes, **{name: settings}, prune=PruneConfig(method="magnitude"))
    for layer in LAYERS:
        packed = toy.model.get_submodule(layer)
        assert isinstance(packed, kind)
        assert packed.sparse24 == sparse
        assert _rows(result)[layer].done.endswith(" trained")
        assert _rows(result)[layer].figures["scale_change"] > 0
        if sparse:
            assert (packed.dense_weight()[~result.masks[layer]] == 0).all()


def test_int3_gets_better_by_training():
    free = TUNE.replace(hard=0.0, updates=80)
    settings = {"bits": 3, "group": 32}
    trained, _ = _run("int4", int4=Int4Config(**settings, tune=free))
    rounded, _ = _run("int4", int4=Int4Config(**settings))
    assert _loss(trained) < 0.7 * _loss(rounded)


def test_both_stages_and_the_second_weighs_by_what_the_first_left(monkeypatch):
    seen, real = [], distill.Distiller.__init__

    def watched(self, adapter, student, **parts):
        model = copy.deepcopy(student).eval()
        seen.append((parts["blocks"], model, parts["teacher"]))
        real(self, adapter, student, **parts)

    monkeypatch.setattr(distill.Distiller, "__init__", watched)
    both = TUNE.replace(feature_blocks=1.0)
    toy, result = _run(
        "prune",
        "int8",
        prune=PruneConfig(method="magnitude", tune=both),
        int8=Int8Config(tune=both),
    )
    first, second = seen
    assert first[0] == {"blocks.0": 1.0, "blocks.1": 1.0}
    left = second[0]
    assert sum(left.values()) == pytest.approx(2.0)
    assert left["blocks.0"] != pytest.approx(left["blocks.1"])
    assert not any(p.requires_grad is False for p in toy.model.parameters())
    dense = ToyAdapter().model.state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in first[2].state_dict().items())
    assert [len(report.curves) for report in result.reports] == [30, 30]


def test_a_sequence_is_taken_up_again_after_its_first_training(tmp_path):
    settings = {
        "prune": PruneConfig(method="sr_ste", tune=TUNE, refresh=5),
        "int4": Int4Config(group=32, tune=TUNE),
    }
    straight, _ = _run("prune", "int4", **settings)

    class Broken(ToyAdapter):
        left = 40

        def losses(self, *args, **options):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().losses(*args, **options)

    with pytest.raises(KeyboardInterrupt):
        _run("prune", "int4", toy=Broken(), scratch=tmp_path, **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["prune.pt"]
    again = ToyAdapter()
    counted, real = [], ToyAdapter.losses
    again.losses = lambda *args, **options: counted.append(1) or real(again, *args, **options)
    _run("prune", "int4", toy=again, scratch=tmp_path, **settings)
    assert len(counted) == 30
    for name, value in straight.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_a_masked_convolution_keeps_its_zeros_while_others_are_quantised():
    settings = {
        "include": ("front",),
        "prune": PruneConfig(n=1, m=4, method="magnitude"),
        "int8": Int8Config(tune=TUNE),
    }
    toy, result = _run("prune", "int8", **settings | {"include": ("fron*",)})
    assert _rows(result)["front"].why_not == "a convolution has no kernel for int8"
    assert (toy.model.front.weight[~result.masks["front"]] == 0).all()
    assert is_nm(toy.model.front.weight, 1, 4)
