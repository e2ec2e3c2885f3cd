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
"""One logged step: `step` and the columns of METRIC_NAMES that it has."""


class MetricName(NamedTuple):
    """What a column means, and in which unit; an empty unit is a pure number."""

    help: str
    unit: str


METRIC_NAMES: dict[str, MetricName] = {
    "loss": MetricName("sum of the weighted loss terms, which training minimises", ""),
    "flow": MetricName("flow matching: squared error of the slope on lines from noise to data (warm start)", ""),
    "cd": MetricName("weighted contrastive divergence, E(data) - E(samples) (Eq. 4)", "energy"),
    "opt": MetricName("weighted L_opt: frozen energy of the samples (Eq. 6)", ""),
    "entropy": MetricName("weighted negative nearest-neighbor entropy of the samples (Eq. 7)", ""),
    "l2": MetricName("weighted mean squared energies (Section 3.1)", ""),
    "energy_data": MetricName("mean energy of the data batch", "energy"),
    "energy_neg": MetricName("mean energy of the sampled batch", "energy"),
    "energy_gap": MetricName("E(data) - E(samples), the quantity that stability is judged by", "energy"),
    "grad_norm": MetricName("L2 norm of the whole gradient before clipping", ""),
    "grad_norm/flow": MetricName("gradient norm of the flow matching term", ""),
    "grad_norm/cd": MetricName("gradient norm of the contrastive divergence term (Fig. 12)", ""),
    "grad_norm/opt": MetricName("gradient norm of L_opt (Fig. 12)", ""),
    "grad_norm/entropy": MetricName("gradient norm of L_ent (Fig. 12)", ""),
    "grad_norm/l2": MetricName("gradient norm of the L2 term", ""),
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


SCHEMA = pa.schema(
    [pa.field("step", pa.int64(), nullable=False)]
    + [
        pa.field(name, pa.float64(), metadata={"help": metric.help, "unit": metric.unit})
        for name, metric in METRIC_NAMES.items()
    ]
)
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
        """The row of this step, kept for the next part. A name that METRIC_NAMES lacks is a KeyError."""
        unknown = terms.keys() - METRIC_NAMES.keys()
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
    """The rows as a Parquet file with SCHEMA's columns."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def read_parts(parts: Iterable[bytes]) -> pa.Table:
    """All rows of the parts, by step."""
    tables = [pq.read_table(io.BytesIO(part), schema=SCHEMA) for part in parts]
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return table.sort_by("step")


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
