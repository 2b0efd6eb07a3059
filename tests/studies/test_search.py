"""The arithmetic of the study of searches and its errors; nothing is evaluated here."""

import json

import numpy as np
import pytest

from benchmarks.studies import search
from todm.search.budget import parse
from todm.search.evaluations import Evaluations
from todm.search.problem import Problem
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3), widths={"ffn": (1, 2, 3, 4), "pairs": (1, 2, 3)}))
WORDS = [3, 1, 4, 1, 5, 2] * 20


def _size(choice):
    return {"params": 1.0 + sum(sum(v) for _, v in choice.subnet.widths)}


def _figures(choice):
    """The wider the better; the error is coarse."""
    score = 10 / _size(choice)["params"]
    return {"score": score, "parts": [score, 2 * score], "error": round(score, 1)}


@pytest.fixture
def problems():
    return [Problem(SPACE, parse(text), ("none",), _size) for text in ("12", "16")]


@pytest.fixture
def found():
    """Two seeds, one budget; `search` makes half the errors of the baseline."""
    rng = np.random.default_rng(0)
    tested = {}
    for key, rate in {"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.2}.items():
        tested[key] = search.digits([int(rng.binomial(n, rate)) for n in WORDS])
    named = [("search", 0, "a"), ("search", 1, "b")]
    named += [(search.BASELINE, 0, "c"), (search.BASELINE, 1, "d")]
    picks = [
        {"seed": seed, "budget": "12", "method": method, "key": key, "dev": 0.01, "params": 12.0}
        for method, seed, key in named
    ]
    return {"supernet": "x", "evaluations": 8, "picks": picks, "tested": tested, "words": WORDS}


def test_every_method_keeps_its_budget(problems):
    evaluations = Evaluations(_figures)
    chosen = search.picks(problems, evaluations, 0, 8)
    assert list(chosen) == ["12", "16"]
    for problem in problems:
        methods = chosen[problem.budget.text]
        assert set(methods) == {"uniform scaling", search.BASELINE, *search.PROPOSALS}
        assert all(problem.holds(choice) for choice in methods.values())


def test_a_seed_decides_all_draws(problems):
    first, again, other = (
        search.picks(problems, Evaluations(_figures), seed, 8) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_baseline_has_the_best_dev_wer_of_its_draws(problems):
    drawn = search.PROPOSALS["random draws"](problems[0], Evaluations(_figures), 3, 8, ())
    chosen = search.picks(problems, Evaluations(_figures), 3, 8)["12"][search.BASELINE]
    assert chosen in drawn
    assert _figures(chosen)["error"] == min(_figures(c)["error"] for c in drawn)


def test_errors_of_each_utterance_are_kept_as_digits(found):
    assert search.digits([0, 9, 10, 35, 99]) == "09azz"
    errors_SN = search.errors_of(found, "12", "search")
    assert errors_SN.shape == (2, len(WORDS))
    assert [search.digits(row) for row in errors_SN] == [found["tested"][key] for key in "ab"]


def test_a_method_is_compared_with_the_baseline_of_the_same_seeds(found):
    ours, theirs = (
        np.array([[int(d, 36) for d in found["tested"][key]] for key in keys])
        for keys in ("ab", "cd")
    )
    change = search.against(found, "12", "search")
    assert change.value == pytest.approx((ours.sum() - theirs.sum()) / theirs.sum())
    assert change.low < change.value < change.high < 0
    same = search.against(found, "12", search.BASELINE)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_table_has_a_row_for_each_method(found):
    lines = list(search.table(json.loads(json.dumps(found))))
    assert lines[0].startswith(f"120 test utterances, {sum(WORDS)} words; seeds [0, 1]; 8 eval")
    rows = [line.split(" | ") for line in "\n".join(lines).splitlines() if line.startswith("| 12")]
    assert [row[1] for row in rows] == ["search", search.BASELINE]
    rate = sum(int(d, 36) for d in found["tested"]["a"]) / sum(WORDS)
    assert rows[0][3].startswith(f"{100 * rate:.2f} / ")
    assert rows[0][5] == f"{search.against(found, '12', 'search').value:+.1%}"
    assert rows[1][5] == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1", "1"], "give every seed once"),
        (["--evaluations", "0"], "--evaluations is 0: at least 1"),
        ([], "is not an artifact"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    where = [str(tmp_path / "supernet"), str(tmp_path / "corpus"), "--out", str(out)]
    assert search.main([*where, *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not out.exists()
