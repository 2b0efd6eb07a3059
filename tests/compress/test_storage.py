import copy
import json

import pytest
import torch
from torch import nn

from todm import artifact
from todm.compress import packed, storage
from todm.compress.config import CompressConfig
from todm.compress.driver import compress
from todm.errors import ArtifactError

WAYS = {
    "prune": {},
    "prune,int8": {"int8.activations": "static"},
    "int8": {},
    "prune,int4": {"int4.group": 32},
    "awq": {"awq.group": 32, "awq.bits": 3},
}


def config(passes, settings):
    return CompressConfig(passes=tuple(passes.split(",")), num_calibration=8).override(
        [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    )


def dense(model, path, **info):
    return artifact.save(
        path, kind="model", config={"backend": "toy"}, info=info, tensors=model.state_dict()
    )


@pytest.fixture
def saved(toy, tmp_path):
    """Compresses the toy and writes it; returns the artifact, the model and a fresh dense one."""

    def make(passes, settings=None):
        before, fresh = (
            dense(toy.model, tmp_path / "dense", corpus="there"),
            copy.deepcopy(toy.model),
        )
        asked = config(passes, settings or {})
        result = compress(toy, asked)
        found = storage.save(
            tmp_path / "out",
            toy.model,
            parent=before,
            config=asked,
            reports=result.reports,
            metrics={"after": 1},
            info={"more": 2},
            write=toy.write_assets,
        )
        return found, toy.model, fresh, result

    return make


@pytest.mark.parametrize("passes", WAYS)
def test_what_comes_back_is_what_was_written(saved, passes):
    found, model, fresh, result = saved(passes, WAYS[passes])
    storage.load_weights(fresh, found)
    x = torch.randn(3, 3, 11)
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))
    kinds = {name: layer.format() for name, layer in packed.layers_of(model).items()}
    assert kinds == {name: layer.format() for name, layer in packed.layers_of(fresh).items()}
    assert kinds
    told = storage.read(found)
    assert told.layers == kinds
    assert told.words == passes
    assert told.reports == result.reports
    assert found.metrics == {"after": 1}
    assert found.config == {"backend": "toy"}
    assert (found.info["corpus"], found.info["more"]) == ("there", 2)
    assert (found.path / "labels.txt").is_file()


def test_2_4_int8_takes_20_of_32_of_the_bytes_of_int8(saved, tmp_path):
    found, model, *_ = saved("prune,int8", {})
    stored = found.tensors()
    for name, layer in packed.layers_of(model).items():
        codes = stored[f"{name}.values_NH"].nbytes + stored[f"{name}.codes_NC"].nbytes
        assert codes == layer.out_features * layer.in_features * 20 / 32
    header = 8 + int.from_bytes((found.path / artifact.WEIGHTS).read_bytes()[:8], "little")
    size = (found.path / artifact.WEIGHTS).stat().st_size
    assert size - header == sum(t.nbytes for t in stored.values())


def test_shared_tensors_are_stored_once(toy, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(6, 8), nn.Linear(8, 6, bias=False)
            self.head.weight = self.table.weight

    model, again = Tied(), Tied()
    parent = dense(nn.Linear(2, 2), tmp_path / "dense")
    found = storage.save(
        tmp_path / "out", model, parent=parent, config=config("int8", {}), reports=[]
    )
    assert set(found.tensors()) == {"table.weight"}
    storage.load_weights(again, found)
    assert torch.equal(again.head.weight, model.head.weight)
    assert again.head.weight is again.table.weight


def test_dense_weights_are_loaded_too(toy, tmp_path):
    fresh = copy.deepcopy(toy.model)
    nn.init.zeros_(fresh.head.weight)
    storage.load_weights(fresh, dense(toy.model, tmp_path / "dense"))
    assert torch.equal(fresh.head.weight, toy.model.head.weight)
    nn.init.zeros_(fresh.head.weight)
    other = dense(nn.Linear(2, 2), tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"other do not fit its configuration"):
        storage.load_weights(fresh, other)


def test_a_compressed_model_is_not_compressed_again(saved):
    found, *_ = saved("prune,int8", {})
    with pytest.raises(ArtifactError, match=r"compressed already \(prune,int8\)"):
        storage.refuse_compressed(found)


def _rewritten(found, change):
    info = copy.deepcopy(found.info)
    tensors = found.tensors()
    change(info["compressed"], tensors)
    return artifact.save(
        found.path, kind=found.kind, config=found.config, info=info, tensors=tensors
    )


def _drop(table, key):
    del table[key]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, t: _drop(c, "layers"), "does not say how its layers are packed"),
        (lambda c, t: c.update(layers=[]), "does not say how its layers are packed"),
        (lambda c, t: c.update(reports=[{}]), "does not say how its layers are packed"),
        (lambda c, t: c["layers"].update(gone=c["layers"].pop("blocks.0.up")), "needs the tensors"),
        (lambda c, t: c["layers"]["blocks.0.up"].update(kind="w5"), "kind 'w5'"),
        (lambda c, t: t.pop("blocks.0.up.scale_N"), "needs the tensors"),
        (lambda c, t: t.update({"blocks.0.up.codes_NK": t["blocks.0.up.codes_NK"][:3]}), "int8"),
        (lambda c, t: t.pop("head.weight"), "do not fit its configuration: .*head.weight"),
        (lambda c, t: c["tied"].update(x="y"), "no tensor 'y'"),
    ],
    ids=[
        "no-layers",
        "other-type",
        "report",
        "renamed",
        "kind",
        "tensor",
        "shape",
        "dense",
        "tied",
    ],
)
def test_damaged_artifacts_are_refused_in_a_sentence(saved, change, words):
    found, _, fresh, _ = saved("int8", {})
    with pytest.raises(ArtifactError, match=words):
        storage.load_weights(fresh, _rewritten(found, change))


def test_an_artifact_of_before_the_pass_was_renamed_says_so(saved):
    found, *_ = saved("prune,int8", {})

    def rename(table, _tensors):
        table["settings"]["sparse24"] = table["settings"].pop("prune")
        table["settings"]["passes"] = ["sparse24", "int8"]

    with pytest.raises(ArtifactError, match="older todm, in which the pass `prune` was called"):
        storage.read(_rewritten(found, rename))


def test_a_foreign_model_is_refused(saved):
    found, *_ = saved("int8", {})
    with pytest.raises(ArtifactError, match="its configuration none"):
        storage.load_weights(nn.Linear(3, 3), found)
    narrow = nn.Module()
    narrow.blocks = nn.ModuleList([nn.Module()])
    narrow.blocks[0].up, narrow.blocks[0].down = nn.Linear(3, 3), nn.Linear(3, 3)
    with pytest.raises(ArtifactError, match="its configuration says otherwise"):
        storage.load_weights(narrow, found)


def test_another_kind_is_no_compressed_model(toy, tmp_path):
    with pytest.raises(ArtifactError, match="is a model, and no compressed model"):
        storage.read(dense(toy.model, tmp_path / "dense"))
