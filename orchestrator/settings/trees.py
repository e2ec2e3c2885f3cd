"""Settings as trees: flat, compared, described, and which may change when a run is resumed."""

import json
from collections.abc import Mapping
from typing import Any

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError
from orchestrator.settings.job import JobConfig

MAY_DIFFER_ON_RESUME: tuple[str, ...] = (
    "train.num_steps",  # may grow: the same run, trained for longer
    "train.log_every",
    "train.on_divergence",  # what was decided already stays; these three decide about the next divergence
    "train.rollback_lr_factor",
    "train.max_rollbacks",
    "checkpoint",
    "evaluation",
    "cluster",  # whole buffer shards move between workers; bit-identity holds at an equal number of workers
    "engine.num_threads",
    "storage",  # a store may be mounted or moved elsewhere
    "data.root",
)
"""Settings (or sections) that may change when a run of the same name goes on; every other one decides its numbers."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as {dotted path: value}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(a_tree: Mapping[str, Any], b_tree: Mapping[str, Any]) -> list[str]:
    """Dotted paths at which two trees differ, sorted."""
    a, b = flatten(a_tree), flatten(b_tree)
    absent = object()
    return sorted(path for path in a.keys() | b.keys() if a.get(path, absent) != b.get(path, absent))


def check_resumable(stored: Mapping[str, Any], job: JobConfig) -> None:
    """Refuse to go on with a run whose numbers other settings made; the message shows old and new values.

    A setting that did not exist when the run was stored has its default there: it changes nothing.
    """
    wanted = to_tree(job)
    idle = set() if job.data.condition != "none" else {"buffer.conditions"}  # decides nothing there
    old, new, default = flatten(stored), flatten(wanted), flatten(to_tree(JobConfig()))
    idle |= {path for path in new.keys() - old.keys() if new[path] == default[path]}
    changed = [p for p in differences(stored, wanted) if not _may_differ(p) and p not in idle]
    if changed:
        shown = "; ".join(f"{p} was {old.get(p)!r}, now {new.get(p)!r}" for p in changed)
        raise ConfigError(
            f"run {job.name!r} exists with other settings: {shown}. Use another name= or the old settings"
        )


def _may_differ(path: str) -> bool:
    return any(path == allowed or path.startswith(f"{allowed}.") for allowed in MAY_DIFFER_ON_RESUME)


def describe(job: JobConfig) -> str:
    """The resolved settings as indented `name: value` lines; values are JSON, so that they can be pasted back."""
    lines: list[str] = []

    def section(tree: Mapping[str, Any], indent: str) -> None:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                lines.append(f"{indent}{name}:")
                section(value, indent + "  ")
            else:
                lines.append(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}")

    section(to_tree(job), "")
    return "\n".join(lines)
