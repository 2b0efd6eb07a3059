import dataclasses
import itertools
import json

import pytest

from todm import artifact
from todm.errors import ArtifactError
from todm.search.choice import Choice
from todm.search.evaluations import Evaluations
from todm.search.explore import SearchConfig
from todm.search.front import PLOT, TABLE, read_points, write_front
from todm.search.run import front as pareto_front
from todm.search.run import search

CONFIG = SearchConfig(evaluations=14, pool=12)


@pytest.fixture
def problems(problem):
    first = problem("60k")
    return [first, dataclasses.replace(first, budget=problem("size=150kB").budget)]


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
        assert found.estimates[answer.chosen] == min(found.estimates[c] for c in fitting)
        assert answer.evaluations == CONFIG.evaluations
        assert problem.holds(answer.uniform)


def test_what_is_on_the_front_is_beaten_by_nothing(found):
    def values(choice):
        costs = found.costs[choice]
        return found.estimates[choice], costs["params"], costs["size"]

    for choice in found.on_front:
        mine = values(choice)
        others = (values(c) for c in found.figures if values(c) != mine)
        assert not any(all(a <= b for a, b in zip(o, mine, strict=True)) for o in others)
    assert found.on_front < set(found.figures)


def test_the_front_has_what_nothing_beats(space):
    choices = [Choice(s) for s in itertools.islice(space.uniforms(), 5)]
    values = dict(zip(choices, [(1, 5), (2, 4), (2, 5), (3, 1), (3, 1)], strict=True))
    assert pareto_front(choices, values.__getitem__) == [choices[i] for i in (0, 1, 3, 4)]


def test_a_search_says_first_how_long_it_takes(problems, figures):
    told = []
    evaluations = Evaluations(figures)
    search(problems, evaluations, CONFIG, progress=lambda *step: told.append(step))
    assert told[0] == ("the first of 28 subnets, about 0.0 minutes in all", 2, 2)
    assert [step[0] for step in told[1:]] == 14 * ["subnets for 60k"] + 14 * [
        "subnets for size=150kB"
    ]
    told.clear()
    search(problems, evaluations, CONFIG, progress=lambda *step: told.append(step))
    assert told[0] == ("subnets for 60k", 1, 14)


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
    estimates = [found.estimates[c] for c, _ in points]
    assert estimates == sorted(estimates)


def test_a_foreign_front_is_refused(tmp_path):
    def write(folder):
        (folder / "points.json").write_text('[{"a": 1}]')

    other = artifact.save(tmp_path / "other", kind="front", config={}, write=write)
    with pytest.raises(ArtifactError, match="is damaged: remove"):
        read_points(other)
