import pytest
import torch

IMAGE = 47
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
}
SETTINGS = {
    "model_type": "llava",
    "vision_config": VISION,
    "text_config": TEXT,
    "image_token_index": IMAGE,
    "vision_feature_layer": -1,
}


def make_inputs(num, seed=0):
    """Questions with the four patches of a picture in the middle."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, IMAGE, (num, 11), generator=draws)
    tokens[:, 3:7] = IMAGE
    return {"input_ids": tokens, "pixel_values": torch.randn(num, 3, 16, 16, generator=draws)}


@pytest.fixture
def adapter():
    from todm.multimodal.adapter import MultimodalAdapter, build

    model = build("LlavaForConditionalGeneration", SETTINGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return MultimodalAdapter(model, make_inputs(24))
