"""How an actor gets a checkpoint of a run, on whichever node it lives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cluster.environment import adopt
from orchestrator.storage.run_store import RunStore


@dataclass(frozen=True)
class FetchCheckpoint:
    """What the actor calls with a step and a folder."""

    storage: str
    name: str
    environment: Mapping[str, str] = field(repr=False)

    def __call__(self, step: int, folder: str) -> Path:
        """Download and verify the checkpoint of `step` into `folder`."""
        adopt(self.environment)
        return RunStore(self.storage).run(self.name).fetch_checkpoint(step, Path(folder))
