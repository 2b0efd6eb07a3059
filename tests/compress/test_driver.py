import copy

import pytest
import torch

from tests.compress.conftest import ToyAdapter, ToyModel
from todm.compress import packed
from todm.compress.config import CompressConfig, Int4Config, Int8Config, PruneConfig
from todm.compress.driver import compress
from todm.compress.plan import select
from todm.errors import ConfigError

X = torch.randn(3, 3, 9, generator=torch.Generator().manual_seed(5))


def _config(*passes, **settings):
    return CompressConfig(passes=passes, num_calibration=32, **settings)


def test_every_parameter_with_two_axes_has_a_row_in_every_pass(toy):
    result = compress(toy, _config("prune", "int8"))
    for report in result.reports:
        rows = {row.name: row for row in report.rows}
        assert set(rows) == {
            "gain", "front", "head",
            "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down",
        }  # fmt: skip
        assert rows["front"].why_not == "the front end"
        assert rows["gain"].why_not == "not a linear or convolution layer"
        assert all(rows[f"blocks.{i}.{n}"].done for i in (0, 1) for n in ("up", "down"))


def test_errors_go_from_pass_to_pass(toy):
    first, second = compress(toy, _config("prune", "int8")).reports
    a, b = (
        {row.name: row for row in report.rows if row.name.startswith("blocks")}
        for report in (first, second)
    )
    for name in a:
        assert a[name].before == 0
        assert a[name].after > 1e-3
        assert b[name].before == a[name].after
        assert b[name].after > a[name].after * 0.5


def test_the_reported_error_is_that_of_the_outputs():
    toy = ToyAdapter()
    before = copy.deepcopy(toy.model)
    seen = []
    hook = before.blocks[0].up.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    for batch in toy.calibration(8, None):
        before(batch)
    hook.remove()
    rows = torch.cat(seen).flatten(0, 1)
    config = CompressConfig(passes=("int4",), num_calibration=8)
    report = compress(toy, config).reports[0]
    ours = next(row.after for row in report.rows if row.name == "blocks.0.up")
    with torch.no_grad():
        expected, got = before.blocks[0].up(rows), toy.model.blocks[0].up(rows)
    wanted = float((got - expected).square().sum() / expected.square().sum())
    assert ours == pytest.approx(wanted, rel=0.3)  # ours is of a sample of the rows


def test_layers_outside_the_blocks_count_in_the_ratios(toy):
    report = compress(toy, _config("int8")).reports[0]
    rows = {row.name: row for row in report.rows}
    batches, items, frames = 8, 4, 11
    assert rows["front"].rows == batches * items * frames
    assert rows["head"].rows == rows["blocks.1.down"].rows == batches * items * frames
    assert rows["gain"].rows == 0
    front, head, block = 3 * 3 * 24, 24 * 5, 4 * 24 * 40
    expected = (front + head + block) / (front + head + block / 16)
    assert report.totals.ops_ratio == pytest.approx(expected)


def test_masks_stay_through_a_quantising_pass(toy):
    result = compress(toy, _config("prune", "int4"))
    assert len(result.masks) == 4
    for name, mask in result.masks.items():
        weight = toy.model.get_submodule(name).dense_weight()
        assert (weight[~mask] == 0).all()
        assert float(mask.float().mean()) == 0.5


def test_a_sparse_layer_ends_in_its_packed_form_and_computes_the_same(toy):
    result = compress(toy, _config("prune"))
    layer = toy.model.blocks[1].down
    assert isinstance(layer, packed.SparseLinear)
    plain = ToyModel().eval()
    state = {k: v for k, v in toy.model.state_dict().items() if not k.startswith("blocks")}
    plain.load_state_dict(state, strict=False)
    for i, block in enumerate(toy.model.blocks):
        plain.blocks[i].norm.load_state_dict(block.norm.state_dict())
        for name in ("up", "down"):
            mine, theirs = block.get_submodule(name), plain.blocks[i].get_submodule(name)
            theirs.weight.data.copy_(mine.dense_weight())
            theirs.bias.data.copy_(mine.bias)
    with torch.no_grad():
        assert torch.allclose(plain(X), toy.model(X), atol=1e-5)
    rows = {row.name: row for row in result.reports[0].rows}
    assert rows["blocks.1.down"].bytes_after < rows["blocks.1.down"].bytes_before
    assert rows["blocks.1.down"].bytes_after == layer.num_bytes


def test_other_patterns_than_2_4_are_counted_as_stored_dense(toy):
    config = _config("prune", prune=PruneConfig(n=1, m=4, method="magnitude"))
    result = compress(toy, config)
    assert isinstance(toy.model.blocks[0].up, torch.nn.Linear)
    row = next(row for row in result.reports[0].rows if row.name == "blocks.0.up")
    assert row.bytes_after == row.bytes_before
    assert row.density == 0.25


def test_blocks_are_in_memory_one_at_a_time(toy):
    compress(toy, _config("int8"))
    assert toy.entered == ["", "blocks.0", "blocks.1"]


def test_not_sequential_feeds_dense_outputs():
    results = {}
    for sequential in (True, False):
        toy = ToyAdapter()
        config = _config(
            "int8", int8=Int8Config(activations="static", range="absmax"), sequential=sequential
        )
        compress(toy, config)
        results[sequential] = [float(b.up.act_scale) for b in toy.model.blocks]
    assert results[True][0] == results[False][0]
    assert results[True][1] != results[False][1]


def test_a_layer_outside_the_blocks_can_be_included(toy):
    compress(toy, _config("int8", include=("head",)))
    assert isinstance(toy.model.head, packed.Int8Linear)


def test_a_layer_outside_the_blocks_leaves_the_rows_of_the_blocks_as_they_are():
    rows = {}
    for include in ((), ("head",)):
        reports = compress(ToyAdapter(), _config("prune", "int4", include=include)).reports
        rows[include] = [row for row in reports[0].rows if row.name.startswith("blocks")]
    assert rows[()] == rows[("head",)]


def test_a_named_layer_that_cannot_be_done_is_an_error(toy):
    with pytest.raises(ConfigError, match="front, which is named"):
        compress(toy, _config("int8", include=("front",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ("gain",)}, "only linear and convolution"),
        ({"exclude": ("nothing.*",)}, "fits no layer"),
        ({"exclude": ("blocks.*",)}, "no layer is left"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(toy, settings, message):
    before = copy.deepcopy(toy.model.state_dict())
    with pytest.raises(ConfigError, match=message):
        compress(toy, _config("int8", **settings))
    assert all((v == before[k]).all() for k, v in toy.model.state_dict().items())


def test_a_compressed_model_is_refused(toy):
    compress(toy, _config("int8", exclude=("blocks.1.*",)))
    with pytest.raises(ConfigError, match="compressed already"):
        compress(toy, _config("int8"))


def test_excluded_layers_stay(toy):
    before = toy.model.blocks[1].down.weight.clone()
    compress(toy, _config("int8", exclude=("*.1.down",)))
    assert (toy.model.blocks[1].down.weight == before).all()
    assert (
        "blocks.1.down" not in select(ToyAdapter(), _config("int8", exclude=("*.1.down",))).chosen
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"passes": ("int9",)},
            r"unknown pass 'int9'; choose from prune \(alias sparse24\), int8, int4, awq",
        ),
        ({"passes": ("sparse24",)}, r"\(did you mean prune\?\)"),
        ({"passes": ("int8", "prune")}, "comes last"),
        ({"passes": ("int8", "int4")}, "at most one"),
        ({"passes": ("prune", "prune")}, "at most once"),
        ({"passes": ()}, "no passes"),
    ],
)
def test_passes_that_do_not_go_together(toy, given, message):
    with pytest.raises(ConfigError, match=message):
        compress(toy, CompressConfig(**given))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PruneConfig(n=4, m=4),
        lambda: PruneConfig(method="sr_ste"),
        lambda: Int8Config(percentile=30.0),
        lambda: Int4Config(bits=5),
        lambda: Int4Config(group=48),
    ],
)
def test_settings_that_cannot_be(make):
    with pytest.raises(ConfigError):
        make()
