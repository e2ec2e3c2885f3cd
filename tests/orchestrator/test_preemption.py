"""What a worker makes of Ray's notice that a node is about to go."""

from types import SimpleNamespace

import pytest

from orchestrator import worker_loop
from orchestrator.config import core_config, job_preset
from orchestrator.telemetry import Recorder


def test_a_notice_of_preemption_asks_for_one_checkpoint_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_loop.ray, "get", lambda value: value)
    clock, notes, known = [100.0], [], [None]
    monkeypatch.setattr(worker_loop.time, "monotonic", lambda: clock[0])
    box = SimpleNamespace(
        post=SimpleNamespace(remote=lambda kind, text: notes.append((kind, text))),
        stop_requested=SimpleNamespace(remote=lambda: False),
    )
    job = job_preset("digits")
    group = worker_loop.Group()
    loop = worker_loop.Loop(None, core_config(job), job, group, box, Recorder(0), lambda: known[0])

    def news_later(seconds: float) -> tuple[bool, bool]:
        clock[0] += seconds
        return loop.news()

    assert news_later(1) == (False, False)
    known[0] = "node 7 goes in 30 s"
    assert news_later(0.1) == (False, False)  # asked too recently: a question costs a round trip
    assert news_later(1) == (False, True)
    assert news_later(1) == (False, False)  # once
    assert [kind for kind, _ in notes] == ["note"]
