"""What a run of the whole suite adds to pytest: a floor under the number of tests, and a bar that shows how far it is.

`make test` and `make test-all` ask for it with `--floor` and their own name.
"""

import time
from pathlib import Path

import pytest


def floors(path: Path) -> dict[str, int]:
    """{target of the Makefile: how many tests must pass}, from lines of both."""
    return {target: int(number) for target, number in (line.split() for line in path.read_text().splitlines())}


class Floor:
    """Counts the outcomes of a whole run, also when workers of pytest-xdist execute it."""

    def __init__(self, target: str, floor: int) -> None:
        self.target, self.floor = target, floor
        self.num_passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.num_passed += report.when == "call" and report.passed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == 0 and self.num_passed < self.floor:
            print(
                f"\nonly {self.num_passed} tests passed, tests/floor.txt records {self.floor} for {self.target}: "
                "was a test lost?"
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Progress:
    """A line for every twentieth of the tests and for each that fails, in place of pytest's letters."""

    WIDTH = 20

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._num_done = self._num_shown = 0

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session
        self._terminal = session.config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
        """Counted as ever, and not a letter of it shown."""
        if hasattr(report, "wasxfail") or (report.passed and report.when != "call"):
            return None
        kind = "error" if report.failed and report.when != "call" else report.outcome
        return kind, "", ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"failed: {report.nodeid}")
        self._num_done += report.when == "teardown"
        total = self._session.testscollected
        if total and self._num_done * self.WIDTH // total > self._num_shown:
            self._num_shown = self._num_done * self.WIDTH // total
            self._terminal.write_line(bar(self._num_done, total, time.monotonic() - self._started))


def bar(num_done: int, total: int, seconds: float) -> str:
    """One line of at most 80 columns."""
    full = num_done * Progress.WIDTH // total
    drawn = "#" * full + "-" * (Progress.WIDTH - full)
    minutes, rest = divmod(int(seconds), 60)
    return f"[{drawn}] {num_done * 100 // total:3d} %  {num_done} of {total} tests after {minutes} min {rest} s"
