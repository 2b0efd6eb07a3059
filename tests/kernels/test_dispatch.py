import sys

import pytest

from todm.errors import ConfigError, MissingExtra
from todm.kernels._dispatch import load_impl

NAMES = ("torch", "reference", "torchaudio")


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch):
    monkeypatch.delenv("TODM_IMPL", raising=False)


def _chosen(impl=None):
    return load_impl("rnnt_loss", NAMES, impl).__name__.rpartition(".")[2]


def test_default_is_the_first_name():
    assert _chosen() == "torch_impl"


@pytest.mark.parametrize(
    "setting", ["reference", "rnnt_loss=reference", " mh_ssm=torch , rnnt_loss = reference "]
)
def test_variable_chooses(monkeypatch, setting):
    monkeypatch.setenv("TODM_IMPL", setting)
    assert _chosen() == "reference"


def test_variable_for_another_op_leaves_the_default(monkeypatch):
    monkeypatch.setenv("TODM_IMPL", "mh_ssm=reference")
    assert _chosen() == "torch_impl"


def test_argument_wins_over_the_variable(monkeypatch):
    monkeypatch.setenv("TODM_IMPL", "rnnt_loss=reference")
    assert _chosen("torch") == "torch_impl"


def test_unknown_impl_names_what_there_is():
    with pytest.raises(ConfigError, match=r"impl asks for 'cuda'.*torch, reference, torchaudio"):
        load_impl("rnnt_loss", NAMES, "cuda")


@pytest.mark.parametrize("setting", ["cuda", "rnnt_loss=cuda"])
def test_unknown_impl_in_the_variable(monkeypatch, setting):
    monkeypatch.setenv("TODM_IMPL", setting)
    with pytest.raises(ConfigError, match="TODM_IMPL asks for 'cuda'"):
        _chosen()


@pytest.mark.parametrize("setting", ["rnt_loss=torch", "rnnt_loss=", "mh_ssm=torch,reference"])
def test_unreadable_variable(monkeypatch, setting):
    monkeypatch.setenv("TODM_IMPL", setting)
    with pytest.raises(ConfigError, match=r"not OP=IMPL with an op among .*mh_ssm, rnnt_loss"):
        _chosen()


def test_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "todm.kernels.rnnt_loss.torchaudio_impl", raising=False)
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(MissingExtra, match="'torchaudio'"):
        _chosen("torchaudio")
