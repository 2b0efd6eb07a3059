"""The solver against float64 loops that update everything at once, without blocks or factors."""

import pytest
import torch

from todm.compress import solver
from todm.compress.config import Int4Config
from todm.compress.int4 import gptq
from todm.compress.masks import is_nm, nm_mask
from todm.compress.prune import sparsegpt
from todm.kernels.matmul_w4 import quantise_rtn

SIZES = [(5, 13), (3, 40), (4, 150), (2, 265)]  # below, within and over the blocks of 128


def _correlated(rows, inputs):
    """Rows with a few strong common directions, float64."""
    mix = torch.randn(inputs, max(2, inputs // 4), dtype=torch.float64)
    common = torch.randn(rows, mix.shape[1], dtype=torch.float64)
    return common @ mix.T + 0.3 * torch.randn(rows, inputs, dtype=torch.float64)


def _error(new, weight, x):
    return float(((new.double() - weight.double()) @ x.T).square().sum())


def _surgeon(weight, moment, change, step):
    """Optimal brain surgeon, as the papers state it: the inverse is made anew for what is left.

    `change(first, values, saliency)` starts a step and returns a function from column to new values.
    """
    weight, K = weight.clone(), weight.shape[1]
    damped = moment + solver.DAMPING * moment.diagonal().mean() * torch.eye(K, dtype=moment.dtype)
    inverses = [torch.linalg.inv(damped[k:, k:]) for k in range(K)]
    for k in range(K):
        if k % step == 0:
            end = min(k + step, K)
            diagonal = torch.stack([inverses[j][0, 0] for j in range(k, end)])
            column = change(k, weight[:, k:end].clone(), diagonal)
        new = column(k, weight[:, k].clone())  # pyright: ignore[reportPossiblyUnboundVariable]
        inverse = inverses[k]
        for row in range(weight.shape[0]):
            error = (weight[row, k] - new[row]) / inverse[0, 0]
            weight[row, k:] -= error * inverse[0]
        torch.testing.assert_close(weight[:, k], new)  # the update itself brings it there
        weight[:, k] = new
    return weight


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_the_factor_holds_the_inverses_of_what_is_left(outputs, inputs):
    x = _correlated(2 * inputs, inputs)
    moment = x.T @ x / len(x)
    factor = solver.inverse_factor(moment)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    for k in (0, inputs // 2, inputs - 1):
        row = torch.linalg.inv(damped[k:, k:])[0]
        torch.testing.assert_close(factor[k, k] * factor[k, k:], row, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (2, 5)])
def test_sparsegpt_is_optimal_brain_surgeon(outputs, inputs, n, m):
    weight = torch.randn(outputs, inputs, dtype=torch.float64)
    x = _correlated(2 * inputs, inputs)
    moment = x.T @ x / len(x)
    masks = []

    def change(first, values, saliency):
        masks.append(nm_mask(values**2 / saliency, n, m))
        return lambda k, column: torch.where(masks[-1][:, k - first], column, 0.0)

    wanted = _surgeon(weight, moment, change, m)
    found, mask = sparsegpt(weight, moment, n, m)
    assert torch.equal(mask, torch.cat(masks, 1))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    assert not (found[~mask] != 0).any()
    assert is_nm(found, n, m)


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gptq_is_optimal_brain_surgeon(outputs, inputs, symmetric, masked):
    weight = torch.randn(outputs, inputs, dtype=torch.float64)
    x = _correlated(2 * inputs, inputs)
    moment = x.T @ x / len(x)
    mask = nm_mask(weight.abs(), 2, 4) if masked else torch.ones_like(weight, dtype=torch.bool)
    weight = weight * mask

    def change(first, values, saliency):
        values = values * mask[:, first : first + values.shape[1]]
        low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
        if symmetric:
            scale = (values.abs().amax(1).float() / 7).half().double()
            zero = torch.full_like(scale, 8)
        else:
            scale = ((high - low).float() / 15).half().double()
            zero = (-low.float() / scale.float()).round().clamp(0, 15).double()

        def column(k, now):
            code = ((now / scale).round() + zero).clamp(0, 15)
            return torch.where(mask[:, k], (code - zero) * scale, 0.0)

        return column

    wanted = _surgeon(weight, moment, change, 32)
    config = Int4Config(group=32, symmetric=symmetric)
    found = gptq(weight, moment, config, mask_NK=mask if masked else None)
    assert (found.zero_NG is None) == symmetric
    torch.testing.assert_close(found.dequantise().double(), wanted, rtol=1e-6, atol=1e-6)
    assert not (found.dequantise()[~mask] != 0).any()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group", [32, 128])
def test_gptq_beats_rounding_on_correlated_inputs(bits, group):
    weight, x = torch.randn(24, 200), _correlated(800, 200)
    moment = x.T @ x / len(x)
    nearest = quantise_rtn(weight, bits, group=group)
    updated = gptq(weight, moment, Int4Config(bits=bits, group=group))
    fraction = _error(updated.dequantise(), weight, x) / _error(nearest.dequantise(), weight, x)
    assert fraction < 0.6


def test_inputs_without_correlation_leave_rounding_as_it_is():
    weight = torch.randn(6, 96)
    moment = torch.eye(96, dtype=torch.float64)
    updated = gptq(weight, moment, Int4Config(group=32))
    assert torch.equal(updated.codes_NK(), quantise_rtn(weight, 4, group=32).codes_NK())


def test_sparsegpt_beats_magnitude_and_updating_alone_helps():
    weight, x = torch.randn(24, 120), _correlated(600, 120)
    moment = x.T @ x / len(x)
    pruned, mask = sparsegpt(weight, moment, 2, 4)
    magnitude = weight * nm_mask(weight.abs(), 2, 4)
    assert _error(pruned, weight, x) < 0.5 * _error(magnitude, weight, x)
    assert _error(pruned, weight, x) < 0.5 * _error(weight * mask, weight, x)


def test_columns_without_input_touch_nothing():
    weight, x = torch.randn(6, 40), _correlated(200, 40)
    x[:, 7] = 0
    x[:, 20:24] = 0
    moment = x.T @ x / len(x)
    pruned, mask = sparsegpt(weight, moment, 2, 4)
    assert pruned.isfinite().all()
    kept = mask[:, 20:24]
    torch.testing.assert_close(pruned[:, 20:24][kept].float(), weight[:, 20:24][kept])
    assert torch.equal(kept, nm_mask(weight[:, 20:24].abs(), 2, 4))
    live = torch.cat([torch.arange(20), torch.arange(24, 40)])
    # Without them, and damped as much, the others become the same.
    less = moment[live][:, live]
    eye = torch.eye(36, dtype=torch.float64)
    less = less + eye * solver.DAMPING * (moment.diagonal().mean() - less.diagonal().mean())
    alone, alone_mask = sparsegpt(weight[:, live], less, 2, 4)
    assert torch.equal(alone_mask, mask[:, live])
    torch.testing.assert_close(alone, pruned[:, live], rtol=5e-3, atol=5e-3)


def test_no_input_at_all_is_magnitude():
    weight = torch.randn(6, 14)
    pruned, mask = sparsegpt(weight, torch.zeros(14, 14, dtype=torch.float64), 2, 4)
    assert torch.equal(mask, nm_mask(weight.abs(), 2, 4))
    assert torch.equal(pruned, (weight * mask).double())


def test_fewer_rows_than_inputs():
    weight, x = torch.randn(6, 64), torch.randn(5, 64, dtype=torch.float64)
    pruned, mask = sparsegpt(weight, x.T @ x / 5, 2, 4)
    assert pruned.isfinite().all()
    assert _error(pruned, weight, x) < 0.5 * _error(weight * mask, weight, x)
