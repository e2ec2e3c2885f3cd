"""What happens when training diverges and train.on_divergence=rollback: the decision, and how a kill cannot undo it.

    <root>/<run>/rollbacks.json    every decision, written before it is carried out

A decision names the checkpoints that it gives up by the digest of their COMMITTED. Whoever resumes the run first sets
those aside, so a kill at any moment leaves a run that goes on as the undisturbed one does: before rollbacks.json is
replaced the same divergence leads to the same decision again, afterwards the decision is completed.
"""

from dataclasses import asdict, dataclass
from typing import Any

from ebm_core.config import TrainConfig
from ebm_core.errors import DivergenceError
from orchestrator.records.provenance import PROVENANCE, read_provenance
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import Run
from orchestrator.storage.stored_checkpoint import Warn

ROLLBACKS = "rollbacks.json"


@dataclass(frozen=True, slots=True)
class Rollback:
    """One decision to return to an older checkpoint."""

    number: int
    """1 for the first of a run."""
    diverged_at: int
    """Step."""
    reason: str
    drift_began: int
    """The first step that was suspect."""
    to_step: int
    lr: float
    """Learning rate from `to_step` on."""
    abandoned: dict[str, str]
    """{step: SHA-256 of COMMITTED} of the checkpoints that were given up."""

    def message(self) -> str:
        """For the log."""
        return (
            f"{self.reason}; rollback {self.number}: back to step {self.to_step}, before the drift that began at step "
            f"{self.drift_began} or later, with optimizer.lr = {self.lr:g}"
        )


@dataclass(frozen=True, slots=True)
class RollbackPolicy:
    """Decides from what is known at a divergence, and keeps nothing: the history is in the run's folder."""

    enabled: bool
    lr: float
    """Before the first rollback."""
    lr_factor: float
    max_rollbacks: int

    @staticmethod
    def of(cfg: TrainConfig) -> "RollbackPolicy":
        """The policy of a run's settings."""
        loop = cfg.train
        return RollbackPolicy(
            loop.on_divergence == "rollback", cfg.optimizer.lr, loop.rollback_lr_factor, loop.max_rollbacks
        )

    def decide(
        self, history: list[Rollback], error: DivergenceError, drift_began: int, sound_steps: list[int]
    ) -> Rollback | None:
        """Where to return to and how fast to go on; None: end the run with the error."""
        before = [step for step in sound_steps if step < drift_began]
        if not self.enabled or len(history) >= self.max_rollbacks or not before:
            return None
        lr = (history[-1].lr if history else self.lr) * self.lr_factor
        reason = str(error).partition(";")[0]
        return Rollback(len(history) + 1, error.step, reason, drift_began, max(before), lr, {})


def read_rollbacks(run: Run) -> list[Rollback]:
    """The decisions so far. Raises StorageError if the file is not what `record_rollback` writes."""
    try:
        tree = run.read_json(ROLLBACKS)
    except ObjectMissing:
        return []
    try:
        history = [Rollback(**entry) for entry in tree] if isinstance(tree, list) else None
        if history is None:
            raise TypeError
        sound = all(_is_sound(number, rollback) for number, rollback in enumerate(history, start=1))
    except TypeError:
        sound, history = False, []
    if not sound:
        raise StorageError(f"{run.uri}: {ROLLBACKS} is damaged: not a list of rollbacks; restore it from a backup")
    return history


def _is_sound(number: int, rollback: Rollback) -> bool:
    counts = (rollback.number, rollback.diverged_at, rollback.drift_began, rollback.to_step)
    known = all(type(count) is int and count >= 0 for count in counts) and rollback.number == number
    rate = isinstance(rollback.lr, float) and 0 < rollback.lr <= 1
    given_up: Any = rollback.abandoned
    named = isinstance(given_up, dict) and all(s.isdecimal() and isinstance(d, str) for s, d in given_up.items())
    return known and rate and named and isinstance(rollback.reason, str)


def record_rollback(run: Run, history: list[Rollback], decision: Rollback) -> None:
    """Write the decision down, with the checkpoints after `to_step` that it gives up. From here on it is taken."""
    given_up = {str(step): run.at(step).committed_digest() for step in run.checkpoints() if step > decision.to_step}
    taken = asdict(decision) | {"abandoned": given_up}
    run.write_json(ROLLBACKS, [*map(asdict, history), taken])


def complete_rollbacks(run: Run, warn: Warn) -> list[Rollback]:
    """Carry out what was decided, as far as a kill has left it undone, and return the decisions."""
    history = read_rollbacks(run)
    for rollback in history:
        for step, digest in rollback.abandoned.items():
            checkpoint = run.at(int(step))
            if not checkpoint.is_committed() or checkpoint.committed_digest() != digest or checkpoint.is_set_aside():
                continue  # gone, written again since, or done already
            checkpoint.set_aside(f"given up by rollback {rollback.number}: {rollback.reason}", warn)
    if history:
        before, told = read_provenance(run), [asdict(rollback) for rollback in history]
        if before.get("rollbacks") != told:
            run.write_json(PROVENANCE, before | {"rollbacks": told})
    return history
