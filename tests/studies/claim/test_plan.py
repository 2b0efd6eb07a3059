"""Parts and runs: what is trained, with which settings."""

import dataclasses

import pytest

from benchmarks.studies.claim.plan import PARTS, SIZES, plan
from todm.asr.corpora.config import DataConfig
from todm.cli import prepare
from todm.errors import ConfigError
from todm.recipe import named


@pytest.mark.parametrize("part", PARTS)
def test_every_run_is_valid_and_has_its_sizes(part):
    for run in plan(part):
        widths = {k: (v.depth, dict(v.widths)) for k, v in run.subnets().items()}
        for size, (depth, found) in widths.items():
            shape = SIZES[size]
            assert (depth, {*found["ffn"]}, {*found["pairs"]}) == (
                shape["depth"],
                {shape["ffn"]},
                {shape["pairs"]},
            )
        assert run.recipe.train.num_processes == 1
        assert run.recipe.train.seed == run.seed


@pytest.mark.parametrize("part", PARTS)
def test_corpora_are_made_with_commands_that_parse(part):
    import argparse

    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    args = parser.parse_args(PARTS[part].prepare.split()[2:])
    assert isinstance(named(args.config).override(args.settings).asr.data, DataConfig)


def test_a_part_has_a_supernet_and_each_size_alone():
    runs = plan("digits", seeds=[4])
    assert [run.stem for run in runs] == [
        "digits/supernet-4",
        "digits/alone-s-4",
        "digits/alone-l-4",
    ]
    assert list(runs[0].subnets()) == ["s", "l"]
    assert not runs[1].recipe.train.sandwich


def test_a_net_alone_has_the_architecture_of_the_subnet():
    supernet, *alone = plan("short", seeds=[1])
    for run in alone:
        ((size, net),) = run.subnets().items()
        assert dict(net.widths) == dict(supernet.subnets()[size].widths)


def test_ablations_change_the_recipe_and_share_its_other_settings():
    full = plan("short", seeds=[1])[0].recipe
    found = {run.name: run.recipe for run in plan("ablations", seeds=[1])}
    assert found["adamw"].train.optim.name == "adamw"
    assert found["kl"].asr.objective.distill == "kl"
    assert all(recipe != full for recipe in found.values())
    assert {r.train.num_updates for r in found.values()} == {full.train.num_updates}


def test_an_ablation_that_the_recipe_has_already_is_left_out(monkeypatch):
    ablations = {**PARTS["ablations"].ablations, "same": ("train.sandwich=true",)}
    part = dataclasses.replace(PARTS["ablations"], ablations=ablations)
    monkeypatch.setitem(PARTS, "ablations", part)
    assert {run.name for run in plan("ablations")} == set(ablations) - {"same"}
    with pytest.raises(ConfigError, match="'same' is what the recipe does already"):
        plan("ablations", names=["same"])


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("shrt", {}, "unknown part 'shrt': choose one of short, long"),
        ("short", {"names": ["alone-xl"]}, "has no run 'alone-xl': choose from supernet, alone-xs"),
        ("digits", {"names": ["alone-xs"]}, "has no run 'alone-xs': choose from supernet, alone-s"),
        ("short", {"seeds": [1, 1]}, r"a seed is given twice \(1 1\)"),
        ("short", {"names": ["supernet", "supernet"]}, "a run is given twice"),
    ],
    ids=str,
)
def test_errors_say_what_is_allowed(part, given, message):
    with pytest.raises(ConfigError, match=message):
        plan(part, **given)
