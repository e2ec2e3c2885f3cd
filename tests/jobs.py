"""A job as people run it, `ebm train` in a session of its own with a Ray of its own: to kill, resume and compare."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebm_core import checkpoint
from ebm_core.manifest import parse_manifest
from orchestrator.records import runs
from orchestrator.records.rows import WALL_CLOCK
from orchestrator.storage.run_store import Run, RunStore


@dataclass
class Job:
    """A run named `run` at `uri`, and the driver that trains it when it does."""

    folder: Path
    uri: str
    settings: list[str]
    driver: subprocess.Popen[bytes] | None = None
    launches: int = 0

    @property
    def run(self) -> Run:
        return RunStore(self.uri).run("run")

    @property
    def log(self) -> Path:
        """What all its drivers have printed."""
        return self.folder / "log.txt"

    def launch(self) -> None:
        """Start the job, or go on with it, on a Ray of its own."""
        self.launches += 1
        own = {"RAY_ADDRESS": "", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "10", "TMPDIR": str(self.folder / "t")}
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        own["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = "10"
        (self.folder / "t").mkdir(parents=True, exist_ok=True)
        words = ["train", "digits_paper", *self.settings, f"storage={self.uri}", "name=run"]
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *words],
                cwd=self.folder.parent,
                env=os.environ | own,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """{process: title} of the driver's session."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if self.driver and int(fields[3]) == self.driver.pid and fields[0] != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        return found

    def one(self, *titles: str) -> int | None:
        """A process whose title begins, or whose program ends, with one of these."""
        fitting = [p for p, title in self.processes().items() if title.startswith(titles) or title.endswith(titles)]
        return fitting[0] if fitting else None

    def kill(self) -> None:
        """kill -9 of everything: driver, Ray, workers, scorers."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if self.driver:
            self.driver.wait()

    def outcome(self, step: int) -> dict[str, Any]:
        """Digests of the files of that step's checkpoint, and all logged rows but the wall clock."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.run.fetch_checkpoint(step, Path(temporary))
            manifest = parse_manifest((folder / checkpoint.MANIFEST).read_bytes())
        rows = runs.read_metrics(self.run).drop_columns(list(WALL_CLOCK)).to_pylist()
        return {"files": {entry.name: entry.sha256 for entry in manifest.files}, "rows": rows}
