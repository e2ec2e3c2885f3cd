"""What the property tests throw bytes at: the readers of what a store may hold.

A target takes bytes from anybody. It may refuse them by an EbmError; whatever else it raises is a defect.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ebm_core import checkpoint
from ebm_core.errors import EbmError
from ebm_core.manifest import describe, manifest_bytes, parse_manifest
from ebm_core.trainer import TrainState, init_state
from orchestrator.commits import condemns, parse_commit
from orchestrator.objects import FolderStore
from orchestrator.rollback import read_rollbacks
from orchestrator.storage import RunStore
from tests.ebm_core.tiny import tiny_config


class Targets:
    """The readers, in a scratch folder of their own."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.cfg = scratch, tiny_config()
        self.state: TrainState = init_state(self.cfg)
        self.whole = scratch / "whole"
        checkpoint.save(self.state, self.cfg, self.whole)
        self.names = sorted(path.name for path in self.whole.iterdir() if path.name != checkpoint.MANIFEST)
        self.run = RunStore(FolderStore(scratch / "runs")).run("r")

    def all(self) -> dict[str, Callable[[bytes], None]]:
        """{name: target}."""
        files = {f"load {name}": self._load_with(name) for name in self.names if not name.endswith(("2.safetensors",))}
        return {"manifest": self.manifest, "commit": self.commit, "rollbacks": self.rollbacks, **files}

    def seed(self, name: str) -> bytes:
        """Content that the target accepts: where a test begins."""
        if name == "manifest":
            return (self.whole / checkpoint.MANIFEST).read_bytes()
        if name == "commit":
            text = {"step": 1, "attempt": "attempt-0123456789abcdef", "manifest_sha256": "0" * 64, "time": "2020"}
            return json.dumps(text).encode()
        if name == "rollbacks":
            return (
                b'[{"number": 1, "diverged_at": 9, "reason": "x", "drift_began": 3, "to_step": 2, "lr": 0.5, '
                b'"abandoned": {"4": "0"}}]'
            )
        return (self.whole / name.removeprefix("load ")).read_bytes()

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
