"""Statistics of streams against those of all rows at once, on odd sizes and batches."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from todm.compress.calibrate import Histogram, Inputs, Means, Moment, Sample, too_few_rows
from todm.compress.layers import input_rows
from todm.compress.masks import weight_matrix
from todm.errors import CorpusError


def _stream(part, x_MK):
    """The rows in batches of several sizes."""
    for piece in x_MK.split([3, 1, 50, x_MK.shape[0] - 54]):
        part.add(piece)
    return part


def test_means_and_second_moment():
    x = torch.randn(101, 7) * torch.arange(7) + 1
    means, moment = _stream(Means(), x), _stream(Moment(), x)
    wanted = x.double().numpy()
    np.testing.assert_allclose(means.abs_K, np.abs(wanted).mean(0), rtol=1e-12)
    np.testing.assert_allclose(means.square_K, (wanted**2).mean(0), rtol=1e-12)
    products = np.array(
        [[np.mean(wanted[:, i] * wanted[:, j]) for j in range(7)] for i in range(7)]
    )
    np.testing.assert_allclose(moment.moment_KK, products, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("percent", [51.0, 90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("growing", [False, True])
def test_percentiles_are_exact_within_a_bin(percent, growing):
    x = torch.randn(997, 3)
    if growing:  # the first batches are small, so that bins are joined several times
        x = x.abs().flatten().sort().values.view(997, 3)
    histogram = _stream(Histogram(), x)
    bin_width = histogram.top / histogram.BINS
    sorted_x = x.abs().flatten().sort().values
    exact = float(sorted_x[int(np.ceil(percent / 100 * sorted_x.numel())) - 1])
    assert exact <= histogram.percentile(percent) * (1 + 1e-6)
    assert histogram.percentile(percent) <= exact + bin_width * (1 + 1e-6)
    assert int(histogram.count_B.sum()) == x.numel()
    assert histogram.absmax == float(x.abs().max())
    assert histogram.percentile(100.0) == histogram.absmax


def test_bins_are_those_of_one_pass():
    x = torch.rand(200, 5) * torch.linspace(0.01, 3, 200)[:, None]
    streamed = _stream(Histogram(), x)
    place = (x.double() * (streamed.BINS / streamed.top)).floor().long()
    assert torch.equal(streamed.count_B, torch.bincount(place.flatten(), minlength=streamed.BINS))
    assert streamed.top / 2 <= streamed.absmax < streamed.top


def test_a_power_of_two_has_a_bin():
    histogram = Histogram()
    for size in (0.5, 1.0, 2.0):
        histogram.add(torch.full((3, 1), size))
    assert histogram.count_B.nonzero().flatten().tolist() == [512, 1024, 2048]


def test_zeros_come_before_anything_else():
    histogram = Histogram()
    histogram.add(torch.zeros(10, 2))
    assert histogram.absmax == 0
    histogram.add(torch.full((5, 2), 3.0))
    assert int(histogram.count_B[0]) == 20
    assert histogram.percentile(60.0) < 0.01
    assert histogram.percentile(100.0) == 3.0


def test_the_range_of_least_error():
    x = torch.randn(4000, 1)
    x[0] = 40.0  # worth losing
    histogram = _stream(Histogram(), x)
    errors = []
    for percent in range(1, 101):
        step = 40.0 * percent / 100 / 7
        errors.append(float(((x / step).round().clamp(-7, 7) * step - x).double().square().sum()))
    found = histogram.mse_range(levels=7)
    step = found / 7
    error = float(((x / step).round().clamp(-7, 7) * step - x).double().square().sum())
    assert error <= min(errors) * 1.01
    assert error < 0.5 * errors[-1]


@pytest.mark.parametrize("most", [1, 8, 64, 1000])
def test_a_sample_is_spread_over_all_rows(most):
    sample = Sample(most)
    _stream(sample, torch.arange(301.0)[:, None])
    place = sample.x_SK[:, 0]
    stride = int(place[1] - place[0]) if len(place) > 1 else 1
    assert min(most, 301) / 2 <= len(place) <= most
    assert torch.equal(place, torch.arange(len(place)) * float(stride))
    assert place[-1] + 2 * stride > 300 or most == 1


CONVOLUTIONS = [
    nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(6, 8, 3, groups=2, padding="same"),
    nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv1d(6, 9, 5, stride=2, padding=2, groups=3),
    nn.Conv1d(7, 3, 1),
]


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("m", [1, 4])
def test_a_convolution_is_the_product_of_its_rows(module, m):
    x = torch.randn(2, module.in_channels, *(11, 13)[: len(module.kernel_size)])
    weights = module.weight.detach().chunk(module.groups)
    products = [
        rows @ weight_matrix(weight, m).T
        for rows, weight in zip(input_rows(module, x, m=m), weights, strict=True)
    ]
    with torch.no_grad():
        wanted = module(x)
    found = torch.cat(products, 1) + module.bias.detach()
    found = found.view(2, *wanted.shape[2:], -1).movedim(-1, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_image_without_a_batch():
    module = nn.Conv2d(3, 4, 3)
    x = torch.randn(3, 6, 7)
    assert torch.equal(input_rows(module, x)[0], input_rows(module, x[None])[0])


def test_rows_of_a_linear_layer():
    x = torch.randn(2, 3, 10)
    assert torch.equal(input_rows(nn.Linear(10, 4), x, m=4)[0], F.pad(x, (0, 2)).view(6, 12))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(bad):
    inputs = Inputs("blocks.3.fc", nn.Linear(5, 2), Means)
    inputs.add(torch.randn(4, 5))
    x = torch.randn(4, 5)
    x[2, 3] = bad
    with pytest.raises(CorpusError, match=r"blocks\.3\.fc: calibration batch 2 brings NaN or inf"):
        inputs.add(x)
    assert inputs.rows == 4


def test_rows_are_counted_and_an_empty_batch_adds_none():
    inputs = Inputs("conv", nn.Conv1d(4, 6, 3, groups=2), Moment)
    inputs.add(torch.randn(2, 4, 9))
    inputs.add(torch.randn(0, 4, 9))
    assert inputs.rows == 14
    assert [part.moment_KK.shape for part in inputs.parts] == [(6, 6), (6, 6)]


def test_too_few_rows_are_said():
    assert "5 for 6" in too_few_rows(5, 6)
    assert too_few_rows(6, 6) == ""
