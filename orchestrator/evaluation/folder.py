"""The folder of a run that the results of one checkpoint go into, as `workers.studies` writes to it."""

from orchestrator.storage.commits import step_name
from orchestrator.storage.interface import ObjectMissing
from orchestrator.storage.run_store import Run


class ResultsFolder:
    """`<run>/evaluations/step-…/`, a `workers.studies.study.Folder`."""

    def __init__(self, run: Run, step: int) -> None:
        self._run, self._place = run, f"evaluations/{step_name(step)}"

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it is not there."""
        try:
            return self._run.read_bytes(f"{self._place}/{name}")
        except ObjectMissing:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Store a file, over one of the same name."""
        self._run.write_bytes(f"{self._place}/{name}", data)

    def write_json(self, name: str, tree: object) -> None:
        """Store a JSON-able tree, readably."""
        self._run.write_json(f"{self._place}/{name}", tree)

    def names(self, prefix: str = "") -> list[str]:
        """Names of files that begin so, sorted."""
        return [info.key.removeprefix(f"{self._place}/") for info in self._run.list(f"{self._place}/{prefix}")]

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._run.delete(f"{self._place}/{name}")
