"""What can go wrong, one class per kind of remedy, and how an error is told in one line.

Each class survives a trip between processes (pickling).
"""

import difflib
from collections.abc import Iterable


class EbmError(Exception):
    """Base of every error that is addressed to the person who runs the program."""


class ConfigError(EbmError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


class DataError(EbmError):
    """Images are missing, unreadable or of the wrong shape."""


class CheckpointError(EbmError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class DivergenceError(EbmError):
    """Training left the stable region (Section 3.2, Fig. 9)."""

    def __init__(self, step: int, energy_gap: float, limit: float, quantity: str = "E(data) - E(samples)") -> None:
        super().__init__(step, energy_gap, limit, quantity)  # every argument, so that pickling can rebuild it
        self.step, self.energy_gap, self.limit, self.quantity = step, energy_gap, limit, quantity

    def __str__(self) -> str:
        return (
            f"diverged at step {self.step}: {self.quantity} = {self.energy_gap:.3g}, limit {self.limit:g}; "
            "lower optimizer.lr, raise loss.kl_weight, or raise loss.l2_weight"
        )


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank; the name of its class where there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def kind_and_line(error: BaseException) -> str:
    """`ValueError: its first line`, for an error whose text does not say what it is; its class alone without a text."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean X?` of the known name that is nearest; empty if none is near (a likeness of 0 to 1)."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""
