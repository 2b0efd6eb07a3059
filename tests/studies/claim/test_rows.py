"""Rows on disk, and which rows may stand in one table."""

import pytest

from benchmarks.studies.claim import rows
from benchmarks.studies.claim.plan import plan
from todm.errors import ConfigError


@pytest.fixture
def runs():
    return plan("short", seeds=[1, 2], names=["supernet", "alone-l"])


def test_a_row_is_read_as_it_was_written_one_list_a_line(runs, row_maker, tmp_path):
    row = row_maker.make(runs[0])
    path = rows.path_of(tmp_path, runs[0])
    rows.write(path, row)
    assert path == tmp_path / "short/supernet-1.json"
    assert rows.read(path) == row
    lists = [line for line in path.read_text().splitlines() if line.count(",") >= len(row.words)]
    assert len(lists) == 1 + len(row.errors)
    assert rows.load(tmp_path, "short") == {("supernet", 1): row}
    assert rows.load(tmp_path, "long") == {}


def test_a_row_of_two_thousand_utterances_is_small(runs, row_maker, tmp_path):
    path = rows.path_of(tmp_path, runs[0])
    rows.write(path, row_maker.make(runs[0], num=2000))
    assert path.stat().st_size < 30_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"seed"', '"sed"'),
        lambda text: text.replace('"words": [', '"words": [1,'),
        lambda text: "[]",
    ],
    ids=["cut", "renamed", "a word more", "a list"],
)
def test_a_damaged_row_is_an_error(runs, row_maker, tmp_path, damage):
    path = rows.path_of(tmp_path, runs[0])
    rows.write(path, row_maker.make(runs[0]))
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        ConfigError, match=r"supernet-1.json is not a row of this study, or damaged"
    ):
        rows.load(tmp_path, "short")


def test_a_row_under_another_name_is_an_error(runs, row_maker, tmp_path):
    rows.write(tmp_path / "short/supernet-7.json", row_maker.make(runs[0]))
    with pytest.raises(ConfigError, match="holds the row short/supernet-1: rename or remove it"):
        rows.load(tmp_path, "short")


def test_rows_that_differ_in_seed_and_their_own_changes_are_comparable(runs, row_maker):
    rows.check_comparable([row_maker.make(run) for run in reversed(runs)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fingerprint": "f1"},
            "alone-l-2 and short/supernet-1 cannot be compared, since their corpora",
        ),
        ({"num": 29}, "since their corpora differ"),
    ],
    ids=str,
)
def test_rows_of_other_corpora_are_not_comparable(runs, row_maker, changes, message):
    last = row_maker.make(runs[-1], **changes)
    with pytest.raises(ConfigError, match=message):
        rows.check_comparable([*map(row_maker.make, runs[:-1]), last])


def test_rows_of_other_settings_are_not_comparable(runs, row_maker):
    other = plan("short", seeds=[2], names=["alone-l"], extra=["train.num_updates=7"])
    found = [row_maker.make(run) for run in (*runs[:1], *other)]
    with pytest.raises(ConfigError, match=r"train.num_updates is 7 and 4000: remove one of them"):
        rows.check_comparable(found)


def test_a_setting_that_an_older_version_lacked_is_no_difference(runs, row_maker):
    row = row_maker.make(runs[0])
    del row.config["train"]["student_weight"]
    rows.check_planned(row, runs[0], "f0")


def test_a_row_is_compared_with_what_is_planned(runs, row_maker):
    row = row_maker.make(runs[0])
    for run in runs:
        rows.check_planned(row, run, "f0")
    with pytest.raises(ConfigError, match="the row short/supernet-1 is of another corpus"):
        rows.check_planned(row, runs[1], "f1")
    changed = plan("short", seeds=[3], names=["alone-l"], extra=["train.optim.lr=0.1"])[0]
    with pytest.raises(ConfigError, match=r"has train.optim.lr 0.04, not 0.1: remove that row"):
        rows.check_planned(row, changed, "f0")
