"""Letters: M rows, K inputs, N outputs, G groups of inputs."""

import dataclasses

import pytest
import torch

from tests.kernels.conftest import DEVICE, IMPLS, needs_triton
from todm.errors import ConfigError
from todm.kernels import _choice
from todm.kernels.matmul_w4 import (
    Awq,
    Packed,
    choice,
    from_awq,
    matmul_w4,
    pack,
    quantise_rtn,
    reference,
    to_awq,
    torch_impl,
)

# Relative norms. The interpreter cuts off where it should round to bfloat16.
RTOL = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}
NAN = float("nan")


def _x(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def _weight(N, K, bits=4, *, group=128, symmetric=False, input_scale=False):
    pre_quant_scale_K = torch.rand(K, device=DEVICE) + 0.5 if input_scale else None
    options = {"group": group, "symmetric": symmetric, "pre_quant_scale_K": pre_quant_scale_K}
    return quantise_rtn(_x(N, K), bits, **options)


def _error(got, want):
    assert got.shape == want.shape
    return float((got.double() - want.double()).norm() / want.double().norm())


def _codes(N, K, bits=4):
    return torch.randint(0, 1 << bits, (N, K), dtype=torch.uint8)


# Against the reference: one row, few rows, many rows and `dense` have separate kernels.


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("group", [32, 64, 128, None], ids=str)
@pytest.mark.parametrize("bits", [4, 3])
def test_formats(bits, group, impl):
    """The last group is short, or there is one; neither inputs nor outputs fill a tile."""
    symmetric = (group in (64, None)) == (bits == 4)
    weight = _weight(19, 168, bits, group=group, symmetric=symmetric, input_scale=symmetric)
    x, bias = _x(17, 168), _x(19)
    for rows in (1, 3, 17):
        want = matmul_w4(x[:rows], weight, bias_N=bias, impl="reference")
        assert _error(matmul_w4(x[:rows], weight, bias_N=bias, impl=impl), want) < 2e-6
    dense = matmul_w4(x[:3], weight, bias_N=bias, algorithm="dense", impl=impl)
    assert _error(dense, matmul_w4(x[:3], weight, bias_N=bias, impl="reference")) < 2e-6


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("M", "K", "N"),
    [(1, 5, 1), (1, 1100, 3), (3, 1100, 5), (16, 128, 16), (33, 130, 33), (64, 20, 40)],
    ids=str,
)
def test_sizes(M, K, N, impl):
    """With 1100 inputs the work on few rows is split along them."""
    x, weight = _x(M, K), _weight(N, K)
    assert _error(matmul_w4(x, weight, impl=impl), matmul_w4(x, weight, impl="reference")) < 2e-6


@pytest.mark.parametrize("algorithm", ["measured", "fused"])
@pytest.mark.parametrize("impl", IMPLS)
def test_many_rows(impl, algorithm):
    x, weight = _x(1024, 40), _weight(7, 40, input_scale=True)
    got = matmul_w4(x, weight, bias_N=_x(7) * 0, algorithm=algorithm, impl=impl)
    assert _error(got, matmul_w4(x, weight, impl="reference")) < 2e-6


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("algorithm", ["fused", "dense"])
@pytest.mark.parametrize("M", [1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype, M, algorithm, impl):
    weight, bias = _weight(19, 70, group=32, input_scale=True), _x(19)
    x = _x(M, 70, dtype=dtype)
    got = matmul_w4(x, weight, bias_N=bias, algorithm=algorithm, impl=impl)
    assert got.dtype == dtype
    assert _error(got, matmul_w4(x, weight, bias_N=bias, impl="reference")) < RTOL[dtype]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scales_of_other_dtypes(dtype, impl):
    weight = _weight(6, 40)
    weight = dataclasses.replace(weight, scale_NG=weight.scale_NG.to(dtype))
    x = _x(2, 40)
    assert _error(matmul_w4(x, weight, impl=impl), matmul_w4(x, weight, impl="reference")) < 2e-6


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_an_identity_shows_the_dequantised_weight(impl):
    """Bit for bit: only one product of a sum is not zero, and nothing else is rounded."""
    for bits in (4, 3):
        weight = _weight(9, 160, bits, group=32)
        got = matmul_w4(torch.eye(160, device=DEVICE), weight, algorithm="fused", impl=impl)
        assert torch.equal(got, weight.dequantise().t())


@needs_triton
@pytest.mark.parametrize("bits", [4, 3])
def test_the_dequantising_kernel_is_torchs_bit_for_bit(bits):
    from todm.kernels.matmul_w4 import triton_impl

    for group in (32, None):
        weight = _weight(35, 150, bits, group=group)
        for dtype in (torch.float32, torch.float16):
            got = triton_impl.dequantise(weight, dtype)
            assert torch.equal(got, weight.dequantise(dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_strides_and_leading_axes(impl):
    weight, bias = _weight(10, 48), _x(20)[::2]
    x = _x(48, 3, 2).permute(2, 1, 0)
    got = matmul_w4(x, weight, bias_N=bias, impl=impl)
    want = matmul_w4(x.contiguous().flatten(0, 1), weight, bias_N=bias, impl="reference")
    assert _error(got, want.reshape(2, 3, 10)) < 2e-6
    for odd in (_x(6, 96)[:, ::2], _x(6, 50)[:, 1:49], _x(7, 48)[1:]):
        got = matmul_w4(odd, weight, impl=impl)
        assert _error(got, matmul_w4(odd, weight, impl="reference")) < 2e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_a_weight_of_any_strides(impl):
    weight, x = _weight(6, 40, group=32), _x(3, 40)
    parts = ("words_NJ", "scale_NG", "zero_NG")
    turned = {n: getattr(weight, n).t().contiguous().t() for n in parts}
    same = dataclasses.replace(weight, **turned)
    assert torch.equal(matmul_w4(x, same, impl=impl), matmul_w4(x, weight, impl=impl))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf times zero
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("M", [4, 20], ids=["few rows", "rows"])
def test_a_row_that_is_not_finite_affects_itself_only(M, impl):
    x, weight = _x(M, 70), _weight(18, 70)
    whole = matmul_w4(x, weight, impl=impl)
    x[0, 69], x[1, 3] = NAN, float("inf")
    got = matmul_w4(x, weight, impl=impl)
    assert got[0].isnan().all()
    assert not got[1].isfinite().any()
    assert torch.equal(got[2:], whole[2:])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("M", [1, 3, 20])
def test_the_same_call_gives_the_same_bits(M, impl):
    x, weight = _x(M, 1100), _weight(5, 1100)
    first, second = (matmul_w4(x, weight, impl=impl) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_no_rows(impl):
    for shape in ((0, 40), (2, 0, 40)):
        got = matmul_w4(_x(*shape, dtype=torch.float16), _weight(5, 40), impl=impl)
        assert (tuple(got.shape), got.dtype) == ((*shape[:-1], 5), torch.float16)


def test_autocast_leaves_it_alone():
    x, weight = _x(3, 300), _weight(4, 300)
    want = matmul_w4(x, weight, impl="torch")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(matmul_w4(x, weight, impl="torch"), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_dequantised_copy_is_made_once_for_each_dtype(impl):
    x, weight = _x(2, 40), _weight(3, 40)
    want = matmul_w4(x, weight, algorithm="dense", impl=impl)
    assert weight.copies == {}
    for _ in range(2):
        assert torch.equal(
            matmul_w4(x, weight, algorithm="dense", cache_dequantised=True, impl=impl), want
        )
    kept = weight.copies[torch.float32]
    matmul_w4(x.half(), weight, algorithm="dense", cache_dequantised=True, impl=impl)
    assert weight.copies[torch.float32] is kept
    assert weight.copies[torch.float16].dtype == torch.float16
    assert weight.to("cpu").copies == {}


# Layouts.


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("K", [1, 128, 300])
def test_codes_survive_packing(K, bits):
    codes = _codes(5, K, bits)
    weight = pack(codes, torch.ones(5, 1).half(), bits=bits, group=None)
    assert torch.equal(weight.codes_NK(), codes)
    steps = codes.double() - 2 ** (bits - 1)
    assert torch.equal(reference.dequantise(weight), steps)
    assert weight.num_bytes == 5 * (-(-K // 128) * 16 * bits + 2)


def test_words_of_4_bits_hold_every_sixteenth_input():
    codes = torch.zeros(1, 128, dtype=torch.uint8)
    codes[0, 2::16] = torch.arange(1, 9)
    words = pack(codes, torch.ones(1, 1).half()).words_NJ
    assert words.tolist() == [[0, 0, 0x87654321 - 2**32, *[0] * 13]]


def test_words_of_3_bits_hold_every_fourth_input():
    codes = torch.zeros(1, 128, dtype=torch.uint8)
    lane = torch.arange(32) % 8  # codes 30 and 31 are 6 and 7
    codes[0, 1::4] = lane.to(torch.uint8)
    words = pack(codes, torch.ones(1, 1).half(), bits=3).words_NJ.view(3, 4)
    low = [sum((10 * i + t) % 8 << 3 * t for t in range(10)) for i in range(3)]
    want = [low[0] + (2 << 30), low[1] + (3 << 30), low[2] + (3 << 30)]
    assert (words[:, 1].long() % 2**32).tolist() == want
    assert words[:, [0, 2, 3]].tolist() == [[0] * 3] * 3


def test_awqs_layout_by_hand():
    """Outputs 0 to 7 have codes 1 to 8 and zero points 8 to 1; nibbles are 0 2 4 6 1 3 5 7."""
    codes = torch.arange(1, 9, dtype=torch.uint8)[:, None].expand(8, 32)
    zero, scale = torch.arange(8, 0, -1, dtype=torch.uint8)[:, None], torch.ones(8, 1).half()
    got = to_awq(pack(codes, scale * torch.arange(8)[:, None], zero_NG=zero, group=32))
    assert (got.qweight.long() % 2**32).tolist() == [[0x86427531]] * 32
    assert (got.qzeros.long() % 2**32).tolist() == [[0x13572468]]
    assert got.scales.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("N", "K", "group"), [(16, 256, 128), (5, 100, 64), (24, 70, None)])
def test_awq_and_back(N, K, group):
    weight = _weight(N, K, group=group)
    awq = to_awq(weight)
    assert awq.qweight.shape == (K, -(-N // 8))
    back = from_awq(awq, group=group, num_outputs=N)
    for name in ("words_NJ", "scale_NG", "zero_NG"):
        assert torch.equal(getattr(back, name), getattr(weight, name))
    again = to_awq(back)
    assert all(torch.equal(a, b) for a, b in zip(again, awq, strict=True))


def test_a_foreign_checkpoint_goes_through_unchanged():
    draw = {"dtype": torch.int32, "low": -(2**31), "high": 2**31 - 1}
    given = Awq(
        torch.randint(size=(64, 3), **draw),
        torch.randint(size=(2, 3), **draw),
        torch.rand(2, 24).half(),
    )
    back = to_awq(from_awq(given, group=32))
    assert all(torch.equal(a, b) for a, b in zip(back, given, strict=True))


def test_a_symmetric_weight_gets_zero_points_for_awq():
    weight = _weight(8, 64, group=32, symmetric=True)
    back = from_awq(to_awq(weight), group=32)
    assert torch.equal(back.dequantise(), weight.dequantise())


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (_weight(8, 64, 3), "holds 4 bits, this weight has 3"),
        (_weight(8, 64, input_scale=True), "has no place for pre_quant_scale_K"),
        (
            pack(_codes(8, 64), torch.ones(8, 1)),
            r"has float16 scales, this weight torch\.float32",
        ),
    ],
    ids=["3 bits", "input_scale", "scales"],
)
def test_what_awqs_layout_cannot_express(weight, words):
    with pytest.raises(ConfigError, match=words):
        to_awq(weight)


def test_awq_tensors_that_do_not_belong_together():
    awq = to_awq(_weight(16, 128, group=64))
    for group in (128, 32, None):
        with pytest.raises(ConfigError, match="give the checkpoint's group_size"):
            from_awq(awq, group=group)
    with pytest.raises(ConfigError, match="2 columns hold 8 outputs each, not 8 in all"):
        from_awq(awq, group=64, num_outputs=8)


# Quantising.


@pytest.mark.parametrize("symmetric", [False, True], ids=["zeros", "symmetric"])
@pytest.mark.parametrize("bits", [4, 3])
def test_rounding_is_to_the_nearest_code(bits, symmetric):
    weight = torch.randn(6, 100)
    weight[0], weight[1] = weight[0].abs() + 1, 0  # one sign, where a zero point would be clipped
    packed = quantise_rtn(weight, bits, group=32, symmetric=symmetric)
    scale = packed.scale_NG.float().repeat_interleave(32, 1)[:, :100]
    # Half a step; at the ends the rounding of the zero point adds to it.
    assert ((packed.dequantise() - weight).abs() <= scale * (0.501 if symmetric else 1.01)).all()
    assert packed.dequantise()[1].eq(0).all()
    assert (packed.zero_NG is None) == symmetric


def test_ends_of_a_group_have_the_outermost_codes():
    weight = torch.tensor([[-3.5, 0.0, 4.0, 0.3]])
    packed = quantise_rtn(weight, group=None)
    assert packed.scale_NG.tolist() == [[0.5]]
    assert packed.zero_NG.tolist() == [[7]]
    assert packed.codes_NK().tolist() == [[0, 7, 15, 8]]
    packed = quantise_rtn(weight, 3, group=None, symmetric=True)
    assert packed.codes_NK().tolist() == [[1, 4, 7, 4]]


def test_more_bits_and_smaller_groups_are_nearer():
    weight = torch.randn(8, 512)
    errors = [
        _error(quantise_rtn(weight, bits, group=group).dequantise(), weight)
        for bits, group in ((4, 32), (4, 128), (3, 32), (3, 128))
    ]
    assert errors == sorted(errors)
    assert errors[-1] < 0.25


@pytest.mark.parametrize(
    ("weight", "options", "words"),
    [
        (torch.ones(3), {}, r"\(3,\); a floating \[N, K\]"),
        (torch.tensor([[1.0], [NAN]]), {"group": None}, "output 1 holds a number that is not fin"),
        (torch.full((1, 4), 1e8), {}, "output 0 .* too large for a float16 scale"),
        (torch.ones(2, 4), {"bits": 2}, "2 bits are given, allowed are 3 and 4"),
        (torch.ones(2, 4), {"group": 16}, "groups of 16 .* allowed are 32, 64, 128, or all 4"),
        (
            torch.ones(2, 4),
            {"pre_quant_scale_K": torch.ones(3)},
            r"pre_quant_scale_K is torch.float32 \(3,\); .* 4 inputs",
        ),
    ],
    ids=["axes", "NaN", "large", "bits", "group", "input_scale"],
)
def test_weights_that_cannot_be_quantised(weight, options, words):
    with pytest.raises(ConfigError, match=words):
        quantise_rtn(weight, **options)


# Which algorithm is taken.


def test_without_a_gpu_the_algorithm_goes_by_rows():
    names = [choice.by_rows(rows, cached=False) for rows in (1, 511, 512)]
    assert names == ["fused", "fused", "dense"]
    assert choice.by_rows(1, cached=True) == "dense"


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU goes by its table")
def test_a_copy_once_made_is_used_on_a_cpu():
    x, weight = _x(2, 40), _weight(3, 40)
    matmul_w4(x, weight, cache_dequantised=True, impl="torch")
    weight.copies[torch.float32].zero_()
    assert matmul_w4(x, weight, cache_dequantised=True, impl="torch").eq(0).all()


def _pretend_to_measure(monkeypatch, tmp_path, *, capturing=False):
    """A table in `tmp_path` by which `dense` takes 1 ms and `fused` 2; the calls it has timed."""
    calls = []

    def timer(call):
        calls.append((call.func.__name__, *call.args))
        return {"dense": 1.0, "fused": 2.0}[calls[-1][0]]

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    table = _choice.Table(tmp_path / "t.json", timer)
    monkeypatch.setattr(_choice, "table", {"matmul_w4": table}.get)
    return calls


def _problem(M, weight, **options):
    options = {"bias_N": None, "algorithm": "measured", "cache_dequantised": False, **options}
    return choice.Problem(x_MK=torch.ones(M, weight.shape[1]).half(), weight=weight, **options)


def test_a_shape_is_measured_once_on_a_bucket_of_rows(monkeypatch, tmp_path):
    calls = _pretend_to_measure(monkeypatch, tmp_path)
    weight = _weight(8, 64).to("cpu")
    before = torch.get_rng_state()
    for _ in range(2):
        assert choice.measured(_problem(20, weight), torch_impl.ALGORITHMS) == "dense"
    assert torch.equal(torch.get_rng_state(), before)
    assert [(name, problem.x_MK.shape[0]) for name, problem in calls] == [
        ("fused", 32),
        ("dense", 32),
    ]


def test_all_that_changes_the_work_is_in_the_tables_key(monkeypatch, tmp_path):
    _pretend_to_measure(monkeypatch, tmp_path)
    weights = [
        _weight(8, 64).to("cpu"),
        _weight(8, 64, 3).to("cpu"),
        _weight(8, 64, group=32).to("cpu"),
        _weight(8, 64, symmetric=True).to("cpu"),
        _weight(8, 64, input_scale=True).to("cpu"),
    ]
    keys = {choice.shape_of(_problem(20, weight)).key() for weight in weights}
    keys.add(choice.shape_of(_problem(20, weights[0], cache_dequantised=True)).key())
    assert len(keys) == 6
    assert choice.shape_of(_problem(20, weights[0])).dtype == "float16 w4 g128 zero"


def test_nothing_is_measured_inside_a_cuda_graph(monkeypatch, tmp_path):
    _pretend_to_measure(monkeypatch, tmp_path, capturing=True)
    with pytest.raises(
        ConfigError, match=r"^matmul_w4: 32 rows .* or give algorithm='fused' or algorithm='dense'$"
    ):
        choice.measured(_problem(20, _weight(4, 32).to("cpu")), torch_impl.ALGORITHMS)


# What does not fit.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(2, 7)}, r"shape \(2, 7\); the weight's 40 inputs must be its last axis"),
        ({"x": torch.ones(())}, "the weight's 40 inputs must be its last axis"),
        ({"x": torch.ones(2, 40, dtype=torch.float64)}, "the activation is torch.float64, allowed"),
        ({"bias_N": torch.ones(4)}, r"bias_N is torch.float32 \(4,\); with 3 outputs"),
        ({"algorithm": "sparse"}, "algorithm 'sparse' is not measured | fused | dense"),
        ({"bias_N": torch.ones(3, device="meta")}, "tensors are on cpu and meta"),
        (
            {"x": torch.ones(2, 40, requires_grad=True)},
            "it has no gradient, but an argument requires one",
        ),
        ({"impl": "cuda"}, "impl asks for 'cuda', which matmul_w4 does not have"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_named(change, words):
    given = {"x": torch.ones(2, 40), "weight": _weight(3, 40).to("cpu"), **change}
    with pytest.raises(ConfigError, match=words):
        matmul_w4(**given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"words_NJ": torch.zeros(3, 12, dtype=torch.int32)}, r"need int32 \[N, 16\]"),
        ({"words_NJ": torch.zeros(3, 16)}, r"words_NJ is torch.float32"),
        ({"num_inputs": 200}, r"200 inputs need int32 \[N, 32\]"),
        ({"scale_NG": torch.ones(3, 3)}, r"scale_NG is .*; finite floating numbers \(3, 2\)"),
        ({"scale_NG": torch.full((3, 2), NAN)}, "finite floating numbers"),
        ({"zero_NG": torch.ones(3, 2)}, r"zero_NG is torch.float32 .* or None for a symmetric"),
        (
            {"zero_NG": torch.full((3, 2), 16, dtype=torch.uint8)},
            "zero_NG holds 16, but 4 bits end at 15",
        ),
        ({"pre_quant_scale_K": torch.ones(41)}, r"pre_quant_scale_K is torch.float32 \(41,\)"),
        (
            {"pre_quant_scale_K": torch.ones(40, dtype=torch.int32)},
            "pre_quant_scale_K is torch.int32",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parts_that_do_not_belong_together(change, words):
    weight = _weight(3, 40, group=32).to("cpu")
    with pytest.raises(ConfigError, match=words):
        Packed(**{**vars(weight), **change})


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.zeros(4, dtype=torch.uint8), r"the codes are torch.uint8 \(4,\)"),
        (torch.zeros(4, 32), "the codes are torch.float32"),
        (torch.full((4, 32), 16, dtype=torch.uint8), "codes_NK holds 16, but 4 bits end at 15"),
    ],
    ids=["axes", "dtype", "code"],
)
def test_codes_that_cannot_be_packed(codes, words):
    with pytest.raises(ConfigError, match=words):
        pack(codes, torch.ones(4, 1), group=32)
