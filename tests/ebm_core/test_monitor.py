"""Divergence is seen when it should be, in units of 1 / l2_weight, and not before."""

import json
import math
import pickle

import pytest

from ebm_core.config import LoopConfig, LossConfig
from ebm_core.errors import DivergenceError
from ebm_core.monitor import StabilityMonitor

LOOP = LoopConfig(gap_window=10, gap_patience=20)


def run(monitor, gap, num_steps, first=1):
    for step in range(first, first + num_steps):
        monitor.update(step, gap / 2, -gap / 2, 0.0, 1.0)


def test_a_collapsed_gap_stops_training_after_window_and_patience():
    monitor = StabilityMonitor(LOOP, LossConfig(l2_weight=1.0))
    with pytest.raises(DivergenceError) as caught:
        run(monitor, -1.0, 1000)
    assert caught.value.step == 10 + 20 - 1  # the window is full at step 10, which counts
    assert caught.value.energy_gap == pytest.approx(-1.0)


def test_a_stable_gap_and_a_short_dip_do_not_stop_it():
    monitor = StabilityMonitor(LOOP, LossConfig())
    run(monitor, -0.4, 200)
    run(monitor, -1.0, 15)
    run(monitor, 0.0, 200)
    assert monitor.num_below == 0


def test_limits_are_in_units_of_the_inverse_l2_weight():
    run(StabilityMonitor(LOOP, LossConfig(l2_weight=0.1)), -4.0, 200)  # a gap of -4 is -0.4 in units of 10
    with pytest.raises(DivergenceError):
        run(StabilityMonitor(LOOP, LossConfig(l2_weight=10.0)), -0.1, 200)  # -1 in units of 0.1


@pytest.mark.parametrize("values", [(math.nan, 0, 0, 1), (0, math.inf, 0, 1), (0, 0, math.nan, 1), (0, 0, 0, math.inf)])
def test_anything_not_finite_stops_training_at_once(values):
    with pytest.raises(DivergenceError, match="diverged at step 7"):
        StabilityMonitor(LOOP, LossConfig()).update(7, *map(float, values))


def test_energies_beyond_the_limit_stop_training_and_the_error_survives_pickling():
    with pytest.raises(DivergenceError, match=r"mean E\(samples\) = 10.5, limit 10; lower optimizer.lr") as caught:
        StabilityMonitor(LOOP, LossConfig()).update(3, 0.0, 10.5, 0.0, 1.0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_state_survives_json_exactly():
    monitor, again = (StabilityMonitor(LOOP, LossConfig()) for _ in range(2))
    run(monitor, -0.7123456789, 15)
    again.load_state(json.loads(json.dumps(monitor.state())))
    assert again.running_gap == monitor.running_gap
    assert again.num_below == monitor.num_below == 6
