"""Blocks, folds, calibration and losses of every architecture against the whole model."""

import copy
from itertools import islice

import pytest
import torch
from torch import nn

from tests.llm.conftest import KINDS
from todm.compress import folds
from todm.compress.calibrate import Block, capture
from todm.compress.config import AwqConfig, CompressConfig
from todm.compress.driver import compress
from todm.compress.packed import W4Linear
from todm.errors import ArtifactError, ConfigError, CorpusError
from todm.llm.adapter import LlmAdapter

pytest.importorskip("transformers")


def _ids(adapter, rows=2):
    draws = torch.Generator().manual_seed(3)
    return torch.randint(3, adapter.config.vocab, (rows, 19), generator=draws)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_called_one_by_one_are_the_model(adapter, kind):
    """What passes rely on: all blocks take the further arguments of the first."""
    found = adapter(kind)
    batch = _ids(found)
    wanted = found.run(found.model, batch)
    (call,) = capture(found, "model.layers", [batch])
    for block in found.model.model.layers:
        call = call.after(block(*call.args, **call.kwargs))
    with torch.no_grad():
        logits = found.model.lm_head(found.model.model.norm(call.args[0]))
    softcap = getattr(found.model.config, "final_logit_softcapping", None)
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_fold_keeps_the_logits(adapter, kind):
    found = adapter(kind)
    batch = _ids(found)
    wanted = found.run(found.model, batch)
    calls = capture(found, "model.layers", [batch])
    done = []
    for i, block in enumerate(found.model.model.layers):
        work = Block(f"model.layers.{i}", block, layers=[], calls=calls, masks={})
        for place in found.folds(block):
            num = block.get_submodule(place.layers[0]).in_features
            s_K = torch.rand(num, generator=torch.Generator().manual_seed(num)) * 3 + 0.3
            done.append((place.layers[0], place.into, folds.fold(work, place, s_K)[0]))
        calls = [c.after(work.call(c)) for c in calls]
    got = found.run(found.model, batch)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    before_mlp = "pre_feedforward" if kind in ("gemma2", "gemma3_text") else "post_attention"
    grouped = found.model.config.num_key_value_heads < 4
    assert done == len(found.model.model.layers) * [
        ("self_attn.q_proj", "input_layernorm", True),
        ("self_attn.o_proj", None, False) if grouped else ("self_attn.o_proj", "self_attn.v_proj", True),
        ("mlp.gate_proj", f"{before_mlp}_layernorm", True),
        ("mlp.down_proj", "mlp.up_proj", True),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "llama_gqa", "gemma3_text"])
def test_awq_does_every_layer_of_the_blocks(adapter, kind):
    found = adapter(kind)
    dense = copy.deepcopy(found.model)
    batch = _ids(found)
    config = CompressConfig(passes=("awq",), num_calibration=16, awq=AwqConfig(group=32, grid=4))
    (report,) = compress(found, config).reports
    rows = {row.name: row for row in report.rows}
    inside = [name for name in rows if ".layers." in name]
    assert len(inside) == 7 * len(found.model.model.layers)
    for name in inside:
        assert isinstance(found.model.get_submodule(name), W4Linear)
        assert rows[name].after < 0.1
    unfolded = [n for n in inside if found.model.get_submodule(n).pre_quant_scale_K is not None]
    assert all(n.endswith("o_proj") for n in unfolded)
    assert (kind == "llama") <= (not unfolded)
    assert rows["model.embed_tokens"].why_not
    wanted, got = found.run(dense, batch), found.run(found.model, batch)
    error = (got - wanted).square().sum() / (wanted - wanted.mean(-1, keepdim=True)).square().sum()
    assert float(error) < 0.4


def test_the_head_is_kept_unless_it_is_named(adapter):
    config = CompressConfig(passes=("int4",), num_calibration=4)
    found = adapter("llama_gqa")
    rows = {row.name: row for row in compress(found, config).reports[0].rows}
    assert rows["lm_head"].why_not.startswith("the head")
    found = adapter("llama_gqa")
    compress(found, config.replace(include=("lm_head",)))
    assert isinstance(found.model.lm_head, W4Linear)


def test_calibration_from_text_and_from_the_users_file(adapter, tmp_path):
    found = adapter()
    batches = found.calibration(11, None)
    assert [tuple(b.shape) for b in batches] == [(8, 24), (3, 24)]
    mine = tmp_path / "mine.txt"
    mine.write_text("a red cat sat on the mat " * 20)
    (batch,) = found.calibration(2, mine)
    assert "cat" in found._tokenizer.decode(batch[0])


def test_too_little_text_is_an_error(adapter, tmp_path):
    found = adapter()
    mine = tmp_path / "mine.txt"
    mine.write_text("a red cat sat on the mat\n")
    with pytest.raises(CorpusError, match=r"calibration needs 5 windows of 24 tokens, and .*mine"):
        found.calibration(5, mine)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"a\0b", "zero bytes"),
        (b" \n\n ", "holds no text"),
    ],
)
def test_a_file_that_is_no_text_is_an_error(adapter, tmp_path, content, message):
    mine = tmp_path / "mine.txt"
    mine.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        adapter().calibration(1, mine)


def test_without_text_the_remedy_is_told(directories, tmp_path):
    from todm.llm.importing import import_checkpoint

    found = LlmAdapter.load(import_checkpoint(directories(), tmp_path / "bare"))
    with pytest.raises(CorpusError, match="--calibration FILE"):
        found.calibration(1, None)
    with pytest.raises(CorpusError, match="--text"):
        found.evaluate(found.model, split="test")


def test_training_batches_are_the_same_for_the_same_seed(adapter):
    found = adapter()
    a, b, other = (list(islice(found.batches(s), 3)) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], other[0])


def test_losses_are_transformers_and_zero_between_equals(adapter):
    found = adapter()
    batch = next(found.batches(0))
    losses = found.losses(batch, found.model, copy.deepcopy(found.model), temperature=2.0)
    wanted = found.model(input_ids=batch, labels=batch).loss
    torch.testing.assert_close(losses["hard"], wanted)
    assert float(losses["soft"].detach()) == pytest.approx(0, abs=1e-6)
    other = copy.deepcopy(found.model)
    other.model.norm.weight.data *= 0.5
    soft = found.losses(batch, other, found.model, temperature=2.0)["soft"]
    p, q = (
        (m(input_ids=batch).logits[:, :-1].double() / 2).softmax(-1) for m in (found.model, other)
    )
    divergence = 4 * (p * (p / q).log()).sum(-1).mean()
    assert float(soft.detach()) == pytest.approx(float(divergence.detach()), rel=1e-4)


def test_a_model_goes_through_an_artifact_packed(adapter, artifacts, tmp_path):
    from todm.compress import storage

    found, parent = adapter(), artifacts()
    config = CompressConfig(passes=("awq",), num_calibration=8, awq=AwqConfig(group=32, grid=2))
    result = compress(found, config)
    made = storage.save(
        tmp_path / "c", found.model, parent=parent, config=config, reports=result.reports,
        write=found.write_assets,
    )  # fmt: skip
    again = LlmAdapter.load(made)
    batch = _ids(found)
    assert torch.equal(again.run(again.model, batch), found.run(found.model, batch))
    assert again.evaluate(again.model, split="test")["error"] == pytest.approx(
        found.evaluate(found.model, split="test")["error"]
    )


def test_an_artifact_of_something_else_is_refused(artifacts):
    import dataclasses

    with pytest.raises(ArtifactError, match="is not a language model"):
        LlmAdapter.load(dataclasses.replace(artifacts(), config={"backend": "vision"}))


def test_the_graph_gives_the_logits(adapter):
    found = adapter()
    (graph,) = found.graphs(found.model)
    ids = graph.inputs[0].example
    torch.testing.assert_close(graph.module(ids), found.model(input_ids=ids).logits)
    with torch.no_grad():
        exported = torch.export.export(
            graph.module,
            (ids,),
            dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("t")},),
        )
        other = ids[:1, :7]
        torch.testing.assert_close(exported.module()(other), graph.module(other))


def test_a_streamed_model_is_not_trained(adapter):
    found = adapter(streamed=True)
    with pytest.raises(ConfigError, match="training needs it"):
        next(found.batches(0))


def test_modules_that_are_not_linear_are_never_packed(adapter):
    found = adapter()
    compress(found, CompressConfig(passes=("int4",), num_calibration=4))
    assert isinstance(found.model.model.embed_tokens, nn.Embedding)
