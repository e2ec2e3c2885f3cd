"""When training counts as diverged (Fig. 9), judged from the batch means of the energies alone."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from ebm_core.config import LoopConfig, LossConfig
from ebm_core.errors import CheckpointError, DivergenceError


class StabilityMonitor:
    """Watches a (E(data) - E(samples)), with a = l2_weight.

    The minimum of L = E+ - E- + a (E+^2 + E-^2) has E+ - E- = -1 / a: that is Fig. 9's collapse at -1 for a = 1, so
    limits are in units of 1 / a. Without an L2 term (a = 0) there is no unit: the raw values are used.
    """

    def __init__(self, loop: LoopConfig, loss: LossConfig) -> None:
        self._loop = loop
        self._unit = loss.l2_weight or 1.0
        self._gaps: deque[float] = deque(maxlen=loop.gap_window)
        self.num_below = 0
        """Steps in a row with the running mean below `gap_limit`."""

    @property
    def running_gap(self) -> float:
        """Mean of the last `gap_window` values of a (E(data) - E(samples)); 0 before the first."""
        return math.fsum(self._gaps) / len(self._gaps) if self._gaps else 0.0

    def update(self, step: int, energy_data: float, energy_neg: float, loss: float, grad_norm: float) -> None:
        """Take one step's batch means; DivergenceError when a limit of `LoopConfig` is passed."""
        gap = energy_data - energy_neg
        self.require_finite(step, {"E(data) - E(samples)": gap, "loss": loss, "gradient norm": grad_norm})
        for quantity, value in {"mean E(data)": energy_data, "mean E(samples)": energy_neg}.items():
            if abs(value) * self._unit > self._loop.energy_limit:
                raise DivergenceError(step, value, self._loop.energy_limit / self._unit, quantity)
        self._gaps.append(self._unit * gap)
        low = len(self._gaps) == self._loop.gap_window and self.running_gap < self._loop.gap_limit
        self.num_below = self.num_below + 1 if low else 0
        if self.num_below >= self._loop.gap_patience:
            quantity = f"running mean of E(data) - E(samples) over {self._loop.gap_window} steps"
            raise DivergenceError(step, self.running_gap / self._unit, self._loop.gap_limit / self._unit, quantity)

    @staticmethod
    def require_finite(step: int, named: Mapping[str, float]) -> None:
        """DivergenceError for the first number that is not finite."""
        for quantity, value in named.items():
            if not math.isfinite(value):
                raise DivergenceError(step, value, math.inf, quantity)

    def drift_began(self, step: int) -> int:
        """The earliest step that the judgement at `step` rests on; a checkpoint from before it has seen no drift.

        The running mean has been low for `num_below` steps, and each mean looks back over `gap_window` steps. What is
        not finite or beyond `energy_limit` has no history in here: then the last `gap_window` steps are suspect.
        """
        return max(1, step - max(self.num_below - 1, 0) - (self._loop.gap_window - 1))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: JSON, exact."""
        return {"gaps": list(self._gaps), "num_below": self.num_below}

    def load_state(self, saved: dict[str, Any]) -> None:
        try:
            gaps, num_below = [float(g) for g in saved["gaps"]], int(saved["num_below"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError("the stability monitor's saved state is not readable") from None
        self._gaps.clear()
        self._gaps.extend(gaps)
        self.num_below = num_below
