import pytest
import torch

from todm.vision.adapter import VisionAdapter
from todm.vision.config import VisionConfig, build

pytest.importorskip("timm")
pytest.importorskip("sklearn")

ARGUMENTS = {"img_size": 8, "patch_size": 4, "in_chans": 1}
ARGUMENTS |= {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}


def config(task="classification", **changes):
    names = ("ground",) * (task == "segmentation") + tuple("0123456789")
    size = (8, 8) if task == "classification" else (12, 16)
    settings = {
        "architecture": "vit_tiny_patch16_224",
        "arguments": {**ARGUMENTS, "img_size": size},
        "task": task,
        "classes": names,
        "size": size,
        "channels": 1,
        "mean": (0.25,),
        "std": (0.5,),
        "data": "digits" if task == "classification" else "canvas",
        "batch": 16,
    }
    return VisionConfig(**{**settings, **changes})


@pytest.fixture
def make():
    """A adapter with fresh weights; biases and norms are not those of a fresh model."""

    def made(task="classification", **changes):
        settings = config(task, **changes)
        model = build(settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return VisionAdapter(settings, model)

    return made
