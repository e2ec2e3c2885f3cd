"""What a study is: a result of a checkpoint that needs calls of its own, beside the scores of generated images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ebm_core.config import DataConfig
from workers.calls import Call, Runner
from workers.evaluator import Evaluator
from workers.tables import Table

T = TypeVar("T")
Options = TypeVar("Options")

Document = dict[str, Any]
"""A result. Its `metric` names its file. What does not belong into JSON is taken out by `Study.store`."""


class Folder(Protocol):
    """Where the results of a checkpoint are stored: bytes by name, each written at once or not at all."""

    def read(self, name: str) -> bytes | None:
        """What was written under that name; None: nothing."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Store bytes over those of the same name."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Remove what was written under that name, if anything was."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[Options]):
    """What a study is asked, and all that it may use."""

    options: Options
    num_images: int
    """Generated images, in a study that draws some."""
    seed: int
    trained: DataConfig
    """The data that the checkpoint was trained on."""
    run_name: str
    step: int
    """Of the checkpoint."""
    folder: Folder
    runner: Runner[Evaluator]
    """Makes calls to evaluators of the checkpoint."""

    def one(self, call: Call[Evaluator, T]) -> T:
        """What a single call returns."""
        return self.runner.run({0: call})[0]


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Options]):
    """One result of a checkpoint, made by calls to the evaluator."""

    options: type[Options]
    """Its settings: a frozen dataclass with defaults, a text below each field and checks. `ebm evaluate` takes them as
    STUDY.FIELD=VALUE, a job as evaluation.STUDY.FIELD=VALUE."""
    measure: Callable[[Asked[Options]], Document]
    tables: Callable[[Document, int], list[Table]]
    """What a person sees of the document of a step."""
    check: Callable[[Options, DataConfig], object] = lambda options, trained: None
    """Refuses what cannot be met on this data, before anything starts."""
    prepare: Callable[[Asked[Options]], object] = lambda asked: None
    """Refuses what cannot be read, before the long work of any score."""
    store: Callable[[Asked[Options], Document], object] = lambda asked, document: None
    """Writes pictures and data, and leaves what can be JSON in the document."""
    tidy: Callable[[Asked[Options]], object] = lambda asked: None
    """Removes what helped an interrupted study to go on, once its result is stored."""
    metric: Callable[[Options], str] | None = None
    """`metric` of its document, where that is not the study's name whatever the options."""
