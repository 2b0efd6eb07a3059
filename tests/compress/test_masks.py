"""Masks against a loop over groups, their validity on odd sizes, and prefixes of them."""

import pytest
import torch
from torch import nn

from todm.compress.masks import (
    is_nm,
    nm_mask,
    sad,
    weight_matrix,
    weight_of_matrix,
)
from todm.kernels.matmul_24 import check_24

FORMS = ((2, 4), (1, 4), (2, 8), (4, 8), (3, 5), (16, 32))


def _loop(scores_NK, n, m):
    """The definition: in every group of neighbours the n best, the first of equals."""
    mask = torch.zeros_like(scores_NK, dtype=torch.bool)
    for row in range(scores_NK.shape[0]):
        for start in range(0, scores_NK.shape[1], m):
            group = range(start, min(start + m, scores_NK.shape[1]))
            for k in sorted(group, key=lambda k: (-float(scores_NK[row, k]), k))[:n]:
                mask[row, k] = True
    return mask


@pytest.mark.parametrize(("n", "m"), FORMS)
@pytest.mark.parametrize("inputs", [1, 2, 16, 37])
def test_the_best_of_every_group_are_kept(n, m, inputs):
    scores = torch.randn(7, inputs)
    assert torch.equal(nm_mask(scores, n, m), _loop(scores, n, m))


@pytest.mark.parametrize(("n", "m"), FORMS)
def test_of_equal_scores_the_first_is_kept(n, m):
    scores = torch.randint(0, 3, (9, 41)).float()
    assert torch.equal(nm_mask(scores, n, m), _loop(scores, n, m))


def test_a_short_last_group_keeps_what_it_may():
    mask = nm_mask(torch.randn(5, 4 * 3 + 3), 2, 4)
    assert mask[:, :12].sum(1).eq(6).all()
    assert mask[:, 12:].sum(1).eq(2).all()
    assert nm_mask(torch.randn(5, 13), 2, 4)[:, 12].all()


def test_scores_that_are_no_numbers_are_dropped_first():
    scores = torch.tensor([[float("nan"), -1.0, float("-inf"), 1.0, float("nan"), float("inf")]])
    assert nm_mask(scores, 2, 4).tolist() == [[False, True, False, True, True, True]]


@pytest.mark.parametrize("shape", [(6, 10, 3, 5), (6, 9, 3)])
def test_groups_of_a_convolution_lie_along_its_channels(shape):
    scores = torch.randn(shape)
    mask = nm_mask(scores, 2, 4)
    flat, kept = scores.flatten(2), mask.flatten(2)
    for position in range(flat.shape[2]):
        assert torch.equal(kept[:, :, position], _loop(flat[:, :, position], 2, 4))


def test_pairs_stay_together():
    scores = torch.rand(8, 40)
    mask = nm_mask(scores, 4, 8, pairs=True)
    pair = mask.view(8, -1, 2)
    assert torch.equal(pair[..., 0], pair[..., 1])
    assert torch.equal(pair[..., 0], _loop(scores.view(8, -1, 2).sum(-1), 2, 4))
    assert is_nm(mask, 4, 8)
    assert not torch.equal(mask, nm_mask(scores, 4, 8))


def test_pairs_of_a_short_group():
    mask = nm_mask(torch.rand(8, 21), 4, 8, pairs=True)
    assert is_nm(mask, 4, 8)
    pair = mask[:, :20].view(8, -1, 2)
    assert torch.equal(pair[..., 0], pair[..., 1])


@pytest.mark.parametrize(("n", "m"), FORMS)
def test_a_prefix_of_whole_groups_stays_valid(n, m):
    weight = torch.randn(16, 4 * 32)
    masked = weight * nm_mask(weight.abs(), n, m)
    for width in range(m, masked.shape[1] + 1, m):
        assert is_nm(masked[:11, :width], n, m)
        prefix = nm_mask(weight[:11, :width].abs(), n, m)
        assert torch.equal(masked[:11, :width] != 0, prefix)


def test_a_mask_of_2_4_can_be_packed():
    weight = torch.randn(9, 22)
    check_24(weight * nm_mask(weight.abs(), 2, 4))


@pytest.mark.parametrize("shape", [(4, 12), (4, 12, 3, 3)])
def test_too_many_weights_are_found(shape):
    weight = torch.randn(shape)
    weight *= nm_mask(weight.abs(), 2, 4)
    assert is_nm(weight, 2, 4)
    weight[2, 4:7] = 1.0
    assert not is_nm(weight, 2, 4)


def test_flips_are_counted():
    a = torch.tensor([[True, True, False, False]])
    b = torch.tensor([[True, False, True, False]])
    assert sad(a, b) == 2
    assert sad(a, a) == 0


@pytest.mark.parametrize("module", [nn.Linear(13, 5), nn.Conv2d(7, 5, (3, 2)), nn.Conv1d(6, 5, 3)])
def test_the_matrix_of_a_weight_has_whole_groups(module):
    weight = module.weight.detach()
    matrix = weight_matrix(weight, 4)
    assert matrix.shape[1] % 4 == 0
    assert torch.equal(weight_of_matrix(matrix, tuple(weight.shape), 4), weight)
    mask = weight_of_matrix(nm_mask(matrix.abs(), 2, 4), tuple(weight.shape), 4)
    assert torch.equal(mask, nm_mask(weight.abs(), 2, 4))
