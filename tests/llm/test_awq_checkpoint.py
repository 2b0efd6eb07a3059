"""AWQ checkpoints: what transformers' own loader makes of them, and what ours does."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from todm.compress.config import AwqConfig, CompressConfig, Int4Config
from todm.compress.driver import compress
from todm.compress.packed import W4Linear
from todm.errors import ArtifactError, ConfigError
from todm.llm import awq_checkpoint
from todm.llm.adapter import LlmAdapter
from todm.llm.importing import import_checkpoint

pytest.importorskip("transformers")

IDS = torch.arange(38).view(2, 19)
ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # where a word's outputs lie, as nibbles


@pytest.fixture
def compressed(adapter):
    found = adapter("llama")
    config = CompressConfig(
        passes=("awq",),
        num_calibration=8,
        awq=AwqConfig(group=32, grid=2),
        exclude=("model.layers.1.mlp.up_proj",),
    )
    compress(found, config)
    return found


def _write(found, out, **options):
    awq_checkpoint.write(out, found.model, found.config, assets=found.assets, **options)
    return out


class AwqLinear(nn.Module):
    """What stands for gptqmodel's kernel class: its buffers, and the arithmetic of the layout."""

    def __init__(
        self,
        *,
        bits,
        sym,
        desc_act,
        group_size,
        in_features,
        out_features,
        bias,
        dev,
        register_buffers,
    ):
        super().__init__()
        assert (bits, desc_act, register_buffers) == (4, False, True)
        self.group = group_size
        rows, columns = in_features // group_size, out_features // 8
        self.register_buffer("qweight", torch.zeros(in_features, columns, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(rows, columns, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(rows, out_features, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def forward(self, x):
        def unpack(words):
            return (words[..., None] >> (4 * ORDER) & 15).flatten(1).repeat_interleave(1, 0)

        codes, zeros = unpack(self.qweight), unpack(self.qzeros).repeat_interleave(self.group, 0)
        weight_KN = (codes - zeros) * self.scales.float().repeat_interleave(self.group, 0)
        y = x @ weight_KN.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


@pytest.fixture
def gptqmodel(monkeypatch):
    """transformers loads AWQ through gptqmodel and accelerate, which need a GPU: stand-ins."""
    from transformers.quantizers.quantizer_awq import AwqQuantizer

    asked = {}

    def select(**options):
        asked.update(options)
        return AwqLinear

    parts = {
        "gptqmodel": {},
        "gptqmodel.quantization": {"METHOD": type("METHOD", (), {"AWQ": "awq"})},
        "gptqmodel.quantization.awq": {},
        "gptqmodel.quantization.awq.modules": {},
        "gptqmodel.quantization.awq.modules.act": {"ScaledActivation": None},
        "gptqmodel.utils": {},
        "gptqmodel.utils.importer": {"hf_select_quant_linear_v2": select},
        "gptqmodel.utils.model": {"hf_gptqmodel_post_init": lambda model, use_act_order: model},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(AwqQuantizer, "validate_environment", lambda self, **_: None)
    return asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transformers_own_loader_reads_it(compressed, tmp_path, gptqmodel, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = _write(compressed, tmp_path / "awq", dtype=dtype)
    model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert {n for n, m in model.named_modules() if isinstance(m, AwqLinear)} == {
        n for n, m in compressed.model.named_modules() if isinstance(m, W4Linear)
    }
    assert isinstance(model.model.layers[1].mlp.up_proj, nn.Linear)
    assert (gptqmodel["bits"], gptqmodel["group_size"], gptqmodel["zero_point"]) == (4, 32, True)
    with torch.no_grad():
        got = model.eval()(IDS).logits
    wanted = compressed.run(compressed.model, IDS)
    close = 1e-4 if dtype == torch.float32 else 2e-2
    assert (got - wanted).abs().max() <= close * wanted.abs().max()
    assert AutoTokenizer.from_pretrained(out)("the cat")["input_ids"]


def test_transformers_knows_the_configuration(compressed, tmp_path):
    from transformers import AutoConfig
    from transformers.quantizers.auto import AutoQuantizationConfig

    out = _write(compressed, tmp_path / "awq")
    config = AutoConfig.from_pretrained(out)
    assert config.dtype == torch.float16
    table = AutoQuantizationConfig.from_dict(config.quantization_config)
    assert type(table).__name__ == "AwqConfig"
    assert (table.bits, table.group_size, table.zero_point, table.format) == (4, 32, True, "gemm")
    assert "model.layers.1.mlp.up_proj" in table.modules_to_not_convert
    assert "lm_head" in table.modules_to_not_convert


def test_import_reads_it_back_as_it_was(compressed, tmp_path, texts):
    out = _write(compressed, tmp_path / "awq", dtype=torch.float32)
    made = import_checkpoint(out, tmp_path / "artifact", text=texts)
    assert made.kind == "compressed"
    again = LlmAdapter.load(made)
    assert torch.equal(again.run(again.model, IDS), compressed.run(compressed.model, IDS))
    wanted = compressed.model.state_dict()
    got = again.model.state_dict()
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert again.evaluate(again.model, split="dev")["error"] > 1
    second = _write(again, tmp_path / "second", dtype=torch.float32)
    assert (second / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    first, other = (json.loads((d / "config.json").read_text()) for d in (out, second))
    assert first == other


def test_a_compressed_model_is_not_compressed_again(compressed, tmp_path, texts):
    made = import_checkpoint(
        _write(compressed, tmp_path / "awq"), tmp_path / "artifact", text=texts
    )
    config = CompressConfig(passes=("int4",), num_calibration=2)
    with pytest.raises(ConfigError, match="is compressed already"):
        compress(LlmAdapter.load(made), config)


def test_refusals_come_before_anything_is_written(adapter, tmp_path):
    found = adapter("llama")
    compress(found, CompressConfig(passes=("int4",), num_calibration=2, int4=Int4Config(bits=3)))
    with pytest.raises(ConfigError, match="has 3 bits"):
        _write(found, tmp_path / "awq")
    found = adapter("llama_gqa")  # its attention's output layer folds nowhere
    awq = AwqConfig(group=32, grid=4)
    compress(found, CompressConfig(passes=("awq",), num_calibration=4, awq=awq))
    with pytest.raises(ConfigError, match="o_proj keeps a pre_quant_scale"):
        _write(found, tmp_path / "awq")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(compressed, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists: choose another place"):
        _write(compressed, tmp_path)
    (tmp_path / "empty").mkdir()
    _write(compressed, tmp_path / "empty")


def test_layers_of_another_shape_are_refused(compressed, tmp_path):
    out = _write(compressed, tmp_path / "awq")
    table = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(table | {"intermediate_size": 128}))
    with pytest.raises(ArtifactError, match=r"quantised layer .* is .* says otherwise"):
        import_checkpoint(out, tmp_path / "artifact")
