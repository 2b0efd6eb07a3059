"""The passes on a vision transformer, from one end to the other."""

import numpy as np
import pytest
import torch

from todm import artifact
from todm.compress import storage
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.compress.packed import Int8Linear, SparseLinear, W4Linear
from todm.vision.adapter import VisionAdapter

LAYERS = [
    f"blocks.{b}.{n}" for b in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


def _settings(passes, **changes):
    return CompressConfig.from_json({"passes": list(passes), "num_calibration": 32, **changes})


@pytest.mark.parametrize(
    ("passes", "packed"),
    [
        (("prune",), SparseLinear),
        (("int8",), Int8Linear),
        (("prune", "int8"), Int8Linear),
        (("prune", "int4"), W4Linear),
        (("awq",), W4Linear),
    ],
)
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_every_layer_is_accounted_for(make, task, passes, packed):
    adapter = make(task)
    prefix = "encoder." * (task == "segmentation")
    wanted = {n.removesuffix(".weight") for n, p in adapter.model.named_parameters() if p.ndim > 1}
    grids = {"int4": {"group": 32}, "awq": {"group": 32, "grid": 4}}
    result = compress(adapter, _settings(passes, **grids))
    for report in result.reports:
        rows = {row.name: row for row in report.rows}
        assert set(rows) == wanted
        assert [n for n, row in rows.items() if row.done] == [prefix + n for n in LAYERS]
        assert all(row.why_not for row in rows.values() if not row.done)
        assert rows[f"{prefix}patch_embed.proj"].why_not == adapter.kept["*patch_embed*"]
        assert rows["head"].why_not == adapter.kept["head*"]
    assert all(isinstance(adapter.model.get_submodule(prefix + n), packed) for n in LAYERS)
    if passes == ("awq",):
        # Without factors at run time, but where GELU is in between.
        scaled = {
            n
            for n in LAYERS
            if adapter.model.get_submodule(prefix + n).pre_quant_scale_K is not None
        }
        assert scaled <= {n for n in LAYERS if n.endswith("fc2")}


def test_training_brings_a_student_nearer_to_its_teacher(make):
    """Unsupervised, with both terms; zeros stay zero."""
    images = make().calibration(64, None)[0].images_BCHW
    distances = {}
    for updates in (0, 40):
        torch.manual_seed(5)
        adapter = make()
        with torch.no_grad():
            expected = adapter.model(images)
        tune = {"updates": updates, "hard": 0.0, "lr": 3e-3}
        sparse = {"method": "magnitude", "tune": tune}
        settings = _settings(["prune", "int8"], prune=sparse, int8={"tune": {**tune, "lr": 3e-4}})
        result = compress(adapter, settings)
        with torch.no_grad():
            distances[updates] = float((adapter.model(images) - expected).norm())
        for name in LAYERS:
            weight = adapter.model.get_submodule(name).dense_weight()
            assert (weight[~result.masks[name]] == 0).all()
            groups = result.masks[name].reshape(len(weight), -1, 4).sum(-1)
            assert (groups == 2).all()
    assert distances[40] < 0.7 * distances[0]


def test_layers_that_are_excluded_stay_as_they_are(make):
    adapter = make()
    before = adapter.model.blocks[0].mlp.fc1.weight.clone()
    result = compress(adapter, _settings(["int8"], exclude=["blocks.0.*"], include=["head"]))
    done = [row.name for row in result.reports[0].rows if row.done]
    assert done == [*LAYERS[4:], "head"]
    assert torch.equal(adapter.model.blocks[0].mlp.fc1.weight, before)


def test_calibration_of_the_user(make, tmp_path):
    np.savez(
        tmp_path / "x.npz", images=np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    )
    compress(make(), _settings(["int8"]), calibration=tmp_path / "x.npz")


def test_a_compressed_artifact_brings_the_same_model(make, tmp_path):
    adapter = make()
    found = adapter.save(tmp_path / "dense")
    settings = _settings(["prune", "int8"])
    result = compress(adapter, settings)
    made = storage.save(
        tmp_path / "small",
        adapter.model,
        parent=found,
        config=settings,
        reports=result.reports,
        write=adapter.write_assets,
    )
    again = VisionAdapter.load(artifact.load(made.path))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.model(images), adapter.model(images))
