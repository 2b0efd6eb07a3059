"""What makes an artifact, and what is refused in a sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from todm.errors import ArtifactError, CorpusError
from todm.llm.adapter import LlmAdapter
from todm.llm.importing import import_checkpoint

pytest.importorskip("transformers")

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}


@pytest.fixture
def broken(directories, tmp_path):
    """A copy of the tiny Llama's directory, to be damaged."""
    return shutil.copytree(directories(), tmp_path / "copy")


def _import(directory, tmp_path, **options):
    return import_checkpoint(directory, tmp_path / "out", **options)


def _edit(directory, **changes):
    file = directory / "config.json"
    table = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))


def test_the_artifacts_logits_are_the_directorys(directories, artifacts):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(directories())
    ours = LlmAdapter.load(artifacts())
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours.run(ours.model, ids), theirs(ids).logits)
    assert ours.model.lm_head.weight is ours.model.model.embed_tokens.weight


def test_an_artifact_holds_what_is_needed_and_no_more(broken, tmp_path, texts):
    (broken / "modeling_evil.py").write_text("raise SystemExit\n")
    (broken / "training_args.bin").write_bytes(b"pickle")
    made = _import(broken, tmp_path, text=texts)
    assert {p.name for p in made.path.iterdir()} == {
        "manifest.json", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "train.txt", "dev.txt", "test.txt",
    }  # fmt: skip
    assert made.kind == "model"
    assert made.config["backend"] == "llm"
    assert made.config["context"] == 24


def test_shards_are_read(directories, tmp_path, artifacts):
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(directories()).save_pretrained(
        sharded, max_shard_size="100kB"
    )
    for file in directories().glob("tokenizer*"):
        shutil.copy(file, sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    found, whole = LlmAdapter.load(_import(sharded, tmp_path)), LlmAdapter.load(artifacts())
    ids = torch.arange(14).view(2, 7)
    assert torch.equal(found.run(found.model, ids), whole.run(whole.model, ids))
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ArtifactError, match=f"incomplete: {shard.name} is missing"):
        import_checkpoint(sharded, tmp_path / "other")


def test_an_index_that_leaves_the_directory_is_refused(broken, tmp_path):
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret"}}')
    with pytest.raises(ArtifactError, match="outside the directory"):
        _import(broken, tmp_path)
    (broken / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"index\.json is damaged"):
        _import(broken, tmp_path)


def test_pickles_are_refused_with_the_remedy(broken, tmp_path):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin is a pickle.*safe_serialization"):
        _import(broken, tmp_path)


def test_code_of_a_checkpoint_is_never_run(broken, tmp_path):
    mark = tmp_path / "ran"
    (broken / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass M: pass\nclass C: pass\n")
    auto = {"AutoModelForCausalLM": "code.M", "AutoConfig": "code.C"}
    _edit(broken, auto_map=auto)
    _import(broken, tmp_path)  # a known model is built by transformers' own code
    _edit(broken, model_type="evil")
    with pytest.raises(ArtifactError, match="code that comes with a checkpoint is never run"):
        _import(broken, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"has no config\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json is damaged"),
        (lambda d: (d / "config.json").write_text("[]"), "names no model_type"),
        (lambda d: _edit(d, model_type=None), "names no model_type"),
        (lambda d: _edit(d, model_type="gpt2"), "does not have the layers of the Llama family"),
        (lambda d: _edit(d, model_type="wav2vec2"), "is not a causal language model"),
        (lambda d: _edit(d, intermediate_size=32), r"proj\.weight is \(.*, and config\.json says"),
        (lambda d: _edit(d, num_hidden_layers=3), r"lacks 9 of the model's .* model\.layers\.2"),
        (lambda d: _edit(d, num_hidden_layers=1), r"holds model\.layers\.1.*no such tensor"),
        (lambda d: _edit(d, hidden_size=-1), "cannot be built"),
        (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer that can be read"),
        (lambda d: _edit(d, quantization_config={"quant_method": "gptq", "bits": 4}), "by gptq"),
        (lambda d: _edit(d, quantization_config="x"), "is not a table"),
        (lambda d: _edit(d, quantization_config=AWQ), "no quantised layer"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_directories_are_refused(broken, tmp_path, damage, message):
    damage(broken)
    with pytest.raises(ArtifactError, match=message):
        _import(broken, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused(broken, tmp_path):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged"):
        _import(broken, tmp_path)


def test_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="adapter"):
        _import(tmp_path, tmp_path)


def test_no_directory_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is not a directory"):
        _import(tmp_path / "nothing", tmp_path)


def test_old_checkpoints_with_rotary_frequencies_are_read(broken, tmp_path):
    file = broken / "model.safetensors"
    tensors = load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors, file)
    _import(broken, tmp_path)


def test_half_precision_is_computed_in_float32(broken, tmp_path):
    file = broken / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file)
    found = LlmAdapter.load(_import(broken, tmp_path))
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("text", ["nothing", "empty"])
def test_text_that_is_not_there_is_refused(directories, tmp_path, text):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"train\.txt, dev\.txt or test\.txt"):
        _import(directories(), tmp_path, text=tmp_path / text)


def test_the_window_is_what_the_model_can_do(broken, tmp_path):
    _edit(broken, max_position_embeddings=100_000)
    assert import_checkpoint(broken, tmp_path / "a").config["context"] == 512
    assert import_checkpoint(broken, tmp_path / "b", context=7).config["context"] == 7
