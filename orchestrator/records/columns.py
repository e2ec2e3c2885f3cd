"""The columns of the catalogue, derived from the configuration, the logged columns and the known scores."""

import json
import types
import typing
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa

from orchestrator.records.rows import METRIC_NAMES
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import leaves
from workers.metrics.registry import METRICS

_PLAIN = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}


def arrow_type(hint: Any) -> pa.DataType:
    """How a setting of this type is stored: numbers, texts and flags as such, tuples as lists."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return arrow_type(next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(arrow_type(arguments[0]))
    return _PLAIN[hint]


SCHEMA = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("sweep", pa.string()),
        pa.field("trial", pa.string()),
        pa.field("data", pa.string()),
        pa.field("state", pa.string()),
        pa.field("step", pa.int64()),
        pa.field("num_steps", pa.int64()),
        pa.field("modified", pa.timestamp("us", "UTC")),
        pa.field("written", pa.timestamp("us", "UTC")),
        *(pa.field(f"settings.{path}", arrow_type(hint)) for path, hint in leaves(JobConfig)),
        *(pa.field(f"metrics.{name}", pa.float64()) for name in METRIC_NAMES),
        *(pa.field(f"scores.{name}", pa.float64()) for name in METRICS),
        pa.field("others", pa.string()),
    ]
)
"""`others` holds as JSON what a version of the program stored that had other columns."""


def typed_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with SCHEMA's columns and types; what does not fit goes to `others`."""
    fitting, others = {}, {}
    for name, value in row.items():
        index = SCHEMA.get_field_index(name)
        try:
            if index < 0:
                raise pa.ArrowInvalid(name)
            fitting[name] = pa.scalar(value, SCHEMA.field(index).type).as_py()
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError):
            others[name] = value
    return fitting | ({"others": json.dumps(others, sort_keys=True, default=str)} if others else {})
