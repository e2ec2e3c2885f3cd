"""Everything that knows Ray, the stores and the command line: seven floors, imports go down only.

What may be called from Python stands here, and is loaded when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.evaluation.compose import compose
    from orchestrator.evaluation.evaluate import evaluate
    from orchestrator.storage.find import open_run
    from orchestrator.sweeps.driver import run_sweep
    from orchestrator.training.driver import run_training

__all__ = ["compose", "evaluate", "open_run", "run_sweep", "run_training"]

_HOMES = {
    "compose": "orchestrator.evaluation.compose",
    "evaluate": "orchestrator.evaluation.evaluate",
    "open_run": "orchestrator.storage.find",
    "run_sweep": "orchestrator.sweeps.driver",
    "run_training": "orchestrator.training.driver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
