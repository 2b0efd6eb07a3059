import math
import statistics

import pytest
import torch
from torch import nn

from todm.errors import ConfigError, TrainingError
from todm.train.guards import MedianClip
from todm.train.optim import OptimConfig, ScaledAdam, build_optimizer, param_groups, set_lr

SHAPES = {"matrix": (3, 4), "vector": (5,), "zeros": (2, 2), "big": (4,), "scalar": (1,), "nil": ()}


def make_model(seed=0, dtype=torch.float64, order=1):
    generator = torch.Generator().manual_seed(seed)
    values = {
        n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()
    }
    values["zeros"].zero_()
    values["big"] *= 2.8 / values["big"].square().mean().sqrt()
    model = nn.Module()
    for name in list(values)[::order]:
        model.register_parameter(name, nn.Parameter(values[name].to(dtype)))
    return model


def set_grads(model, step, scale=1.0):
    for index, name in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(1000 * step + index)
        p = getattr(model, name)
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = (scale * (noise + 0.3)).to(p.dtype)


class ScalarLoop:
    """The equations of ScaledAdam, number by number."""

    def __init__(self, model, lr, clipping_scale=0.0, min_rms=1e-5, max_rms=3.0):
        self.lr, self.clipping_scale, self.min, self.max = lr, clipping_scale, min_rms, max_rms
        self.p = {n: p.detach().reshape(-1).tolist() for n, p in model.named_parameters()}
        self.v = {n: [0.0] * len(x) for n, x in self.p.items()}
        self.m = {n: [0.0] * len(x) for n, x in self.p.items()}
        self.u = dict.fromkeys(self.p, 0.0)
        self.s = {n: [] for n in self.p}
        self.rms = {n: self._rms(x) for n, x in self.p.items()}
        self.k, self.norms, self.threshold = 0, [], None

    @staticmethod
    def _rms(x):
        return math.sqrt(sum(v * v for v in x) / len(x))

    def _clip(self, grads):
        total = 0.0
        for name, g in grads.items():
            unit = self.rms[name] if len(g) > 1 else 0.1
            total += sum((v * unit) ** 2 for v in g)
        norm = math.sqrt(total)
        self.norms.append(norm)
        if self.k in (10, 20, 40):
            self.threshold = 2 * self.clipping_scale * statistics.median(self.norms[-100:])
        elif self.k and self.k % 100 == 0:
            self.threshold = self.clipping_scale * statistics.median(self.norms[-100:])
        return 1.0 if self.threshold is None else min(1.0, self.threshold / norm)

    def step(self, grads):
        clip = self._clip(grads) if self.clipping_scale else 1.0
        self.k += 1
        for name, g in grads.items():
            g = [v * clip for v in g]
            p = self.p[name]
            self.s[name].append(sum(a * b for a, b in zip(p, g, strict=True)))
            change = 0.0
            if self.k % 4 == 0 and len(p) > 1:
                r = self.rms[name] = self._rms(p)
                last, b = self.s[name][-4:], 0.98**4
                self.u[name] = b * self.u[name] + (1 - b) * sum(x * x for x in last) / 4
                bias = math.sqrt(1 - b ** (self.k // 4))
                change = -0.1 * self.lr * bias * sum(last) / (math.sqrt(self.u[name]) + 1e-8)
                change = 0.0 if r < self.min else max(-0.1, min(0.1, change))
                if r > 0:
                    change = min(change, (self.max - r) / r)
            for i, x in enumerate(g):
                self.v[name][i] = v = 0.98 * self.v[name][i] + 0.02 * x * x
                delta = -self.lr * x / (math.sqrt(v / (1 - 0.98**self.k)) + 1e-8)
                delta *= max(self.rms[name], self.min) if len(p) > 1 else 0.1
                self.m[name][i] = 0.9 * self.m[name][i] + 0.1 * (delta + change * p[i])
            self.p[name] = [a + b for a, b in zip(p, self.m[name], strict=True)]
            if len(p) == 1:
                self.p[name] = [max(-10.0, min(10.0, self.p[name][0]))]


def largest_difference(model, other):
    theirs = dict(other.named_parameters())
    return max((p - theirs[n]).abs().max().item() for n, p in model.named_parameters())


@pytest.mark.parametrize("clipping_scale", [0.0, 2.0], ids=["no clipping", "clipping"])
def test_equals_the_equations(clipping_scale):
    model = make_model()
    optimizer = ScaledAdam(model.named_parameters(), 0.05, clipping_scale=clipping_scale)
    reference = ScalarLoop(model, 0.05, clipping_scale)
    for step in range(130):
        set_grads(model, step, scale=1000.0 if step % 30 == 25 else 1.0)
        reference.step({n: p.grad.reshape(-1).tolist() for n, p in model.named_parameters()})
        optimizer.step()
        for name, p in model.named_parameters():
            want = torch.tensor(reference.p[name], dtype=torch.float64).reshape(p.shape)
            torch.testing.assert_close(p.detach(), want, rtol=1e-9, atol=1e-12)
    if clipping_scale:
        assert optimizer.num_skipped == 0
        set_grads(model, 0, scale=1e6)
        optimizer.step()
        assert optimizer.last_clip == pytest.approx(reference.threshold / optimizer.last_norm)


def test_step_does_not_depend_on_the_scale_of_the_loss_or_of_the_weights():
    small, large = make_model(), make_model()
    with torch.no_grad():
        small.matrix.mul_(0.01)
    optimizers = [ScaledAdam([("matrix", m.matrix)], 0.03) for m in (small, large)]
    for step in range(30):
        for model, optimizer, scale in zip((small, large), optimizers, (1e4, 1.0), strict=True):
            set_grads(model, step, scale)
            optimizer.step()
    torch.testing.assert_close(small.matrix * 100, large.matrix, rtol=1e-6, atol=0)


def s4d_model():
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    model.A_im = nn.Parameter(math.pi * torch.arange(32).float().repeat(2, 1))
    return model


@pytest.mark.parametrize("plain", [True, False])
def test_frequencies_of_the_state_space_survive_in_the_plain_group_only(plain):
    model = s4d_model()
    model.A_im._plain_adam = plain
    optimizer = build_optimizer(OptimConfig(lr=0.045, ssm_lr=1e-3), model)
    start = model.A_im.detach().clone()
    for step in range(20):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    rms = model.A_im.detach().square().mean().sqrt().item()
    if plain:
        assert (model.A_im - start).abs().max() <= 20 * 1.1e-3
    else:
        assert rms < 25 < 56 < start.square().mean().sqrt()


def test_plain_group_is_adam():
    ours, theirs = s4d_model(), s4d_model()
    ours.A_im._plain_adam = ours.weight._plain_adam = True
    optimizer = build_optimizer(OptimConfig(ssm_lr=0.02, clipping_scale=0.0), ours)
    oracle = torch.optim.Adam(theirs.parameters(), lr=0.02, betas=(0.9, 0.98))
    for step in range(10):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        optimizer.step()
        oracle.step()
    assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", ["scaled_adam", "adamw"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 5])
def test_non_finite_step_changes_nothing_and_is_counted(name, bad, at):
    models = make_model(), make_model()
    optimizers = [build_optimizer(OptimConfig(name=name), m) for m in models]
    for step in range(10):
        if step == at:
            set_grads(models[0], step)
            models[0].vector.grad[2] = bad
            optimizers[0].step()
            assert optimizers[0].last_clip == 0 == optimizers[1].num_skipped
            assert optimizers[0].num_skipped_in_row == 1
        for model, optimizer in zip(models, optimizers, strict=True):
            set_grads(model, step)
            optimizer.step()
    assert largest_difference(*models) == 0
    assert optimizers[0].num_skipped == 1
    assert optimizers[0].num_skipped_in_row == 0


@pytest.mark.parametrize("name", ["scaled_adam", "adamw"])
@pytest.mark.parametrize("order", [1, -1], ids=["same order", "parameters in reverse order"])
def test_resume_is_exact(name, order, tmp_path):
    config = OptimConfig(name=name)
    straight, resumed = make_model(dtype=torch.float32), make_model(dtype=torch.float32)
    for model in (straight, resumed):
        model.vector._plain_adam = True
    optimizer, first = build_optimizer(config, straight), build_optimizer(config, resumed)
    for step in range(24):
        if step == 13:
            torch.save([resumed.state_dict(), first.state_dict()], tmp_path / "checkpoint")
            weights, state = torch.load(tmp_path / "checkpoint", weights_only=True)
            resumed = make_model(seed=7, dtype=torch.float32, order=order)
            resumed.vector._plain_adam = True
            resumed.load_state_dict(weights)
            first = build_optimizer(config, resumed)
            first.load_state_dict(state)
        for model, each in ((straight, optimizer), (resumed, first)):
            set_grads(model, step, scale=100.0 if step in (12, 22) else 1.0)
            set_lr(each, 1 / (step + 1))
            each.step()
    assert largest_difference(straight, resumed) == 0
    assert (optimizer.last_norm, optimizer.last_clip) == (first.last_norm, first.last_clip)


def test_order_of_parameters_does_not_matter():
    models = make_model(order=1), make_model(order=-1)
    optimizers = [build_optimizer(OptimConfig(), m) for m in models]
    for step in range(30):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_grads(model, step)
            optimizer.step()
    assert largest_difference(*models) < 1e-12


def test_missing_gradient_counts_as_zeros():
    models = make_model(), make_model()
    optimizers = [build_optimizer(OptimConfig(), m) for m in models]
    for step in range(12):
        for model in models:
            set_grads(model, step)
        if step > 6:
            models[0].matrix.grad = None
            models[1].matrix.grad.zero_()
        for optimizer in optimizers:
            optimizer.step()
    assert largest_difference(*models) == 0


def test_state_of_another_model_is_refused():
    state = build_optimizer(OptimConfig(), make_model()).state_dict()
    with pytest.raises(TrainingError, match="another model"):
        build_optimizer(OptimConfig(), s4d_model()).load_state_dict(state)


def test_schedule_reaches_every_group():
    model = s4d_model()
    model.A_im._plain_adam = True
    optimizer = build_optimizer(OptimConfig(lr=0.04, ssm_lr=1e-3), model)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 5e-4]
    set_lr(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.04, 1e-3]


def test_adamw_decays_matrices_only():
    model = make_model()
    model.big._plain_adam = True
    groups = param_groups(OptimConfig(name="adamw", weight_decay=0.1), model)
    named = [([name for name, _ in g["params"]], g["weight_decay"]) for g in groups]
    assert named == [(["matrix", "zeros"], 0.1), (["vector", "scalar", "nil"], 0.0), (["big"], 0.0)]


def test_adamw_clips_by_the_global_norm():
    model = make_model()
    optimizer = build_optimizer(OptimConfig(name="adamw", clip_norm=1.0), model)
    set_grads(model, 0)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    optimizer.step()
    assert optimizer.last_norm == pytest.approx(norm)
    assert optimizer.last_clip == pytest.approx(1 / norm)


def test_clip_of_zero_gradients_does_not_stick():
    clip = MedianClip(2.0)
    assert [clip.factor(0.0) for _ in range(15)] == [1.0] * 15
    assert clip.factor(5.0) == 1.0


@pytest.mark.parametrize(
    "setting", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"clip_norm": -1.0}, {"lr": math.nan}], ids=str
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        OptimConfig(**setting)
