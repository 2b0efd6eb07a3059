import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vision.conftest import ARGUMENTS
from todm import artifact
from todm.errors import ArtifactError, ConfigError
from todm.vision.adapter import VisionAdapter
from todm.vision.importing import import_checkpoint

NAME = "vit_tiny_patch16_224"


def _tensors(make):
    return {k: v.clone() for k, v in make().model.state_dict().items()}


def test_a_file_and_the_name_of_its_architecture(tmp_path, make):
    adapter = make()
    save_file(_tensors_of(adapter), tmp_path / "x.safetensors")
    arguments = {**ARGUMENTS, "img_size": 8}
    found = import_checkpoint(
        tmp_path / "x.safetensors",
        tmp_path / "out",
        architecture=NAME,
        arguments=arguments,
        data="digits",
    )
    again = VisionAdapter.load(artifact.load(found.path, kind="model"))
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.model(images), adapter.model(images))
    assert again.config.classes == tuple("0123456789")
    assert (again.config.size, again.config.channels) == ((8, 8), 1)
    assert json.loads(found.file("labels.json").read_text()) == list("0123456789")


def test_a_folder_as_on_the_hub(tmp_path, make):
    adapter = make()
    save_file(_tensors_of(adapter), tmp_path / "model.safetensors")
    described = {
        "architecture": NAME,
        "num_classes": 10,
        "model_args": {**ARGUMENTS, "img_size": 8},
        "pretrained_cfg": {
            "mean": [0.1],
            "std": [0.2],
            "crop_pct": 0.5,
            "label_names": list("abcdefghij"),
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(described))
    found = VisionAdapter.load(import_checkpoint(tmp_path, tmp_path / "out"))
    assert (found.config.mean, found.config.std, found.config.crop) == ((0.1,), (0.2,), 0.5)
    assert found.config.classes == tuple("abcdefghij")
    assert torch.equal(found.model.head.weight, adapter.model.head.weight)


def test_pickles_are_refused(tmp_path):
    torch.save({}, tmp_path / "x.pth")
    with pytest.raises(ArtifactError, match="is a pickle"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "out", architecture=NAME)
    (tmp_path / "config.json").write_text('{"architecture": "x"}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pytorch_model.bin is a pickle"):
        import_checkpoint(tmp_path, tmp_path / "out")


def test_what_does_not_fit_is_one_sentence(tmp_path, make):
    tensors = _tensors(make)
    for change, message in (
        ({"blocks.0.norm1.weight": torch.ones(33)}, r"blocks.0.norm1.weight is \[33\], and \[32\]"),
        ({"odd": torch.ones(1)}, r"odd is \[1\], and nothing is needed"),
        ({"blocks.1.mlp.fc2.bias": None}, r"fc2.bias is nothing, and \[32\] is needed"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(changed, tmp_path / "x.safetensors")
        with pytest.raises(ArtifactError, match=message):
            import_checkpoint(
                tmp_path / "x.safetensors",
                tmp_path / "out",
                architecture=NAME,
                arguments={**ARGUMENTS, "img_size": 8},
            )
    assert not (tmp_path / "out").exists()


def test_paths_without_a_checkpoint_are_refused(tmp_path, make):
    with pytest.raises(ArtifactError, match=r"neither a folder nor a \.safetensors"):
        import_checkpoint(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"no config.json of timm"):
        import_checkpoint(tmp_path, tmp_path / "out")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_checkpoint(tmp_path / "bad.safetensors", tmp_path / "out", architecture=NAME)
    save_file(_tensors(make), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="does not say its architecture"):
        import_checkpoint(tmp_path / "x.safetensors", tmp_path / "out")
    with pytest.raises(ConfigError, match="timm has no architecture"):
        import_checkpoint(tmp_path / "x.safetensors", tmp_path / "out", architecture="vit_new")


def test_weights_that_do_not_fit_an_artifact(tmp_path, make):
    adapter = make()
    found = adapter.save(tmp_path / "a")
    tensors = load_file(found.file("model.safetensors"))
    del tensors["cls_token"]
    broken = artifact.save(tmp_path / "b", kind="model", config=found.config, tensors=tensors)
    with pytest.raises(ArtifactError, match="do not fit its configuration"):
        VisionAdapter.load(broken)


def _tensors_of(adapter):
    return {k: v.clone() for k, v in adapter.model.state_dict().items()}
