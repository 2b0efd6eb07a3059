import numpy as np
import pytest

from todm.bench.bundles import peer


@pytest.mark.runtime
@pytest.mark.slow
def test_both_encoders_are_timed_at_equal_parameters():
    rows = peer.compare(peer.recipe_encoder("debug", "largest", 4), rounds=2, calls=3)
    by = {(row.name, row.form): row for row in rows}
    assert set(by) == {(n, f) for n in ("MH-SSM", "Conformer") for f in ("fp32", "int8")}
    ours, theirs = by["MH-SSM", "fp32"], by["Conformer", "fp32"]
    assert abs(ours.params / theirs.params - 1) <= 0.05
    assert by["MH-SSM", "int8"].megabytes < ours.megabytes
    assert all(row.low <= row.ms <= row.high for row in rows)
    ratio = by["Conformer", "int8"].ms / by["MH-SSM", "int8"].ms
    assert f"{ratio:.2f} times as fast" in peer.table(rows)


def test_a_wrong_recipe_is_one_sentence(capsys):
    assert peer.main(["--config", "none"]) == 2
    assert peer.main(["--config", "debug", "--size", "middle"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_states_counted_are_those_of_the_graph():
    encoder = peer.recipe_encoder("debug", "smallest", 4)
    graph = peer._graph(encoder, encoder.state_sizes, 4)
    assert [p.example.shape[2] for p in graph.inputs[1:]] == list(encoder.state_sizes)
    assert np.prod(graph.inputs[0].example.shape) == 2 * 16 * 80
