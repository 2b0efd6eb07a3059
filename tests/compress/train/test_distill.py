import copy

import pytest
import torch

from tests.compress.conftest import ToyAdapter
from todm.compress.config import TuneConfig
from todm.compress.train import distill
from todm.errors import ConfigError

BLOCKS = ("blocks.0", "blocks.1")


@pytest.fixture
def pair(toy):
    """A adapter, its model as student, and a teacher that differs."""
    teacher = copy.deepcopy(toy.model)
    with torch.no_grad():
        for p in toy.model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return toy, toy.model, teacher


def _outputs(model, x):
    """Of both blocks, without hooks."""
    h, found = model.front(x).transpose(1, 2), []
    for block in model.blocks:
        h = block(h, scale=0.5)
        found.append(h.double())
    return found


def _distance(t, s):
    return float((t - s).square().sum() / t.square().sum())


def test_distances_are_relative_and_go_to_the_student_only():
    t, s = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    found = distill.distance(t, s)
    assert float(found.detach()) == pytest.approx(
        _distance(t.detach().double(), s.detach().double())
    )
    assert float(distill.distance(9 * t, 9 * s).detach()) == pytest.approx(float(found.detach()))
    found.backward()
    assert t.grad is None
    torch.testing.assert_close(s.grad, 2 * (s - t).detach() / t.detach().square().sum())
    assert float(distill.distance(torch.zeros(3), torch.zeros(3))) == 0.0


def test_residuals_are_means_over_batches(pair):
    toy, student, teacher = pair
    batches = toy.calibration(12, None)
    found = distill.residuals(toy, student, teacher, batches=batches, names=BLOCKS)
    for i, name in enumerate(BLOCKS):
        with torch.no_grad():
            by_batch = [
                _distance(_outputs(teacher, x)[i], _outputs(student, x)[i]) for x in batches
            ]
        assert found[name] == pytest.approx(sum(by_batch) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("share", "names"),
    [
        (0, []),
        (0.01, ["b"]),
        (0.25, ["b"]),
        (0.34, ["b", "d"]),
        (0.5, ["b", "d"]),
        (1, list("abcd")),
    ],
)
def test_the_share_of_blocks_with_the_largest_residuals(share, names):
    assert distill.choose({"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}, share) == names


def test_a_third_of_three_blocks_is_one():
    found = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert distill.choose(found, 1 / 3) == ["c"]


def test_weights_follow_the_residuals_within_bounds():
    """|C| l_i / sum l by hand: 3 * (0.1, 0.2, 0.3) / 0.6; then one that takes nearly all of ten."""
    found = distill.weights({"a": 0.1, "b": 0.2, "c": 0.3, "d": 9.0}, ["a", "b", "c"])
    assert found == pytest.approx({"a": 0.5, "b": 1.0, "c": 1.5})
    names = [str(i) for i in range(10)]
    left = dict.fromkeys(names, 0.01) | {"3": 1.0}
    assert distill.weights(left, names) == pytest.approx(dict.fromkeys(names, 0.25) | {"3": 4.0})
    assert distill.weights({"a": 0.0, "b": 0.0}, ["a", "b"]) == {"a": 1.0, "b": 1.0}
    assert distill.weights({}, []) == {}


def test_the_loss_is_the_weighted_sum_of_its_terms(pair):
    toy, student, teacher = pair
    config = TuneConfig(hard=0.5, soft=2.0, feature=3.0, temperature=2.0)
    weights = {"blocks.0": 0.25, "blocks.1": 1.5}
    batch = next(toy.batches(3))
    distiller = distill.Distiller(toy, student, teacher=teacher, config=config, blocks=weights)
    loss, terms = distiller.loss(batch)
    with torch.no_grad():
        pairs = zip(_outputs(teacher, batch[0]), _outputs(student, batch[0]), strict=True)
        first, second = (_distance(t, s) for t, s in pairs)
        want = {
            k: float(v) for k, v in toy.losses(batch, student, teacher, temperature=2.0).items()
        }
    want["feature"] = 0.25 * first + 1.5 * second
    assert terms == pytest.approx(want, rel=1e-4)
    total = 0.5 * want["hard"] + 2.0 * want["soft"] + 3.0 * want["feature"]
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)


def test_the_gradient_of_mimicry_is_that_of_the_distance(pair):
    toy, student, teacher = pair
    config = TuneConfig(hard=0.0, soft=0.0, feature=2.0)
    batch = next(toy.batches(3))
    distiller = distill.Distiller(
        toy, student, teacher=teacher, config=config, blocks={"blocks.0": 1.0}
    )
    distiller.loss(batch)[0].backward()
    got = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    h = student.blocks[0](student.front(batch[0]).transpose(1, 2), scale=0.5)
    with torch.no_grad():
        wanted = _outputs(teacher, batch[0])[0].float()
    (2 * (wanted - h).square().sum() / wanted.square().sum()).backward()
    assert set(got) == {n for n, p in student.named_parameters() if p.grad is not None}
    assert "blocks.1.up.weight" not in got
    for name, grad in got.items():
        torch.testing.assert_close(grad, student.get_parameter(name).grad)
    assert all(p.grad is None for p in teacher.parameters())


class _Unlabelled(ToyAdapter):
    def losses(self, batch, student, teacher, *, temperature):
        found = super().losses(batch, student, teacher, temperature=temperature)
        return {k: v for k, v in found.items() if k != "hard"}


def test_without_labels_the_other_terms_are_left():
    toy = _Unlabelled()
    batch = next(toy.batches(3))
    parts = {"teacher": copy.deepcopy(toy.model), "blocks": {}}
    config = TuneConfig(hard=1.0, soft=1.0)
    _, terms = distill.Distiller(toy, toy.model, config=config, **parts).loss(batch)
    assert set(terms) == {"soft"}
    config = TuneConfig(hard=1.0, soft=0.0, feature=0.0)
    with pytest.raises(
        ConfigError, match=r"without labels, tune.soft or tune.feature must be above 0"
    ):
        distill.Distiller(toy, toy.model, config=config, **parts).loss(batch)


def test_no_teacher_runs_where_none_is_needed(pair):
    toy, student, teacher = pair
    config = TuneConfig(hard=1.0, soft=0.0, feature=0.0)
    teacher.forward = None
    distiller = distill.Distiller(
        toy, student, teacher=teacher, config=config, blocks={"blocks.0": 1.0}
    )
    assert set(distiller.loss(next(toy.batches(3)))[1]) == {"hard"}


def test_hooks_are_gone_afterwards(pair):
    toy, student, _ = pair
    with distill.Taps(student, BLOCKS) as taps:
        toy.run(student, next(toy.batches(3)))
    assert [len(v) for v in taps.outputs.values()] == [1, 1]
    toy.run(student, next(toy.batches(3)))
    assert [len(v) for v in taps.outputs.values()] == [1, 1]
