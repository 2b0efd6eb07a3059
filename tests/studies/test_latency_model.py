import pytest

from benchmarks.studies.latency_model import figures, plot, unseen
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}))


def test_figures_of_a_perfect_and_of_a_biased_model():
    perfect = figures([(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)])
    assert perfect["rank_correlation"] == pytest.approx(1)
    assert perfect["median_error"] == 0
    biased = figures([(1.2, 1.0), (2.4, 2.0), (3.0, 3.0)])
    assert biased["rank_correlation"] == pytest.approx(1)
    assert biased["median_error"] == pytest.approx(0.2)
    turned = figures([(3.0, 1.0), (2.0, 2.0), (1.0, 3.0)])
    assert turned["rank_correlation"] == pytest.approx(-1)
    assert turned["largest_error"] == pytest.approx(2)


def test_the_subnets_are_not_those_of_the_table():
    known = list(SPACE.uniforms())
    found = unseen(SPACE, known, 20, seed=0)
    assert len(set(found)) == len(found) == 20
    assert not set(found) & set(known)
    assert found == unseen(SPACE, known, 20, seed=0)


def test_a_plot_is_drawn(tmp_path):
    plot({"fp32": [(1.0, 1.1), (2.0, 1.9)], "int8": [(0.5, 0.6), (0.9, 0.8)]}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
