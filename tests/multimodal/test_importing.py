"""A directory of transformers with an encoder of images becomes an artifact, and is compressed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.multimodal.conftest import make_inputs
from todm import artifact
from todm.cli import main as cli
from todm.errors import ArtifactError, ConfigError, CorpusError
from todm.multimodal.adapter import MultimodalAdapter
from todm.multimodal.importing import import_checkpoint

pytest.importorskip("transformers")


@pytest.fixture
def checkpoint(adapter, tmp_path):
    """A directory of a tiny Llava, and inputs for it."""
    adapter.model.save_pretrained(tmp_path / "llava")
    save_file(make_inputs(24), tmp_path / "inputs.safetensors")
    return tmp_path / "llava", tmp_path / "inputs.safetensors"


def test_the_artifacts_logits_are_the_models(adapter, checkpoint, tmp_path):
    source, data = checkpoint
    made = import_checkpoint(source, tmp_path / "out", data=data)
    assert (made.kind, made.config["backend"]) == ("model", "multimodal")
    again = MultimodalAdapter.load(artifact.load(made.path))
    batch = make_inputs(3, seed=1)
    assert torch.equal(again.run(again.model, batch), adapter.run(adapter.model, batch))


def test_the_commands_reach_it(checkpoint, tmp_path, capsys):
    source, data = checkpoint
    flags = ["--backend", "multimodal", "--data", str(data), "--out", str(tmp_path / "model")]
    assert cli.main(["import", str(source), *flags]) == 0
    assert f"model: {tmp_path / 'model'}" in capsys.readouterr().out
    flags = ["--passes", "prune,int8", "--set", "num_calibration=8", "--evaluate"]
    out = tmp_path / "small"
    assert cli.main(["compress", str(tmp_path / "model"), *flags, "--out", str(out)]) == 0
    assert "model.vision_tower.encoder.layers.0.mlp.fc1" in capsys.readouterr().out
    assert cli.main(["import", str(source), "--backend", "multimodal", "--out", str(out)]) == 2
    assert "--backend multimodal needs --data" in capsys.readouterr().err


def test_what_cannot_be_imported_is_refused_in_a_sentence(checkpoint, tmp_path):
    source, data = checkpoint
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match="is not a directory"):
        import_checkpoint(data, out, data=data)
    with pytest.raises(ConfigError, match="no model 'LlavaForFun'"):
        import_checkpoint(source, out, data=data, architecture="LlavaForFun")
    wrong = make_inputs(4) | {"pixel_values": torch.zeros(4, 3, 5, 5)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(CorpusError, match="does not take the inputs of"):
        import_checkpoint(source, out, data=tmp_path / "wrong.safetensors")
    tensors = load_file(source / "model.safetensors")
    name = next(n for n in tensors if n.endswith("fc1.weight"))
    save_file({n: t for n, t in tensors.items() if n != name}, source / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"fc1\.weight is missing among its weights"):
        import_checkpoint(source, out, data=data)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="is a pickle"):
        import_checkpoint(source, out, data=data)
    file = source / "config.json"
    quantised = {"quantization_config": {"quant_method": "awq"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | quantised))
    with pytest.raises(ArtifactError, match="quantised already"):
        import_checkpoint(source, out, data=data)
    assert not out.exists()
