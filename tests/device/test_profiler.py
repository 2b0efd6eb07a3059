"""A pack of two graphs made by hand, measured for real; times are only held to be times."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from todm.device import profiler
from todm.device.profiler import ProfileError, checksum, measure, read_plan, settle

pytestmark = pytest.mark.runtime


@pytest.fixture
def pack(tmp_path):
    """Matrices of two sizes as encoders, a joiner and a decoder."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path / "pack"
    (folder / "graphs").mkdir(parents=True)

    def write(name, op, inputs, constant):
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8]) for n in inputs]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        weight = numpy_helper.from_array(np.ones((8, constant), np.float32), "weight")
        nodes = [
            helper.make_node("Sum", inputs, ["sum"]),
            helper.make_node(op, ["sum", "weight"], ["out"]),
        ]
        graph = helper.make_graph(nodes, name, ports, [out], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, str(folder / "graphs" / name))

    write("small.onnx", "MatMul", ["x"], 8)
    write("large.onnx", "MatMul", ["x"], 4096)
    write("joiner.onnx", "MatMul", ["enc", "dec"], 5)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["y"], ["f"], to=1),
                helper.make_node("MatMul", ["f", "w"], ["out"]),
            ],
            "decoder",
            [helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 2])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones((2, 8), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, str(folder / "graphs" / "decoder.onnx"))
    plan = {
        "kind": profiler.PACK_KIND,
        "format_version": 1,
        "space": "key",
        "chunk_seconds": 0.64,
        "frames": 16,
        "context_size": 2,
        "joiner_dim": 8,
        "graphs": [
            {"subnet": {"n": n}, "precision": "fp32", "file": f"graphs/{n}.onnx", "bytes": size}
            for n, size in (("large", 9000), ("small", 100))
        ],
        "search": {"fp32": {"joiner": "graphs/joiner.onnx", "decoder": "graphs/decoder.onnx"}},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_a_pack_is_measured(pack):
    calls = []
    table = measure(
        pack, "here", rounds=6, progress=lambda done, total: calls.append((done, total))
    )
    assert table["kind"] == profiler.KIND
    assert table["name"] == "here"
    assert table["space"] == "key"
    assert table["sha256"] == checksum(table)
    assert [e["subnet"]["n"] for e in table["entries"]] == ["small", "large"]
    assert all(e["ms"] > 0 and e["wall_ms"] > 0 for e in table["entries"])
    assert table["search_ms"]["fp32"] > 0
    assert "MatMul" in table["operators_ms"]["fp32"]
    assert table["machine"]["onnxruntime"]
    assert calls == [(i + 1, 6) for i in range(6)]


def test_what_does_not_fit_into_memory_is_measured_in_groups(pack, monkeypatch):
    monkeypatch.setattr(profiler, "GROUP_BYTES", 10)
    groups = profiler._groups(read_plan(pack)["graphs"])
    assert [[g["bytes"] for g in group] for group in groups] == [[100, 9000]]
    graphs = [{"bytes": n} for n in (7, 5, 20, 1, 8)]
    sizes = [[g["bytes"] for g in group] for group in profiler._groups(graphs)]
    assert sizes == [[1, 5], [1, 7], [1, 8], [1, 20]]
    assert len(measure(pack, "here", rounds=3)["entries"]) == 2


def test_the_folder_needs_onnxruntime_and_numpy_only(pack, tmp_path):
    """The program is copied and run where neither todm nor torch can be imported."""
    shutil.copy(profiler.__file__, pack / "measure.py")
    program = (
        "import sys, runpy\n"
        "sys.modules['todm'] = sys.modules['torch'] = None\n"
        "sys.argv = ['measure.py', '--name', 'pi5', '--rounds', '3']\n"
        f"runpy.run_path({str(pack / 'measure.py')!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ, check=True)
    table = json.loads((tmp_path / "pi5.json").read_text())
    assert table["name"] == "pi5"
    assert table["sha256"] == checksum(table)


def test_slow_rounds_and_single_stalls_do_not_count():
    true_G = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    draws = np.random.default_rng(0)
    pace_R = np.where(np.arange(40) % 3 == 0, 2.5, 1.0)
    times_RG = true_G * pace_R[:, None] * draws.uniform(1.0, 1.02, (40, 5))
    times_RG[::7, 2] *= 10
    np.testing.assert_allclose(settle(times_RG), true_G, rtol=0.03)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"graphs": [], "search": {}}'])
def test_a_folder_that_is_no_pack_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ProfileError, match=r"has no plan\.json of a profile pack"):
        read_plan(tmp_path)


def test_an_incomplete_pack_is_refused(pack):
    (pack / "graphs" / "large.onnx").unlink()
    with pytest.raises(ProfileError, match=r"has no file graphs/large\.onnx"):
        read_plan(pack)


def test_another_version_is_refused(pack):
    plan = json.loads((pack / "plan.json").read_text())
    (pack / "plan.json").write_text(json.dumps({**plan, "format_version": 7}))
    with pytest.raises(ProfileError, match="of another version"):
        read_plan(pack)


def test_a_broken_graph_is_named(pack, capsys, monkeypatch):
    (pack / "graphs" / "large.onnx").write_bytes(b"junk")
    with pytest.raises(ProfileError, match=r"large\.onnx cannot be loaded"):
        measure(pack, "here", rounds=1)
    shutil.copy(profiler.__file__, pack / "measure.py")
    ended = subprocess.run(
        [sys.executable, pack / "measure.py"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "cannot be loaded" in ended.stderr
