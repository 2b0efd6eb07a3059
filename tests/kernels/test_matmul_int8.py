"""Letters: M rows, K inputs, N outputs."""

import pytest
import torch

from tests.kernels.conftest import DEVICE, IMPLS
from todm.errors import ConfigError
from todm.kernels._linear import MAX_INPUTS
from todm.kernels.matmul_int8 import matmul_int8, quantise_activation, quantise_weight, torch_impl

# Around the tiles: one row, a few, one tile and one row more; K and N that fill no tile.
SIZES = [(1, 4, 3), (3, 130, 17), (16, 64, 16), (33, 67, 33), (64, 5, 9)]
NAN = float("nan")


def _layer(K, N):
    codes, scale = quantise_weight(torch.randn(N, K, device=DEVICE))
    return codes, scale, torch.randn(N, device=DEVICE)


def _x(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def _scale(static):
    return torch.tensor(0.013, device=DEVICE) if static else None


def _integers(low, *shape):
    return torch.randint(low, 128, shape, dtype=torch.int8, device=DEVICE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("static", [False, True], ids=["per row", "per tensor"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_is_the_references(size, static, impl):
    M, K, N = size
    x, (codes, scale, bias) = _x(M, K), _layer(K, N)
    options = {"bias_N": bias, "act_scale": _scale(static)}
    got = matmul_int8(x, codes, scale, **options, impl=impl)
    want = matmul_int8(x, codes, scale, **options, impl="reference")
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6 * float(want.abs().max()))


@pytest.mark.parametrize("impl", IMPLS)
def test_many_rows(impl):
    x, (codes, scale, bias) = _x(1024, 20, dtype=torch.float16), _layer(20, 7)
    options = {"bias_N": bias, "out_dtype": torch.float32}
    got = matmul_int8(x, codes, scale, **options, impl=impl)
    want = matmul_int8(x, codes, scale, **options, impl="reference")
    torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("out", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype, out, impl):
    x, (codes, scale, bias) = _x(5, 40, dtype=dtype), _layer(40, 19)
    options = {"bias_N": bias.to(dtype), "out_dtype": out}
    got = matmul_int8(x, codes, scale, **options, impl=impl)
    want = matmul_int8(x, codes, scale, **options, impl="reference")
    assert got.dtype == out
    # The interpreter cuts off where it should round to bfloat16.
    rtol = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[out]
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("static", [False, True], ids=["per row", "per tensor"])
def test_codes_and_scales_are_the_references_bit_for_bit(static, impl):
    """Sixteen-bit rows hold many exact halves of a scale, where rounding shows."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = _x(5, 70, dtype=dtype)
        x[1] = torch.arange(70, device=DEVICE) - 34.5
        x[2, 0] = 127.0  # a scale of one
        x[2, 1:] = torch.arange(69, device=DEVICE) - 33.5
        got = quantise_activation(x, act_scale=_scale(static), impl=impl)
        want = quantise_activation(x, act_scale=_scale(static), impl="reference")
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("M", [2, 20], ids=["few rows", "rows"])
def test_sums_are_those_of_int_mm(M, impl):
    """With scales of one an output is the sum itself, here of the largest products too."""
    x, weight = _integers(-127, M, 50), _integers(-128, 21, 50)
    x[0], weight[0] = 127, -128
    one = torch.ones(21, device=DEVICE)
    got = matmul_int8(x.float(), weight, one, act_scale=one[:1], impl=impl)
    want = torch._int_mm(x.cpu(), weight.cpu().t())
    assert torch.equal(got.cpu().to(torch.int32), want)


def test_long_sums_are_exact():
    """Over several slices of K, each as large as a float32 holds exactly."""
    x, weight = _integers(126, 2, 5000), _integers(126, 3, 5000)
    x[1] = -127
    got = torch_impl.integer_matmul(x, weight)
    assert torch.equal(got.cpu().double(), x.double().cpu() @ weight.double().cpu().t())


@pytest.mark.parametrize("size", [(1, 4, 3), (16, 8, 8), (17, 13, 21), (40, 64, 16)], ids=str)
def test_padding_for_the_gpus_int_mm(monkeypatch, size):
    """On a GPU the operation needs more than 16 rows, and K and N in multiples of 8."""
    real = torch._int_mm

    def strict(a, b):
        assert a.shape[0] > 16
        assert a.shape[1] % 8 == b.shape[1] % 8 == 0
        assert b.stride(0) == 1
        return real(a, b)

    monkeypatch.setattr(torch, "_int_mm", strict)
    (M, K, N) = size
    x, weight = _integers(-127, M, K), _integers(-128, N, K)
    got = torch_impl.padded_int_mm(x, weight)
    assert torch.equal(got.double(), x.double() @ weight.double().t())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("static", [False, True], ids=["per row", "per tensor"])
@pytest.mark.parametrize("M", [4, 8], ids=["few rows", "rows"])
def test_a_row_that_is_not_finite_affects_itself_only(M, static, impl):
    x, (codes, scale, bias) = _x(M, 70), _layer(70, 18)
    whole = matmul_int8(x, codes, scale, bias_N=bias, act_scale=_scale(static), impl=impl)
    x[0, 69], x[1, 3], x[2] = NAN, float("inf"), 0.0
    got = matmul_int8(x, codes, scale, bias_N=bias, act_scale=_scale(static), impl=impl)
    assert got[:2].isnan().all()
    torch.testing.assert_close(got[2], bias, rtol=0, atol=0)  # a row of zeros
    torch.testing.assert_close(got[3:], whole[3:], rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, float("inf")])
def test_an_invalid_activation_scale_gives_nan(bad, impl):
    codes, scale, _ = _layer(8, 4)
    got = matmul_int8(_x(2, 8), codes, scale, act_scale=torch.tensor(bad, device=DEVICE), impl=impl)
    assert got.isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_strides_and_leading_axes(impl):
    codes, scale, bias = _layer(24, 10)
    x = _x(24, 3, 4).permute(2, 1, 0)
    got = matmul_int8(x, codes, scale, bias_N=bias, impl=impl)
    want = matmul_int8(x.contiguous().flatten(0, 1), codes, scale, bias_N=bias, impl="reference")
    torch.testing.assert_close(got, want.reshape(4, 3, 10), rtol=2e-6, atol=1e-5)
    every_other = _x(6, 48)[:, ::2]
    torch.testing.assert_close(
        matmul_int8(every_other, codes, scale, impl=impl),
        matmul_int8(every_other.contiguous(), codes, scale, impl=impl),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_a_weight_of_any_strides(impl):
    codes, scale, _ = _layer(32, 6)
    x = _x(7, 32)
    want = matmul_int8(x, codes, scale, impl=impl)
    for same in (codes.t().contiguous().t(), torch.cat([codes[:, :1], codes], 1)[:, 1:]):
        assert torch.equal(matmul_int8(x, same, scale, impl=impl), want)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_no_rows(impl):
    codes, scale, bias = _layer(8, 5)
    for shape in ((0, 8), (2, 0, 8)):
        got = matmul_int8(_x(*shape, dtype=torch.float16), codes, scale, bias_N=bias, impl=impl)
        assert got.shape == (*shape[:-1], 5)
        assert got.dtype == torch.float16


@pytest.mark.parametrize("impl", IMPLS)
def test_a_single_vector(impl):
    codes, scale, _ = _layer(8, 5)
    x = _x(8)
    want = matmul_int8(x[None], codes, scale, impl="reference")[0]
    torch.testing.assert_close(matmul_int8(x, codes, scale, impl=impl), want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_call_gives_the_same_bits(impl):
    x, (codes, scale, bias) = _x(20, 70), _layer(70, 18)
    first, second = (matmul_int8(x, codes, scale, bias_N=bias, impl=impl) for _ in range(2))
    assert torch.equal(first, second)


def test_autocast_leaves_it_alone():
    x, (codes, scale, _) = _x(3, 300), _layer(300, 4)
    want = matmul_int8(x, codes, scale, impl="torch")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(matmul_int8(x, codes, scale, impl="torch"), want)


def test_quantised_weights_are_within_half_a_step():
    weight = torch.randn(5, 40)
    weight[3] = 0
    codes, scale = quantise_weight(weight)
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 0, 127]
    assert ((codes * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()


def test_given_scales_are_used_and_codes_clipped():
    codes, scale = quantise_weight(torch.tensor([[2.5, -3.5, 900.0]]), scale_N=torch.tensor([1.0]))
    assert codes.tolist() == [[2, -4, 127]]
    assert scale.tolist() == [1.0]


@pytest.mark.parametrize(
    ("weight", "scale", "words"),
    [
        (torch.ones(2), None, r"\(2,\); a floating \[N, K\]"),
        (torch.tensor([[1.0], [NAN]]), None, "output 1: the weight holds a number"),
        (torch.ones(2, 3), torch.tensor([1.0, 0.0]), "output 1: the scale is not above zero"),
        (torch.ones(2, 3), torch.ones(3), r"scale_N is torch.float32 \(3,\); with 2 outputs"),
    ],
    ids=["axes", "NaN", "scale of zero", "scales"],
)
def test_weights_that_cannot_be_quantised(weight, scale, words):
    with pytest.raises(ConfigError, match=words):
        quantise_weight(weight, scale_N=scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(2, 7)}, r"shape \(2, 7\); the weight's 8 inputs must be its last axis"),
        ({"x": torch.ones(())}, "the weight's 8 inputs must be its last axis"),
        ({"x": torch.ones(2, 8, dtype=torch.float64)}, "the activation is torch.float64, allowed"),
        ({"weight_NK": torch.ones(4, 8)}, r"weight_NK is torch.float32 \(4, 8\); int8"),
        ({"weight_NK": torch.ones(4, 0, dtype=torch.int8)}, "N and K of at least 1"),
        (
            {"weight_NK": torch.ones(1, MAX_INPUTS + 1, dtype=torch.int8)},
            f"could overflow an int32 sum, allowed are {MAX_INPUTS}",
        ),
        ({"weight_scale_N": torch.ones(3)}, r"weight_scale_N is torch.float32 \(3,\); with 4"),
        ({"bias_N": torch.ones(4, dtype=torch.int32)}, "bias_N is torch.int32"),
        ({"act_scale": torch.ones(2)}, r"act_scale is torch.float32 \(2,\); one floating number"),
        ({"out_dtype": torch.int32}, "out_dtype is torch.int32, allowed are float32"),
        ({"bias_N": torch.ones(4, device="meta")}, "tensors are on cpu and meta"),
        (
            {"x": torch.ones(2, 8, requires_grad=True)},
            "it has no gradient, but an argument requires one",
        ),
        ({"impl": "cuda"}, "impl asks for 'cuda', which matmul_int8 does not have"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_named(change, words):
    given = {
        "x": torch.ones(2, 8),
        "weight_NK": torch.ones(4, 8, dtype=torch.int8),
        "weight_scale_N": torch.ones(4),
        **change,
    }
    with pytest.raises(ConfigError, match=words):
        matmul_int8(**given)


def test_under_no_grad_a_parameter_is_allowed():
    codes, scale, _ = _layer(8, 4)
    with torch.no_grad():
        y = matmul_int8(_x(2, 8).requires_grad_(), codes, scale)
    assert not y.requires_grad
