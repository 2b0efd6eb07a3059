"""`todm import`, and what becomes of the model: compressed, exported as one graph."""

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

import onnxruntime

from todm import artifact
from todm.cli import main as cli
from todm.errors import ArtifactError, ConfigError
from todm.stages.adapters import adapter_of, backend_name

ARCHITECTURE = "vit_tiny_patch16_224"


def todm(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture
def checkpoint(tmp_path):
    """A folder as on the hub, of a vision transformer of one block."""
    import json

    import timm
    from safetensors.torch import save_file

    arguments = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 1}
    arguments |= {"num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=10, **arguments)
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    told = {"architecture": ARCHITECTURE, "num_classes": 10, "model_args": arguments}
    told["pretrained_cfg"] = {"mean": [0.25], "std": [0.5]}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.runtime
def test_a_vision_model_is_imported_compressed_and_exported(checkpoint, tmp_path, capsys):
    model, small, out = (tmp_path / name for name in ("model", "small", "onnx"))
    assert (
        todm("import", checkpoint, "--backend", "vision", "--data", "digits", "--out", model) == 0
    )
    assert f"model: {model}" in capsys.readouterr().out
    flags = ["--passes", "prune,int8", "--set", "num_calibration=16"]
    assert todm("compress", model, *flags, "--out", small, "--evaluate", "--limit", 20) == 0
    assert "| blocks.0.mlp.fc1 | linear 64x32 |" in capsys.readouterr().out
    assert todm("export", small, "--out", out) == 0
    assert "verified" in capsys.readouterr().out
    assert todm("export", small, "--out", out) == 0
    assert "done already" in capsys.readouterr().out
    made = artifact.load(out, kind="onnx")
    assert made.info["compressed"] == {"int8, a scale per row, 2:4 zeros": 4}
    assert {p.name for p in out.iterdir()} == {
        "manifest.json",
        "README.md",
        "model.onnx",
        "labels.json",
    }
    assert "- 4 layers: int8, a scale per row, 2:4 zeros" in (out / "README.md").read_text()
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        expected = adapter_of(artifact.load(small)).model(images).numpy()
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max() < 0.05


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend", "llm", "--data", "digits"], "--data is for --backend vision"),
        (["--backend", "vision", "--text", "a.txt"], "--text is for --backend llm"),
        (["--backend", "llm", "--context", "1"], "--context is 1: at least 2"),
    ],
)
def test_flags_of_the_other_modality_are_named(flags, words, checkpoint, tmp_path, capsys):
    assert todm("import", checkpoint, *flags, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_not_there_is_named(tmp_path, capsys):
    assert todm("import", tmp_path / "no", "--backend", "vision", "--out", tmp_path / "out") == 2
    assert "no is not there" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["sherpa-onnx", "web", "awq"])
def test_targets_of_other_modalities_are_named(target, tmp_path, capsys):
    found = artifact.save(tmp_path / "vit", kind="model", config={"backend": "vision"})
    assert todm("export", found.path, "--target", target, "--out", tmp_path / "out") == 2
    assert (
        f"--target {target} is not for a model of vision: choose from onnx"
        in capsys.readouterr().err
    )


def test_an_artifact_of_no_modality_is_refused(tmp_path):
    found = artifact.save(tmp_path / "x", kind="model", config={"backend": "smell"})
    with pytest.raises(ArtifactError, match="does not say which kind of model"):
        backend_name(found)
    images = artifact.save(tmp_path / "y", kind="model", config={"backend": "vision"})
    with pytest.raises(ConfigError, match="--corpus is for speech"):
        adapter_of(images, corpus=tmp_path)


@pytest.mark.parametrize(
    ("package", "extra"), [("transformers", "llm"), ("timm", "vision"), ("sklearn", "vision")]
)
def test_a_missing_extra_of_a_modality_is_named(package, extra, monkeypatch, capsys, tmp_path):
    from todm.cli import import_model

    def run(args):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(import_model, "run", run)
    assert todm("import", tmp_path, "--backend", "llm", "--out", tmp_path / "o") == 2
    assert f"pip install 'todm[{extra}]'" in capsys.readouterr().err
