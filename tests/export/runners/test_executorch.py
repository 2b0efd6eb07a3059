"""The target executorch: lowered programs against torch, and the runner against what they promise."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from todm.compress import packed
from todm.device.features import fbank
from todm.errors import BundleError, MissingExtra
from todm.export import to_executorch
from todm.export.decoding import Decoding
from todm.export.reference import encode, in_torch, split
from todm.export.sample import Sample, sample_signal
from todm.export.to_executorch import ExecutorchConfig, Pte, write_executorch
from todm.kernels import matmul_24

HERE = importlib.util.find_spec("executorch") is not None
needs_executorch = [
    pytest.mark.executorch,
    pytest.mark.slow,
    pytest.mark.skipif(not HERE, reason="needs ExecuTorch: pip install 'todm[executorch]'"),
    pytest.mark.filterwarnings("ignore"),  # of its imports
]


def mark(test):
    for one in needs_executorch:
        test = one(test)
    return test


@pytest.fixture(scope="module")
def programs(tmp_path_factory, toy_graphs, write_assets):
    """The toy, lowered once."""
    path = tmp_path_factory.mktemp("executorch") / "toy"
    sample = Sample(samples_S=sample_signal(3.0), reference="NOTHING WAS SAID")
    return write_executorch(
        path,
        toy_graphs,
        write_assets=write_assets,
        config=ExecutorchConfig(),
        sample=sample,
        decoding=Decoding(endpoint_seconds=0.2),  # there are such pauses in the sample
    )


@mark
def test_what_is_written(programs):
    names = {p.name for p in programs.path.iterdir()}
    assert names == {
        "manifest.json", "README.md", "tokens.txt", "bpe.model", "bpe.vocab", "test_wavs",
        "encoder.pte", "encoder.int8.pte", "decoder.pte", "joiner.pte",
    }  # fmt: skip
    assert programs.info["sizes"]["T"] == 32
    assert programs.info["endpoint_seconds"] == 0.2
    assert "**Endpoint**: after 0.2 s" in (programs.path / "README.md").read_text()
    assert programs.metrics["checks"]["int8 encoder, signal-to-noise in dB"] > 20


@mark
def test_states_are_carried(programs, toy_graphs):
    """On other audio than it was checked with; and without its states it differs."""
    frames, sizes = fbank(sample_signal(4.0)[::-1].copy()), programs.info["sizes"]
    encoder = Pte(programs.path / "encoder.pte")
    chunks = split(frames, sizes["T"], sizes["T"])
    zeros = [torch.zeros(1, 1, sizes[name]) for name in "SR"]
    found = torch.cat(encode(encoder, chunks, zeros))
    wanted = torch.cat(encode(in_torch(toy_graphs[0]), chunks, zeros))
    alone = [encoder(chunk, *zeros)[0][0] for chunk in chunks]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (torch.cat(alone) - wanted).abs().max() > 1e-2


@mark
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_runner_prints_what_is_promised(programs, repo, tmp_path, precision):
    wav = programs.path / "test_wavs" / "0.wav"
    expected = json.loads((programs.path / "test_wavs" / "expected.json").read_text())
    script = repo / "export" / "executorch" / "run.py"
    command = [sys.executable, script, programs.path, wav, "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == f"{wav}\t{expected[precision]['streaming']['text']}\n", done.stderr


@mark
def test_compressed_layers_are_refused(tmp_path, toy_graphs, write_assets, monkeypatch):
    zeros = torch.ones(16, 12) * (torch.arange(12) % 4 < 2)
    layer = packed.SparseLinear(matmul_24.pack(zeros), None)
    monkeypatch.setattr(toy_graphs[0].module, "out", layer)
    with pytest.raises(BundleError, match=r"compressed \(float32, 2:4 zeros\)"):
        write_executorch(
            tmp_path / "x", toy_graphs, write_assets=write_assets, config=ExecutorchConfig()
        )


def test_without_the_package_the_command_is_named(tmp_path, toy_graphs, write_assets, monkeypatch):
    monkeypatch.setattr(to_executorch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"todm\[executorch\]"):
        write_executorch(
            tmp_path / "x", toy_graphs, write_assets=write_assets, config=ExecutorchConfig()
        )


def test_a_program_is_called_with_axes_in_their_order():
    """ExecuTorch refuses other strides, even of an axis of size 1."""
    odd = torch.zeros(1, 5, 1).transpose(1, 2)
    assert to_executorch._plain(odd).stride() == torch.empty(1, 1, 5).stride()


def test_the_compiler_beside_the_interpreter_is_on_the_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with to_executorch._flatc():
        assert os.environ["PATH"].split(os.pathsep) == ["/nowhere", os.path.dirname(sys.executable)]
    assert os.environ["PATH"] == "/nowhere"
