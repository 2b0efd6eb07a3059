import pytest
import torch
from torch import nn

from todm.errors import TrainingError
from todm.train.average import RunningAverage, in_window


def test_is_the_mean_and_is_taken_up_again(tmp_path):
    model, seen = nn.Linear(3, 2), []
    average = RunningAverage()
    for step in range(20):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)) + 5)
        seen.append(model.weight.detach().double().clone())
        average.update(model)
        if step == 8:
            torch.save(average.state_dict(), tmp_path / "average")
            average = RunningAverage()
            average.load_state_dict(torch.load(tmp_path / "average", weights_only=True))
    raw = model.weight.detach().clone()
    with average.swapped(model) as averaged:
        torch.testing.assert_close(
            averaged.weight.double(), torch.stack(seen).mean(0), rtol=1e-6, atol=0
        )
        assert not torch.equal(averaged.weight, raw)
    assert torch.equal(model.weight, raw)
    average.apply_to(model)
    torch.testing.assert_close(model.weight.double(), torch.stack(seen).mean(0), rtol=1e-6, atol=0)


def test_raw_weights_come_back_after_an_error():
    model = nn.Linear(3, 2)
    average = RunningAverage()
    average.update(model)
    with torch.no_grad():
        model.weight.add_(1)
    raw = model.weight.detach().clone()
    with pytest.raises(KeyError), average.swapped(model):
        raise KeyError
    assert torch.equal(model.weight, raw)


def test_is_kept_in_float32():
    model = nn.Linear(3, 2).to(torch.bfloat16)
    average = RunningAverage()
    for _ in range(2):
        average.update(model)
    assert all(mean.dtype == torch.float32 for mean in average.state_dict()["mean"].values())


def test_another_model_is_refused():
    average = RunningAverage()
    average.update(nn.Linear(3, 2))
    with pytest.raises(TrainingError, match="bias"):
        average.update(nn.Linear(3, 2, bias=False))


def test_empty_average_changes_nothing():
    model = nn.Linear(3, 2)
    raw = model.weight.detach().clone()
    RunningAverage().apply_to(model)
    assert torch.equal(model.weight, raw)


def test_window():
    assert [step for step in range(10) if in_window(step, 10, 0.2)] == [8, 9]
    assert not any(in_window(step, 10, 0.0) for step in range(10))
