"""What can go wrong, one class per kind of remedy. Each survives a trip between processes (pickling)."""


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
