import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.multimodal.conftest import IMAGE, SETTINGS, TEXT, make_inputs
from todm import artifact
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.errors import ArtifactError, ConfigError, CorpusError
from todm.multimodal.adapter import MultimodalAdapter, build

pytest.importorskip("transformers")

LAYERS = 2 * 6 + 2 * 7
"""Linear layers of the blocks."""


def test_two_towers_in_the_order_they_run(adapter):
    assert adapter.block_lists == (
        "model.vision_tower.encoder.layers",
        "model.language_model.layers",
    )
    called = []
    for block_list in adapter.block_lists:
        block = adapter.model.get_submodule(block_list)[0]
        block.register_forward_pre_hook(lambda *_, block_list=block_list: called.append(block_list))
    adapter.run(adapter.model, adapter.calibration(2, None)[0])
    assert tuple(called) == adapter.block_lists


@torch.no_grad()
def test_folds_are_exact(adapter):
    """A factor moved into the place before changes no logit."""
    batch = adapter.calibration(3, None)[0]
    before = adapter.run(adapter.model, batch)
    moved = 0
    for block_list in adapter.block_lists:
        for block in adapter.model.get_submodule(block_list):
            for fold in adapter.folds(block):
                assert block.get_submodule(fold.inspect) is not None
                if fold.into is None:
                    continue
                layers = [block.get_submodule(n) for n in fold.layers]
                into = block.get_submodule(fold.into)
                factor = torch.rand(layers[0].in_features) + 0.5
                for layer in layers:
                    layer.weight.mul_(factor)
                into.weight[-len(factor) :].div_(factor.reshape(-1, *[1] * (into.weight.ndim - 1)))
                if getattr(into, "bias", None) is not None:
                    into.bias[-len(factor) :].div_(factor)
                moved += 1
    torch.testing.assert_close(adapter.run(adapter.model, batch), before, rtol=1e-3, atol=1e-3)
    # CLIP: qkv, out, fc1; Llama: qkv, gate and up, down (queries are grouped); two blocks each.
    assert moved == 2 * 3 + 2 * 3


def test_losses(adapter):
    batch = next(adapter.batches(1))
    teacher = build("LlavaForConditionalGeneration", SETTINGS)
    found = adapter.losses(batch, adapter.model, teacher, temperature=2.0)
    ours, theirs = (adapter.run(m, batch).double() for m in (adapter.model, teacher))
    hard = [
        F.cross_entropy(ours[i, t], batch["input_ids"][i, t + 1])
        for i, t in itertools.product(range(8), range(10))
    ]
    assert found["hard"].item() == pytest.approx(sum(hard).item() / 80, rel=1e-4)
    p, q = ((x / 2).softmax(-1) for x in (theirs, ours))
    soft = 4 * (p * (p / q).log()).sum(-1).mean()
    assert found["soft"].item() == pytest.approx(soft.item(), rel=1e-4)
    error = adapter.evaluate(adapter.model, split="test")
    assert error["items"] == 6
    assert error["error"] > 0


@pytest.mark.parametrize("passes", [("prune",), ("int8",), ("prune", "int4"), ("awq",)])
def test_every_layer_is_accounted_for(adapter, passes):
    settings = {"passes": list(passes), "num_calibration": 8}
    settings |= {"int4": {"group": 32}, "awq": {"group": 32, "grid": 4}}
    batch = adapter.calibration(3, None)[0]
    before = adapter.run(adapter.model, batch)
    matrices = {n: p for n, p in adapter.model.named_parameters() if p.ndim > 1}
    result = compress(adapter, CompressConfig.from_json(settings))
    for report in result.reports:
        rows = {row.name: row for row in report.rows}
        assert {n.removesuffix(".weight") for n in matrices} == set(rows)
        done = [n for n, row in rows.items() if row.done]
        assert len(done) == LAYERS
        assert [n for n in done if not n.startswith(adapter.block_lists)] == []
        assert all(row.why_not for n, row in rows.items() if n not in done)
        assert all(0 < rows[n].after < 0.7 for n in done)
    after = adapter.run(adapter.model, batch)
    assert 0 < (after - before).norm() / before.norm() < 0.9
    assert MultimodalAdapter(adapter.model, adapter.inputs).block_lists == adapter.block_lists


def test_the_projector_is_done_if_it_is_included(adapter):
    settings = {"passes": ["int8"], "num_calibration": 8, "include": ["*projector*"]}
    result = compress(adapter, CompressConfig.from_json(settings))
    done = [row.name for row in result.reports[0].rows if row.done]
    assert len(done) == LAYERS + 2
    assert "model.multi_modal_projector.linear_2" in done


def test_an_artifact_brings_the_same_model(adapter, tmp_path):
    found = adapter.save(tmp_path / "a")
    again = MultimodalAdapter.load(artifact.load(found.path, kind="model"))
    batch = adapter.calibration(4, None)[0]
    assert torch.equal(again.run(again.model, batch), adapter.run(adapter.model, batch))
    assert torch.equal(again.calibration(4, None)[0]["input_ids"], batch["input_ids"])
    (graph,) = again.graphs(again.model)
    with torch.no_grad():
        logits = graph.module(*[p.example for p in graph.inputs])
    assert torch.equal(logits, graph.outputs[0].example)
    tensors = {"odd": torch.ones(1)}
    broken = artifact.save(tmp_path / "b", kind="model", config=found.config, tensors=tensors)
    with pytest.raises(ArtifactError, match="do not fit its configuration"):
        MultimodalAdapter.load(broken)


def test_calibration_of_the_user(adapter, tmp_path):
    from safetensors.torch import save_file

    save_file(make_inputs(10, seed=3), tmp_path / "mine.safetensors")
    batches = adapter.calibration(9, tmp_path / "mine.safetensors")
    assert [len(b["input_ids"]) for b in batches] == [8, 1]
    with pytest.raises(CorpusError, match="there are 10 items and calibration needs 11"):
        adapter.calibration(11, tmp_path / "mine.safetensors")
    save_file({"input_ids": torch.zeros(2, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(CorpusError, match="input_ids, pixel_values are needed"):
        adapter.calibration(1, tmp_path / "part.safetensors")
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(CorpusError, match="cannot be read"):
        adapter.calibration(1, tmp_path / "bad")


def test_what_transformers_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no model 'LlavaForFun'"):
        build("LlavaForFun", {})


def test_sound_and_language():
    """The same file takes an audio model."""
    settings = {
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 8,
            "max_source_positions": 10,
        },
        "text_config": {**TEXT, "model_type": "qwen2", "num_key_value_heads": 4},
        "audio_token_index": IMAGE,
    }
    model = build("Qwen2AudioForConditionalGeneration", settings)
    tokens = torch.randint(0, IMAGE, (8, 9))
    tokens[:, 2:7] = IMAGE
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "input_features": torch.randn(8, 8, 20),
        "feature_attention_mask": torch.ones(8, 20, dtype=torch.long),
    }
    adapter = MultimodalAdapter(model, inputs)
    assert len(adapter.block_lists) == 2
    config = CompressConfig.from_json({"passes": ["prune", "int8"], "num_calibration": 6})
    result = compress(adapter, config)
    for report in result.reports:
        assert sum(bool(row.done) for row in report.rows) == LAYERS
