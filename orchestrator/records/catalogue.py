"""What runs exist, as Parquet beside them: one row per run with its settings, last metrics and scores.

    <root>/_catalog/entry-<time>-<id>.parquet   a row or a few, written when a run starts, ends, or is scored again
    <root>/_catalog/base-<time>-<id>.parquet    all rows so far, written now and then out of a base and entries

No object is ever changed. A run's newest row counts (column `written`), so a base and the entries that went into it
may lie side by side: a merge that is killed loses nothing, and merging twice changes nothing. Columns are `run`,
`sweep`, `trial`, `data`, `state`, `step`, `num_steps`, `modified`, `written`, `settings.<path>`, `metrics.<name>` of
the last logged row and `scores.<name>` of the newest checkpoint: `read_parquet('<root>/_catalog/*.parquet')` is all
that pyarrow, pandas or DuckDB need.
"""

import io
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ebm_core.errors import ConfigError
from orchestrator.records.columns import SCHEMA, typed_row
from orchestrator.records.rows import column_name
from orchestrator.records.runs import RunSummary, last_row, summarise
from orchestrator.records.sweeps import SweepRecord, marked_sweep
from orchestrator.storage.interface import ObjectMissing, StorageError
from orchestrator.storage.run_store import RunStore

FOLDER = "_catalog"
MERGE_AT = 64
"""So many entries beside a base are merged into a new one by the next writer or reader."""
SETTLED = ("finished", "diverged", "stopped")
"""States that only a new launch or a new score changes, and both write an entry."""
THREADS = 16
Row = dict[str, Any]


def describe_run(store: RunStore, name: str) -> Row:
    """A run's row, read from the run itself: a dozen small objects."""
    summary = summarise(store, name)
    run = store.run(name)
    row: Row = {"run": name, "data": summary.data, "state": summary.state, "step": summary.step}
    row |= {"num_steps": summary.num_steps, "modified": summary.modified, "written": datetime.now(UTC)}
    mark = marked_sweep(run)
    if mark is not None:
        row |= {"sweep": mark[0], "trial": mark[1]}
        result = SweepRecord(store, mark[0]).result(mark[1])
        if result is not None and result.state == "stopped":
            row["state"] = "stopped"
    if summary.state != "damaged":
        row |= {f"settings.{path}": value for path, value in _flat(run.read_config()).items()}
    row |= {f"metrics.{name}": value for name, value in last_row(run).items() if name != "step"}
    return row | {f"scores.{metric}": value for metric, value in summary.scores.items()}


def update(store: RunStore, names: Sequence[str]) -> None:
    """Write an entry with the rows of these runs as they are now."""
    if names:
        _write(store, "entry", _table([describe_run(store, name) for name in names]))


def rebuild(store: RunStore) -> pa.Table:
    """Read every run again and put a new base in the place of all that was there."""
    before = _keys(store)
    table = _table(_described(store, store.runs()))
    _write(store, "base", table)
    _delete(store, before)
    return table


def read(store: RunStore) -> pa.Table:
    """A row for each run that exists, by name; columns as above.

    One listing of the store, one of the catalogue, and the few objects in it. Only runs that it does not know, or knows
    as unfinished, are looked at themselves; what is seen of them is written down if it has changed.
    """
    present = [name for name in store.objects.folders() if not name.startswith("_")]
    table, keys = _stored(store)
    known = dict(zip(table["run"].to_pylist(), table["state"].to_pylist(), strict=True))
    doubtful = [name for name in present if known.get(name) not in SETTLED]
    fresh = _described(store, [name for name in doubtful if store.objects.exists(f"{name}/config.json")])
    table = _newest([table, _table(fresh)])
    here = set(present)
    table = table.filter(pa.array([name in here for name in table["run"].to_pylist()], pa.bool_()))
    news = [row for row in fresh if row["state"] in SETTLED or row["run"] not in known]
    try:
        if len(keys) > MERGE_AT or len(news) > MERGE_AT:
            _write(store, "base", table)
            _delete(store, keys)
        elif news:
            _write(store, "entry", _table(news))
    except StorageError:
        pass  # a reader that may not write has the same table, only later
    return table.sort_by("run")


def summaries(table: pa.Table) -> list[RunSummary]:
    """The table's rows as lines of `ebm runs`."""
    scores = [name for name in table.column_names if name.startswith("scores.")]
    return [
        RunSummary(
            row["run"],
            row["data"],
            row["step"],
            row["num_steps"],
            row["state"],
            row.get("metrics.energy_gap"),
            {name.removeprefix("scores."): row[name] for name in scores if row[name] is not None},
            row["modified"],
        )
        for row in table.to_pylist()
    ]


def _described(store: RunStore, names: Sequence[str]) -> list[Row]:
    if len(names) < 2:
        return [describe_run(store, name) for name in names]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda name: describe_run(store, name), names))


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    from orchestrator.settings.trees import flatten

    return flatten(tree)


def _table(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table with SCHEMA's columns; a column that no row has is null."""
    rows = [typed_row(row) for row in rows]
    return pa.Table.from_pylist(rows, schema=SCHEMA) if rows else SCHEMA.empty_table()


def _keys(store: RunStore) -> list[str]:
    return [info.key for info in store.objects.list(f"{FOLDER}/") if info.key.endswith(".parquet")]


def _stored(store: RunStore) -> tuple[pa.Table, list[str]]:
    """The newest row of each run in the catalogue, and the keys that hold them. A merge beside us is waited for."""
    for _ in range(10):
        keys = _keys(store)
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                parts = list(pool.map(lambda key: _parse(store, key), keys))
            return _newest(parts), keys
        except ObjectMissing:  # merged into a base after we had listed it
            continue
    raise StorageError(f"the catalogue of {store.uri} changes faster than it can be read; try again")


def _parse(store: RunStore, key: str) -> pa.Table:
    data = store.objects.get(key)
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError):
        raise StorageError(f"{store.objects.describe(key)} is damaged; make it anew with: ebm runs --rebuild") from None
    table = table.rename_columns([_present(name) for name in table.column_names])
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _present(column: str) -> str:
    """The present name of a column of the catalogue."""
    prefix, dot, name = column.partition(".")
    return f"{prefix}{dot}{column_name(name)}" if prefix == "metrics" else column


def _newest(parts: Sequence[pa.Table]) -> pa.Table:
    """All parts together, of each run the row that was written last."""
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    table = table.sort_by([("run", "ascending"), ("written", "ascending")])
    last = {name: index for index, name in enumerate(table["run"].to_pylist())}
    return table.take(pa.array(list(last.values()), pa.int64()))


def _write(store: RunStore, kind: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    store.objects.put(f"{FOLDER}/{kind}-{time.time_ns():020d}-{secrets.token_hex(4)}.parquet", sink.getvalue())


def _delete(store: RunStore, keys: Sequence[str]) -> None:
    """Remove what a base that is now durable holds."""
    for key in keys:
        store.objects.delete(key)


def select(table: pa.Table, sweep: str | None = None, sort: str | None = None) -> pa.Table:
    """The rows of a sweep (None: all), by a column: `fid_judge`, `step`, `settings.seed`; `-NAME` is largest first.

    Rows that lack the value come last. Raises ConfigError for a column that there is not.
    """
    if sweep is not None:
        table = table.filter(pa.array([name == sweep for name in table["sweep"].to_pylist()], pa.bool_()))
    if sort is None:
        return table
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    found = [
        column for column in (f"scores.{name}", f"metrics.{column_name(name)}", name) if column in table.column_names
    ]
    if not found or pa.types.is_list(table.schema.field(found[0]).type):
        scores = (column.removeprefix("scores.") for column in table.column_names if column.startswith("scores."))
        raise ConfigError(f"`sort` {sort}: no such column; scores are {', '.join(scores)}; `json` shows all columns")
    values = table[found[0]].to_pylist()
    known = sorted((i for i, v in enumerate(values) if v is not None), key=lambda i: values[i], reverse=descending)
    absent = [i for i, v in enumerate(values) if v is None]
    return table.take(pa.array([*known, *absent], pa.int64()))
