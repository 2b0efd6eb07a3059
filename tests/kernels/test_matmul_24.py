"""Letters: M rows, K inputs, N outputs, G groups of four inputs."""

import pytest
import torch
from torch.sparse import _semi_structured_conversions as cutlass

from tests.kernels.conftest import DEVICE
from todm.errors import ConfigError
from todm.kernels import _choice
from todm.kernels.matmul_24 import Packed, check_24, matmul_24, pack, semi, torch_impl
from todm.kernels.matmul_int8 import matmul_int8

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SIZES = [(1, 4, 3), (3, 6, 17), (16, 64, 16), (33, 131, 9), (64, 9, 17)]
# The interpreter cuts off where it should round to bfloat16.
RTOL = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.int8: 1e-6}


def _weight(N, K, dtype=torch.float32):
    """A 2:4 weight; some of its groups have more zeros than two."""
    groups = torch.randn(N, -(-K // 4), 4) * 30
    small = groups.abs().argsort(-1)[..., :2]
    groups = groups.scatter(-1, small, 0.0)
    groups = groups.where(torch.rand(groups.shape) > 0.2, torch.zeros(()))
    weight = groups.flatten(1)[:, :K]
    return (weight.clamp(-127, 127) if dtype == torch.int8 else weight).to(dtype).to(DEVICE)


def _packed(N, K, dtype=torch.float32):
    scale = torch.rand(N, device=DEVICE) + 0.5 if dtype == torch.int8 else None
    return pack(_weight(N, K, dtype), scale_N=scale)


def _x(*shape, dtype=torch.float32):
    return torch.randn(*shape, device=DEVICE).to(torch.float32 if dtype == torch.int8 else dtype)


def _error(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_is_the_references(size, dtype):
    M, K, N = size
    x, weight, bias = _x(M, K, dtype=dtype), _packed(N, K, dtype), torch.randn(N, device=DEVICE)
    got = matmul_24(x, weight, bias_N=bias, impl="torch")
    assert _error(got, matmul_24(x, weight, bias_N=bias, impl="reference")) < RTOL[dtype]


def test_many_rows():
    x, weight = _x(1024, 12, dtype=torch.float16), _packed(5, 12, torch.float16)
    want = matmul_24(x, weight, impl="reference")
    assert _error(matmul_24(x, weight, impl="torch"), want) < RTOL[torch.float16]


@pytest.mark.parametrize("static", [False, True], ids=["per row", "per tensor"])
def test_int8_is_matmul_int8_of_the_expanded_weight(static):
    x, weight = _x(5, 68, dtype=torch.bfloat16), _packed(19, 68, torch.int8)
    x[1, 3] = float("nan")
    scale = torch.tensor(0.02, device=DEVICE) if static else None
    options = {"act_scale": scale, "out_dtype": torch.float32}
    got = matmul_24(x, weight, **options, impl="torch")
    want = matmul_int8(x, weight.dense_NK, weight.scale_N, **options, impl="reference")
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert got[1].isnan().all()
    assert got[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_strides_and_leading_axes(dtype):
    x, weight = _x(24, 3, 2, dtype=dtype).permute(2, 1, 0), _packed(6, 24, dtype)
    got = matmul_24(x, weight, impl="torch")
    want = matmul_24(x.contiguous().flatten(0, 1), weight, impl="reference").reshape(2, 3, 6)
    assert _error(got, want) < RTOL[dtype]


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_no_rows_and_a_single_vector(impl):
    weight = _packed(5, 8)
    assert matmul_24(_x(2, 0, 8), weight, impl=impl).shape == (2, 0, 5)
    x = _x(8)
    want = x.double() @ weight.dense_NK.double().t()
    torch.testing.assert_close(matmul_24(x, weight, impl=impl).double(), want, rtol=1e-5, atol=1e-4)


def test_the_same_call_gives_the_same_bits():
    x, weight = _x(9, 40, dtype=torch.float16), _packed(18, 40, torch.float16)
    assert torch.equal(matmul_24(x, weight, impl="torch"), matmul_24(x, weight, impl="torch"))


def test_autocast_leaves_it_alone():
    x, weight = _x(3, 64), _packed(4, 64)
    want = matmul_24(x, weight, impl="torch")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(matmul_24(x, weight, impl="torch"), want)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=str)
@pytest.mark.parametrize("K", [1, 2, 4, 5, 8, 12, 36, 63])
def test_packing_loses_nothing(K, dtype):
    weight = _weight(7, K, dtype)
    weight[0] = 0
    packed = pack(weight, scale_N=torch.ones(7, device=DEVICE) if dtype == torch.int8 else None)
    assert torch.equal(packed.dense_NK, weight)
    first, second = packed.positions()
    assert (first < second).all()


def test_packing_keeps_any_two_of_four():
    """All sixteen patterns of a group, those with more than two non-zeros left out."""
    patterns = torch.tensor([[i >> b & 1 for b in range(4)] for i in range(16)]).float()
    weight = patterns[patterns.sum(1) <= 2] * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert len(weight) == 11
    assert torch.equal(pack(weight).dense_NK, weight)


def test_bytes_of_a_packed_weight():
    """20 of 32 bits with int8, 36 of 64 with sixteen bits; low nibbles first."""
    assert _packed(4, 64, torch.int8).num_bytes * 32 == 4 * 64 * 20
    assert _packed(4, 64, torch.float16).num_bytes * 64 == 4 * 64 * 2 * 36
    packed = pack(torch.tensor([[0.0, 5, 0, 6, 7, 8, 0, 0]]))
    assert packed.values_NH.tolist() == [[5, 6, 7, 8]]
    assert packed.codes_NC.tolist() == [[(1 | 3 << 2) | (0 | 1 << 2) << 4]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_values_are_those_that_cutlass_keeps(dtype):
    """Where every group has two non-zeros there is one way to pack it."""
    groups = torch.randint(1, 100, (32, 32, 4)).scatter(
        -1, torch.rand(32, 32, 4).argsort(-1)[..., :2], 0
    )
    weight = groups.flatten(1).to(dtype)
    packed = pack(weight, scale_N=torch.ones(32) if dtype == torch.int8 else None)
    values, meta = cutlass.sparse_semi_structured_from_dense_cutlass(weight)
    assert torch.equal(packed.values_NH, values)
    assert torch.equal(
        packed.dense_NK, cutlass.sparse_semi_structured_to_dense_cutlass(values, meta)
    )


def test_a_weight_that_is_not_24_is_refused():
    weight = _weight(6, 24).cpu()
    weight[4, 20:23] = 1.0
    words = r"output 4, group 5 \(inputs 20 to 23\) has 3 non-zeros, allowed are 2 of 4"
    for refuse in (check_24, pack):
        with pytest.raises(ConfigError, match=words):
            refuse(weight)


def test_a_packed_weight_moves_whole():
    packed = _packed(3, 8, torch.int8)
    moved = packed.to("cpu")
    assert torch.equal(moved.dense_NK, packed.dense_NK.cpu())
    assert moved.shape == (3, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"values_NH": torch.ones(2, 3)},
            r"values \(2, 3\) and codes \(2, 1\) are not the \[N, 4\]",
        ),
        ({"codes_NC": torch.full((2, 2), 0x44, dtype=torch.uint8)}, r"\[N, 1\] of 8 inputs"),
        ({"values_NH": torch.ones(2, 4, dtype=torch.float64)}, "values are torch.float64"),
        (
            {"codes_NC": torch.tensor([[0x44], [0x04]], dtype=torch.uint8)},
            "output 1, group 1 does not name two",
        ),
        ({"values_NH": torch.ones(2, 4, dtype=torch.int8)}, "int8 values need scale_N"),
        ({"scale_N": torch.ones(2)}, "other values have none"),
    ],
    ids=["values", "codes", "dtype", "positions", "no scale", "scale"],
)
def test_damaged_parts_are_named(change, words):
    codes = torch.full((2, 1), 0x44, dtype=torch.uint8)
    parts = {"values_NH": torch.ones(2, 4), "codes_NC": codes, "num_inputs": 8}
    Packed(**parts)
    with pytest.raises(ConfigError, match=words):
        Packed(**{**parts, **change})


@pytest.mark.parametrize(
    ("dtype", "change", "words"),
    [
        ("float32", {"x": torch.ones(2, 7)}, "the weight's 8 inputs must be its last axis"),
        ("float16", {}, "the activation is torch.float32, the weight torch.float16"),
        (
            "float32",
            {"out_dtype": torch.float16},
            "they must be the same unless the weight is int8",
        ),
        ("float32", {"act_scale": torch.ones(())}, "act_scale is for int8 weights"),
        ("int8", {"act_scale": torch.ones(3)}, "one floating number"),
        ("int8", {"out_dtype": torch.int8}, "out_dtype is torch.int8, allowed are"),
        ("float32", {"bias_N": torch.ones(3)}, "bias_N is torch.float32"),
        ("float32", {"algorithm": "fast"}, "algorithm 'fast' is not measured"),
        (
            "float32",
            {"algorithm": "sparse"},
            "algorithm='sparse' has no kernel for torch.float32 on cpu",
        ),
        ("float32", {"x": torch.ones(2, 8, requires_grad=True)}, "it has no gradient"),
        ("float32", {"impl": "cuda"}, "impl asks for 'cuda', which matmul_24 does not have"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_named(dtype, change, words):
    weight = _packed(4, 8, getattr(torch, dtype)).to("cpu")
    given = {"x": torch.ones(2, 8), "weight": weight, **change}
    with pytest.raises(ConfigError, match=words):
        matmul_24(**given)


# The libraries' bindings run on a GPU only; these fakes are as strict about sizes.


def _emulate(monkeypatch, n, k, m):
    """Both bindings, as dense products, with the multiples that N, K and M must have."""

    def compress(dense_NK):
        assert dense_NK.is_contiguous()
        assert dense_NK.shape[0] % n == dense_NK.shape[1] % k == 0
        return dense_NK

    def product(dense_NK, b_KM, bias, out_dtype):
        assert b_KM.shape[1] % m == 0
        assert b_KM.stride(0) == 1
        assert (out_dtype == torch.int32) == (b_KM.dtype == torch.int8)
        y_NM = dense_NK.double() @ b_KM.double()
        return (y_NM if bias is None else y_NM + bias.double()[:, None]).to(out_dtype or b_KM.dtype)

    def from_cutlass(values, meta):
        return compress(cutlass.sparse_semi_structured_to_dense_cutlass(values, meta))

    fakes = {
        "_cslt_compress": compress,
        "_cslt_sparse_mm": lambda a, b, bias, out_dtype: product(a, b, bias, out_dtype),
        "_sparse_semi_structured_mm": lambda a, e, b, out_dtype: product(
            from_cutlass(a, e), b, None, out_dtype
        ),
        "_sparse_semi_structured_addmm": lambda bias, a, e, b: product(
            from_cutlass(a, e), b, bias, None
        ),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch, name, fake)


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("size", [(1, 4, 3), (17, 130, 33), (32, 128, 64)], ids=str)
@pytest.mark.parametrize(
    ("library", "dtype", "multiples"),
    [
        ("cusparselt", torch.float16, (16, 16, 8)),
        ("cusparselt", torch.int8, (32, 32, 16)),
        ("cutlass", torch.bfloat16, (32, 64, 8)),
        ("cutlass", torch.int8, (16, 128, 16)),
    ],
    ids=str,
)
def test_padding_for_the_libraries(monkeypatch, library, dtype, multiples, size, with_bias):
    M, K, N = size
    _emulate(monkeypatch, *multiples)
    monkeypatch.setattr(semi, "library", lambda device: library)
    x, weight = _x(M, K, dtype=dtype).cpu(), _packed(N, K, dtype).to("cpu")
    bias = torch.randn(N) if with_bias else None
    got = matmul_24(x, weight, bias_N=bias, algorithm="sparse", impl="torch")
    assert got.is_contiguous()
    assert _error(got, matmul_24(x, weight, bias_N=bias, impl="reference")) < RTOL[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("size", [(1, 4, 3), (17, 130, 33), (256, 512, 384)], ids=str)
def test_sparse_kernels(size, dtype):
    M, K, N = size
    x, weight, bias = _x(M, K, dtype=dtype), _packed(N, K, dtype), torch.randn(N, device=DEVICE)
    got = matmul_24(x, weight, bias_N=bias, algorithm="sparse", impl="torch")
    assert _error(got, matmul_24(x, weight, bias_N=bias, impl="reference")) < RTOL[dtype]


# Which algorithm is taken.


def test_a_measured_call_takes_the_faster_algorithm(monkeypatch, tmp_path):
    """From the op to the table: the candidates are the algorithms, on as many rows as the entry has."""
    monkeypatch.setattr(semi, "library", lambda device: "cusparselt")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    seen = []
    for name in ("dense", "sparse"):
        monkeypatch.setitem(
            torch_impl.ALGORITHMS, name, lambda p, name=name: seen.append((name, p)) or p.x_MK
        )
    times = iter([2.0, 1.0])
    table = _choice.Table(tmp_path / "t.json", lambda call: (call(), next(times))[1])
    monkeypatch.setattr(_choice, "table", {"matmul_24": table}.get)
    weight = _packed(8, 8, torch.float16).to("cpu")
    before = torch.get_rng_state()
    matmul_24(torch.ones(20, 8, dtype=torch.float16), weight, impl="torch")
    assert torch.equal(torch.get_rng_state(), before)
    assert [(name, p.x_MK.shape[0]) for name, p in seen] == [
        ("dense", 32),
        ("sparse", 32),
        ("sparse", 20),
    ]


def test_nothing_is_measured_inside_a_cuda_graph(monkeypatch, tmp_path):
    monkeypatch.setattr(semi, "library", lambda device: "cusparselt")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(_choice, "table", lambda op: _choice.Table(tmp_path / "t.json"))
    weight = _packed(4, 8, torch.float16).to("cpu")
    with pytest.raises(
        ConfigError,
        match=r"^matmul_24: 16 rows .* or give algorithm='dense' or algorithm='sparse'$",
    ):
        matmul_24(torch.ones(2, 8, dtype=torch.float16), weight, impl="torch")


def test_on_a_cpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(_choice, "table", None)
    assert matmul_24(torch.ones(2, 8), _packed(4, 8).to("cpu"), impl="torch").shape == (2, 4)
