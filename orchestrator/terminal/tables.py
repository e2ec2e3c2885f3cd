"""Numbers, lines and tables as a terminal shows them."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.records.rows import Row


def shown(row: "Row") -> dict[str, str]:
    """What a line of progress tells of a row, in order: energy gap, loss, each of its terms, gradient norm."""
    from orchestrator.records.rows import term_of

    terms = {name: term for name in row if (term := term_of(name))}
    names = {"energy_gap": "energy_gap", "loss": "loss", **terms, "grad_norm": "grad_norm"}
    return {label: number(row[name]) for name, label in names.items() if name in row}


def line(row: "Row", num_steps: int) -> str:
    """A row as one line of text: step of total, rate, energy gap and each loss term."""
    told = "  ".join(f"{name} {value}" for name, value in shown(row).items())
    return f"step {int(row['step'])}/{num_steps}  {row['steps_per_s']:.1f} steps/s  {told}"


def number(value: float | None) -> str:
    """Four significant digits; a dash for an absent value."""
    if value is None:
        return "-"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def open_console() -> Any:
    """Where tables go: as wide as the terminal, 160 columns in a pipe."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column is text, the others numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    open_console().print(table)
