"""TensorBoard's own reader finds in the event files what the run has stored, and nothing else is touched."""

import io
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ebm_core.errors import ConfigError
from orchestrator.cli import app
from orchestrator.reports.tensorboard import EVENTS, write_events
from orchestrator.reports.write import named_runs
from orchestrator.storage.run_store import RunStore
from tests.orchestrator.stored_runs import START, rows_of, store_run, store_sweep


def read(folder: Path) -> EventAccumulator:
    """Everything of it, none of it sampled away."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    reader.Reload()
    return reader


def test_every_logged_value_is_there_at_its_step_and_time(tmp_path: Path):
    run = store_run(tmp_path / "runs")
    write_events([run], tmp_path / "events")
    reader = read(tmp_path / "events" / run.name)
    rows = rows_of(200)
    columns = set(rows[0]) - {"step", "time"}
    assert columns < set(reader.Tags()["scalars"])
    for name in columns:
        found = reader.Scalars(name)
        assert [event.step for event in found] == [row["step"] for row in rows]
        assert [event.value for event in found] == pytest.approx([row[name] for row in rows], rel=1e-6)
        times = [event.wall_time - START for event in found]
        assert times == pytest.approx([row["step"] / 5 for row in rows], abs=1e-3)


def test_scores_grids_and_settings_are_there_too(tmp_path: Path):
    run = store_run(tmp_path / "runs", settings=["sampler.step_size=3"])
    write_events([run], tmp_path / "events")
    reader = read(tmp_path / "events" / run.name)
    assert [(event.step, event.value) for event in reader.Scalars("score/fid_small")] == [(100, 18.0), (200, 16.0)]
    for tag, suffix in (("samples/chains", ""), ("samples/averaged", "-ema")):
        for event in reader.Images(tag):
            stored = run.read_bytes(f"samples/step-{event.step:09d}{suffix}.png")
            assert event.encoded_image_string == stored
            assert (event.width, event.height) == Image.open(io.BytesIO(stored)).size
        assert [event.step for event in reader.Images(tag)] == [100, 200]
    (text,) = reader.Tensors("settings/text_summary")
    assert b"sampler.step_size = 3.0  (preset: 2.0)" in text.tensor_proto.string_val[0]


def test_what_has_no_row_has_the_time_of_the_next_or_the_last_one(tmp_path: Path):
    run = store_run(tmp_path / "runs")
    for step in (95, 300):
        run.write_json(f"evaluations/step-{step:09d}/fid_small.json", {"value": 1.0})
    write_events([run], tmp_path / "events")
    found = read(tmp_path / "events" / run.name).Scalars("score/fid_small")
    assert {event.step: round(event.wall_time - START) for event in found} == {95: 20, 100: 20, 200: 40, 300: 40}


def test_a_damaged_grid_leaves_a_gap(tmp_path: Path):
    run = store_run(tmp_path / "runs")
    run.write_bytes("samples/step-000000100.png", b"no picture")
    write_events([run], tmp_path / "events")
    reader = read(tmp_path / "events" / run.name)
    assert [event.step for event in reader.Images("samples/chains")] == [200]
    assert [event.step for event in reader.Images("samples/averaged")] == [100, 200]


def test_a_run_without_a_row_yet_has_its_settings(tmp_path: Path):
    run = RunStore(str(tmp_path / "runs")).run("begun")
    run.write_config(store_run(tmp_path / "runs").read_config())
    write_events([run], tmp_path / "events")
    tags = read(tmp_path / "events" / "begun").Tags()
    assert (tags["scalars"], tags["images"], tags["tensors"]) == ([], [], ["settings/text_summary"])


def test_writing_again_replaces_the_file_and_leaves_everything_else(tmp_path: Path):
    run, folder = store_run(tmp_path / "runs"), tmp_path / "events"
    (file,) = write_events([run], folder)
    before = file.read_bytes()
    (folder / run.name / "mine").write_text("kept")
    run.write_json("evaluations/step-000000200/fid_small.json", {"value": 1.5})
    write_events([run], folder)
    assert {path.name for path in (folder / run.name).iterdir()} == {EVENTS, "mine"}
    assert file.read_bytes() != before
    assert [event.value for event in read(folder / run.name).Scalars("score/fid_small")] == [18.0, 1.5]


def test_a_sweep_stands_for_its_trials_that_have_begun(tmp_path: Path):
    sweep = store_sweep(tmp_path)
    begun = set(RunStore(str(tmp_path)).runs())
    assert {run.name for run in named_runs([sweep.name], storage=str(tmp_path))} == begun
    assert begun


def test_the_command_says_where_and_refuses_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = store_run(tmp_path / "runs")
    words = ["report", run.name, "--storage", str(tmp_path / "runs"), "--tensorboard", str(tmp_path / "events")]
    assert app.app(words, standalone_mode=False) is None
    assert capsys.readouterr().out.strip() == str(tmp_path / "events" / run.name / EVENTS)
    with pytest.raises(ConfigError, match="leave out --live and --out"):
        app.app([*words, "--out", "page.html"], standalone_mode=False)
    with pytest.raises(ConfigError, match="'nowhere' is not in"):
        app.app(["report", "nowhere", *words[2:]], standalone_mode=False)


def test_what_cannot_be_written_is_one_line(tmp_path: Path):
    run = store_run(tmp_path / "runs")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written: "):
        write_events([run], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"
    other = store_run(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="digits-0001 is the name of more than one run"):
        write_events([run, other], tmp_path / "events")
    assert not (tmp_path / "events").exists()
