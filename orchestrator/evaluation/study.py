"""What `ebm evaluate` knows beside scores of generated images: a study makes its own calls to the actors.

`ood.py`, `chains.py` and so on hold one each; STUDIES in `evaluate.py` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ebm_core.config import DataConfig
from orchestrator.evaluation.request import EvaluationRequest
from orchestrator.storage.run_store import Run
from orchestrator.terminal.tables import Table
from workers.calls import Call, Runner
from workers.evaluator import Evaluator

T = TypeVar("T")

Document = dict[str, Any]
"""A result. What does not belong into its JSON is taken out by `store`."""


@dataclass(frozen=True)
class Asked:
    """What a study may use: the request, what calls evaluators of the checkpoint, the data that it was trained on, and
    the folder of the run that its results go into."""

    request: EvaluationRequest
    runner: Runner[Evaluator]
    trained: DataConfig
    run: Run
    folder: str

    def one(self, call: Call[Evaluator, T]) -> T:
        """What a single call returns."""
        return self.runner.run({0: call})[0]


@dataclass(frozen=True)
class Study:
    """One result of a checkpoint, made of calls to the evaluator."""

    check: Callable[[EvaluationRequest, DataConfig], object]
    """Refuses a request that cannot be met, before anything starts."""
    prepare: Callable[[Asked], object]
    """Refuses what cannot be read, before the long work of any metric."""
    measure: Callable[[Asked], Document]
    store: Callable[[Run, str, Document], None]
    """Writes pictures and data below a folder of the run, and leaves what can be JSON in the document."""
    tables: Callable[[Document, int], list[Table]]
    """What a person sees of the document of a step."""
    tidy: Callable[[Run, str], object] = lambda run, folder: None
    """Removes what helped an interrupted study to go on, once its result is stored."""
