"""Rows, their columns and the Parquet parts that hold them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.records.rows import (
    METRIC_NAMES,
    Recorder,
    Row,
    about_column,
    is_column,
    is_logged,
    part_bytes,
    part_name,
    part_steps,
    read_parts,
)
from orchestrator.terminal.tables import line


def rows_of(steps: list[int]) -> list[Row]:
    recorder = Recorder(0)
    return [recorder.add(step, {"loss": step / 3, "energy_gap": -0.1 * step}) for step in steps]


def test_a_part_gives_back_the_rows_bit_for_bit():
    rows = rows_of([1, 10, 20])
    table = read_parts([part_bytes(rows)])
    assert table["step"].to_pylist() == [1, 10, 20]
    assert table["loss"].to_pylist() == [row["loss"] for row in rows]
    assert table["loss/opt"].to_pylist() == [None, None, None]  # a column that no row has is null, not zero


def test_parts_are_read_in_the_order_of_their_steps():
    late, early = part_bytes(rows_of([30, 40])), part_bytes(rows_of([1, 10]))
    assert read_parts([late, early])["step"].to_pylist() == [1, 10, 30, 40]


def test_no_parts_are_an_empty_table_with_all_columns():
    table = read_parts([])
    assert table.num_rows == 0
    assert table.column_names == ["step", *METRIC_NAMES]


def test_a_part_is_named_by_its_first_and_last_step():
    name = part_name(rows_of([1, 10, 500]))
    assert name == "part-000000001-000000500.parquet"
    assert part_steps(name) == (1, 500)


@pytest.mark.parametrize(
    "name", ["part-1.parquet", "x-1-2.parquet", "part-1-2.json", "part-a-2.parquet", "", "part--.parquet"]
)
def test_a_stranger_among_the_parts_is_no_part(name: str):
    assert part_steps(name) is None


def test_the_file_itself_says_what_its_columns_mean_and_in_which_unit():
    schema = pq.read_schema(io.BytesIO(part_bytes(rows_of([1]))))
    for name, metric in METRIC_NAMES.items():
        assert schema.field(name).metadata[b"help"].decode() == metric.help
        assert schema.field(name).metadata[b"unit"].decode() == metric.unit


def test_rows_fall_on_the_first_step_and_on_multiples_whatever_came_before():
    assert [step for step in range(1, 31) if is_logged(step, 10)] == [1, 10, 20, 30]


def test_a_metric_without_a_name_is_refused():
    with pytest.raises(KeyError, match="novel"):
        Recorder(0).add(1, {"novel": 1.0})


def test_a_term_that_no_list_knows_is_logged_beside_rows_that_lack_it():
    recorder = Recorder(0)
    rows = [recorder.add(1, {"loss": 0.5}), recorder.add(2, {"loss/novel": 0.25, "grad_norm/novel": 3.0})]
    old, new = part_bytes(rows[:1]), part_bytes(rows[1:])
    table = read_parts([new, old])
    assert table["loss/novel"].to_pylist() == [None, 0.25]
    assert table["grad_norm/novel"].to_pylist() == [None, 3.0]
    assert table.column_names == ["step", *METRIC_NAMES, "grad_norm/novel", "loss/novel"]
    assert pq.read_schema(io.BytesIO(new)).field("loss/novel").metadata[b"help"] == b"weighted novel"
    assert about_column("loss/novel").help == "weighted novel"
    for name in ("loss/", "novel", "other/novel"):
        assert not is_column(name)


def test_columns_of_version_0_1_are_read_under_their_present_names():
    old = {"step": [1, 2], "cd": [0.25, None], "l2": [1.0, 2.0], "grad_norm/cd": [3.0, 4.0], "strange": ["a", "b"]}
    sink = io.BytesIO()
    pq.write_table(pa.table(old), sink)
    table = read_parts([sink.getvalue(), part_bytes(rows_of([3]))])
    assert table["loss/cd"].to_pylist() == [0.25, None, None]
    assert table["loss/l2"].to_pylist() == [1.0, 2.0, None]
    assert table["grad_norm/cd"].to_pylist() == [3.0, 4.0, None]
    assert table.column_names == ["step", *METRIC_NAMES]


def test_taken_rows_are_not_taken_twice():
    recorder = Recorder(0)
    recorder.add(1, {"loss": 1.0})
    assert [row["step"] for row in recorder.take()] == [1]
    assert recorder.take() == []


def test_a_line_shows_step_rate_gap_and_each_loss_term():
    row = {
        "step": 20,
        "loss": 0.51234567,
        "energy_gap": -0.25,
        "loss/opt": float("nan"),
        "time": 0.0,
        "steps_per_s": 12.34,
    }
    assert line(row, 100) == "step 20/100  12.3 steps/s  energy_gap -0.25  loss 0.5123  opt nan"
