import copy

import pytest
import torch

from todm.compress.analyse import DENSE, Sensitivity, analyse, kind_of
from todm.compress.config import CompressConfig, Int8Config, TuneConfig
from todm.compress.plots import plot_report, plot_sensitivity
from todm.compress.report import PassReport, Row
from todm.errors import ConfigError

CONFIG = CompressConfig(passes=("int4",), num_calibration=8).override(
    ["int4.group=32", "int4.bits=3"]
)


def outputs(toy):
    x = torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(5))
    dense = copy.deepcopy(toy.model)

    def measure(model):
        with torch.no_grad():
            return 1 + float((model(x) - dense(x)).square().mean())

    return measure


def test_each_layer_and_kind_alone_is_measured_and_the_model_put_back(toy):
    before = copy.deepcopy(toy.model.state_dict())
    modules = dict(toy.model.named_modules())
    found = analyse(toy, CONFIG, outputs(toy), tolerance=0.0)
    layers = [f"blocks.{b}.{n}" for b in (0, 1) for n in ("up", "down")]
    assert set(found.values) == {DENSE, "blocks.*.up", "blocks.*.down", *layers}
    assert found.values[DENSE] == 1
    assert all(found.values[name] > 1 for name in layers)
    assert found.layers["blocks.*.up"] == ("blocks.0.up", "blocks.1.up")
    for name, module in toy.model.named_modules():
        assert module is modules[name]
    assert all(torch.equal(value, before[k]) for k, value in toy.model.state_dict().items())
    assert sorted(found.exclude) == sorted(layers), "nothing may cost anything"


def test_a_layer_s_value_is_that_of_the_pass_on_it_alone(toy):
    from todm.compress.driver import compress

    measure = outputs(toy)
    found = analyse(toy, CONFIG, measure, tolerance=0.0)
    others = ("blocks.0.up", "blocks.0.down", "blocks.1.up")
    compress(toy, CONFIG.replace(exclude=others))
    assert measure(toy.model) == found.values["blocks.1.down"]


def test_layers_kept_dense_count_when_they_are_included(toy):
    found = analyse(toy, CONFIG.replace(include=("head",)), outputs(toy), tolerance=0.0)
    assert found.values["head"] > 1


def test_an_interrupted_analysis_goes_on(toy):
    kept, calls = {}, []
    measure = outputs(toy)

    def counted(model):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(model)

    with pytest.raises(KeyboardInterrupt):
        analyse(toy, CONFIG, counted, tolerance=0.1, keep=kept.update)
    assert len(kept) == 3
    assert type(toy.model.blocks[0].up).__name__ == "Linear", "put back"
    found = analyse(toy, CONFIG, counted, tolerance=0.1, known=kept)
    assert len(calls) == 4 + 7 - 3
    assert found.values == analyse(toy, CONFIG, measure, tolerance=0.1).values


def test_the_dearest_layers_are_left_out_until_the_rest_is_cheap():
    values = {DENSE: 2.0, "a": 2.2, "b": 2.02, "c": 2.04, "d": 1.9, "kind.*": 9.0}
    layers = {"a": ("a",), "b": ("b",), "c": ("c",), "d": ("d",), "kind.*": ("a", "b")}

    def exclude(tolerance):
        return Sensitivity(values=values, layers=layers, tolerance=tolerance).exclude

    assert exclude(0.14) == []  # 10 % + 1 % + 2 %, and a gain does not pay for a loss
    assert exclude(0.12) == ["a"]
    assert exclude(0.02) == ["a", "c"]
    assert exclude(0.0) == ["a", "c", "b"]
    assert next(iter(Sensitivity(values=values, layers=layers, tolerance=0).increases)) == "kind.*"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("encoder.blocks.11.mixer.w_in", "encoder.blocks.*.mixer.w_in"),
        ("layers.0.1.fc2", "layers.*.*.fc2"),
        ("head", "head"),
    ],
)
def test_kinds_leave_numbers_open(name, kind):
    assert kind_of(name) == kind


def test_a_pass_that_trains_is_refused(toy):
    tuned = CompressConfig(passes=("int8",), int8=Int8Config(tune=TuneConfig(updates=5)))
    with pytest.raises(ConfigError, match=r"leave int8\.tune\.updates at 0"):
        analyse(toy, tuned, outputs(toy), tolerance=0.1)


def test_plots_are_written(tmp_path):
    rows = [Row(name=f"l{i}", kind="linear 3x3", done="x", before=0.0, after=0.0) for i in (1, 2)]
    rows.append(Row(name="front", kind="conv", why_not="kept"))
    curves = [{"update": 1, "loss": 2.0}, {"update": 9, "loss": 1.0, "flip_rate": 0.0}]
    report = PassReport(name="prune", settings={}, rows=rows, curves=curves)
    bare = PassReport(name="int8", settings={}, rows=rows)
    for reports in ([report, bare], [bare], [PassReport(name="int8", settings={}, rows=[])]):
        plot_report(reports, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    plot_sensitivity({"a": 0.1, "b": -0.1}, ["a"], tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
