"""What differs between two runs: settings, scores, last metrics. `ebm runs compare` prints it; pages draw curves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.records import runs
from orchestrator.records.rows import WALL_CLOCK
from orchestrator.records.scores import headline, read_scores
from orchestrator.settings.trees import differences, flatten
from orchestrator.storage.run_store import Run
from orchestrator.terminal.tables import number

Line = tuple[str, str, str]
"""What, of the first run, of the second."""


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    names: tuple[str, str]
    settings: list[Line]
    """Dotted paths whose values differ."""
    scores: list[Line]
    """Headlines of the newest scored checkpoint of each."""
    metrics: list[Line]
    """The last logged rows."""


def compare(first: Run, second: Run) -> Comparison:
    """Read both runs. Raises StorageError for one that is damaged."""
    trees = [run.read_config() for run in (first, second)]
    flat = [flatten(tree) for tree in trees]
    settings = [(path, _text(flat[0].get(path)), _text(flat[1].get(path))) for path in differences(*trees)]
    steps = [max(run.checkpoints(), default=0) for run in (first, second)]
    scores = [_scores(run, step) for run, step in zip((first, second), steps, strict=True)]
    rows = [_rows(run) for run in (first, second)]
    return Comparison(
        names=(first.name, second.name),
        settings=[line for line in settings if line[0] not in ("name", "storage")],
        scores=[("step", str(steps[0]), str(steps[1])), *_side_by_side(*scores)],
        metrics=_side_by_side(*rows),
    )


def _scores(run: Run, step: int) -> dict[str, float]:
    return {name: headline(document) for name, document in read_scores(run, step).items()}


def _rows(run: Run) -> dict[str, float]:
    return {name: value for name, value in runs.last_row(run).items() if name not in WALL_CLOCK}


def _side_by_side(first: Mapping[str, float], second: Mapping[str, float]) -> list[Line]:
    names = dict.fromkeys([*first, *second])
    return [(name, number(first.get(name)), number(second.get(name))) for name in names]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)
