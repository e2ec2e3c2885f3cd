"""A run that version 0.1 stored, before files moved: listed, verified, reported, sampled and resumed by this one.

`tests/data/runs-0.1/first` is `ebm train digits` of six steps on two workers, with two scored checkpoints.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.cli import app
from orchestrator.records.runs import read_metrics
from orchestrator.storage.run_store import Run, RunStore

LOSS_AT_8, ENERGY_AT_8 = 0.6697632074356079, -0.27171891927719116
"""What version 0.1 logged when it went on with this run."""
DATA = Path(__file__).parents[1] / "data" / "runs-0.1"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    shutil.copytree(DATA, tmp_path / "runs")
    return RunStore(str(tmp_path / "runs")).run("first")


def ebm(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["ebm", *words])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return int(caught.value.code or 0)


def test_it_is_listed_with_its_scores_and_verified(run: Run, monkeypatch, capsys: pytest.CaptureFixture):
    store = run.store.uri
    assert ebm(monkeypatch, "runs", "--storage", store, "--json") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores = json.loads((DATA / "first/evaluations/step-000000006/energy_gap.json").read_text())
    assert row["run"] == "first"
    assert row["step"] == 6
    assert scores["value"] in row.values()
    assert ebm(monkeypatch, "verify", "first", "--storage", store) == 0
    assert run.checkpoints() == [3, 6]


def test_its_rows_and_scores_are_on_its_page(run: Run, monkeypatch, tmp_path: Path):
    page = tmp_path / "page.html"
    assert ebm(monkeypatch, "report", "first", "--storage", run.store.uri, "--out", str(page)) == 0
    assert [row["step"] for row in read_metrics(run).to_pylist()] == [1, 2, 4, 6]
    text = page.read_text()
    assert "nearest_train" in text
    assert "L_CD" in text  # its column `cd` is read as `loss/cd`
    raw = [row["cd"] for part in sorted(DATA.rglob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert read_metrics(run)["loss/cd"].to_pylist() == raw
    assert "first" in text


def test_its_newest_checkpoint_draws_images(run: Run, monkeypatch, tmp_path: Path):
    grid = tmp_path / "grid.png"
    words = ("sample", "first", "--storage", run.store.uri, "--count", "4", "--out", str(grid))
    assert ebm(monkeypatch, *words) == 0
    assert grid.read_bytes().startswith(b"\x89PNG")


@pytest.mark.cluster
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_it_goes_on_from_its_newest_checkpoint(run: Run, cluster, monkeypatch):
    settings = ("train.num_steps=9", "evaluation.every=0")
    assert ebm(monkeypatch, "resume", "first", "--storage", run.store.uri, *settings) == 0
    assert run.checkpoints() == [3, 6, 9]
    rows = {row["step"]: row for row in read_metrics(run).to_pylist()}
    assert list(rows) == [1, 2, 4, 6, 8]
    assert rows[8]["loss"] == pytest.approx(LOSS_AT_8, rel=1e-3)
    assert rows[8]["energy_data"] == pytest.approx(ENERGY_AT_8, rel=1e-3)
