import json

import pytest

from todm import artifact
from todm.errors import ArtifactError
from todm.search.budget import parse
from todm.search.cost import Prices, StackCosts
from todm.search.evaluations import Evaluations
from todm.search.evolve import Problem, SearchConfig
from todm.search.front import PLOT, TABLE, read_points, write_front
from todm.search.run import search

CONFIG = SearchConfig(evaluations=14, generation=4, parents=3, pool=12)


@pytest.fixture
def problems(space, price):
    prices = Prices(StackCosts(price), {})
    return [Problem(space, parse(b), ("none", "int8"), prices) for b in ("60k", "size=150kB")]


@pytest.fixture
def found(problems, figures):
    return search(problems, Evaluations(figures), CONFIG)


@pytest.fixture
def front(found, tmp_path):
    supernet = artifact.save(tmp_path / "supernet", kind="supernet", config={})
    return write_front(
        tmp_path / "front",
        found,
        supernet,
        CONFIG,
        tables={"pi5": {"sha256": "x"}},
        asked={"limit": 0},
    )


def test_answers_keep_their_budgets_and_are_the_best(found, problems):
    for answer, problem in zip(found.answers, problems, strict=True):
        assert answer.budget is problem.budget
        fitting = [c for c in found.figures if problem.holds(c)]
        assert found.figures[answer.chosen]["score"] == min(
            found.figures[c]["score"] for c in fitting
        )
        assert answer.evaluations == CONFIG.evaluations
        for choice in (answer.evolution, answer.random, answer.uniform):
            assert problem.holds(choice)


def test_what_is_on_the_front_is_beaten_by_nothing(found):
    def values(choice):
        costs = found.costs[choice]
        return found.figures[choice]["score"], costs["params"], costs["size"]

    for choice in found.on_front:
        mine = values(choice)
        others = (values(c) for c in found.figures if values(c) != mine)
        assert not any(all(a <= b for a, b in zip(o, mine, strict=True)) for o in others)
    assert found.on_front < set(found.figures)


def test_without_baselines_only_evolution_runs(problems, figures):
    found = search(problems, Evaluations(figures), CONFIG, baselines=False)
    assert all(a.random is None and a.uniform is None for a in found.answers)


def test_a_finished_search_costs_nothing_again(problems, figures, found):
    calls = []

    def evaluate(choice):
        calls.append(choice)
        return figures(choice)

    evaluations = Evaluations(evaluate)
    first = search(problems, evaluations, CONFIG)
    before = len(calls)
    assert search(problems, evaluations, CONFIG).answers == first.answers
    assert len(calls) == before


def test_a_front_is_an_artifact_with_a_table_and_a_plot(front, found, tmp_path):
    assert front.kind == "front"
    assert front.parent == artifact.load(tmp_path / "supernet").hash
    text = front.file(TABLE).read_text()
    assert "| 60k | blocks" in text
    assert "| size=150kB | blocks" in text
    assert front.file(PLOT).stat().st_size > 10_000
    assert json.loads(front.file("device-pi5.json").read_text()) == {"sha256": "x"}
    rows = front.info["budgets"]
    assert [r["budget"] for r in rows] == ["60k", "size=150kB"]
    assert rows[0]["chosen"]["figures"] == dict(found.figures[found.answers[0].chosen])


def test_points_are_read_back_best_first(front, found):
    points = read_points(front)
    assert {c for c, _ in points} == set(found.figures)
    scores = [f["score"] for _, f in points]
    assert scores == sorted(scores)


def test_a_foreign_front_is_refused(tmp_path):
    def write(folder):
        (folder / "points.json").write_text('[{"a": 1}]')

    other = artifact.save(tmp_path / "other", kind="front", config={}, write=write)
    with pytest.raises(ArtifactError, match="is damaged: remove"):
        read_points(other)
