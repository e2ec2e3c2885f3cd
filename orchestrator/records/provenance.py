"""Where a run comes from: its command without secrets, code, packages, hardware, data, launches."""

import importlib.metadata
import json
import os
import platform
import re
import sys
from datetime import UTC, datetime
from typing import Any

from ebm_core.data import load
from orchestrator.settings.job import JobConfig
from orchestrator.storage.interface import ObjectMissing
from orchestrator.storage.run_store import Run

CONFIG, PROVENANCE = "config.json", "provenance.json"


_SECRET = re.compile(r"(?i)(token|secret|password|credential|access_?key)[^=\s]*=\S+")


_USER_INFO = re.compile(r"://[^/@\s]+@")


Origin = dict[str, Any]
"""What `provenance` makes, before anything is stored."""


def launches(run: Run) -> list[Origin]:
    """Every launch of the run, oldest first; none if the job was killed before it wrote the first."""
    return read_provenance(run)["launches"]


def read_provenance(run: Run) -> dict[str, Any]:
    """provenance.json, with its list of launches, empty where a kill came before it was written."""
    try:
        tree = run.read_json(PROVENANCE)
    except ObjectMissing:
        tree = {}
    tree = tree if isinstance(tree, dict) else {}
    return tree | {"launches": tree["launches"] if isinstance(tree.get("launches"), list) else []}


def provenance(job: JobConfig) -> Origin:
    """Where the numbers of a launch come from: versions, machine, data, command (with secrets blotted out)."""
    packages = ("torch", "torchvision", "ray", "numpy", "safetensors", "pyarrow", "scikit-learn", "confab-ebm")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [without_secrets(word) for word in sys.argv],
        "job": submission_id(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in packages},
        "hardware": _hardware(),
        "data": {"name": job.data.name, "fingerprint": load(job.data, "train").fingerprint()},
    }


def submission_id() -> str | None:
    """Id of the Ray job that this process is the command of; None outside of a job."""
    try:
        return (
            json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")).get("metadata", {}).get("job_submission_id")
        )
    except (ValueError, AttributeError):
        return None


def without_secrets(word: str) -> str:
    """A word of a command line whose password, token or key is replaced by ***."""
    return _USER_INFO.sub("://***@", _SECRET.sub(lambda m: f"{m[0].partition('=')[0]}=***", word))


def package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": gpus}
