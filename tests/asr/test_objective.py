import copy
import dataclasses

import pytest
import torch

from todm.asr.data.batch import Batch
from todm.asr.encoder_distance import encoder_distance
from todm.asr.flat_start import flat_alignment
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import Rnnt, RnntConfig, extract
from todm.asr.model.wait import Wait
from todm.asr.objective import (
    ObjectiveConfig,
    RnntObjective,
)
from todm.errors import ConfigError
from todm.kernels.rnnt_loss import Divergence, rnnt_loss
from todm.supernet.sandwich import sandwich_step
from todm.supernet.space import SearchSpace, SpaceConfig

SPACE = SearchSpace(SpaceConfig(depths=(2, 3), widths={"ffn": (16, 32), "pairs": (1, 2)}))
KINDS = ("alpha", "kl", "collapsed")
TOPOLOGIES = ("standard", "one_symbol")


@pytest.fixture
def model():
    sizes = EncoderConfig(d_model=32, state=4, dropout=0.0).narrow(SPACE.largest)
    return Rnnt(RnntConfig(vocab_size=11, joiner_dim=16, encoder=sizes))


@pytest.fixture
def step():
    lens = torch.tensor([96, 61, 80])
    batch = Batch(
        features_BTF=torch.randn(3, 96, 80),
        feature_lens_B=lens,
        targets_BU=torch.tensor([[3, 4, 5], [6, 0, 0], [7, 7, 0]]),
        target_lens_B=torch.tensor([3, 1, 2]),
        ids=["a", "b", "c"],
        texts=["", "", ""],
    )
    return dataclasses.replace(batch, chunk=8, num_labels=6.0)


def _objective(model, **config):
    return RnntObjective(model, ObjectiveConfig(**config), label_sizes=[1] * 11)


def _passes(model, step, *, progress, students=(SPACE.smallest,), **config):
    """Figures of the largest net and of students, and what the largest left for them."""
    objective = _objective(model, **config)
    first, teacher_out = objective(step, subnet=SPACE.largest, teacher=None, progress=progress)
    rest = [objective(step, subnet=s, teacher=teacher_out, progress=progress)[0] for s in students]
    return first, rest, teacher_out


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_loss_is_the_ops_and_ctc_per_label(model, step, topology):
    out, _, _ = _passes(model, step, progress=0.0, topology=topology)
    batch = step
    enc, lens = model.encode(batch.features_BTF, batch.feature_lens_B, chunk=8)
    args = (
        model.project_encoder(enc), model.predict_sequence(batch.targets_BU), model.output.weight,
        model.output.bias, batch.targets_BU, lens, batch.target_lens_B,
    )  # fmt: skip
    rnnt = rnnt_loss(*args, topology=topology, impl="reference").loss_B.sum() / 6
    ctc = torch.nn.functional.ctc_loss(
        model.ctc(enc).log_softmax(-1).transpose(0, 1),
        batch.targets_BU, lens, batch.target_lens_B, reduction="sum",
    ) / 6  # fmt: skip
    torch.testing.assert_close(out["rnnt"], rnnt.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["ctc"], ctc.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["loss"], rnnt + ctc, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("progress", "ctc", "distill"),
    [
        (0.0, 1.0, 0.0), (0.15, 0.6, 0.0), (0.3, 0.2, 0.0),
        (0.35, 0.2, 1.5), (0.4, 0.2, 3.0), (1.0, 0.2, 3.0),
    ],
)  # fmt: skip
def test_weights_follow_their_ramps(model, step, progress, ctc, distill):
    first, (student,), _ = _passes(model, step, progress=progress, distill_weight=3.0)
    want = first["rnnt"] + ctc * first["ctc"]
    assert first["loss"].item() == pytest.approx(want.item(), rel=1e-5)
    assert "divergence" not in first
    assert ("divergence" in student) == (distill > 0)
    parts = student["rnnt"] + ctc * student["ctc"] + distill * student.get("divergence", 0)
    assert student["loss"].item() == pytest.approx(parts.item(), rel=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_students_learn_from_every_kind_of_distillation(model, step, kind, topology):
    model.ctc = None
    _, (student,), _ = _passes(
        model, step, progress=1.0, distill=kind, topology=topology, student_rnnt=False
    )
    assert student["divergence"] > 0
    model.zero_grad()
    student["loss"].backward()
    used = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(g).all() for g in used.values())
    for name in ("encoder.blocks.0.up.weight", "project.weight", "output.weight", "predictor.taps"):
        assert (used[name] != 0).any()
    assert not any(n.startswith("encoder.blocks.1.") for n in used)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_encoder_distillation_teaches_the_encoder_alone(model, step, topology):
    _, (student,), _ = _passes(
        model, step, progress=1.0, distill="encoder", topology=topology, student_rnnt=False
    )
    model.zero_grad()
    student["loss"].backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"encoder.blocks.0.up.weight", "encoder.norm.weight", "project.weight"} < with_gradient
    assert not any(n.startswith(("output", "predictor", "ctc")) for n in with_gradient)


@pytest.mark.parametrize("kind", [*KINDS, "encoder"])
def test_the_teacher_itself_has_no_divergence(model, step, kind):
    _, (same,), _ = _passes(model, step, progress=1.0, distill=kind, students=[SPACE.largest])
    assert same["divergence"].item() == pytest.approx(0, abs=1e-5)


def test_passes_of_a_step_share_everything_but_the_dropout(step, seed):
    sizes = EncoderConfig(d_model=32, state=4, dropout=0.3).narrow(SPACE.largest)
    model = Rnnt(RnntConfig(vocab_size=11, joiner_dim=16, encoder=sizes))
    students = [SPACE.smallest, SPACE.smallest]
    torch.manual_seed(seed)
    _, (one, other), _ = _passes(model, step, progress=1.0, students=students)
    assert one["rnnt"] != other["rnnt"]
    torch.manual_seed(seed)
    _, again, _ = _passes(model, step, progress=1.0, students=students)
    assert [out["loss"].item() for out in again] == [one["loss"].item(), other["loss"].item()]
    model.eval()
    _, (one, other), _ = _passes(model, step, progress=1.0, students=students)
    assert one["loss"] == other["loss"]


def test_the_teacher_is_left_alone(model, step):
    _, _, teacher_out = _passes(model, step, progress=1.0)
    assert not any(t.requires_grad for t in teacher_out)


def test_without_distillation_students_have_the_plain_loss(model, step):
    _, (student,), _ = _passes(model, step, progress=1.0, distill="none")
    assert set(student) == {"loss", "rnnt", "ctc"}


def test_a_student_can_have_the_distillation_alone(model, step):
    """From the update on where there is one; until then CTC, lest it learns nothing."""
    config = {"student_rnnt": False, "distill_weight": 2.0}
    first, (student,), _ = _passes(model, step, progress=1.0, **config)
    assert first["loss"].item() == pytest.approx((first["rnnt"] + 0.2 * first["ctc"]).item())
    assert student["loss"].item() == pytest.approx(2 * student["divergence"].item(), rel=1e-6)
    _, (student,), _ = _passes(model, step, progress=0.0, **config)
    assert student["loss"].item() == pytest.approx(student["ctc"].item(), rel=1e-6)


def _joiner_inputs(model, step, subnet):
    batch = step
    enc, lens = model.encode(batch.features_BTF, batch.feature_lens_B, subnet=subnet, chunk=8)
    return (
        model.project_encoder(enc), model.predict_sequence(batch.targets_BU), model.output.weight,
        model.output.bias, batch.targets_BU, lens, batch.target_lens_B,
    )  # fmt: skip


@pytest.mark.parametrize(
    "constants",
    [
        {}, {"alpha_min": -0.5}, {"alpha_max": 0.5}, {"clip": 1.1}, {"weighting": "uniform"},
        {"min_weight": 0.2},
    ],
    ids=str,
)  # fmt: skip
def test_constants_of_the_divergence_reach_the_lattice(model, step, constants):
    with torch.no_grad():
        model.output.weight.mul_(30)  # nets that disagree
    divergence = Divergence(**constants)
    _, (student,), teacher_out = _passes(model, step, progress=1.0, divergence=divergence)
    inputs = _joiner_inputs(model, step, SPACE.smallest)
    want = {
        constant: rnnt_loss(
            *inputs, topology="one_symbol", teacher=teacher_out, divergence=constant, impl="reference"
        ).divergence_B.sum().item() / 6
        for constant in (divergence, Divergence())
    }  # fmt: skip
    assert student["divergence"].item() == pytest.approx(want[divergence], rel=1e-3)
    assert constants == {} or abs(want[divergence] - want[Divergence()]) > 0.01


def test_encoders_are_compared_frame_by_frame():
    lens, teacher = torch.tensor([7, 4]), torch.randn(2, 9, 5)
    inside = torch.arange(9) < lens[:, None]
    assert encoder_distance(teacher, teacher, lens) == 0
    assert encoder_distance(-teacher, teacher, lens).item() == pytest.approx(4 * 11, rel=1e-5)
    student = torch.randn(2, 9, 5)
    want = encoder_distance(student, teacher, lens)
    torch.testing.assert_close(encoder_distance(7 * student, 7 * teacher, lens), want)
    student[~inside], teacher[~inside] = float("nan"), float("nan")
    torch.testing.assert_close(encoder_distance(student, teacher, lens), want)


def test_a_stranger_counts_two_a_frame():
    """Independent outputs of the same size, as many nats as two disagreeing nodes of a lattice."""
    found = encoder_distance(
        torch.randn(4, 100, 64), torch.randn(4, 100, 64), torch.full((4,), 100)
    )
    assert found.item() / 400 == pytest.approx(2, rel=0.03)


def _emission(model, step, topology, **config):
    """After some updates of two nets: labels behind a path at its mean frame, and their share."""
    model = copy.deepcopy(model)
    objective = _objective(model, topology=topology, **config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        teacher_out = None
        for subnet in (SPACE.largest, SPACE.smallest):
            out, left = objective(step, subnet=subnet, teacher=teacher_out, progress=1.0)
            out["loss"].backward()
            teacher_out = teacher_out or left
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    with torch.no_grad():  # measured without either setting
        plain = _objective(model, topology=topology)
        _, left = plain(step, subnet=SPACE.largest, teacher=None, progress=1.0)
        enc, pred, _, _, visits = left
        blank = model.joint(enc[:, :, None], pred[:, None]).softmax(-1)[..., 0]
    labels = torch.arange(visits.shape[2])
    behind = (visits * labels).sum() / visits.sum()
    return behind.item(), 1 - ((visits * blank).sum() / visits.sum()).item()


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("distill", ["alpha", "encoder"])
def test_labels_come_earlier_when_asked(model, step, topology, distill):
    """A delay penalty moves them forward; FastEmit makes them likelier than blank in every frame."""
    config = {"topology": topology, "distill": distill}
    behind, share = _emission(model, step, **config)
    assert _emission(model, step, **config, delay_penalty=0.5)[0] > behind + 0.01
    assert _emission(model, step, **config, fastemit=3.0)[1] > share + 0.03


def test_twice_the_labels_halve_the_loss(model, step):
    once, _, _ = _passes(model, step, progress=0.0)
    twice, _, _ = _passes(model, dataclasses.replace(step, num_labels=12.0), progress=0.0)
    for name in ("loss", "rnnt", "ctc"):
        torch.testing.assert_close(twice[name], once[name] / 2)


def test_the_chunk_is_the_steps(model, step):
    losses = [_passes(model, dataclasses.replace(step, chunk=c), progress=0.0)[0] for c in (8, 0)]
    assert losses[0]["rnnt"] != losses[1]["rnnt"]


def test_the_ctc_head_stays_behind(model, step):
    plain = extract(model, SPACE.smallest)
    out, _ = _objective(plain)(step, subnet=None, teacher=None, progress=0.0)
    assert set(out) == {"loss", "rnnt"}
    assert not any("ctc" in name for name, _ in plain.named_parameters())


def test_figures_are_detached_but_for_the_loss(model, step):
    first, _, _ = _passes(model, step, progress=0.0)
    assert {name for name, value in first.items() if value.requires_grad} == {"loss"}


@pytest.mark.parametrize("distill", ["none", "encoder"])
def test_torchaudios_loss_trains_without_a_lattice_of_its_own(model, step, distill):
    pytest.importorskip("torchaudio")
    config = {"rnnt_impl": "torchaudio", "topology": "standard", "distill": distill}
    out, (student,), _ = _passes(model, step, progress=1.0, **config)
    (out["loss"] + student["loss"]).backward()
    assert model.project.weight.grad.isfinite().all()
    assert ("divergence" in student) == (distill == "encoder")


TORCHAUDIO = {"rnnt_impl": "torchaudio", "topology": "standard"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rnnt_impl": "torchaudio"}, "standard topology only"),
        (TORCHAUDIO, "no distillation on the lattice"),
        ({**TORCHAUDIO, "distill": "none", "fastemit": 0.01}, "fastemit or delay_penalty"),
        ({"rnnt_impl": "k3"}, "rnnt_impl is 'k3': allowed are torch"),
        ({"fastemit": -1.0}, "objective.fastemit is -1.0: 0 or more"),
        ({"distill_weight": -0.1}, "objective.distill_weight is -0.1"),
        ({"distill_from": 2000.0}, "objective.distill_from is 2000.0: a fraction from 0 to 1"),
        ({"divergence": Divergence(kind="kl")}, "kind comes from objective.distill"),
        ({"student_rnnt": False, "distill": "none"}, "nothing to learn from"),
        ({"student_rnnt": False, "distill_weight": 0.0}, "nothing to learn from"),
    ],
    ids=[
        "one_symbol", "lattice", "fastemit", "impl", "negative", "negative weight", "updates",
        "two kinds", "nothing to learn", "no weight",
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_before_training(settings, words):
    with pytest.raises(ConfigError, match=words):
        ObjectiveConfig(**settings)


def test_a_batch_goes_to_a_device(step, later):
    for batch in (step, later):
        there = batch.to(torch.device("meta"))
        assert there.features_BTF.device.type == "meta"
        assert (there.chunk, there.num_labels, there.ids) == (8, 6.0, ["a", "b", "c"])
    assert {there.reset_BU.device.type, there.wait.times_B.device.type} == {"meta"}
    assert there.wait.frames == 8
    assert later.wait.times_B.tolist() == [0, 5, 10_000]


def _speech(lens, loud, targets):
    """A batch of quiet frames with a loud part each, as (first, last + 1)."""
    features = torch.full((len(lens), max(lens), 80), -12.0) + 0.1 * torch.randn(1, max(lens), 80)
    for row, (first, end) in zip(features, loud, strict=True):
        row[first:end] += 8
    width = max(map(len, targets))
    return Batch(
        features_BTF=features,
        feature_lens_B=torch.tensor(lens),
        targets_BU=torch.tensor([t + [0] * (width - len(t)) for t in targets]),
        target_lens_B=torch.tensor([len(t) for t in targets]),
        ids=["x"] * len(lens),
        texts=[""] * len(lens),
    )


def test_a_flat_start_lays_labels_over_the_loud_part():
    """In proportion to their letters: label 3 has one, label 4 three. Blanks around, -1 behind."""
    batch = _speech([80, 48], [(16, 48), (0, 32)], [[3, 4], [4]])
    sizes = torch.tensor([1, 1, 1, 1, 3])
    found = flat_alignment(batch, sizes, 20)
    assert found[0].tolist() == [0] * 4 + [3] * 2 + [4] * 6 + [0] * 8
    assert found[1].tolist() == [4] * 8 + [0] * 4 + [-1] * 8


def test_a_flat_start_survives_silence():
    batch = _speech([40, 40], [(0, 0), (0, 40)], [[3, 4], [3]])
    found = flat_alignment(batch, torch.ones(5, dtype=torch.int64), 10)
    assert set(found.flatten().tolist()) <= {-1, 0, 3, 4}


def test_the_flat_start_teaches_encoder_and_ctc_head_and_ends(model, step):
    early, (student,), teacher_out = _passes(model, step, progress=0.05, align_until=0.1)
    assert teacher_out is None
    assert set(early) == set(student) == {"loss", "flat_start"}
    early["loss"].backward()
    grads = {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert grads == {"encoder", "ctc"}
    late, _, _ = _passes(model, step, progress=0.1, align_until=0.1)
    assert set(late) == {"loss", "rnnt", "ctc"}


def test_a_plain_model_has_no_flat_start(model, step):
    model.ctc = None
    out, _, _ = _passes(model, step, progress=0.0, align_until=1.0)
    assert set(out) == {"loss", "rnnt"}


@pytest.fixture
def later(step):
    """The same step in streams that have waited, with resets."""
    reset_BU = torch.tensor([[0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    return dataclasses.replace(step, wait=Wait(8, torch.tensor([0, 5, 10_000])), reset_BU=reset_BU)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_waits_and_resets_reach_the_loss(model, step, later, topology):
    out, _, _ = _passes(model, later, progress=0.0, topology=topology)
    enc, lens = model.encode(later.features_BTF, later.feature_lens_B, chunk=8, wait=later.wait)
    pred = model.predict_sequence(later.targets_BU, later.reset_BU)
    args = (
        model.project_encoder(enc), pred, model.output.weight, model.output.bias,
        later.targets_BU, lens, later.target_lens_B,
    )  # fmt: skip
    want = rnnt_loss(*args, topology=topology, impl="reference").loss_B.sum() / 6
    torch.testing.assert_close(out["rnnt"], want.detach(), rtol=1e-4, atol=1e-5)
    for part in ({"wait": None}, {"reset_BU": None}):
        other, _, _ = _passes(model, dataclasses.replace(later, **part), progress=0.0)
        assert abs(other["rnnt"] - out["rnnt"]) > 1e-3


def test_teacher_and_students_hear_the_same_wait_and_the_same_resets(model, later, monkeypatch):
    """Else the divergence would compare nodes of different contexts."""
    seen, encode, predict = [], model.encode, model.predict_sequence
    monkeypatch.setattr(model, "encode", lambda *a, **k: seen.append(k["wait"]) or encode(*a, **k))
    monkeypatch.setattr(model, "predict_sequence", lambda t, r: seen.append(r) or predict(t, r))
    students = [SPACE.smallest, SPACE.largest]
    _, (_, same), _ = _passes(model, later, progress=1.0, students=students)
    assert all(a is b for a, b in zip(seen, [later.wait, later.reset_BU] * 3, strict=True))
    assert same["divergence"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("progress", [0.0, 1.0], ids=["flat start", "transducer"])
def test_a_step_after_a_wait_trains_every_net(model, later, progress):
    config = {"align_until": 0.1, "student_rnnt": True}
    objective = _objective(model, **config)
    first, teacher_out = objective(later, subnet=SPACE.largest, teacher=None, progress=progress)
    assert (teacher_out is None) == (progress == 0.0)
    student, _ = objective(later, subnet=SPACE.smallest, teacher=teacher_out, progress=progress)
    (first["loss"] + student["loss"]).backward()
    for name, p in model.encoder.named_parameters():
        assert p.grad.isfinite().all(), name
    plain, _ = objective(
        dataclasses.replace(later, wait=None), subnet=SPACE.largest, teacher=None, progress=progress
    )
    assert plain["loss"] != first["loss"]


@pytest.mark.parametrize("progress", [0.0, 1.0], ids=["flat start", "transducer"])
@pytest.mark.parametrize("waits", [False, True], ids=["new streams", "waits"])
def test_what_passes_share_changes_no_gradient(step, later, waits, progress):
    """A step whose nets each work out everything themselves gives the same."""
    sizes = EncoderConfig(d_model=32, state=4, dropout=0.2).narrow(SPACE.largest)
    model = Rnnt(RnntConfig(vocab_size=11, joiner_dim=16, encoder=sizes)).double()
    objective, batch = _objective(model, align_until=0.1), later if waits else step
    batch = dataclasses.replace(batch, features_BTF=batch.features_BTF.double())
    subnets = [SPACE.largest, SPACE.uniform(2, {"ffn": 32, "pairs": 1}), SPACE.smallest]
    torch.manual_seed(3)
    figures = sandwich_step(objective, batch, subnets=subnets, progress=progress)
    got = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(3)
    teacher_out = None
    for subnet, seen in zip(subnets, figures, strict=True):
        out, left = objective(batch, subnet=subnet, teacher=teacher_out, progress=progress)
        out["loss"].backward()
        teacher_out = teacher_out or left
        for name, value in seen.items():
            torch.testing.assert_close(value, out[name].detach())
    for name, p in model.named_parameters():
        if p.grad is None:
            assert got[name] is None or not got[name].any()
        else:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-7, atol=1e-9, msg=name)
