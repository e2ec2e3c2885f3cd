"""What the two small objects beside a checkpoint say: COMMITTED makes it visible, DAMAGED takes it out of use."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from ebm_core.errors import CheckpointError
from ebm_core.manifest import MANIFEST_NAME, MAX_STEP
from orchestrator.storage.interface import StorageError

COMMITTED, DAMAGED = "COMMITTED", "DAMAGED"
_ATTEMPT = re.compile(r"attempt-[0-9a-f]{8,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STEP_NAME = re.compile(r"step-(\d{9})", re.ASCII)
_STEP_KEY = re.compile(r"checkpoints/step-(\d{9})/(.+)", re.ASCII)


def step_name(step: int) -> str:
    """`step-000000500`: how a training step is written in keys, so that text sorts as numbers do."""
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        raise StorageError(f"step {step!r:.40} cannot be stored: it must be a whole number from 0 to {MAX_STEP}")
    return f"step-{step:09d}"


def parse_step_name(name: str) -> int | None:
    """The step that `step_name` wrote; None for another name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def parse_step_key(key: str) -> tuple[int, str] | None:
    """(step, rest) of a key below a run's `checkpoints/step-…/`; None for another key."""
    match = _STEP_KEY.fullmatch(key)
    return (int(match[1]), match[2]) if match else None


def require_attempt(attempt: str) -> str:
    """Return an attempt's name; raise StorageError for what `Run.new_attempt` cannot have made."""
    if not isinstance(attempt, str) or not _ATTEMPT.fullmatch(attempt):
        raise StorageError(f"{attempt!r:.80} is not an attempt; take one from Run.new_attempt()")
    return attempt


@dataclass(slots=True)
class StoredStep:
    """What a listing shows of one step: the keys below the step's folder."""

    keys: set[str] = field(default_factory=set)

    @property
    def committed(self) -> bool:
        """Did an attempt win this step?"""
        return COMMITTED in self.keys

    @property
    def attempts(self) -> set[str]:
        """Attempts that have any file here."""
        return {attempt for key in self.keys if _ATTEMPT.fullmatch(attempt := key.partition("/")[0])}

    @property
    def uncommitted_whole(self) -> bool:
        """No COMMITTED, though an attempt has its manifest, which is written last: killed before it, or it was lost."""
        return not self.committed and any(f"{attempt}/{MANIFEST_NAME}" in self.keys for attempt in self.attempts)

    @property
    def suspect(self) -> bool:
        """Was a COMMITTED of this step ever set aside, perhaps the present one?"""
        return DAMAGED in self.keys


@dataclass(frozen=True, slots=True)
class Commit:
    """The content of COMMITTED."""

    step: int
    attempt: str
    manifest_sha256: str
    time: str
    """UTC, ISO 8601."""


def commit_now(step: int, attempt: str, manifest: bytes) -> Commit:
    """The commit of an attempt, at this moment."""
    digest = hashlib.sha256(manifest).hexdigest()
    return Commit(step, require_attempt(attempt), digest, datetime.now(UTC).isoformat(timespec="seconds"))


def commit_bytes(commit: Commit) -> bytes:
    """COMMITTED as stored."""
    return (json.dumps(asdict(commit)) + "\n").encode()


def parse_commit(data: bytes, step: int, where: str) -> Commit:
    """Read COMMITTED strictly. `where` names it in the CheckpointError that anything wrong raises."""
    try:
        commit = Commit(**json.loads(data))
        sound = type(commit.step) is int and commit.step == step and isinstance(commit.time, str)
        sound = sound and bool(_ATTEMPT.fullmatch(commit.attempt) and _DIGEST.fullmatch(commit.manifest_sha256))
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{where} is damaged: not what a commit of step {step} writes; use an older checkpoint")
    return commit


def damage_bytes(committed: bytes, reason: str) -> bytes:
    """DAMAGED as stored: it condemns this content of COMMITTED and no later one."""
    marker = {"committed_sha256": hashlib.sha256(committed).hexdigest(), "reason": reason}
    return (json.dumps(marker) + "\n").encode()


def condemns(damaged: bytes, committed: bytes) -> bool:
    """Does DAMAGED mean this COMMITTED? An unreadable one does, to be safe."""
    try:
        return json.loads(damaged)["committed_sha256"] == hashlib.sha256(committed).hexdigest()
    except (ValueError, TypeError, KeyError, RecursionError):
        return True
