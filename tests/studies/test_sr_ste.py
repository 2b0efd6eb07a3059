import json

import pytest
import torch

from benchmarks.studies import sr_ste as bench
from todm.compress.masks import is_nm

pytest.importorskip("sklearn")


def _run(**changes):
    asked = {"n": 2, "m": 4, "decay": 6e-5, "optimizer": "adamw", "seed": 1, "updates": 24}
    return bench.Run(**(asked | changes))


def test_the_plan_has_every_case_of_the_study():
    runs = bench.plan([1, 2], 50)
    assert len({run.path(bench.Path()) for run in runs}) == len(runs) == 2 * 2 * 13
    cases = {(run.n, run.m, run.decay) for run in runs if run.optimizer == "scaled_adam"}
    assert {(2, 4, 0.0), (2, 4, 2e-5), (2, 4, 6e-5), (2, 4, 2e-4)} <= cases
    assert {(0, 4, 0.0), (1, 4, 6e-5), (4, 8, 6e-5), (1, 4, 2e-2), (4, 8, 2e-2)} <= cases


@pytest.mark.parametrize("optimizer", bench.OPTIMIZERS)
def test_a_run_leaves_its_figures_and_is_not_done_again(tmp_path, optimizer):
    run = _run(optimizer=optimizer)
    first = bench.train(run, tmp_path)
    assert [r["update"] for r in first["renewals"]] == [0, 10]
    assert len(first["losses"]) == 24
    assert 0 < first["pruned_rms"] < 1
    kept = run.path(tmp_path)
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"accuracy": 0.5}))
    assert bench.train(run, tmp_path)["accuracy"] == 0.5


def test_it_is_the_same_for_the_same_seed(tmp_path):
    one, two = (bench.train(_run(), tmp_path / name) for name in "ab")
    assert one["losses"] == two["losses"]
    assert one["losses"] != bench.train(_run(seed=2), tmp_path)["losses"]


def test_what_is_tested_is_sparse(tmp_path, monkeypatch):
    seen, real = [], bench.evaluate

    def watched(model, data):
        seen.extend(
            layer.weight for layer in model.blocks.modules() if hasattr(layer, "in_features")
        )
        return real(model, data)

    monkeypatch.setattr(bench, "evaluate", watched)
    bench.train(_run(n=1), tmp_path)
    assert len(seen) == 8
    for weight in seen:
        assert is_nm(weight, 1, 4)
        assert weight.count_nonzero() == weight.numel() // 4


def test_a_table_and_a_picture_of_all(tmp_path):
    cases = [_run(), _run(seed=2), _run(n=0, decay=0.0), _run(n=1)]
    rows = [bench.train(run, tmp_path) for run in cases]
    head, _, dense, one, two = bench.table(rows).splitlines()
    assert dense.startswith("| adamw | dense |  | ")
    assert one.startswith("| adamw | 1:4 | 6e-05 | ")
    mean = sum(100 * row["accuracy"] for row in rows[:2]) / 2
    assert two.startswith(f"| adamw | 2:4 | 6e-05 | {mean:.2f} | ")
    assert {line.count("|") for line in (head, dense, one, two)} == {12}
    bench.plot(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_patches_are_squares_of_two_by_two():
    """A vision transformer sees every pixel of a patch, and no other, in its token."""
    model = bench.Vit().eval()
    image = torch.zeros(1, 8, 8, requires_grad=True)
    seen = []
    model.patches.register_forward_hook(lambda _m, args, out: seen.append(args[0]))
    model(image)
    seen[0][0, 6].sum().backward()
    wanted = torch.zeros(8, 8)
    wanted[2:4, 4:6] = 1
    assert torch.equal(image.grad[0], wanted)
