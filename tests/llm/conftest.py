"""Tiny random models of the Llama family, as directories of transformers."""

import random

import pytest
import torch

WIDTH, FFN, HEADS, LAYERS, CONTEXT = 64, 96, 4, 2, 24
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
KINDS = {
    "llama": {},
    "llama_gqa": {"num_key_value_heads": 2, "tie_word_embeddings": False, "mlp_bias": True},
    "mistral": {"num_key_value_heads": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
}  # fmt: skip
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "then", "it", "red")


def make_text(num, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 30))) for _ in range(num)]


@pytest.fixture(scope="session")
def tokenizer():
    from benchmarks.studies.small_llama import SmallLlama, train_tokenizer

    return train_tokenizer(make_text(200, 0), SmallLlama(vocab=60))


def make_model(kind, vocab):
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    torch.manual_seed(0)
    sizes = {**SIZES, **KINDS[kind], "vocab_size": vocab, "pad_token_id": 0}
    config = AutoConfig.for_model(kind.removesuffix("_gqa"), **sizes)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Norms far from 1, with loud channels; matrices large enough to matter.
            p.copy_(
                torch.rand_like(p) * 1.5 + 0.2 if "norm" in name else torch.randn_like(p) * 0.15
            )
            if "norm" in name and p.numel() == WIDTH:
                p[::13] = 8
    return model


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    for seed, split in enumerate(("train", "dev", "test")):
        (place / f"{split}.txt").write_text("\n\n".join(make_text(60, seed)) + "\n")
    return place


@pytest.fixture(scope="session")
def directories(tmp_path_factory, tokenizer):
    """Directory of each kind, made when first asked for."""
    made = {}

    def get(kind="llama"):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            make_model(kind, len(tokenizer)).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return get


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory, directories, texts):
    """Artifact of each kind."""
    from todm.llm.importing import import_checkpoint

    made = {}

    def get(kind="llama"):
        if kind not in made:
            out = tmp_path_factory.mktemp("artifact") / kind
            made[kind] = import_checkpoint(directories(kind), out, text=texts)
        return made[kind]

    return get


@pytest.fixture
def adapter(artifacts):
    from todm.llm.adapter import LlmAdapter

    def get(kind="llama", **options):
        return LlmAdapter.load(artifacts(kind), **options)

    return get
