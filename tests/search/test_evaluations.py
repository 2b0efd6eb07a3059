import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from todm.search.choice import Choice
from todm.search.evaluations import Evaluations


@pytest.fixture
def choices(space):
    return [Choice(s, c) for s in space.uniforms() for c in ("none", "int8")][:6]


class Counted:
    """Evaluates and counts."""

    def __init__(self):
        self.calls = []

    def __call__(self, choice):
        self.calls.append(choice)
        return {"score": float(len(choice.key))}


def test_each_choice_is_worked_out_once(choices, tmp_path):
    evaluate = Counted()
    found = Evaluations(evaluate, tmp_path / "log")
    values = [found(c)["score"] for c in choices + choices]
    assert evaluate.calls == choices
    assert values == [float(len(c.key)) for c in choices] * 2
    assert list(found) == choices
    assert choices[0] in found


def test_a_second_search_takes_over(choices, tmp_path):
    Evaluations(Counted(), tmp_path / "log", key="a")(choices[0])
    evaluate = Counted()
    found = Evaluations(evaluate, tmp_path / "log", key="a")
    assert found(choices[0])["score"] == len(choices[0].key)
    assert evaluate.calls == []


def test_figures_of_another_supernet_are_not_taken(choices, tmp_path):
    Evaluations(Counted(), tmp_path / "log", key="a")(choices[0])
    assert len(Evaluations(Counted(), tmp_path / "log", key="b")) == 0


@pytest.mark.parametrize("torn", ['{"subnet": {"blo', "nonsense\n", '{"subnet": 3}\n', "\x00\x00"])
def test_a_torn_line_is_dropped(choices, tmp_path, torn):
    path = tmp_path / "log"
    first = Evaluations(Counted(), path, key="a")
    for choice in choices[:3]:
        first(choice)
    with path.open("a") as file:
        file.write(torn)
    evaluate = Counted()
    found = Evaluations(evaluate, path, key="a")
    assert list(found) == choices[:3]
    found(choices[3])
    assert evaluate.calls == [choices[3]]
    assert list(Evaluations(Counted(), path, key="a")) == choices[:4]


def test_a_killed_process_leaves_what_it_had(choices, tmp_path):
    """It kills itself in its third evaluation, as `kill -9` does."""
    program = textwrap.dedent(f"""
        import json, os, signal
        from pathlib import Path
        from todm.search.choice import Choice
        from todm.search.evaluations import Evaluations

        seen = []

        def evaluate(choice):
            seen.append(choice)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return {{"score": 1.0}}

        found = Evaluations(evaluate, Path({str(tmp_path / "log")!r}), key="a")
        for row in json.loads({json.dumps([c.to_json() for c in choices])!r}):
            found(Choice.from_json(row))
    """)
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(Evaluations(Counted(), tmp_path / "log", key="a")) == choices[:2]
