"""The table at the end, and the line of a running trial."""

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.records.sweeps import PlannedTrial, StoredSweep, Trial, TrialResult
from orchestrator.reports.sweep_table import links, mean_and_spread, sweep_table
from orchestrator.sweeps.plan import SweepRequest, make_plan
from orchestrator.sweeps.search import trial_of_row
from orchestrator.terminal.sweep_progress import Lines, Quiet


def ended(planned: PlannedTrial, **fields: Any) -> Trial:
    values: dict[str, Any] = {"state": "finished", "step": 60, "num_steps": 60, **fields}
    return Trial(planned, TrialResult(trial=planned.trial, run=planned.run, **values))


def test_mean_and_spread_are_those_of_a_sample():
    assert mean_and_spread([2.0, 4.0, 6.0]) == (4.0, 2.0)
    assert mean_and_spread([3.0]) == (3.0, None)


def test_table_2_shows_ours_beside_the_papers_and_where_it_broke():
    plan, _ = make_plan("table2", SweepRequest(preset="digits", seeds=3))
    trials = [trial_of_row(plan, index) for index in range(18)]
    stored = StoredSweep(
        plan,
        [
            ended(trials[0], value=2.0, best={"step": 30, "value": 1.0}, grid="samples/a.png"),
            ended(trials[6], value=4.0),
            ended(trials[12], state="unstable", unstable_at=210, value=6.0),
            ended(trials[1], state="unstable", unstable_at=5),
            Trial(trials[2], None),
        ],
    )
    table = sweep_table(stored)
    lines = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert lines[0]["fid_judge"] == "4 ± 2"
    assert lines[0]["stable"] == "2 of 3 (not: 210)"
    assert lines[0]["trials"] == "2 finished, 1 unstable"
    assert (lines[0]["FID (paper)"], lines[0]["IS (paper)"], lines[0]["stable (paper)"]) == ("253.1", "1.46", "no")
    assert lines[1]["fid_judge"] == "-"
    assert lines[1]["stable"] == "0 of 1 (not: 5)"
    assert lines[2]["trials"] == "1 unfinished"
    assert lines[5]["multi-scale"] == "yes"
    assert links(stored, "runs") == ["plain-seed0: runs/table2-digits-plain-seed0/samples/a.png"]


def test_a_search_lists_the_best_first_and_what_was_stopped_as_stopped():
    settings = ("sampler.step_size=uniform(1,2)",)
    plan, _ = make_plan("digits_paper", SweepRequest(settings=settings, trials=4, metric="classifier"))
    assert plan.mode == "max"
    trials = [
        PlannedTrial(trial=f"{i:04d}", run=f"r-{i}", index=i, settings=(f"sampler.step_size={1 + i / 10}",))
        for i in range(4)
    ]
    stored = StoredSweep(
        plan,
        [
            ended(trials[0], value=0.5),
            ended(trials[1], value=0.7, state="stopped", step=20),
            ended(trials[2], value=0.9, state="unstable", unstable_at=9),
            Trial(trials[3], None, "the disk is full"),
        ],
    )
    rows = sweep_table(stored).rows
    assert [row[0] for row in rows] == ["0001", "0000", "0002", "0003"]
    assert [row[2] for row in rows] == ["stopped", "finished", "unstable at step 9", "crashed"]
    assert rows[0][3:] == ("20/60", "1.1")


def test_a_running_trial_is_one_line():
    out = io.StringIO()
    display = Lines(Console(file=out, force_terminal=True, width=100), "min")
    display.started("plain-seed0", 100)
    assert display.line("plain-seed0").split() == ["plain-seed0", "starting"]
    display.row("plain-seed0", {"step": 40, "steps_per_s": 2.0, "energy_gap": -0.0123})
    for value in (3.0, 2.0, 5.0):
        display.scored("plain-seed0", 20, value)
    line = display.line("plain-seed0")
    assert "40/100  2.0 steps/s  gap -0.0123  best 2  0:30 left" in line
    assert "\n" not in line


@pytest.mark.parametrize("rows", [0, 50])
def test_without_a_terminal_a_trial_is_two_lines_however_long_it_runs(rows: int):
    out = io.StringIO()
    display = Quiet(out)
    display.begin(0, 1)
    display.started("a", 100)
    for step in range(rows):
        display.row("a", {"step": step, "steps_per_s": 1.0})
    display.ended("a", "finished")
    assert out.getvalue().splitlines() == ["1 trials, 0 of them have ended", "a started", "a finished (1 of 1)"]
