"""The catalogue: one row per run, whatever was killed, readable without this program."""

import json
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError
from orchestrator.cli import app
from orchestrator.records import catalogue
from orchestrator.records.rows import Row, part_bytes, part_name
from orchestrator.records.sweeps import PlannedTrial, SweepRecord, TrialResult
from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import RunStore


def make_run(store: RunStore, name: str, *settings: str, score: float | None = None, done: bool = True) -> None:
    """A run as training leaves it, as far as the catalogue looks."""
    job = override(job_preset("digits_paper"), ["train.num_steps=30", f"name={name}", *settings])
    run = store.run(name)
    run.write_config(to_tree(job))
    rows: list[Row] = [{"step": 30, "loss": 1.0, "energy_gap": 0.25, "steps_per_s": 2.0, "time": 1.0}]
    run.write_bytes(f"metrics/{part_name(rows)}", part_bytes(rows))
    if done:
        run.write_bytes("checkpoints/step-000000030/COMMITTED", b"{}")
    if score is not None:
        run.write_json("evaluations/step-000000030/fid_small.json", {"value": score})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(str(tmp_path))
    make_run(store, "a", "sampler.step_size=3", score=2.0)
    make_run(store, "b", "model.widths=8,16,16", score=1.0)
    make_run(store, "c", done=False)
    return store


def entries(store: RunStore) -> list[str]:
    return [info.key for info in store.objects.list("_catalog/")]


def test_a_row_has_settings_metrics_and_scores(store: RunStore):
    table = catalogue.read(store).to_pylist()
    assert [row["run"] for row in table] == ["a", "b", "c"]
    assert [row["state"] for row in table] == ["finished", "finished", "unfinished"]
    assert [row["settings.sampler.step_size"] for row in table] == [3.0, 2.0, 2.0]
    assert table[1]["settings.model.widths"] == [8, 16, 16]
    assert table[0]["metrics.energy_gap"] == 0.25
    assert [row["scores.fid_small"] for row in table] == [2.0, 1.0, None]


def test_an_entry_of_version_0_1_has_its_terms_under_their_present_names(store: RunStore):
    old = catalogue.read(store).rename_columns(
        [name.replace("metrics.loss/", "metrics.") for name in catalogue.read(store).column_names]
    )
    place = old.column_names.index("metrics.cd")
    old = old.set_column(place, "metrics.cd", pa.array([3.0, 1.0, 2.0]))
    for key in entries(store):
        store.objects.delete(key)
    catalogue._write(store, "base", old)
    table = catalogue.read(store)
    assert table["metrics.loss/cd"].to_pylist()[:2] == [3.0, 1.0]  # c is unfinished, and looked at anew
    for name in ("cd", "loss/cd", "metrics.loss/cd"):
        assert catalogue.select(table, sort=name)["run"].to_pylist() == ["b", "a", "c"]


def test_pandas_and_pyarrow_read_it_without_this_program(store: RunStore, tmp_path: Path):
    catalogue.read(store)
    found = ds.dataset(tmp_path / "_catalog", format="parquet").to_table().to_pylist()
    assert {row["run"]: row["scores.fid_small"] for row in found} == {"a": 2.0, "b": 1.0, "c": None}
    frame = pd.concat([pd.read_parquet(path) for path in (tmp_path / "_catalog").glob("*.parquet")])
    assert frame.set_index("run").loc["a", "settings.sampler.step_size"] == 3.0


def test_duckdb_joins_settings_scores_and_every_logged_row(store: RunStore, tmp_path: Path):
    catalogue.read(store)
    found = duckdb.sql(f"""
        SELECT c.run, c."settings.sampler.step_size", c."scores.fid_small", m.step, m.energy_gap
        FROM read_parquet('{tmp_path}/_catalog/*.parquet', union_by_name = true) c
        JOIN read_parquet('{tmp_path}/*/metrics/*.parquet', filename = true) m
        ON m.filename LIKE '%/' || c.run || '/metrics/%' ORDER BY c.run""").fetchall()
    assert found == [("a", 3.0, 2.0, 30, 0.25), ("b", 2.0, 1.0, 30, 0.25), ("c", 2.0, None, 30, 0.25)]


def test_what_is_settled_is_not_read_again_and_what_is_not_is(store: RunStore, monkeypatch: pytest.MonkeyPatch):
    catalogue.read(store)
    looked: list[str] = []
    describe = catalogue.describe_run
    monkeypatch.setattr(catalogue, "describe_run", lambda store, name: looked.append(name) or describe(store, name))
    assert catalogue.read(store).num_rows == 3
    assert looked == ["c"]
    make_run(store, "c", score=5.0)
    assert catalogue.read(store)["state"].to_pylist() == ["finished"] * 3
    looked.clear()
    catalogue.read(store)
    assert looked == []


def test_the_newest_row_of_a_run_counts_and_a_deleted_run_is_gone(store: RunStore):
    catalogue.read(store)
    store.run("a").write_json("evaluations/step-000000030/fid_small.json", {"value": 9.0})
    catalogue.update(store, ["a"])
    assert catalogue.read(store)["scores.fid_small"].to_pylist()[0] == 9.0
    for info in list(store.objects.list("a/")):
        store.objects.delete(info.key)
    assert catalogue.read(store)["run"].to_pylist() == ["b", "c"]


def test_entries_are_merged_and_a_merge_that_was_killed_loses_and_doubles_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(catalogue, "MERGE_AT", 3)
    for _ in range(4):
        catalogue.update(store, ["a", "b"])
    assert len(entries(store)) == 4
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_delete", lambda *_: None)  # killed after the base was written
        before = catalogue.read(store)
    assert len(entries(store)) == 5
    after = catalogue.read(store)
    assert len(entries(store)) == 1
    assert "base-" in entries(store)[0]
    assert after.drop_columns("written") == before.drop_columns("written")
    assert catalogue.read(store)["run"].to_pylist() == ["a", "b", "c"]


def test_a_rebuild_repairs_a_damaged_catalogue(store: RunStore, tmp_path: Path):
    catalogue.read(store)
    (path,) = (tmp_path / "_catalog").iterdir()
    path.write_bytes(b"PAR1 no")
    with pytest.raises(catalogue.StorageError, match="ebm runs --rebuild"):
        catalogue.read(store)
    assert catalogue.rebuild(store).num_rows == 3
    assert catalogue.read(store).num_rows == 3


def test_columns_of_another_version_are_kept_as_json(store: RunStore):
    tree = store.run("a").read_config()
    tree["sampler"]["of_old"] = 7
    tree["sampler"]["step_size"] = "text now"
    store.run("a").write_config(tree)
    row = catalogue.read(store).to_pylist()[0]
    assert json.loads(row["others"]) == {
        "settings.sampler.of_old": 7,
        "settings.sampler.step_size": "text now",
    }


def test_a_trial_knows_its_sweep_and_a_stopped_one_is_not_called_finished(store: RunStore):
    record = SweepRecord(store, "s")
    make_run(store, "s-0000", done=False)
    planned = PlannedTrial(trial="0000", run="s-0000", index=0, settings=())
    record.mark_run(planned)
    record.create_result(TrialResult(trial="0000", run="s-0000", state="stopped", step=10, num_steps=30))
    table = catalogue.select(catalogue.read(store), sweep="s")
    assert [(row["run"], row["trial"], row["state"]) for row in table.to_pylist()] == [("s-0000", "0000", "stopped")]


def test_sorting_puts_the_unknown_last_in_both_directions(store: RunStore):
    table = catalogue.read(store)
    assert catalogue.select(table, sort="fid_small")["run"].to_pylist() == ["b", "a", "c"]
    assert catalogue.select(table, sort="-fid_small")["run"].to_pylist() == ["a", "b", "c"]
    assert catalogue.select(table, sort="-settings.sampler.step_size")["run"].to_pylist()[0] == "a"
    with pytest.raises(ConfigError, match="no such column"):
        catalogue.select(table, sort="fid_smal")
    with pytest.raises(ConfigError, match="no such column"):
        catalogue.select(table, sort="settings.model.widths")


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ebm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0)


def test_ebm_runs_lists_sorts_and_compares(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    where = ["--storage", str(tmp_path)]
    assert run_main(monkeypatch, "runs", *where, "--sort", "fid_small") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["b", "a", "c"]
    assert run_main(monkeypatch, "runs", *where, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["settings.sampler.step_size"] == 3.0
    assert run_main(monkeypatch, "runs", "compare", "a", "b", *where) == 0
    text = capsys.readouterr().out
    assert "sampler.step_size" in text
    assert "model.widths" in text
    assert "sampler.num_steps" not in text
    assert run_main(monkeypatch, "runs", "compare", "a", "nothing", *where) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run_main(monkeypatch, "runs", *where, "--sweep", "none") == 0
    assert "no runs of sweep none" in capsys.readouterr().out


def test_an_empty_store_has_an_empty_table(tmp_path: Path):
    table = catalogue.read(RunStore(str(tmp_path / "nothing")))
    assert table.num_rows == 0
    assert table.schema.field("settings.seed").type == pa.int64()
    assert not (tmp_path / "nothing").exists()
