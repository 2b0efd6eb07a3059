import json

import pytest
from timm.models.vision_transformer import VisionTransformer

from tests.vision.conftest import config
from todm.errors import ConfigError
from todm.vision.config import VisionConfig, build


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_json_is_enough_to_build_it_again(task):
    given = config(task)
    data = json.loads(json.dumps(given.to_json()))
    assert data["backend"] == "vision"
    again = build(VisionConfig.from_json(data))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in build(given).state_dict().items()
    }


def test_deit_is_one():
    model = build(config(architecture="deit_tiny_patch16_224"))
    assert isinstance(model, VisionTransformer)
    assert len(model.blocks) == 2


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("vit_enormous", "timm has no architecture 'vit_enormous'"),
        ("hf-hub:timm/vit_tiny_patch16_224", "timm has no architecture 'hf-hub:"),
        ("resnet10t", "give a plain vision transformer"),
    ],
)
def test_what_is_no_vision_transformer_is_refused(architecture, message):
    arguments = {} if "resnet" in architecture else None
    changes = {} if arguments is None else {"arguments": arguments}
    with pytest.raises(ConfigError, match=message):
        build(config(architecture=architecture, **changes))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="cannot be built so: dim should be divisible"):
        build(config(arguments={"embed_dim": 30, "num_heads": 4, "depth": 1}))


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="'colour'"):
        VisionConfig.from_json({**config().to_json(), "colour": 1})
