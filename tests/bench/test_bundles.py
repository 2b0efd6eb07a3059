import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from todm.bench.bundles import peer
from todm.bench.bundles.conformer import ConformerConfig, StreamingConformer, of_size
from todm.bench.bundles.engines import Onnxruntime, open_engine
from todm.bench.bundles.run import PLOT, RESULTS, Request, bench, plot, save, table
from todm.cli import main as cli
from todm.device.audio import read_audio
from todm.device.bundle import open_bundle
from todm.device.recognizer import StreamingRecognizer, pad_tail
from todm.errors import BundleError, ConfigError

GOLDEN = Path(__file__).parents[1] / "device/golden"
WAV = GOLDEN / "test_wavs/0.wav"


class _Clock:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.runtime
def test_an_engine_counts_every_chunk_once():
    bundle, clock = open_bundle(GOLDEN), _Clock()
    engine = Onnxruntime(bundle, precision="fp32", num_threads=1, clock=clock)
    samples = read_audio(WAV)
    found = engine.decode(samples)
    recognizer = StreamingRecognizer(bundle)
    spec = recognizer.spec
    stream = recognizer.create_stream()
    stream.accept(pad_tail(samples, bundle.tail_seconds))
    stream.finish()
    steps = 0
    while recognizer.step([stream]):
        steps += 1
    assert found.chunks == [1.0] * steps
    assert found.seconds == 1.0 + steps + 1.0  # features, chunks, and the look that finds no more
    assert found.text == recognizer.result(stream).text
    first = min(recognizer.result(stream).timestamps)
    shift = spec.shift_frames / 100
    assert found.first == pytest.approx((first // shift + 1) * shift)


@pytest.mark.runtime
def test_sherpa_onnx_gives_the_same_text_and_first_symbol():
    pytest.importorskip("sherpa_onnx")
    bundle, samples = open_bundle(GOLDEN), read_audio(WAV)
    ours, theirs = (
        open_engine(name, bundle, precision="fp32", num_threads=1).decode(samples)
        for name in ("onnxruntime", "sherpa-onnx")
    )
    assert theirs.text == ours.text
    assert len(theirs.chunks) == len(ours.chunks)
    assert theirs.first == ours.first


@pytest.mark.runtime
def test_a_bench_has_a_row_for_every_way_and_writes_it(tmp_path):
    request = Request(bundle=GOLDEN, runtimes=("onnxruntime",), threads=(1,), rounds=2)
    rows = bench(request)
    assert [(r.runtime, r.num_threads) for r in rows] == [("onnxruntime", 1)] * len(rows)
    assert {r.precision for r in rows} >= {"fp32"}
    for row in rows:
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert row.rtf_low <= row.rtf <= row.rtf_high
        assert row.footprint.peak_mb >= row.footprint.start_mb > 10
        assert row.footprint.load_seconds > 0
        assert len(row.chunks_ms) % 2 == 0  # both rounds, and not the warm-up
    save(rows, request, tmp_path)
    plot(rows, tmp_path / PLOT)
    written = json.loads((tmp_path / RESULTS).read_text())
    assert [r["precision"] for r in written["rows"]] == [r.precision for r in rows]
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")
    assert table(rows).count("\n") == len(rows) + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"threads": (0,)}, "at least 1"),
        ({"precisions": ("int3",)}, "unknown form 'int3'"),
    ],
)
def test_what_cannot_be_asked_for(given, message):
    with pytest.raises(ConfigError, match=message):
        Request(bundle=GOLDEN, **given)


@pytest.mark.runtime
def test_an_unknown_runtime_and_a_bundle_without_recording(tmp_path):
    with pytest.raises(ConfigError, match="unknown runtime 'tvm'"):
        bench(Request(bundle=GOLDEN, runtimes=("tvm",)))
    with pytest.raises(BundleError):
        bench(Request(bundle=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernels", "--rounds", "3"], "--rounds is for"),
        (["kernels", "a.wav"], "audio is for"),
        ([str(GOLDEN), "--ops", "mh_ssm"], "--ops is for"),
        (["nowhere"], "not a directory"),
    ],
)
def test_flags_of_the_other_kind_are_refused(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.runtime
def test_the_verb_prints_a_table(tmp_path, capsys):
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle")
    arguments = ["--runtimes", "onnxruntime", "--threads", "1", "--rounds", "1"]
    assert cli.main(["bench", str(bundle), *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "| onnxruntime | fp32 | 1 |" in capsys.readouterr().out
    assert (tmp_path / "out" / PLOT).is_file()


def test_a_conformer_of_the_asked_size():
    for size in (300_000, 2_000_000, 20_000_000):
        config = of_size(size, joiner_dim=128, chunk=8)
        model = sum(p.numel() for p in StreamingConformer(config).parameters())
        assert model == config.num_params
        assert abs(model / size - 1) <= 0.05
    with pytest.raises(ConfigError, match="no Conformer"):
        of_size(20_000, joiner_dim=512, chunk=8)


def test_the_conformers_chunks_are_causal_and_carry_their_states():
    torch.manual_seed(0)
    config = ConformerConfig(d_model=16, num_blocks=2, joiner_dim=8, chunk=4, left=8, kernel=5)
    model = StreamingConformer(config).eval()
    x = torch.randn(1, 3 * 16, 80)
    start = [torch.zeros(1, 1, size) for size in model.state_sizes]

    def outputs(features):
        states, found = start, []
        for chunk in features.split(16, 1):
            out, *states = model(chunk, *states)
            found.append(out)
        return torch.cat(found, 1)

    with torch.no_grad():
        whole = outputs(x)
        changed = x.clone()
        changed[:, 32:] += 1
        later = outputs(changed)
        fresh = model(x[:, 16:32], *start)[0]
    assert torch.equal(whole[:, :8], later[:, :8])
    assert not torch.allclose(whole[:, 8:], later[:, 8:])
    assert not torch.allclose(whole[:, 4:8], fresh)  # what came before is in the states


def test_the_conformers_attention_is_softmax_over_cache_and_chunk():
    torch.manual_seed(1)
    config = ConformerConfig(d_model=8, num_blocks=1, joiner_dim=8, chunk=3, heads=2, left=4)
    block = StreamingConformer(config).blocks[0]
    x, cache = torch.randn(1, 3, 8), torch.randn(1, 2, 4, 8)
    with torch.no_grad():
        got, kept = block._attend(x, cache)
        query, key, value = block.qkv(x)[0].split(8, -1)
        keys, values = torch.cat([cache[0, 0], key]), torch.cat([cache[0, 1], value])
        rows = []
        for t in range(3):
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                weights = (keys[:, h] @ query[t, h] / 2).softmax(0)
                heads.append(weights @ values[:, h])
            rows.append(torch.cat(heads))
        expected = block.out(torch.stack(rows))
    assert torch.allclose(got[0], expected, atol=1e-6)
    assert torch.equal(kept[0, 0], keys[-4:])


@pytest.mark.runtime
@pytest.mark.slow
def test_both_encoders_are_timed_at_equal_parameters():
    rows = peer.compare(peer.recipe_encoder("debug", "largest", 4), rounds=2, calls=3)
    by = {(row.name, row.form): row for row in rows}
    assert set(by) == {(n, f) for n in ("MH-SSM", "Conformer") for f in ("fp32", "int8")}
    ours, theirs = by["MH-SSM", "fp32"], by["Conformer", "fp32"]
    assert abs(ours.params / theirs.params - 1) <= 0.05
    assert by["MH-SSM", "int8"].megabytes < ours.megabytes
    assert all(row.low <= row.ms <= row.high for row in rows)
    ratio = by["Conformer", "int8"].ms / by["MH-SSM", "int8"].ms
    assert f"{ratio:.2f} times as fast" in peer.table(rows)


def test_a_wrong_recipe_is_one_sentence(capsys):
    assert peer.main(["--config", "none"]) == 2
    assert peer.main(["--config", "debug", "--size", "middle"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_states_counted_are_those_of_the_graph():
    encoder = peer.recipe_encoder("debug", "smallest", 4)
    graph = peer._graph(encoder, encoder.state_sizes, 4)
    assert [p.example.shape[2] for p in graph.inputs[1:]] == list(encoder.state_sizes)
    assert np.prod(graph.inputs[0].example.shape) == 2 * 16 * 80
