import math

from todm.train.guards import SpikeGuard


def _fed(guard, *, num, loss=2.0, norm=0.5, kind="rnnt"):
    for _ in range(num):
        guard.enter(kind)
        guard.accept(loss, norm)
    return guard


def test_nothing_is_too_much_before_twenty_steps_are_known():
    assert _fed(SpikeGuard(10.0), num=19).max_loss == math.inf


def test_limits_are_multiples_of_the_medians():
    guard = _fed(SpikeGuard(10.0), num=30)
    assert (guard.max_loss, guard.max_norm) == (20.0, 5.0)


def test_single_high_figures_do_not_move_the_limits():
    guard = _fed(SpikeGuard(10.0), num=30)
    guard.accept(1e6, 1e6)
    assert (guard.max_loss, guard.max_norm) == (20.0, 5.0)


def test_old_figures_are_forgotten():
    guard = _fed(_fed(SpikeGuard(10.0), num=100), num=51, loss=4.0)
    assert guard.max_loss == 40.0


def test_another_kind_of_step_begins_anew():
    guard = _fed(SpikeGuard(10.0), num=30)
    guard.enter("rnnt ctc")
    assert guard.max_loss == math.inf


def test_off():
    assert _fed(SpikeGuard(0.0), num=30).max_loss == math.inf


def test_losses_of_zero_set_no_limit():
    assert _fed(SpikeGuard(10.0), num=30, loss=0.0).max_loss == math.inf


def test_the_state_is_the_whole_of_it():
    guard, other = _fed(SpikeGuard(10.0), num=30), SpikeGuard(10.0)
    other.load_state_dict(guard.state_dict())
    other.enter("rnnt")
    assert (other.max_loss, other.max_norm) == (20.0, 5.0)
    other.accept(1.0, 1.0)
    assert guard.state_dict() != other.state_dict()
