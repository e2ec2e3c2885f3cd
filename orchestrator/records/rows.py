"""The names, meanings and units of everything that a run measures, and how rows become Parquet parts.

A row belongs to one step. All its columns but WALL_CLOCK are functions of the settings alone, so a resumed run writes
the same rows again, bit for bit.
"""

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, float]
"""One logged step: `step` and the columns that it has (`is_column`)."""


class MetricName(NamedTuple):
    """What a column means, and in which unit; an empty unit is a pure number."""

    help: str
    unit: str


class Term(NamedTuple):
    """What a person reads about a term of the loss."""

    label: str
    """In a legend."""
    meaning: str


TERMS: dict[str, Term] = {
    "flow": Term("flow matching", "flow matching: squared error of the slope on lines from noise to data (warm start)"),
    "cd": Term("L_CD", "contrastive divergence, E(data) - E(samples) (Eq. 4)"),
    "opt": Term("L_opt", "L_opt: frozen energy of the samples (Eq. 6)"),
    "entropy": Term("L_ent", "L_ent: negative nearest-neighbor entropy of the samples (Eq. 7)"),
    "l2": Term("L2 of energies", "mean squared energies (Section 3.1)"),
}
"""The terms of `ebm_core.losses.Loss` in words; one that is not here goes by its name."""


def about_term(name: str) -> Term:
    """What to tell of the term called `name`."""
    return TERMS.get(name) or Term(name, name)


LOSS, GRADIENT = "loss/", "grad_norm/"
"""How the columns of each term of the loss begin: its weighted value and the norm of its gradient. Any name may follow,
so that a new term is logged without a line here."""
UNPREFIXED = ("flow", "cd", "opt", "entropy", "l2")
"""Terms whose values version 0.1 logged, and named as a sweep's metric, without LOSS. No other is read so."""


def about_column(name: str) -> MetricName:
    """What a logged column means. KeyError for a name that is neither listed nor a term's."""
    if name not in METRIC_NAMES and is_column(name):
        return _about_term(name)
    return METRIC_NAMES[name]


def is_column(name: str) -> bool:
    """Is this a logged column: a listed one, or a value or gradient norm of some term?"""
    return name in METRIC_NAMES or (name.startswith((LOSS, GRADIENT)) and not name.endswith("/"))


def term_of(name: str) -> str | None:
    """The term of the loss whose value this column is; None for any other column."""
    return name.removeprefix(LOSS) if name.startswith(LOSS) else None


def column_name(name: str) -> str:
    """The present name of a column that an older version may have written."""
    return f"{LOSS}{name}" if name in UNPREFIXED else name


def _about_term(name: str) -> MetricName:
    prefix, _, term = name.partition("/")
    meaning = about_term(term).meaning
    return MetricName(f"weighted {meaning}" if prefix == "loss" else f"norm of the gradient of {meaning}", "")


METRIC_NAMES: dict[str, MetricName] = {
    "loss": MetricName("sum of the weighted loss terms, which training minimises", ""),
    **{f"{LOSS}{term}": _about_term(f"{LOSS}{term}") for term in TERMS},
    "energy_data": MetricName("mean energy of the data batch", "energy"),
    "energy_neg": MetricName("mean energy of the sampled batch", "energy"),
    "energy_gap": MetricName("E(data) - E(samples), the quantity that stability is judged by", "energy"),
    "grad_norm": MetricName("L2 norm of the whole gradient before clipping", ""),
    **{f"{GRADIENT}{term}": _about_term(f"{GRADIENT}{term}") for term in TERMS},
    "clamped_fraction": MetricName("share of the samples' pixels at the ends of the data range", "fraction"),
    "buffer_fill": MetricName("share of the buffer's slots in use", "fraction"),
    "buffer_age": MetricName("mean age of the past samples that Eq. 7 measures against", "steps"),
    "running_gap": MetricName("l2_weight times the running mean of the energy gap; -1 is collapse (Fig. 9)", ""),
    "lr": MetricName("learning rate of the step", ""),
    "rollbacks": MetricName("returns to an older checkpoint after a divergence, so far", ""),
    "device_memory": MetricName("largest memory that rank 0 has held, on its GPU or else in its process", "bytes"),
    "time": MetricName("wall clock when the row was made, since 1970", "s"),
    "steps_per_s": MetricName("training steps per second since the row before", "1/s"),
}
"""The columns that every part has. Beside them a row may have those of a term that is not listed."""

RUN_METRICS: dict[str, MetricName] = {
    "step": MetricName("number of the last step that was logged", ""),
    "target": MetricName("train.num_steps", "steps"),
    "row_age": MetricName("time since the last logged step, or since the start", "s"),
    "report_age": MetricName("time since the last sign of life of the driver of the run", "s"),
    "checkpoint_age": MetricName("time since the last committed checkpoint, or since the start", "s"),
    "checkpoint_duration": MetricName("time that the last checkpoint took to store", "s"),
    "score": MetricName("headline number of each score at the last scored checkpoint", ""),
    "evaluation_failures": MetricName("attempts to score a checkpoint that failed", "total"),
    "restarts": MetricName("restarts of the workers after a failure", "total"),
    "diverged": MetricName("1 when the run counts as diverged, else 0", ""),
}
"""What a run exports to Prometheus beside its last row; `monitoring` makes the names there."""

WALL_CLOCK: tuple[str, ...] = ("device_memory", "time", "steps_per_s")
"""Columns that a resumed run does not repeat."""


def _schema(names: Iterable[str]) -> pa.Schema:
    """`step` and these columns, with their meaning and unit."""
    about = {name: about_column(name) for name in names if name != "step"}
    numbers = [
        pa.field(name, pa.float64(), metadata={"help": one.help, "unit": one.unit}) for name, one in about.items()
    ]
    return pa.schema([pa.field("step", pa.int64(), nullable=False), *numbers])


SCHEMA = _schema(METRIC_NAMES)
"""Columns of every part: a column that a row lacks is null."""


def is_logged(step: int, every: int) -> bool:
    """Whether the step has a row: the first, and each multiple of train.log_every. A function of the step alone."""
    return step == 1 or step % every == 0


class Recorder:
    """Rows since the last part, stamped with the wall clock. One `add` feeds the progress and the part."""

    def __init__(self, step: int) -> None:
        self._rows: list[Row] = []
        self._last_step, self._last_time = step, time.time()

    def add(self, step: int, terms: Mapping[str, float]) -> Row:
        """The row of this step, kept for the next part. A name that is no column (`is_column`) is a KeyError."""
        unknown = [name for name in terms if not is_column(name)]
        if unknown:
            raise KeyError(f"metrics {sorted(unknown)} have no help and unit in METRIC_NAMES")
        now = time.time()
        rate = (step - self._last_step) / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        row = {"step": step, **terms, "time": now, "steps_per_s": rate}
        self._rows.append(row)
        return row

    def take(self) -> list[Row]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows


def part_name(rows: list[Row]) -> str:
    """Name of the part that holds these rows: their first and last step, so that a resumed run writes it again."""
    return f"part-{int(rows[0]['step']):09d}-{int(rows[-1]['step']):09d}.parquet"


def part_steps(name: str) -> tuple[int, int] | None:
    """(first, last) step of a part's name; None if it is no part."""
    stem, _, suffix = name.partition(".")
    fields = stem.split("-")
    if suffix != "parquet" or len(fields) != 3 or fields[0] != "part" or not all(f.isdigit() for f in fields[1:]):
        return None
    return int(fields[1]), int(fields[2])


def part_bytes(rows: Iterable[Row]) -> bytes:
    """The rows as a Parquet file with SCHEMA's columns, and those of further terms that they have."""
    rows = [dict(row) for row in rows]
    more = sorted({name for row in rows for name in row if is_column(name)} - set(METRIC_NAMES))
    table = pa.Table.from_pylist(rows, schema=_schema([*METRIC_NAMES, *more]))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def read_parts(parts: Iterable[bytes]) -> pa.Table:
    """All rows of the parts, by step; columns under their present names, and what is no column left out."""
    tables = [SCHEMA.empty_table(), *map(_read_part, parts)]
    return pa.concat_tables(tables, promote_options="default").sort_by("step")


def _read_part(part: bytes) -> pa.Table:
    stored = pq.read_table(io.BytesIO(part))
    table = stored.rename_columns([column_name(name) for name in stored.column_names])
    names = ["step", *(name for name in table.column_names if is_column(name))]
    return table.select(names).cast(_schema(names))


def training_seconds(rows: Mapping[str, Sequence[Any]]) -> float:
    """Time that the logged steps took, without the pauses between launches. Steps done again after a loss count once.

    rows: logged columns, by step; a column that no row has may be absent.
    """
    seconds, before, last_time = 0.0, 0, None
    for step, rate, time_s in zip(
        rows.get("step", ()), rows.get("steps_per_s", ()), rows.get("time", ()), strict=False
    ):
        taken = (step - before) / rate if rate else 0.0
        if last_time is not None and time_s is not None:
            taken = min(taken, max(time_s - last_time, 0.0))
        seconds, before, last_time = seconds + taken, step, time_s
    return seconds
