import torch

from todm.supernet.shared import Shared


def _loss(x, scale):
    return (scale * x).sin().sum()


def test_gradients_are_those_of_computing_it_every_time():
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    calls = []

    def work():
        calls.append(1)
        return weight.exp(), weight.cos()[:2]

    shared = Shared()
    first, second = (shared(part) for part in work())
    for scale in (1.0, -2.0, 0.5):
        (_loss(first, scale) + _loss(second, 3 * scale)).backward()
    assert weight.grad is None
    shared.backward()
    got, weight.grad = weight.grad, None
    for scale in (1.0, -2.0, 0.5):
        first, second = work()
        (_loss(first, scale) + _loss(second, 3 * scale)).backward()
    torch.testing.assert_close(got, weight.grad)
    assert len(calls) == 4


def test_parts_that_no_pass_used_are_left_out():
    weight = torch.randn(3, requires_grad=True)
    shared = Shared()
    used, _ = shared(2 * weight), shared(weight.log())
    used.sum().backward()
    shared.backward()
    assert weight.grad.tolist() == [2, 2, 2]


def test_without_gradients_nothing_changes():
    shared, x = Shared(), torch.randn(3)
    assert shared(x) is x
    with torch.no_grad():
        y = torch.randn(3, requires_grad=True) * 2
    assert shared(y) is y
    shared.backward()
