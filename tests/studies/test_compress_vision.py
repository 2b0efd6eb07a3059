import dataclasses
import json

import numpy as np
import pytest

from benchmarks.studies import compress_vision as bench
from todm import artifact

SEEDS = (1, 2)


def _scores(run, draw):
    """Errors as the paper has them, but for 1:4, where nothing differs."""
    levels = {terms: 0.05 * i for i, terms in enumerate(("", *bench.ORDER))}
    level = levels.get(run.terms, 0.3) if run.target != "1:4" else 0.2
    if run.network == "digits":
        return (draw.random(500) < level).astype(float)
    right = np.eye(11, dtype=int) * 20
    return np.stack([right + (draw.random((11, 11)) < 4 * level) for _ in range(60)])


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose runs are made up."""
    monkeypatch.setattr(bench, "RESAMPLES", 200)
    draw = np.random.default_rng(0)
    runs = bench.plan(SEEDS)
    (tmp_path / "runs").mkdir()
    for run in runs:
        place = tmp_path / "runs" / f"{run.name}.json"
        scores = _scores(run, draw)
        entropy = draw.random(len(scores)) + 0.1 * (run.terms == "hard")
        np.savez(place.with_suffix(".npz"), scores=scores, entropy=entropy)
        place.write_text(
            json.dumps(
                {
                    **dataclasses.asdict(run),
                    "totals": {"size_ratio": 6.4 if run.network == "digits" else 5.1},
                }
            )
        )
    for network in bench.NETWORKS:
        for seed in SEEDS:
            place = tmp_path / f"dense-{network}-{seed}"
            artifact.save(place, kind="model", config={}, metrics={"error": 0.01 * seed})
    return bench.Results(runs, tmp_path)


def test_every_run_has_a_place_and_settings_of_its_own():
    runs = bench.plan(SEEDS)
    assert len({run.name for run in runs}) == len(runs)
    settings = {json.dumps(run.config().to_json()) for run in runs if run.network == "digits"}
    assert len(settings) == len(SEEDS) * len(bench.TARGETS) * len(bench.TERMS)
    one = next(r for r in runs if (r.target, r.terms) == ("2:4 + int4", "soft + feature")).config()
    assert one.passes == ("prune", "int4")
    assert (one.prune.tune.hard, one.int4.tune.soft, one.int4.tune.updates) == (0, 1, 30)
    none = next(r for r in runs if r.terms == "no training").config()
    assert none.prune.tune.updates == none.int4.tune.updates == 0


def test_a_difference_is_told_where_there_is_one(study):
    value, low, high = study.difference(_key("2:4", "hard"), _key("2:4", bench.ORDER[0]))
    assert low < value < high
    assert value == pytest.approx(0.15, abs=0.06)  # 20 % and 5 %
    assert low > 0
    _, low, high = study.difference(_key("1:4", "hard"), _key("1:4", bench.ORDER[0]))
    assert low < 0 < high
    value, low, _ = study.difference(_key("1:4", "hard"), _key("1:4", bench.ORDER[0]), "entropy")
    assert value == pytest.approx(0.1, abs=0.06)
    assert low > 0


def _key(target, terms):
    return "digits", target, terms, ""


def test_the_table_has_every_target_and_verdict(study, tmp_path):
    lines = "\n".join(bench.table(study)).splitlines()
    assert "error 1.00%, 2.00%, accuracy 98.50%" in lines[2]
    verdicts = {
        line.split(" | ")[0].strip("| "): line
        for line in lines
        if f"| {bench.ORDER[0]} | hard |" in line
    }
    assert set(verdicts) == set(bench.TARGETS)
    assert [verdicts["2:4 + int8"].split(" | ")[4], verdicts["1:4"].split(" | ")[4]] == [
        "better",
        "undecided",
    ]
    assert all(line.endswith("| better |") for line in verdicts.values())  # by cross entropy
    assert any(line.startswith("| 2:4 + int4 | 6.40 |") for line in lines)
    assert any(line.startswith("| 2:4 + int4 | none | 5.10 |") for line in lines)
    assert sum("first block dense" in line for line in lines) == len(bench.ORDER) + 1
    bench.plot(study, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
