"""Export end to end with random weights: what is written, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from todm.device.audio import read_audio
from todm.device.bundle import Bundle, open_bundle
from todm.device.features import fbank
from todm.device.recognizer import StreamingRecognizer
from todm.errors import ArtifactError, BundleError, ConfigError
from todm.export.bundle import ExportConfig, _shipped, tail_for, write_bundle
from todm.export.decoding import Decoding
from todm.export.sample import Sample, sample_signal
from todm.export.to_onnx import graph_to_onnx
from todm.export.verify import Report, verify


def test_bundle_holds_what_the_contract_names(toy_bundle):
    names = {p.relative_to(toy_bundle).as_posix() for p in toy_bundle.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "README.md", "tokens.txt", "bpe.model", "bpe.vocab",
        "encoder.onnx", "encoder.int8.onnx", "encoder.int8.rr.onnx",
        "decoder.onnx", "decoder.int8.onnx", "joiner.onnx", "joiner.int8.onnx",
        "offline/encoder.onnx", "offline/encoder.int8.onnx", "offline/encoder.int8.rr.onnx",
        "test_wavs/0.wav", "test_wavs/expected.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["encoder", "encoder.int8", "encoder.int8.rr"])
def test_graphs_are_small_self_contained_and_old_enough(toy_bundle, name):
    model = onnx.load(str(toy_bundle / f"{name}.onnx"), load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert model.ir_version == 8
    assert not any(t.external_data for t in model.graph.initializer)
    assert not any(node.metadata_props for node in model.graph.node)
    assert metadata["model_type"] == "lstm"
    assert metadata["T"] == metadata["decode_chunk_len"] == "32"
    axes = zip(model.graph.input, (0, 1, 1), strict=True)
    batch = [value.type.tensor_type.shape.dim[axis].dim_param for value, axis in axes]
    assert batch == ["N", "N", "N"]


def test_manifest_and_card_carry_the_figures(toy_bundle):
    metrics = json.loads((toy_bundle / "manifest.json").read_text())["metrics"]
    assert metrics["checks"]["encoder chunk by chunk, torch and onnxruntime"] < 1e-4
    assert metrics["checks"]["fp32, streaming in sherpa-onnx, log-probs"] < 1e-4
    assert set(metrics["runtime"]) == {"fp32", "int8", "int8.rr"}
    card = (toy_bundle / "README.md").read_text()
    assert "0.68 s of silence" in card
    assert "NOTHING WAS SAID" in card


def test_seven_bit_weights_are_close_on_every_processor(toy_bundle):
    metrics = json.loads((toy_bundle / "manifest.json").read_text())["metrics"]
    assert metrics["checks"]["int8.rr encoder, signal-to-noise in dB"] > 25


def test_golden_bundle_of_the_device_tests_is_what_export_writes(toy_bundle, repo):
    """TODM_WRITE_GOLDEN=1 writes it anew."""
    golden = repo / "tests" / "device" / "golden"
    if os.environ.get("TODM_WRITE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        shutil.copytree(toy_bundle, golden)
    ours, theirs = (
        json.loads((path / "test_wavs" / "expected.json").read_text())["fp32"]
        for path in (toy_bundle, golden)
    )
    assert ours["streaming"]["tokens"] == theirs["streaming"]["tokens"]
    assert ours["offline"]["tokens"] == theirs["offline"]["tokens"]


def test_graph_that_is_not_the_module_is_refused(toy_graphs, toy_bundle):
    changed = [dataclasses.replace(g, module=_shifted(g.module)) for g in toy_graphs[:1]]
    with pytest.raises(BundleError, match=r"encoder encoder_out.* differ by 1\.0e-02"):
        verify(
            [*changed, *toy_graphs[1:]],
            open_bundle(toy_bundle),
            sample_signal(1.0),
            in_sherpa=False,
        )


@pytest.mark.runtime
@pytest.mark.parametrize("vnni", [True, False])
def test_seven_bit_weights_are_judged_on_every_processor(
    tmp_path, toy_graphs, toy_bundle, monkeypatch, vnni
):
    """Weights of 8 bits only where their sums in sherpa-onnx do not overflow."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("todm.device.bundle.has_vnni", lambda: vnni)
    bundle = tmp_path / "b"
    shutil.copytree(toy_bundle, bundle)
    if vnni:  # this processor may have none
        (bundle / "encoder.int8.onnx").unlink()
    report = verify(toy_graphs, Bundle(path=bundle), sample_signal(1.0), in_sherpa=True)
    streaming = [name for name in report.figures if "int8" in name and "streaming in" in name]
    judged = "int8.rr, streaming in sherpa-onnx, share of tokens that differ"
    other = "int8, streaming in sherpa-onnx (form for other processors, not judged)"
    assert streaming == [*([] if vnni else [f"{other}, share of tokens that differ"]), judged]


def test_missing_graph_is_refused(tmp_path, toy_graphs, write_assets):
    with pytest.raises(BundleError, match="no joiner"):
        write_bundle(
            tmp_path / "b", toy_graphs[:2], write_assets=write_assets, config=ExportConfig()
        )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "bpe.model").unlink(), "no file 'bpe.model'"),
        (lambda d: (d / "tokens.txt").write_text("<blk> 0\na 1\n"), "2 tokens, and .* 24 logits"),
    ],
    ids=["no-tokenizer", "short-tokens"],
)
def test_failed_export_leaves_nothing(tmp_path, toy_graphs, write_assets, spoil, message):
    def assets(directory):
        write_assets(directory)
        spoil(directory)

    with pytest.raises(BundleError, match=message):
        write_bundle(
            tmp_path / "b",
            toy_graphs,
            write_assets=assets,
            config=ExportConfig(target="onnx", precisions=("fp32",)),
        )
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_directory_is_not_replaced(tmp_path, toy_graphs, write_assets):
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        write_bundle(tmp_path, toy_graphs, write_assets=write_assets, config=ExportConfig())


def test_dynamic_axis_with_example_of_one_is_refused(tmp_path, toy_graphs):
    decoder = toy_graphs[1]
    port = dataclasses.replace(decoder.inputs[0], example=torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="give 2 or more"):
        graph_to_onnx(dataclasses.replace(decoder, inputs=(port,)), tmp_path / "d.onnx")


@pytest.mark.parametrize("wrong", [-1, 0.35, 10.1, float("nan")])
def test_a_tail_that_would_lose_words_or_is_too_long_is_refused(
    tmp_path, toy_graphs, write_assets, wrong
):
    config = ExportConfig(tail_seconds=wrong)
    with pytest.raises(ConfigError, match=rf"--tail is {wrong}: 0\.36 to 10 seconds"):
        write_bundle(tmp_path / "b", toy_graphs, write_assets=write_assets, config=config)
    assert not (tmp_path / "b").exists()


def test_the_least_tail_brings_out_the_last_frame_of_speech():
    """Of speech of any length: a host decodes a chunk when one frame more than it is there."""
    for chunk in (4, 8):
        tail = tail_for(4 * chunk / 100, (4 * chunk + 4) / 100)
        for num_samples in range(16_000, 16_000 + 2 * 640 * chunk, 40):
            spoken = (num_samples + 119) // 160 + 1  # frames whose window has speech in it
            ready = len(fbank(np.zeros(num_samples + round(16_000 * tail), np.float32)))
            decoded = (ready - 1) // (4 * chunk) * 4 * chunk
            assert decoded >= spoken


@pytest.mark.parametrize("given", [(), ("int8",), ("int8", "fp32"), ("fp32", "int4", "int4")])
def test_precisions_begin_with_fp32_and_are_given_once(given):
    with pytest.raises(ConfigError, match="give each once and fp32 first"):
        ExportConfig(precisions=given)


def test_bundle_of_blocks(tmp_path, toy_graphs, write_assets):
    """Written, verified and described; decoder and joiner are those of int8."""
    config = ExportConfig(target="onnx", precisions=("fp32", "int8.block", "int4"))
    made = write_bundle(tmp_path / "b", toy_graphs, write_assets=write_assets, config=config)
    bundle = open_bundle(made.path)
    assert bundle.precisions() == ("fp32", "int8.block", "int4")
    assert (made.path / "offline" / "encoder.int4.onnx").is_file()
    assert not (made.path / "encoder.int8.onnx").exists()
    checks = made.metrics["checks"]
    noise = [checks[f"{p} encoder, signal-to-noise in dB"] for p in ("int8.block", "int4")]
    assert noise[0] > 35 > noise[1] > 10
    assert "has the fewest bytes" in (made.path / "README.md").read_text()


@pytest.fixture(scope="module")
def restarting(tmp_path_factory, toy_graphs, write_assets):
    """The toy, whose context starts again after 0.2 s; there are such pauses in the sample."""
    return write_bundle(
        tmp_path_factory.mktemp("restarting") / "bundle",
        toy_graphs,
        write_assets=write_assets,
        config=ExportConfig(precisions=("fp32",)),
        sample=Sample(samples_S=sample_signal(3.0)),
        decoding=Decoding(endpoint_seconds=0.2),
    )


@pytest.mark.runtime
def test_a_bundle_says_when_the_context_starts_again(restarting, toy_bundle):
    """torch and onnxruntime agreed on it, and sherpa-onnx with what ours gives without it."""
    assert (
        restarting.info["endpoint_seconds"] == open_bundle(restarting.path).endpoint_seconds == 0.2
    )
    assert "**Endpoint**: after 0.2 s" in (restarting.path / "README.md").read_text()
    assert "fp32, offline in sherpa-onnx, log-probs" in restarting.metrics["checks"]
    assert open_bundle(toy_bundle).endpoint_seconds is None
    assert "Endpoint" not in (toy_bundle / "README.md").read_text()
    found, other = (
        json.loads((path / "test_wavs" / "expected.json").read_text())["fp32"]
        for path in (restarting.path, toy_bundle)
    )
    assert found["streaming"]["tokens"] != other["streaming"]["tokens"]
    assert found["offline"]["tokens"] != other["offline"]["tokens"]


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("script", "tail_seconds"), [(["run.py"], None), (["forms.py", "--repeats", "0"], 0)]
)
def test_runners_start_the_context_again(restarting, repo, script, tail_seconds):
    bundle, wav = open_bundle(restarting.path), restarting.path / "test_wavs" / "0.wav"
    recognizer = StreamingRecognizer(bundle)
    found = recognizer.transcribe(read_audio(wav), tail_seconds=tail_seconds)
    command = [sys.executable, *script, str(restarting.path), str(wav)]
    done = subprocess.run(
        command, cwd=repo / "export" / "onnx", capture_output=True, text=True, check=True
    )
    assert done.stdout[:-1].endswith(found.text)


def test_report_refuses_what_is_not_a_number():
    with pytest.raises(BundleError, match="differ by nan"):
        Report().close("x", np.zeros(3), np.full(3, np.nan), 1e-4)


def test_sample_is_read_from_a_file(toy_bundle):
    path = toy_bundle / "test_wavs" / "0.wav"
    assert np.array_equal(Sample.read(path, "A").samples_S, read_audio(path))


def _shifted(module):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            first, *rest = self.module(*inputs)
            return first + 0.01, *rest

    return Shifted()


def test_where_a_corpus_lay_is_not_shipped_at_any_depth():
    info = {"corpus": "/a", "asked": {"budget": "1M", "corpus": "/a", "deep": {"corpus": "/a"}}}
    assert _shipped(info) == {"asked": {"budget": "1M", "deep": {}}}
