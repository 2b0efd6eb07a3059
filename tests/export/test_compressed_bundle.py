"""Bundles of compressed graphs: verified in onnxruntime and sherpa-onnx as others are."""

import copy
import dataclasses
import json

import pytest
import torch

from todm import artifact
from todm.compress import packed
from todm.device.bundle import open_bundle
from todm.errors import BundleError, ConfigError
from todm.export.bundle import ExportConfig, write_bundle
from todm.export.sample import sample_signal
from todm.export.verify import Report, verify
from todm.kernels import matmul_int8, matmul_w4

pytestmark = pytest.mark.runtime


@pytest.fixture
def graphs(toy_graphs):
    """The toy transducer: an int8 encoder, a decoder of 3 bits, the joiner as it was."""
    encoder, decoder, joiner = (copy.deepcopy(graph.module) for graph in toy_graphs)
    stem = encoder.stem
    codes, scale = matmul_int8.quantise_weight(stem.weight)
    encoder.stem = packed.Int8Linear(codes, scale, stem.bias)
    codes, scale = matmul_int8.quantise_weight(encoder.out.weight)
    act_scale = torch.tensor(0.05)
    encoder.out = packed.Int8Linear(codes, scale, encoder.out.bias, act_scale=act_scale)
    words = matmul_w4.quantise_rtn(decoder.project.weight, 3, group=32)
    decoder.project = packed.W4Linear(words, decoder.project.bias)
    modules = (encoder, decoder, joiner)
    return [
        dataclasses.replace(g, module=m.eval()) for g, m in zip(toy_graphs, modules, strict=True)
    ]


def test_a_compressed_bundle_is_verified_and_says_what_it_holds(tmp_path, graphs, write_assets):
    parent = artifact.save(
        tmp_path / "net",
        kind="compressed",
        config={"asr": {}},
        info={"corpus": "/home/me/corpus", "subnet": {"blocks": [0]}, "compressed": {"layers": {}}},
    )
    made = write_bundle(
        tmp_path / "b",
        graphs,
        write_assets=write_assets,
        config=ExportConfig(precisions=("fp32",)),
        parent=parent,
    )
    bundle = open_bundle(made.path)
    assert bundle.precisions() == ("fp32",)
    assert made.info["compressed"] == {
        "int8, a scale per row": 1,
        "int8, a static scale (QDQ)": 1,
        "3 bits in 4-bit containers, which save no bytes over 4 bits, groups of 32": 1,
    }
    assert made.info["subnet"] == {"subnet": {"blocks": [0]}}, "no corpus and no report in it"
    card = (made.path / "README.md").read_text()
    assert "- 1 layers: 3 bits in 4-bit containers, which save no bytes" in card
    checks = made.metrics["checks"]
    assert checks["encoder chunk by chunk, torch and onnxruntime"] < 0.05
    assert checks["decoder decoder_out, torch and onnxruntime"] < 1e-5
    assert checks["fp32, streaming in sherpa-onnx, share of tokens that differ"] < 0.1
    assert (tmp_path / "b" / "offline" / "encoder.onnx").is_file()
    expected = json.loads((made.path / "test_wavs" / "expected.json").read_text())["fp32"]
    streamed = expected["streaming"]["tokens"]
    assert streamed
    assert expected["offline"]["tokens"][: len(streamed)] == streamed

    # A bundle of other weights is found out, rounding or not.
    graphs[0].module.out.scale_N *= 1.5
    with pytest.raises(BundleError, match="encoder encoder_out"):
        verify(graphs, bundle, sample_signal(1.0), in_sherpa=False)


def test_int8_forms_of_compressed_graphs_are_refused(tmp_path, graphs, write_assets):
    with pytest.raises(ConfigError, match=r"compressed already \(int8, a scale per row, "):
        write_bundle(tmp_path / "b", graphs, write_assets=write_assets, config=ExportConfig())
    assert not (tmp_path / "b").exists()


def test_rounding_graphs_may_differ_in_a_tenth_of_the_tokens():
    Report(rounds=True).alike("ids", list(range(40)), [*range(38), 50, 51], 0.1)
    with pytest.raises(BundleError, match="12 of 80 tokens have no match"):
        Report(rounds=True).alike("ids", list(range(40)), [*range(34), *[50] * 6], 0.1)
    assert Report(rounds=True).tolerance > Report().tolerance
