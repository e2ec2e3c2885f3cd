"""What a worker is told between two steps: Ray's notice that a node is about to go, the driver's wish to stop."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.records.rows import Recorder
from orchestrator.settings.job import core_config, job_preset
from orchestrator.training import group, worker


class Told:
    """A loop of one worker, a clock, and what the driver and Ray would say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, preemption: Callable[[], Any] = lambda: None) -> None:
        self.clock, self.notes, self.questions = 100.0, [], []
        self.stop, self.answered = False, True
        monkeypatch.setattr(worker.ray, "get", lambda answer: answer())
        monkeypatch.setattr(worker.ray, "wait", lambda refs, timeout: (refs, []) if self.answered else ([], refs))
        monkeypatch.setattr(worker.time, "monotonic", lambda: self.clock)
        box = SimpleNamespace(
            post=SimpleNamespace(remote=lambda kind, text: self.notes.append((kind, text))),
            stop_requested=SimpleNamespace(remote=self.ask),
        )
        job = job_preset("digits_paper")
        self.loop = worker.Loop(None, core_config(job), job, group.Group(), box, Recorder(0), preemption)

    def ask(self) -> Callable[[], bool]:
        self.questions.append(self.clock)
        return lambda: self.stop

    def later(self, seconds: float) -> tuple[bool, bool]:
        self.clock += seconds
        return self.loop.news()


def test_a_notice_of_preemption_asks_for_one_checkpoint_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [None]
    told = Told(monkeypatch, lambda: known[0])
    assert told.later(1) == (False, False)
    known[0] = "node 7 goes in 30 s"
    assert told.later(1) == (False, False)  # looked too recently: all ranks wait for one another there
    assert told.later(2) == (False, True)
    assert told.later(2) == (False, False)  # once
    assert [kind for kind, _ in told.notes] == ["note"]


def test_training_goes_on_until_the_driver_has_answered_and_then_stops_once_it_wants_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told(monkeypatch)
    assert told.later(0) == (False, False)
    told.stop = told.answered = False
    assert [told.later(0.3)[0] for _ in range(10)] == [False] * 10
    assert len(told.questions) == 2  # one answered, one open: no second one beside it
    told.stop = told.answered = True
    assert told.later(0.3) == (True, False)


def test_the_driver_is_asked_once_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    for _ in range(100):
        assert told.later(0.1) == (False, False)
    assert 9 <= len(told.questions) <= 11
