"""Everything that knows Ray, the stores and the command line: seven floors, imports go down only.

What may be called from Python stands here, and is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.evaluation.compose import compose
    from orchestrator.evaluation.evaluate import evaluate
    from orchestrator.storage.find import open_run
    from orchestrator.sweeps.driver import run_sweep
    from orchestrator.training.driver import run_training

__all__ = ["compose", "evaluate", "open_run", "run_sweep", "run_training"]


def __getattr__(name: str) -> Any:
    if name == "compose":
        from orchestrator.evaluation.compose import compose as found
    elif name == "evaluate":
        from orchestrator.evaluation.evaluate import evaluate as found
    elif name == "open_run":
        from orchestrator.storage.find import open_run as found
    elif name == "run_sweep":
        from orchestrator.sweeps.driver import run_sweep as found
    elif name == "run_training":
        from orchestrator.training.driver import run_training as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return __all__
