import math
import pickle

import pytest
import torch

from todm.compress.train import checkpoint
from todm.errors import TrainingError
from todm.train.optim import ScaledAdam


def _state():
    shared = torch.arange(6.0).view(2, 3)
    return {
        "tied": {"a": shared, "b": shared.t()},
        3: (1, 2.5, None, True, "text", math.inf),
        "nested": [{"mask": torch.tensor([True, False])}, (), []],
        "scalar": torch.tensor(7),
    }


def _assert_same(got, want):
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            _assert_same(got[key], want[key])
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            _assert_same(one, other)
    else:
        assert got == want


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "folder" / "a.pt"
    assert checkpoint.read(path) is None
    checkpoint.write(path, _state())
    _assert_same(checkpoint.read(path), _state())
    checkpoint.write(path, {"a": 1})
    assert checkpoint.read(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["adamw", "scaled_adam"])
def test_an_optimizer_is_taken_up_again(tmp_path, name):
    def made():
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(3, 4))
        make = {"adamw": torch.optim.AdamW, "scaled_adam": ScaledAdam}[name]
        return weight, make([("w", weight)], lr=0.1)

    def step(weight, optimizer, seed):
        weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    weight, optimizer = made()
    for seed in range(6):
        step(weight, optimizer, seed)
    checkpoint.write(tmp_path / "o", {"w": weight, "o": optimizer.state_dict()})
    other, again = made()
    state = checkpoint.read(tmp_path / "o")
    other.data.copy_(state["w"])
    again.load_state_dict(state["o"])
    for seed in range(6, 12):
        step(weight, optimizer, seed)
        step(other, again, seed)
    assert torch.equal(weight, other)


def test_a_failed_write_leaves_the_one_before(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.write(path, {"a": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.write(path, {"a": lambda: None})
    assert checkpoint.read(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 5, 40, -3])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = tmp_path / "a.pt"
    checkpoint.write(path, _state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match=r"a.pt cannot be read .*: remove it"):
        checkpoint.read(path)


def test_a_file_without_a_state_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.read(tmp_path / "a")
