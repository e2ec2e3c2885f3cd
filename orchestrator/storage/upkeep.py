"""Looking after a stored run: `examine` checks everything that a checkpoint must have, `collect` removes rubbish.

What is reachable is what COMMITTED names; only what no COMMITTED names, and nobody is writing, may go.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ebm_core.errors import CheckpointError
from ebm_core.manifest import MANIFEST_NAME
from orchestrator.storage.commits import StoredStep
from orchestrator.storage.run_store import Run
from orchestrator.storage.stored_checkpoint import StoredCheckpoint, Warn

GRACE_HOURS = 24.0
"""Younger objects may belong to an upload under way; a clock that is off by an hour leaves 23."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one file of a checkpoint. problem: None for a sound one; set_aside: nothing resumes from it."""

    step: int
    name: str
    size: int | None
    problem: str | None
    set_aside: bool = False


@dataclass(frozen=True, slots=True)
class Rubbish:
    """Something that may go: an attempt's objects, or a leftover of the store's own."""

    what: str
    why: str
    size: int
    """Bytes."""


def examine(run: Run, set_aside: Warn | None = None) -> Iterator[Verdict]:
    """Each file of each committed checkpoint: is it there, with its size and SHA-256? Marks nothing.

    With `set_aside` damaged checkpoints are set aside, and the messages go there.
    """
    for step, stored in sorted(run.stored_steps().items()):
        if not stored.committed:
            continue
        checkpoint, damage = run.at(step), None
        known = checkpoint.is_set_aside()
        for name, size, problem in checkpoint.examine():
            damage = damage or problem
            yield Verdict(step, name, size, problem, known)
        if damage and set_aside and not known:
            checkpoint.set_aside(damage, set_aside)


def collect(
    run: Run, grace: timedelta = timedelta(hours=GRACE_HOURS), *, dry_run: bool = False, now: datetime | None = None
) -> list[Rubbish]:
    """Delete orphans of killed writers and return what went (dry_run: what would go).

    An attempt goes if its step has a readable COMMITTED that names another, or if an equal or later step was committed,
    and its newest object is older than `grace`; so do temporary files and uploads in parts that were never completed.
    """
    before = (now or datetime.now(UTC)) - grace
    stored = run.stored_steps()
    newest = max((step for step, one in stored.items() if one.committed), default=-1)
    found = [
        rubbish for step, one in sorted(stored.items()) for rubbish in _orphans(run, step, one, newest, before, dry_run)
    ]
    for leftover in run.store.objects.leftovers(f"{run.name}/"):
        if leftover.modified < before:
            found.append(Rubbish(leftover.name, "left by a killed writer", leftover.size))
            if not dry_run:
                run.store.objects.discard(leftover)
    return found


def _orphans(
    run: Run, step: int, stored: StoredStep, newest: int, before: datetime, dry_run: bool
) -> Iterator[Rubbish]:
    checkpoint = run.at(step)
    for attempt in sorted(stored.attempts):
        if _is_reachable(checkpoint, attempt, step, newest):
            continue
        objects = list(run.list(f"{checkpoint.name}/{attempt}/"))
        if not objects or max(info.modified for info in objects) >= before:
            continue
        if not dry_run:
            # The manifest first: without it the rest is no checkpoint, whoever looks at it meanwhile.
            for info in sorted(objects, key=lambda info: not info.key.endswith(MANIFEST_NAME)):
                run.store.objects.delete(f"{run.name}/{info.key}")
        yield Rubbish(f"{checkpoint.name}/{attempt}", "no COMMITTED names it", sum(info.size for info in objects))


def _is_reachable(checkpoint: StoredCheckpoint, attempt: str, step: int, newest: int) -> bool:
    """May the attempt be needed? COMMITTED is asked at the last moment; when it cannot say, the answer is yes."""
    try:
        if checkpoint.is_committed():
            return checkpoint.read_commit().attempt == attempt
    except CheckpointError:
        return True
    return step > newest  # perhaps whole: COMMITTED may come yet, or have been lost
