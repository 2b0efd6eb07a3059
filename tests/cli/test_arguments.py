"""Flags and the signatures of the stages are one thing, flag by flag."""

import argparse
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from todm import stages
from todm.cli import main as cli
from todm.cli.arguments import Flags, given, names, numbers
from todm.errors import ConfigError

STAGES = {
    "prepare": ("prepare", "write_samples"),
    "train": ("train", "dry_run"),
    "import": ("import_model",),
    "evaluate": ("evaluate", "count_false_accepts", "measure_after_silence"),
    "profile": ("profile", "write_pack", "keep_table"),
    "search": ("search",),
    "extract-subnet": ("extract_subnet",),
    "compress": ("compress", "analyse"),
    "export": ("export",),
    "transcribe": ("transcribe", "listen"),
    "report": ("report",),
    "bench": ("bench", "bench_kernels"),
}
CALLBACKS = {"progress", "announce", "show", "partial", "stream"}
"""Parameters that no flag sets."""
POSITIONAL = {
    ("count_false_accepts", "bundle"): "model",
    ("count_false_accepts", "speech"): "corpus",
    ("measure_after_silence", "bundle"): "model",
}
"""Parameters that a positional argument of another name sets."""
CHOOSE = {"dry_run", "analyse", "compare", "reject", "after_silence", "streaming", "hear"}
"""Flags that choose the stage, or say what is so anyway."""
OPTIONAL = {"pack", "table", "audio"}
"""Required by the one stage of a verb that they choose."""


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_parameter_has_a_flag_with_its_default(verb):
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.VERBS[verb][0]).add_arguments(parser)
    actions = {a.dest: a for a in reversed(parser._actions) if a.dest != "help"}
    matched = set()
    for stage in STAGES[verb]:
        for name, parameter in inspect.signature(getattr(stages, stage)).parameters.items():
            if name in CALLBACKS:
                continue
            action = actions[POSITIONAL.get((stage, name), name)]
            matched.add(action.dest)
            if parameter.default is parameter.empty:
                assert action.required or name in OPTIONAL, name
            else:
                assert not action.required or name in OPTIONAL, name
                assert action.default == parameter.default, name
    assert set(actions) - matched <= CHOOSE


def test_every_stage_has_a_verb():
    assert {name for names in STAGES.values() for name in names} | {"compare"} == set(
        stages.__all__
    )


def stage(
    place: str | Path,
    *,
    out: str | Path,
    kind: Literal["a", "b"] = "a",
    form: Literal["c", "d"] | None = None,
    num: int | None = None,
    share: float = 0.5,
    items: Sequence[str] = ("x",),
    fast: bool = False,
    slow: bool = True,
    progress: object = None,
) -> None:
    """A stage with a parameter of each type."""


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    flag = Flags(parser, stage)
    for name in (
        "place",
        "--out",
        "--kind",
        "--form",
        "--num",
        "--share",
        "--item",
        "--fast",
        "--no-slow",
    ):
        dest = {"--item": "items", "--no-slow": "slow"}.get(name)
        flag(name, "help", dest=dest)
    return parser


def test_types_and_defaults_are_those_of_the_signature(parser):
    found = given(parser.parse_args(["p", "--out", "o"]), stage)
    assert found == {
        "place": Path("p"), "out": Path("o"), "kind": "a", "form": None, "num": None, "share": 0.5,
        "items": ("x",), "fast": False, "slow": True,
    }  # fmt: skip
    flags = [
        "p",
        "--out",
        "o",
        "--kind",
        "b",
        "--form",
        "d",
        "--num",
        "3",
        "--share",
        "1",
        "--item",
        "y",
        "--item",
        "z",
        "--fast",
        "--no-slow",
    ]
    found = given(parser.parse_args(flags), stage)
    assert found == {
        "place": Path("p"), "out": Path("o"), "kind": "b", "form": "d", "num": 3, "share": 1.0,
        "items": ("x", "y", "z"), "fast": True, "slow": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "flags", ["p", "--out o", "p --out o --kind c", "p --out o --form e", "p --out o --num x"]
)
def test_what_does_not_fit_the_signature_is_refused(parser, flags, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(flags.split())
    assert capsys.readouterr().err


def test_words_and_numbers_are_joined_by_commas():
    assert names("--ops")("a, b,,a") == ("a", "b")
    assert numbers("--chunks")("8, 16,0") == (8, 16, 0)
    with pytest.raises(ConfigError, match=r"--chunks is '8,x'"):
        numbers("--chunks")("8,x")


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_an_empty_list_is_refused(text):
    """A stage would take its default in its place."""
    with pytest.raises(ConfigError, match=r"--ops is .*names"):
        names("--ops")(text)
    with pytest.raises(ConfigError, match=r"--chunks is .*whole numbers"):
        numbers("--chunks")(text)


def test_no_file_of_the_command_line_is_long():
    files = (Path(cli.__file__).parent).glob("*.py")
    assert [f.name for f in files if len(f.read_text().splitlines()) > 150] == []
