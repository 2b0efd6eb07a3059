"""Tables and the picture, from rows alone."""

import numpy as np
import pytest

from benchmarks.studies.claim import bootstrap, rows, table
from benchmarks.studies.claim.plan import PARTS, plan
from todm.errors import ConfigError


@pytest.fixture
def folder(tmp_path, row_maker):
    """Seeds 1 and 2 of `short` but for alone-m with seed 2, and two ablations, the second worse."""
    for run in plan("short", seeds=[1, 2]):
        if run.stem != "short/alone-m-2":
            seconds = 60.0 * run.seed + (60 if run.name == "supernet" else 0)
            row_maker.write(tmp_path, [run], cpu_seconds=seconds)
    row_maker.write(tmp_path, plan("ablations", names=["kl"]), rate=0.3)
    row_maker.write(tmp_path, plan("ablations", names=["adamw"], seeds=[2]), rate=0.9)
    return tmp_path


def _lines(part, folder):
    return "\n".join(table.report(part, folder)).splitlines()


def _cells(lines):
    found = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in found}


def _errors(folder, stem, size):
    return np.array(rows.read(folder / f"{stem}.json").errors[size])


def test_each_size_has_the_rates_of_pairs_and_their_difference(folder):
    cells = _cells(_lines("short", folder))
    words = sum(rows.read(folder / "short/supernet-1.json").words)
    ours, theirs = (
        np.stack([_errors(folder, f"short/{name}-{seed}", "s") for seed in (1, 2)])
        for name in ("supernet", "alone-s")
    )
    found = bootstrap.relative([(ours, theirs)])
    assert cells["s"][:2] == ["0.20M", "1 2"]
    assert cells["s"][2] == ", ".join(f"{e.sum() / words:.2%}" for e in theirs)
    assert cells["s"][3] == ", ".join(f"{e.sum() / words:.2%}" for e in ours)
    assert cells["s"][4] == f"{ours.sum() / theirs.sum() - 1:+.1%}"
    assert cells["s"][5] == f"{found.low:+.1%} to {found.high:+.1%}"


def test_the_two_smallest_sizes_have_a_mean(folder):
    cells = _cells(_lines("short", folder))
    results = table.Results("short", folder)
    both = [results.against_alone([size], [1, 2]).value for size in ("xs", "s")]
    assert cells["mean of xs and s"][4] == f"{np.mean(both):+.1%}"


def test_a_pair_that_is_incomplete_is_left_out_and_named(folder):
    lines = _lines("short", folder)
    assert _cells(lines)["m"][1] == "1"
    assert (
        next(line for line in lines if line.startswith("missing"))
        == "missing: alone-m seeds 2 3, supernet seed 3, alone-xs seed 3, alone-s seed 3, alone-l seed 3"
    )


def test_costs_are_ratios_of_each_seed(folder):
    lines = _lines("short", folder)
    # 2 and 3 minutes against 1 and 2.
    assert "The supernet costs 1.75 times the largest alone (1.50 to 2.00, seeds 1 2)." in lines
    assert "The supernet costs 0.50 times all 4 alone (0.50 to 0.50, seeds 1)." in lines
    assert any("supernet 2.5 (2.0 to 3.0)" in line for line in lines)


def test_ablations_are_compared_with_the_full_recipe_on_their_seeds(folder):
    lines = _lines("ablations", folder)
    cells = _cells(lines)
    assert [cells[n][0] for n in ("the full recipe", "kl", "adamw")] == ["1 2", "1 2", "2"]
    results = table.Results("ablations", folder)
    found = results.against_full("adamw", [2])
    ours, theirs = (
        [_errors(folder, stem, size).sum() for size in PARTS["ablations"].sizes]
        for stem in ("ablations/adamw-2", "short/supernet-2")
    )
    assert found.value == pytest.approx(np.mean(np.divide(ours, theirs)) - 1)
    assert found.low > 0
    assert cells["adamw"][5] == f"{found.value:+.1%}"
    assert any(line.startswith("missing: constant-dropout seeds 1 2") for line in lines)
    assert any("adamw seed 1" in line for line in lines)


def test_ablations_without_the_full_recipe_are_a_table_without_rows(tmp_path, row_maker):
    row_maker.write(tmp_path, plan("ablations", names=["kl"], seeds=[1]))
    assert "kl" not in _cells(_lines("ablations", tmp_path))


def test_changed_code_is_marked(folder):
    assert any("Commits 0123456+;" in line for line in _lines("short", folder))


def test_a_part_without_rows_names_all_its_trainings(tmp_path):
    lines = _lines("long", tmp_path)
    assert (
        "missing: supernet seed 1, alone-xs seed 1, alone-s seed 1, alone-m seed 1, alone-l seed 1"
        in lines
    )


def test_the_picture_has_a_panel_for_each_part_with_pairs(folder, row_maker):
    row_maker.write(folder, plan("digits"))
    assert table.plot(PARTS, folder, folder / "claim.png")
    assert (folder / "claim.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_picture_without_pairs(tmp_path, row_maker):
    row_maker.write(tmp_path, plan("short", names=["supernet"]))
    assert not table.plot(PARTS, tmp_path, tmp_path / "claim.png")
    assert not (tmp_path / "claim.png").exists()


def test_rows_of_two_corpora_are_refused(folder, row_maker):
    row_maker.write(folder, plan("short", seeds=[3], names=["supernet"]), fingerprint="f1")
    with pytest.raises(ConfigError, match="their corpora differ"):
        _lines("short", folder)
