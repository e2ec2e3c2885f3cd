"""What the property tests and the fuzzer throw bytes at: the readers of what a store and a data folder may hold.

A target takes bytes from anybody. It may refuse them by an EbmError; whatever else it raises is a defect.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ebm_core import checkpoint
from ebm_core.config import to_tree
from ebm_core.errors import CheckpointError, EbmError
from ebm_core.manifest import describe, manifest_bytes, parse_manifest
from ebm_core.trainer import TrainState, init_state, train_step
from orchestrator.records import runs
from orchestrator.settings.job import JobConfig, parse
from orchestrator.storage.commits import condemns, parse_commit
from orchestrator.storage.folder import FolderStore
from orchestrator.storage.run_store import RunStore
from orchestrator.training.rollback import read_rollbacks
from tests.data_readers import DataTargets
from tests.ebm_core.tiny import batch, tiny_config

ATTEMPT = "attempt-0123456789abcdef"


class Targets:
    """The readers, in a scratch folder of their own."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.cfg = scratch, tiny_config()
        self.state: TrainState = init_state(self.cfg)
        train_step(self.state, batch(0, self.cfg), self.cfg)  # so that there are moments and a filled buffer
        self.whole = scratch / "whole"
        checkpoint.save(self.state, self.cfg, self.whole)
        self.names = sorted(path.name for path in self.whole.iterdir() if path.name != checkpoint.MANIFEST)
        self.run = RunStore(FolderStore(scratch / "runs")).run("r")
        self.data = DataTargets(scratch)
        for name in (*self.names, checkpoint.MANIFEST):
            self.run.write_bytes(f"checkpoints/step-000000001/{ATTEMPT}/{name}", (self.whole / name).read_bytes())

    def all(self) -> dict[str, Callable[[bytes], None]]:
        """{name: target}."""
        files = [name for name in self.names if not name.endswith(("2.safetensors",))]
        loads = {f"load {name}": self._load_with(name) for name in files}
        damaged = {f"damaged {name}": self._refuse(name) for name in files}
        stored = {
            "manifest": self.manifest,
            "commit": self.commit,
            "rollbacks": self.rollbacks,
            "config": self.config,
            "fetch": self.fetch,
        }
        return {**stored, **loads, **damaged, **self.data.all()}

    def seed(self, name: str) -> bytes:
        """Content that the target accepts: where a test begins."""
        if name.startswith("data "):
            return self.data.seed(name)
        if name == "config":
            return json.dumps(to_tree(JobConfig())).encode()
        if name in ("manifest", "fetch"):
            return (self.whole / checkpoint.MANIFEST).read_bytes()
        if name == "commit":
            text = {"step": 1, "attempt": ATTEMPT, "manifest_sha256": "0" * 64, "time": "2020"}
            return json.dumps(text).encode()
        if name == "rollbacks":
            return (
                b'[{"number": 1, "diverged_at": 9, "reason": "x", "drift_began": 3, "to_step": 2, "lr": 0.5, '
                b'"abandoned": {"4": "0"}}]'
            )
        return (self.whole / name.partition(" ")[2]).read_bytes()

    def manifest(self, data: bytes) -> None:
        """MANIFEST.json: what is accepted is canonical, or becomes so, and names no path."""
        with suppress(EbmError):
            parsed = parse_manifest(data)
            assert parse_manifest(manifest_bytes(parsed.files, parsed.step)) == parsed
            assert not any("/" in entry.name or entry.name.startswith(".") for entry in parsed.files)

    def commit(self, data: bytes) -> None:
        """COMMITTED and DAMAGED."""
        with suppress(EbmError):
            assert "/" not in parse_commit(data, 1, "here").attempt
        condemns(data, b"x")

    def rollbacks(self, data: bytes) -> None:
        """rollbacks.json."""
        self.run.write_bytes("rollbacks.json", data)
        with suppress(EbmError):
            read_rollbacks(self.run)

    def config(self, data: bytes) -> None:
        """config.json, as `ebm resume`, `evaluate` and `runs` read it."""
        self.run.write_bytes("config.json", data)
        with suppress(EbmError):
            parse(self.run.read_config())
        runs.summarise(self.run.store, "r")  # a damaged one is shown as damaged

    def fetch(self, data: bytes) -> None:
        """MANIFEST.json in a store, under a COMMITTED that vouches for it."""
        commit = {"step": 1, "attempt": ATTEMPT, "manifest_sha256": hashlib.sha256(data).hexdigest(), "time": "2020"}
        self.run.write_bytes(f"checkpoints/step-000000001/{ATTEMPT}/{checkpoint.MANIFEST}", data)
        self.run.write_json("checkpoints/step-000000001/COMMITTED", commit)
        with suppress(EbmError):
            self.run.fetch_checkpoint(1, self.scratch / "fetched")

    def _refuse(self, name: str) -> Callable[[bytes], None]:
        def load(data: bytes) -> None:
            """A checkpoint with this file, whose manifest is that of the sound one: damaged, and always noticed."""
            folder = self.scratch / "damaged"
            shutil.copytree(self.whole, folder, dirs_exist_ok=True)
            (folder / name).write_bytes(data)
            if data == (self.whole / name).read_bytes():
                return
            for read in (lambda: checkpoint.load(self.state, folder), lambda: checkpoint.load_energy(folder)):
                with suppress(CheckpointError):
                    read()
                    raise AssertionError(f"{name} was changed, and read")

        return load

    def _load_with(self, name: str) -> Callable[[bytes], None]:
        def load(data: bytes) -> None:
            """A checkpoint with this file, whose manifest is true: hostile, not damaged."""
            folder = self.scratch / "hostile"
            shutil.copytree(self.whole, folder, dirs_exist_ok=True)
            (folder / name).write_bytes(data)
            (folder / checkpoint.MANIFEST).write_bytes(manifest_bytes(describe(folder, self.names), 0))
            with suppress(EbmError):
                checkpoint.load(self.state, folder)
            with suppress(EbmError):
                checkpoint.load_energy(folder)

        return load
