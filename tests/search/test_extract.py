import pytest
import torch

from todm import artifact
from todm.errors import ArtifactError
from todm.search.choice import Choice
from todm.search.extract import write_subnet
from todm.supernet.space import Subnet


@pytest.fixture
def supernet(make_backend, tmp_path):
    """The artifact of an untrained supernet."""
    return artifact.save(
        tmp_path / "supernet",
        kind="supernet",
        config={"asr": {}},
        info={"seed": 1, "corpus": "/nowhere"},
        tensors=make_backend().build(None).state_dict(),
    )


def _difference(supernet, plain, subnet):
    features, lens = torch.randn(2, 64, 80), torch.tensor([64, 40])
    ours, _ = supernet.encode(features, lens, subnet=subnet)
    return float((ours - plain.encode(features, lens)[0]).abs().max())


def _extract(backend, supernet, out, subnet, difference=None):
    whole = backend.build(None)
    whole.load_state_dict(supernet.tensors())
    plain = backend.extract(whole.eval(), subnet)
    with torch.no_grad():
        found = _difference(whole, plain, subnet) if difference is None else difference
    return write_subnet(
        out,
        plain,
        backend=backend,
        found=supernet,
        choice=Choice(subnet, "int8"),
        difference=found,
        info={"asked": {"budget": "60k"}, "costs": {"params": 5.0}},
    )


def test_a_choice_is_written_as_a_plain_model(make_backend, supernet, space, tmp_path):
    backend = make_backend()
    subnet = space.subnet(3, {"ffn": (16, 48, 32), "pairs": (1, 3, 2)})
    found = _extract(backend, supernet, tmp_path / "subnet", subnet)
    assert Subnet.from_json(found.info["subnet"]) == subnet
    plain = backend.build(subnet)
    plain.load_state_dict(found.tensors())
    whole = backend.build(None)
    whole.load_state_dict(supernet.tensors())
    with torch.no_grad():
        assert _difference(whole.eval(), plain.eval(), subnet) <= 1e-5
    assert found.kind == "subnet"
    assert found.parent == supernet.hash
    assert found.metrics["dev"] == {"error": 0.25}
    assert found.info["compression"] == "int8"
    assert found.info["costs"] == {"params": 5.0}
    assert found.info["asked"] == {"budget": "60k"}
    assert found.info["corpus"] == "/nowhere"
    assert found.file("tokens.txt").is_file()


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_a_model_that_differs_is_not_written(make_backend, supernet, space, tmp_path, difference):
    with pytest.raises(ArtifactError, match="differs from it by"):
        _extract(make_backend(), supernet, tmp_path / "out", space.smallest, difference)
    assert not (tmp_path / "out").exists()
