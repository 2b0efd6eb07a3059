import pytest
import torch
from torch import nn

from todm.train.average import apply_average, averaged, in_window, running_average


def test_is_the_mean_and_is_restored_from_a_checkpoint(tmp_path):
    model, seen = nn.Linear(3, 2), []
    average = running_average(model)
    for step in range(20):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)) + 5)
        seen.append(model.weight.detach().double().clone())
        average.update_parameters(model)
        if step == 8:
            torch.save(average.state_dict(), tmp_path / "average")
            average = running_average(model)
            average.load_state_dict(torch.load(tmp_path / "average", weights_only=True))
    raw = model.weight.detach().clone()
    with averaged(average, model):
        torch.testing.assert_close(
            model.weight.double(), torch.stack(seen).mean(0), rtol=1e-6, atol=0
        )
        assert not torch.equal(model.weight, raw)
    assert torch.equal(model.weight, raw)
    apply_average(average, model)
    torch.testing.assert_close(model.weight.double(), torch.stack(seen).mean(0), rtol=1e-6, atol=0)


def test_raw_weights_come_back_after_an_error():
    model = nn.Linear(3, 2)
    average = running_average(model)
    average.update_parameters(model)
    with torch.no_grad():
        model.weight.add_(1)
    raw = model.weight.detach().clone()
    with pytest.raises(KeyError), averaged(average, model):
        raise KeyError
    assert torch.equal(model.weight, raw)


def test_weights_of_another_model_are_refused():
    average = running_average(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="bias"):
        average.load_state_dict(running_average(nn.Linear(3, 2, bias=False)).state_dict())


def test_empty_average_changes_nothing():
    model = nn.Linear(3, 2)
    average, raw = running_average(model), model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    apply_average(average, model)
    assert torch.equal(model.weight, raw + 1)


def test_window():
    assert [step for step in range(10) if in_window(step, 10, 0.2)] == [8, 9]
    assert not any(in_window(step, 10, 0.0) for step in range(10))
