"""The documents are true: commands parse, links and paths resolve, the tree exists; files are short."""

import argparse
import ast
import importlib
import os
import re
import shlex
from pathlib import Path

import pytest

from todm.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    p
    for folder in (".", "benchmarks", "docs", "recipes", "export", "todm", "tests")
    for p in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
SOURCES = sorted(
    p
    for folder in ("todm", "benchmarks", "export", "recipes", "scripts")
    for p in (ROOT / folder).rglob("*.py")
)
OTHERS = {"pip", "git", "make", "pre-commit"}  # commands that are not ours


def _commands(document):
    """Each command of the `sh` blocks, as words, without comments and with continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


def _parser(verb):
    parser = argparse.ArgumentParser(prog=f"todm {verb}", allow_abbrev=False)
    importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    return parser


COMMANDS = [
    pytest.param(words, id=f"{p.relative_to(ROOT)}: {' '.join(words)}")
    for p in DOCUMENTS
    for words in _commands(p)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_can_be_run_as_written(words):
    name, *arguments = words
    if name == "todm":
        _parser(arguments[0]).parse_args(arguments[1:])
    elif name == "extract-subnet":
        _parser(name).parse_args(arguments)
    elif name.startswith(".venv/bin/"):
        pass  # in the environment that the first command makes
    elif "/" in name:
        assert os.access(ROOT / name, os.X_OK), f"{name} is not an executable file"
    else:
        assert name in OTHERS


def test_the_readme_begins_with_two_commands():
    first = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [line.split()[0] for line in first[1].splitlines()] == [
        "recipes/librispeech/run.sh",
        "scripts/test.sh",
    ]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def _recipe_calls():
    for recipe in sorted((ROOT / "recipes").rglob("*.sh")):
        text = recipe.read_text().replace("\\\n", " ")
        for verb, rest in re.findall(r"^\s*todm ([a-z-]+) (.*)$", text, re.MULTILINE):
            flags = re.findall(r"(?<=[\s+-])--[a-z-]+", rest)
            yield pytest.param(verb, flags, id=f"{recipe.name}: {verb}")


@pytest.mark.parametrize(("verb", "flags"), list(_recipe_calls()))
def test_recipes_use_flags_that_exist(verb, flags):
    known = {option for action in _parser(verb)._actions for option in action.option_strings}
    assert set(flags) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(document):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_exist(document):
    """Files of this repository in backticks; capitals stand for a name."""
    folders = "todm|benchmarks|tests|scripts|export|recipes|docs"
    paths = re.findall(rf"`((?:{folders})/[a-z0-9_./-]+)`", document.read_text())
    assert [p for p in paths if not (ROOT / p).exists()] == []


def _tree():
    """Paths of the README's tree; a line indented by two lies in the folder above it."""
    section = (ROOT / "README.md").read_text().partition("## The tree")[2]
    folder = ""
    for line in re.search(r"```text\n(.*?)```", section, re.DOTALL)[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name == line.strip() else ""
        yield (folder if line.startswith(" ") else "") + name


@pytest.mark.parametrize("path", list(_tree()))
def test_the_tree_exists(path):
    assert (ROOT / path).exists()


def test_the_tree_leaves_no_room_out():
    rooms = {p.parent.name for p in (ROOT / "todm").glob("*/__init__.py")}
    assert rooms == {p.split("/")[1] for p in _tree() if re.fullmatch(r"todm/\w+/", p)}


def test_make_targets_call_scripts_that_exist():
    recipes = re.findall(r"^\t(\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [r for r in recipes if not os.access(ROOT / r, os.X_OK)] == []


def test_the_page_of_environment_variables_is_complete():
    """Both ways: every variable of ours is on it, and it names none that nothing reads."""
    places = ("todm", "scripts", "tests", "export", "recipes", "benchmarks")
    files = [p for place in places for p in (ROOT / place).rglob("*") if p.suffix in (".py", ".sh")]
    read = {v for p in files for v in re.findall(r"\bTODM_[A-Z_0-9]+", p.read_text())}
    assert set(re.findall(r"\bTODM_[A-Z_0-9]+", (ROOT / "docs/environment.md").read_text())) == read


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(source):
    """What ruff has no rule for; it checks docstrings, annotations, arguments and complexity."""
    text, triton = source.read_text(), source.stem.startswith("triton_")
    limit = 500 if triton else 150 if source.parent == ROOT / "todm/cli" else 400
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            size = node.end_lineno - node.lineno + 1
            assert size <= (120 if triton else 80), f"{node.name} has {size} lines"
