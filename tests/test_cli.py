"""The command line: a module per verb, errors in a sentence, status 2 for what a user can mend."""

import argparse
import errno
import subprocess
import sys
import types

import pytest

from todm import __version__
from todm.cli import main as cli
from todm.errors import ConfigError


@pytest.fixture
def verb(monkeypatch):
    """A verb `demo` whose `run` is set by the test."""
    module = types.ModuleType("todm.cli.demo")
    module.add_arguments = lambda parser: parser.add_argument("--size", type=int)
    module.run = lambda args: 0
    monkeypatch.setitem(sys.modules, "todm.cli.demo", module)
    monkeypatch.setitem(cli.VERBS, "demo", ("todm.cli.demo", "for tests"))
    return module


def _raise(error):
    def run(args):
        raise error

    return run


def test_the_status_is_the_verbs_own(verb):
    verb.run = lambda args: args.size
    assert cli.main(["demo", "--size", "3"]) == 3


def test_a_users_error_is_one_sentence(verb, capsys):
    verb.run = _raise(ConfigError("rate is 7: at most 1 is allowed"))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "todm: rate is 7: at most 1 is allowed\n"


@pytest.mark.parametrize("package", ["torch", "lhotse", "sherpa_onnx", "safetensors.torch"])
def test_a_missing_extra_names_the_pip_command(verb, capsys, package):
    verb.run = _raise(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert cli.main(["demo"]) == 2
    assert "pip install 'todm[train]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_no_users_error(verb):
    verb.run = _raise(ModuleNotFoundError("No module named 'todm.gone'", name="todm.gone"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["demo"])


def test_an_interrupt_says_how_to_go_on(verb, capsys):
    verb.run = _raise(KeyboardInterrupt())
    assert cli.main(["demo"]) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")],
    ids=["full", "read-only", "forbidden"],
)
def test_a_disk_that_cannot_be_written_is_named(verb, capsys, code, words):
    verb.run = _raise(OSError(code, "", "/data/weights"))
    assert cli.main(["demo"]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "/data/weights" in message


def test_another_system_error_is_not_hidden(verb):
    verb.run = _raise(OSError(errno.EIO, "broken disk"))
    with pytest.raises(OSError, match="broken disk"):
        cli.main(["demo"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VERB"),
        (["trian"], "invalid choice"),
        (["demo", "--sise", "3"], "--sise"),
        (["demo", "--siz", "3"], "--siz"),
        (["demo", "--size", "many"], "invalid int value"),
        (["--bogus", "demo"], "--bogus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_cannot_be_read_exits_with_2(verb, capsys, arguments, words):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert words in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.strip() == f"todm {__version__}"


def test_help_names_every_verb_and_imports_none(verb, capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib, "import_module", _raise(AssertionError))
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.VERBS)


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_help_of_a_verb(name, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main([name, "--help"])
    assert raised.value.code == 0
    assert f"todm {name}" in capsys.readouterr().out


def test_extract_subnet_is_a_command_of_its_own(monkeypatch, verb):
    monkeypatch.setitem(cli.VERBS, "extract-subnet", ("todm.cli.demo", "for tests"))
    monkeypatch.setattr(sys, "argv", ["extract-subnet", "--size", "5"])
    verb.run = lambda args: args.size
    assert cli.extract_subnet() == 5


def test_a_reader_that_goes_away_makes_no_noise():
    code = (
        "import sys, types; from todm.cli import main as m\n"
        "v = types.ModuleType('v'); v.add_arguments = lambda p: None\n"
        "v.run = lambda a: print('x' * 5_000_000) or 0\n"
        "sys.modules['v'] = v; m.VERBS['v'] = ('v', 'test'); sys.exit(m.main(['v']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(10)
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_arguments_are_documented(name):
    import importlib

    parser = argparse.ArgumentParser()
    importlib.import_module(cli.VERBS[name][0]).add_arguments(parser)
    undocumented = [action.dest for action in parser._actions if not action.help]
    assert undocumented == []
