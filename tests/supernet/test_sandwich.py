import pytest
import torch
from torch import nn

from todm.supernet.sandwich import Objective, draw_subnets, sandwich_step
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3, 4), widths={"w": (1, 2, 4)}))


class Toy(Objective):
    """A layer of which a subnet uses a prefix; a student is drawn to its teacher's output."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.unused = nn.Parameter(torch.randn(2))
        self.calls = []

    def common(self, batch, *, progress, share):
        return share(self.weight.sin()), share(batch * 2)

    def forward(self, batch, *, subnet, teacher, progress, common):
        self.calls.append((subnet, teacher, progress))
        weight, batch = common
        y = (batch @ weight[: subnet.width("w", 0)].T).tanh().sum(1)
        loss = (y**2).mean() if teacher is None else ((y - teacher) ** 2).mean()
        return {"loss": loss, "depth": torch.tensor(float(subnet.depth))}, y.detach()


@pytest.fixture
def toy():
    return Toy()


def _subnets(num_random=2, update=7):
    return draw_subnets(SPACE, seed=1, update=update, num_random=num_random)


@pytest.mark.parametrize(("num_random", "student_weight"), [(0, 1.0), (1, 0.3), (3, 1.0)])
def test_gradients_are_the_sum_of_separate_passes(toy, num_random, student_weight):
    batch, subnets = torch.randn(5, 3), _subnets(num_random)
    sandwich_step(toy, batch, subnets=subnets, progress=0.5, student_weight=student_weight)
    together = toy.weight.grad.clone()
    want, teacher = torch.zeros_like(together), None
    for i, subnet in enumerate(subnets):
        common = toy.common(batch, progress=0.5, share=lambda x: x)
        out, teacher_out = toy(batch, subnet=subnet, teacher=teacher, progress=0.5, common=common)
        weight = student_weight if i else 1.0
        want += weight * torch.autograd.grad(out["loss"], toy.weight)[0]
        teacher = teacher_out if i == 0 else teacher
    torch.testing.assert_close(together, want)
    assert toy.unused.grad is None


def test_the_largest_teaches_all_the_others(toy):
    subnets = _subnets()
    sandwich_step(toy, torch.randn(5, 3), subnets=subnets, progress=0.25)
    called, teachers, progress = zip(*toy.calls, strict=True)
    assert list(called) == subnets
    assert teachers[0] is None
    assert teachers[1] is not None
    assert all(t is teachers[1] for t in teachers[2:])
    assert not teachers[1].requires_grad
    assert set(progress) == {0.25}


def test_figures_of_every_pass_are_detached(toy):
    subnets = _subnets()
    figures = sandwich_step(toy, torch.randn(5, 3), subnets=subnets, progress=0.0)
    assert [float(f["depth"]) for f in figures] == [s.depth for s in subnets]
    assert not any(f["loss"].requires_grad for f in figures)


@pytest.mark.parametrize("num_random", [0, 1, 4])
def test_largest_first_and_smallest_last(num_random):
    subnets = _subnets(num_random)
    assert len(subnets) == num_random + 2
    assert subnets[0] == SPACE.largest
    assert subnets[-1] == SPACE.smallest


def test_draws_depend_on_seed_and_update_alone():
    draws = {
        (s, u): tuple(draw_subnets(SPACE, seed=s, update=u, num_random=4))
        for s in (1, 2)
        for u in (0, 1)
    }
    assert draws[1, 0] == tuple(draw_subnets(SPACE, seed=1, update=0, num_random=4))
    assert len(set(draws.values())) == 4
