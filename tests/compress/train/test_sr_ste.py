import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from todm.compress.train.sr_ste import SrSte, SrSteConfig
from todm.errors import ConfigError
from todm.train.optim import ClippedAdamW, ScaledAdam


def _mask(weight, n, m):
    """The n largest of every m neighbours along dim 1, one by one; the first of equals."""
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    rows, kept = weight.movedim(1, -1), mask.movedim(1, -1)
    for index in torch.cartesian_prod(*(torch.arange(s) for s in rows.shape[:-1])).reshape(
        -1, rows.dim() - 1
    ):
        row = rows[tuple(index)].tolist()
        for start in range(0, len(row), m):
            group = range(start, min(start + m, len(row)))
            for best in sorted(group, key=lambda k: (-abs(row[k]), k))[:n]:
                kept[(*index.tolist(), best)] = True
    return mask


def _config(**changes):
    return SrSteConfig(**({"n": 2, "m": 4, "layers": ("*",), "freeze": 0.0} | changes))


def _sr_ste(module, total=100, **changes):
    return SrSte.of(module, _config(**changes), num_updates=total)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 5)])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_the_gradient_is_that_of_the_masked_weight_plus_the_pull(n, m, kind):
    """Closed form of SR-STE's eq. 9 for a sum of squares, on sizes that no group divides."""
    layer, shape = {
        "linear": (nn.Linear(11, 3), (2, 11)),
        "conv1d": (nn.Conv1d(11, 3, 3), (2, 11, 7)),
        "conv2d": (nn.Conv2d(11, 3, (2, 3)), (2, 11, 4, 5)),
    }[kind]
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    weight, mask = layer.weight.detach().clone(), _mask(layer.weight.detach(), n, m)
    run = {"linear": F.linear, "conv1d": F.conv1d, "conv2d": F.conv2d}[kind]
    masked = (weight * mask).requires_grad_()
    run(x, masked, layer.bias.detach()).square().sum().backward()

    sparse = _sr_ste(nn.Sequential(layer), n=n, m=m, decay=0.3)
    assert sparse.enter(0)
    with sparse.masked():
        assert torch.equal(layer.weight, weight * mask)
        layer(x).square().sum().backward()
    assert torch.equal(layer.weight, weight)
    sparse.pull(torch.optim.SGD(layer.parameters(), lr=0.1))
    torch.testing.assert_close(layer.weight.grad, masked.grad + 0.3 * weight * ~mask)
    assert (masked.grad[~mask] != 0).any()  # straight through: pruned entries have a gradient


def test_sgd_follows_equation_9_for_several_updates():
    torch.manual_seed(1)
    layer, x = nn.Linear(10, 4).double(), torch.randn(3, 10, dtype=torch.float64)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    sparse, optimizer = _sr_ste(nn.Sequential(layer), decay=0.5, refresh=1), None
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for update in range(7):
        optimizer.zero_grad()
        sparse.enter(update)
        with sparse.masked():
            layer(x).square().mean().backward()
        sparse.pull(optimizer)
        optimizer.step()
        mask = _mask(weight, 2, 4)
        error = x @ (weight * mask).T + bias
        grad = 2 * error.T @ x / error.numel()
        weight = weight - 0.05 * (grad + 0.5 * weight * ~mask)
        bias = bias - 0.05 * 2 * error.sum(0) / error.numel()
        torch.testing.assert_close(layer.weight.detach(), weight)


def _stepped(make, *, decay=0.0, steps=3, scale=1.0):
    """A weight after some steps with given gradients, and the mask it began with."""
    weight = nn.Parameter(torch.randn(3, 8, generator=torch.Generator().manual_seed(2)).double())
    start, sparse = (
        weight.detach().clone(),
        SrSte({"w": weight}, _config(decay=decay), num_updates=99),
    )
    optimizer = make([("w", weight)])
    if hasattr(optimizer, "after_clip"):
        optimizer.after_clip = lambda clip: sparse.pull(optimizer, clip=clip)
    sparse.enter(0)
    grads = scale * torch.randn(steps, 3, 8, generator=torch.Generator().manual_seed(3)).double()
    for grad in grads:
        weight.grad = grad.clone()
        if not hasattr(optimizer, "after_clip"):
            sparse.pull(optimizer)
        optimizer.step()
    return start, weight.detach(), sparse.masks["w"], grads


def test_scaled_adam_gets_the_pull_after_clipping():
    """Three steps (the fourth would change the size), number by number as in its head."""
    lr, b1, b2, scale = 0.02, 0.9, 0.98, 0.5
    for decay in (0.0, 0.7):
        start, got, mask, grads = _stepped(
            lambda named: ScaledAdam(named, lr, clipping_scale=scale), decay=decay
        )
        p, v, m, rms = start.clone(), 0.0, 0.0, start.square().mean().sqrt()
        for k, g in enumerate(grads, 1):
            g = g + decay * p * ~mask  # no threshold is known yet: the factor is 1
            v = b2 * v + (1 - b2) * g.square()
            d = -lr * rms * g / ((v / (1 - b2**k)).sqrt() + 1e-8)
            m = b1 * m + (1 - b1) * d
            p = p + m
        torch.testing.assert_close(got, p, rtol=1e-6, atol=1e-8)


def test_a_clipped_gradient_does_not_shrink_the_pull():
    """ScaledAdam knows its threshold from the 11th step on; the second moment shows what it sees."""
    weight = nn.Parameter(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    optimizer = ScaledAdam([("w", weight)], 1e-9, clipping_scale=1.0)
    sparse = SrSte({"w": weight}, _config(decay=0.5), num_updates=99)
    sparse.enter(0)
    for scale in [1.0] * 11 + [8.0]:
        if scale > 1:
            optimizer.after_clip = lambda clip: sparse.pull(optimizer, clip=clip)
            optimizer.state[weight]["square"].zero_()
        weight.grad = torch.full((1, 4), scale)
        optimizer.step()
    assert optimizer.last_clip == pytest.approx(2 / 8)  # early thresholds have a slack of 2
    seen = (optimizer.state[weight]["square"] / 0.02).sqrt()
    torch.testing.assert_close(seen, torch.tensor([[2.0, 2.0, 3.0, 2.5]]), rtol=1e-4, atol=0)


def test_the_clipping_of_adamw_comes_before_the_pull():
    """The norm is 10 times the limit: the gradient that the step sees is a tenth, and the whole pull."""
    seen = []
    weight = nn.Parameter(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    optimizer = ClippedAdamW([{"params": [("w", weight)], "weight_decay": 0.0}], clip_norm=1.0)
    sparse = SrSte({"w": weight}, _config(decay=0.5), num_updates=9)
    sparse.enter(0)

    def after(clip):
        sparse.pull(optimizer, clip=clip)
        seen.append(weight.grad.clone())

    optimizer.after_clip = after
    weight.grad = torch.tensor([[0.0, 10.0, 0.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(seen[0], torch.tensor([[0.0, 1.0, 1.0, 0.5]]))


def test_pruned_entries_have_no_weight_decay():
    """AdamW decays kept entries only; without a gradient nothing else moves."""
    for make in (
        lambda named: ClippedAdamW([{"params": named, "weight_decay": 0.1}], 0.2, clip_norm=0.0),
        lambda named: torch.optim.AdamW(named, lr=0.2, weight_decay=0.1),
    ):
        start, got, mask, _ = _stepped(make, steps=2, scale=0.0)
        torch.testing.assert_close(got, torch.where(mask, start * (1 - 0.2 * 0.1) ** 2, start))


def test_coupled_weight_decay_is_taken_out_too():
    make = lambda named: torch.optim.SGD(named, lr=0.2, weight_decay=0.1)  # noqa: E731
    start, got, mask, _ = _stepped(make, steps=1, scale=0.0)
    torch.testing.assert_close(got, torch.where(mask, start * (1 - 0.2 * 0.1), start))


def test_a_refused_step_has_no_pull():
    weight = nn.Parameter(torch.randn(2, 8))
    before = weight.detach().clone()
    sparse = SrSte({"w": weight}, _config(decay=0.5), num_updates=9)
    sparse.enter(0)
    for optimizer in (ScaledAdam([("w", weight)]), ClippedAdamW([("w", weight)])):
        optimizer.after_clip = lambda clip, o=optimizer: sparse.pull(o, clip=clip)
        weight.grad = torch.full((2, 8), float("nan"))
        optimizer.step()
        assert torch.equal(weight, before)


def test_masks_are_renewed_when_due_and_then_frozen():
    layer = nn.Linear(8, 2)
    sparse = _sr_ste(nn.Sequential(layer), total=20, begin=0.25, refresh=3, freeze=0.3)
    renewed = []
    for update in range(20):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(2, 8))
        if sparse.enter(update):
            renewed.append(update)
        if update < 5:
            assert not sparse.masks
            with sparse.masked():
                assert (layer.weight != 0).all()
    assert renewed == [5, 8, 11]
    assert not torch.equal(sparse.masks["0"], _mask(layer.weight.detach(), 2, 4))


def test_flips_are_counted_against_the_last_masks_and_the_first():
    layer = nn.Linear(8, 2)
    sparse = _sr_ste(nn.Sequential(layer), refresh=1)
    weights = [torch.randn(2, 8) for _ in range(3)]
    for update, weight in enumerate(weights):
        with torch.no_grad():
            layer.weight.copy_(weight)
        sparse.enter(update)
    first, second, third = (_mask(w, 2, 4) for w in weights)
    sad, since = int((second ^ third).sum()), int((first ^ third).sum())
    assert sad != since
    assert sparse.by_layer == {"0": {"flip_rate": sad / 16, "sad": sad, "sad_first": since}}
    assert sparse.figures == {"flip_rate": sad / 16, "mask_drift": since / 16}


def test_the_dense_weights_come_back_after_an_error():
    layer = nn.Linear(8, 2)
    before = layer.weight.detach().clone()
    sparse = _sr_ste(nn.Sequential(layer))
    sparse.enter(0)
    with pytest.raises(ZeroDivisionError), sparse.masked():
        raise ZeroDivisionError
    assert torch.equal(layer.weight, before)


def test_a_state_is_taken_up_again():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(9, 8))
    first = _sr_ste(model, refresh=2)
    first.enter(0)
    with torch.no_grad():
        model[0].weight.normal_()
    first.enter(2)
    again = _sr_ste(copy.deepcopy(model), refresh=2)
    assert again.digest() != first.digest()
    again.load_state_dict(first.state_dict())
    assert again.digest() == first.digest()
    assert again.by_layer == first.by_layer
    with torch.no_grad():
        for sparse in (first, again):
            for weight in sparse._weights.values():
                weight.copy_(torch.arange(weight.numel()).view(weight.shape).sin())
            sparse.enter(4)
    assert again.by_layer == first.by_layer
    assert again.digest() == first.digest()


def test_nothing_happens_where_it_is_off():
    model = nn.Sequential(nn.Linear(8, 2))
    before = model[0].weight.detach().clone()
    sparse = SrSte.of(model, SrSteConfig(), num_updates=9)
    assert not sparse.enter(0)
    with sparse.masked():
        assert torch.equal(model[0].weight, before)
    sparse.finish()
    assert torch.equal(model[0].weight, before)
    assert (sparse.layers, sparse.figures, sparse.info) == ([], {}, {})


def test_layers_are_chosen_by_pattern():
    model = nn.ModuleDict(
        {"blocks": nn.ModuleList([nn.Linear(8, 2), nn.Conv1d(2, 2, 3)]), "head": nn.Linear(8, 2)}
    )
    assert _sr_ste(model, layers=("*blocks.*",)).layers == [
        "blocks.0"
    ]  # of 2 inputs none is pruned
    assert _sr_ste(model, layers=("head",)).layers == ["head"]
    with pytest.raises(
        ConfigError, match=r"'tail', which fits no linear layer .* such as blocks.0"
    ):
        _sr_ste(model, layers=("head", "tail"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 4}, "sparse keeps 4 of 4"),
        ({"n": -1}, "sparse keeps -1 of 4"),
        ({"n": 2, "m": 64}, "sparse keeps 2 of 64"),
        ({"decay": -1.0}, "sparse.decay is -1.0"),
        ({"refresh": 0}, "sparse.refresh is 0: at least 1"),
        ({"freeze": 1.5}, "sparse.freeze is 1.5: a fraction"),
        ({"begin": -0.5}, "sparse.begin is -0.5: a fraction"),
        ({"n": 2, "layers": ()}, "sparse.layers is empty"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ConfigError, match=words):
        SrSteConfig(**changes)
