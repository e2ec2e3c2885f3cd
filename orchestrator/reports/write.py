"""`ebm report`: a run, a sweep or several runs side by side as one self-contained HTML page."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ebm_core.errors import ConfigError, EbmError, kind_and_line
from ebm_core.files import whole_file
from orchestrator.records.sweeps import SweepRecord
from orchestrator.reports.compare_page import compare_page
from orchestrator.reports.run_page import run_page
from orchestrator.reports.sweep_data import gather_sweep
from orchestrator.reports.sweep_page import sweep_page
from orchestrator.storage.find import open_run, split_place
from orchestrator.storage.interface import os_reason
from orchestrator.storage.run_store import Run, RunStore

PAGE = "report/index.html"
"""Key of a run's (or sweep's) page below its folder."""
LIVE_END_STATES = ("finished", "diverged")


def leave_page(run: Run, say: Callable[[str], None]) -> str | None:
    """Store the page of a run beside it and return its key. A failure is told to `say`: the run is worth more."""
    try:
        run.write_bytes(PAGE, run_page(run).encode())
        return PAGE
    except Exception as error:  # whatever it is, training has come to its end already
        say(f"the page of {run.name} could not be made ({kind_and_line(error)}); try `ebm report {run.name}`")
        return None


def write_report(names: Sequence[str], *, storage: str, out: Path | None = None, refresh_s: int | None = None) -> str:
    """Make the page of one run or sweep, or of several runs side by side, and return where it is.

    Without `out`, that of a run or sweep is stored at PAGE beside it, that of a comparison in this folder. Raises
    ConfigError for an unknown name or an `out` that cannot be written.
    """
    if len(names) > 1:
        runs = [open_run(name, storage) for name in names]
        if repeated := {run.uri for run in runs if [other.uri for other in runs].count(run.uri) > 1}:
            raise ConfigError(f"compare different runs: {', '.join(sorted(repeated))} is named more than once")
        return write_file(out or Path(f"compare-{'-'.join(run.name for run in runs)[:100]}.html"), compare_page(runs))
    run, page = _one_page(names[0], storage, refresh_s)
    if out is not None:
        return write_file(out, page)
    run.write_bytes(PAGE, page.encode())
    return f"{run.uri}/{PAGE}"


def named_runs(names: Sequence[str], *, storage: str) -> list[Run]:
    """The runs of these names, a sweep's name standing for those of its trials that have begun."""
    found: list[Run] = []
    for name in names:
        folder = _sweep_folder(name, storage)
        if folder is None:
            found.append(open_run(name, storage))
        else:
            found += [
                trial.run for trial in gather_sweep(folder).trials if trial.run is not None and trial.run.exists()
            ]
    return found


def _one_page(name: str, storage: str, refresh_s: int | None) -> tuple[Run, str]:
    folder = _sweep_folder(name, storage)
    if folder is not None:
        return folder, sweep_page(folder, refresh_s=refresh_s)
    run = open_run(name, storage)
    return run, run_page(run, refresh_s=refresh_s)


def _sweep_folder(name: str, storage: str) -> Run | None:
    """The folder of the sweep of that name, folder or URI; None if there is no sweep."""
    where, last = split_place(name, storage)
    store = RunStore(where)
    return Run(store, last) if SweepRecord(store, last).exists() else None


def follow(names: Sequence[str], *, storage: str, out: Path | None, every_s: int, say: Callable[[str], None]) -> str:
    """Write the page again every `every_s` seconds, reloading itself, until the run has ended or Ctrl-C is pressed.

    What stays behind does not reload. A storage that fails for a moment costs one round and a line.
    """
    where = write_report(names, storage=storage, out=out, refresh_s=every_s)
    say(f"writing {where} every {every_s} s until the end of {names[0]}; Ctrl-C ends it")
    try:
        while not _has_ended(names[0], storage):
            time.sleep(every_s)
            try:
                write_report(names, storage=storage, out=out, refresh_s=every_s)
            except EbmError as error:
                say(f"could not write the page ({error}); trying again")
    except KeyboardInterrupt:
        say("")  # the terminal shows ^C on the line before
    return write_report(names, storage=storage, out=out)


def _has_ended(name: str, storage: str) -> bool:
    from orchestrator.reports.run_data import gather

    folder = _sweep_folder(name, storage)
    if folder is not None:
        return all(trial.result for trial in gather_sweep(folder).trials)
    return gather(open_run(name, storage)).state in LIVE_END_STATES


def write_file(path: Path, page: str) -> str:
    """Write the page, whole or not at all: a browser that reloads never sees half of it."""
    try:
        with whole_file(path) as fresh:
            fresh.write_text(page, encoding="utf-8")
    except OSError as why:
        raise ConfigError(f"`out` {path}: cannot be written: {os_reason(why)}") from None
    return str(path)
