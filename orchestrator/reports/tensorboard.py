"""A stored run as TensorBoard's event files, made from its rows, scores and grids.

Training writes none: whatever they would hold is stored already, and this makes them from it at any time.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ebm_core.errors import ConfigError
from ebm_core.files import whole_file
from orchestrator.records.rows import about_column
from orchestrator.records.scores import chains_grid_key, ema_grid_key, headline
from orchestrator.reports.pictures import grid_steps, read_picture
from orchestrator.reports.run_data import RunData, gather
from orchestrator.storage.interface import os_reason
from orchestrator.storage.run_store import Run

EVENTS = "events.out.tfevents.0000000000.confab"
"""TensorBoard looks for `tfevents` in a file's name."""
UNPLOTTED = ("step", "time")


def write_events(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write <folder>/<run>/EVENTS for each run, whole or not at all, in place of an earlier one; where they are.

    Tags: the logged columns (`loss`, `energy_gap`, ...) at their steps, with the rows' wall clock; `score/<metric>` at
    the checkpoints; the stored sample grids as `samples/chains` and `samples/averaged`; `settings` as text.
    Raises ConfigError if the folder cannot be written or two runs share a name.
    """
    names = [run.name for run in runs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"`tensorboard` {folder}: {', '.join(repeated)} is the name of more than one run: take another DIR"
        )
    return [_write(run, folder / run.name) for run in runs]


def _write(run: Run, folder: Path) -> Path:
    from tensorboardX.record_writer import RecordWriter

    data = gather(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / EVENTS) as fresh:
            writer = RecordWriter(str(fresh))
            try:
                for event in events(data):
                    writer.write(event.SerializeToString())
            finally:
                writer.close()
    except OSError as why:
        raise ConfigError(f"`tensorboard` {folder}: cannot be written: {os_reason(why)}") from None
    return folder / EVENTS


def events(data: RunData) -> Iterator[Any]:
    """Every event (a protobuf `Event`) of the run in order of kind, then step; a damaged grid or score leaves a gap."""
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    times = _times(data)

    event: Any = vars(event_pb2)["Event"]  # made at import, so that no type checker sees it

    def at(step: int, what: Any) -> Any:
        return event(step=step, wall_time=times(step), summary=what)

    yield event(wall_time=times(0), file_version="brain.Event:2")
    lines = (
        f"    {s.path} = {s.value}{'  (preset: ' + str(s.preset) + ')' if s.changed else ''}" for s in data.settings
    )
    yield at(0, summary.text("settings", "\n".join(lines)))
    for name, values in data.rows.items():
        if name in UNPLOTTED:
            continue
        said = about_column(name)
        what = said.help + (f" [{said.unit}]" if said.unit else "")
        for step, value in zip(data.rows["step"], values, strict=True):
            if value is not None:
                yield at(step, summary.scalar(name, value, name, what))
    for step, documents in data.scores.items():
        for name, document in documents.items():
            try:
                value = headline(document)
            except (TypeError, ValueError):
                continue
            yield at(step, summary.scalar(f"score/{name}", value))
    chains, averaged = grid_steps(data.run)
    for tag, keys in (
        ("samples/chains", {step: chains_grid_key(step) for step in chains}),
        ("samples/averaged", {step: ema_grid_key(step) for step in averaged}),
    ):
        for step, key in keys.items():
            if (picture := _picture(data.run, tag, key)) is not None:
                yield at(step, picture)


def _times(data: RunData) -> Callable[[int], float]:
    """Seconds since 1970 of a step: those of the first row at or after it, else of the last row, else 0."""
    known = [(step, time) for step, time in zip(data.rows["step"], data.rows.get("time", ()), strict=False) if time]
    steps = [step for step, _ in known]

    def at(step: int) -> float:
        return known[min(bisect.bisect_left(steps, step), len(known) - 1)][1] if known else 0.0

    return at


def _picture(run: Run, tag: str, key: str) -> Any:
    """The stored PNG as it is, in a protobuf `Summary`; None if it cannot be read as one."""
    from tensorboardX.proto import summary_pb2

    stored = read_picture(run, key)
    if stored is None:
        return None
    data, image = stored
    channels = len(image.getbands())
    made: Any = vars(summary_pb2)["Summary"]
    shown = made.Image(height=image.height, width=image.width, colorspace=channels, encoded_image_string=data)
    return made(value=[made.Value(tag=tag, image=shown)])
