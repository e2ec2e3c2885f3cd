"""What a person wants of a job, checked before it travels: its command, its run's name, the settings behind it."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError
from orchestrator.cli.options import COMMANDS
from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.find import split_place
from orchestrator.storage.run_store import require_run_name

NEEDS_FILES = "nodes of the cluster look for it elsewhere; name a folder that each of them sees, from the root"


def check_words(words: Sequence[str]) -> tuple[str, list[str], dict[str, Any] | None]:
    """(name of the run, words for the cluster, resolved settings or None) of `ebm WORDS` as a job.

    Raises ConfigError for what would fail there: unknown settings, a store that only this machine has.
    """
    if not words or words[0] not in COMMANDS:
        raise ConfigError(f"{(words or ['?'])[0]!r} cannot be submitted; known are {', '.join(COMMANDS)}")
    words = [_root_of_here(word) for word in words]
    if words[0] == "train":
        return _check_train(list(words[1:]))
    if words[0] == "sweep":
        return _check_sweep(list(words))
    return _check_stored(list(words))


def _root_of_here(word: str) -> str:
    """`data.root=~/data` with the home folder of this machine: on the cluster ~ may be another."""
    path, equals, root = word.partition("=")
    return f"{path}={os.path.expanduser(root)}" if path == "data.root" and equals else word


def _check_train(words: list[str]) -> tuple[str, list[str], dict[str, Any]]:
    """A run without a name gets one here, so that the person has it: the cluster's store may be out of reach."""
    if not words:
        raise ConfigError("submit train: name a preset, such as digits")
    preset, *settings = words
    job = override(job_preset(preset), settings)
    if job.name is None:
        job = replace(job, name=f"{preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
        settings.append(f"name={job.name}")
    _require_shared("storage", job.storage)
    if any(word.startswith("data.root=") for word in settings):
        _require_shared("data.root", job.data.root)
    return str(job.name), ["train", preset, *settings], to_tree(job)


def _check_sweep(words: list[str]) -> tuple[str, list[str], dict[str, Any]]:
    """The sweep's own checks, here and not minutes later; its name is that of the job."""
    from orchestrator.cli.sweep import parse_words
    from orchestrator.sweeps.plan import make_plan

    what, request = parse_words(words[1:])
    if what.endswith((".yaml", ".yml")):
        _require_shared("WHAT", what)
    plan, base = make_plan(what, request)
    _require_shared("storage", base.storage)
    if any(word.startswith("data.root=") for word in words):
        _require_shared("data.root", base.data.root)
    elif base.data.root.startswith("/"):  # from the file, where ~ would be read again on the cluster
        words.append(f"data.root={base.data.root}")
    return plan.name, words, to_tree(base)


def _check_stored(words: list[str]) -> tuple[str, list[str], None]:
    """A command about a stored run: evaluate, resume, clone."""
    run = next((word for word in words[1:] if not word.startswith("-")), "")
    at = words.index("--storage") if "--storage" in words else -1
    where, name = split_place(run, words[at + 1] if 0 < at < len(words) - 1 else "./runs")
    _require_shared("storage", where)
    if words[0] == "clone":
        name = next((word.removeprefix("name=") for word in words if word.startswith("name=")), f"{name}-clone")
    return require_run_name(name), words, None


def _require_shared(path: str, place: str) -> None:
    if "://" not in place and not place.startswith("/"):
        raise ConfigError(f"{path} = {place!r}: {NEEDS_FILES}, or s3://BUCKET/PREFIX")
