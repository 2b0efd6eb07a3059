import pytest

from todm.compress.report import PassReport, Row, index_bits, table, totals


def _row(name, **values):
    return Row(name=name, kind="linear 8x16", num_weights=128, bytes_before=512, **values)


def test_int8_of_2_4_is_6_4_times_smaller_as_gpusq_vit_counts():
    # 4 values of 32 bits become 2 of 8 bits and 2 positions of 2 bits: 128 / 20.
    row = _row("a", done="x", weight_bits=8, activation_bits=8, density=0.5, index_bits=2.0, rows=7)
    assert totals([row]).size_ratio == pytest.approx(6.4)
    assert totals([row]).ops_ratio == pytest.approx(32.0)


def test_a_dense_layer_holds_the_ratios_back():
    small = _row("a", done="x", weight_bits=8, activation_bits=8, rows=3)
    dense = _row("b", why_not="kept", rows=1)
    found = totals([small, dense])
    assert found.size_ratio == pytest.approx(2 * 32 / (8 + 32))
    # MACs 3 : 1, the first at 1/16 of the bit operations.
    assert found.ops_ratio == pytest.approx(4 / (3 / 16 + 1))
    assert (found.layers_done, found.layers_left) == (1, 1)


def test_parameters_that_are_no_layers_count_in_size_and_not_in_operations():
    table_row = _row("emb", why_not="not a linear or convolution layer")
    layer = _row("a", done="x", weight_bits=4, rows=2)
    found = totals([table_row, layer])
    assert found.size_ratio == pytest.approx(64 / 36)
    assert found.ops_ratio == pytest.approx(8.0)


def test_index_bits_of_eight_places():
    assert index_bits(8) == 3


def test_a_report_survives_json_and_its_table_says_all():
    rows = [
        _row("a", done="2:4 wanda", before=0.0, after=0.0123, bytes_after=288),
        _row("b", why_not="excluded", bytes_after=512),
    ]
    report = PassReport(name="prune", settings={"n": 2}, rows=rows, curves=[{"update": 1.0}])
    again = PassReport.from_json(report.to_json())
    assert again == report
    text = table(again)
    assert "| a | linear 8x16 | 2:4 wanda | 0.000% | 1.230% | 512 | 288 |" in text
    assert "not done: excluded" in text
    assert "1 layers done, 1 left; bytes 1024 -> 800 (1.28 times smaller)" in text
