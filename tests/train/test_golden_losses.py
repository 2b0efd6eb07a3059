"""Losses and gradient norms of a fixed seed stay what they were, with one process and with two."""

import json
import math

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(golden, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ".")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        return golden.losses(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_losses_are_those_of_earlier_versions(golden, found, processes):
    """Other CPUs round otherwise: without AVX figures come out up to 8e-6 apart."""
    want = json.loads(golden.GOLDEN.read_text())[processes]
    assert len(found[processes]) == len(want) == 12
    for update, (got, row) in enumerate(zip(found[processes], want, strict=True), 1):
        assert got.keys() == row.keys()
        for name, value in row.items():
            assert math.isclose(got[name], value, rel_tol=1e-4), (update, name, got[name], value)


def test_they_cover_students_and_distillation(golden):
    """Students from the first update, inside the flat start; the divergence comes after it."""
    for rows in json.loads(golden.GOLDEN.read_text()).values():
        assert "loss smallest" in rows[0]
        assert not {"rnnt", "divergence"} & rows[0].keys()
        assert rows[-1]["divergence"] > 0
        assert {"loss", "rnnt", "ctc", "loss smallest", "grad_norm", "clip"} <= rows[-1].keys()
