"""After a divergence: where training returns to, how fast it goes on, how often; and that no kill changes any of it."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ebm_core import checkpoint
from ebm_core.config import LoopConfig, LossConfig
from ebm_core.data import load
from ebm_core.errors import ConfigError, DivergenceError
from ebm_core.monitor import StabilityMonitor
from ebm_core.trainer import fingerprint, init_state
from orchestrator.records import runs
from orchestrator.records.rows import Recorder
from orchestrator.settings.job import CheckpointConfig, JobConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training import group, worker
from orchestrator.training.rollback import Rollback, RollbackPolicy, complete_rollbacks, read_rollbacks, record_rollback
from tests.ebm_core.tiny import tiny_config
from tests.store_contract import write_checkpoint

POLICY = RollbackPolicy(enabled=True, lr=0.4, lr_factor=0.5, max_rollbacks=2)


def error_at(step: int) -> DivergenceError:
    return DivergenceError(step, -0.9, -0.5)


def test_the_policy_returns_to_before_the_drift_and_halves_the_rate_until_its_patience_ends():
    first = POLICY.decide([], error_at(900), 420, [100, 200, 400, 500, 800])
    assert first is not None
    assert (first.number, first.to_step, first.lr, first.diverged_at) == (1, 400, 0.2, 900)
    second = POLICY.decide([first], error_at(700), 350, [100, 200])
    assert second is not None
    assert (second.number, second.to_step, second.lr) == (2, 200, 0.1)
    assert POLICY.decide([first, second], error_at(700), 350, [100, 200]) is None
    assert "back to step 400, before the drift that began at step 420" in first.message()
    assert "optimizer.lr = 0.2" in first.message()


def test_the_policy_ends_the_run_when_told_to_stop_and_when_nothing_is_left_from_before_the_drift():
    assert dataclasses.replace(POLICY, enabled=False).decide([], error_at(9), 8, [1]) is None
    assert POLICY.decide([], error_at(9), 5, []) is None
    assert POLICY.decide([], error_at(9), 5, [5, 6]) is None  # the checkpoint of step 5 has seen the drift


def test_the_drift_began_where_the_first_low_mean_looks_back_to():
    loop = LoopConfig(gap_window=10, gap_patience=20)
    monitor = StabilityMonitor(loop, LossConfig())

    def train() -> None:
        for step in range(1, 1000):
            gap = -1.0 if step >= 101 else 0.0
            monitor.update(step, gap / 2, -gap / 2, 0.0, 1.0)

    with pytest.raises(DivergenceError) as caught:
        train()
    # The mean of ten first falls below -0.5 at step 106 (six of ten are -1) and looks back to step 97.
    assert caught.value.step == 106 + 20 - 1
    assert monitor.drift_began(caught.value.step) == 97
    fresh = StabilityMonitor(loop, LossConfig())
    assert fresh.drift_began(50) == 41  # a sudden NaN: the window is suspect
    assert fresh.drift_began(3) == 1


def test_a_rollback_without_a_checkpoint_from_before_a_drift_is_refused_at_the_door():
    job = job_preset("digits_paper")
    with pytest.raises(ConfigError, match=r"\(keep - 1\) x checkpoint.every of at least"):
        override(job, ["train.on_divergence=rollback", "checkpoint.every=100", "checkpoint.keep=2"])
    for wrong in ("train.rollback_lr_factor=1", "train.rollback_lr_factor=0", "train.max_rollbacks=0"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            override(job, [wrong])


DIVERGES = 13
"""The step at which the disturbed runs leave the stable region, as long as their learning rate is above LIMIT_LR."""
LIMIT_LR = 3e-4


class Killed(Exception):
    """In place of kill -9: nothing of the process goes on."""


class Job:
    """A worker's own loop on a tiny job in a folder, without Ray; restarted as often as one likes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **train: Any) -> None:
        core = tiny_config()
        loop = LoopConfig(
            num_steps=16, batch_size=8, log_every=2, gap_window=2, gap_patience=2, on_divergence="rollback", **train
        )
        sections = {name: getattr(core, name) for name in core.__dataclass_fields__} | {"train": loop}
        self.job = JobConfig(**sections, name="r", checkpoint=CheckpointConfig(every=4, keep=3))
        self.run: Run = RunStore(str(folder)).run("r")
        self.run.write_config({})
        self.notes: list[str] = []
        self.rows: dict[int, dict[str, float]] = {}
        self.steps: list[int] = []
        self._patch(monkeypatch)

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray's calls become plain ones, and a step diverges where the test wants it to."""
        monkeypatch.setattr(worker.ray, "get", lambda value: value)
        monkeypatch.setattr(worker.ray, "wait", lambda values, timeout: (values, []))
        step_of_the_core = worker.train_step

        def step(state: Any, *arguments: Any) -> dict[str, float]:
            terms = step_of_the_core(state, *arguments)
            self.steps.append(state.step)
            if state.step >= DIVERGES and state.optimizer.param_groups[0]["lr"] > LIMIT_LR:
                raise DivergenceError(state.step, math.inf, math.inf, "loss")
            return terms

        monkeypatch.setattr(worker, "train_step", step)

    def post(self, kind: str, payload: Any) -> None:
        if kind == "note":
            self.notes.append(payload)
        if kind == "row":
            self.rows[int(payload["step"])] = payload

    def train(self) -> str:
        """To the end; the fingerprint of the last state. What `worker.train_until_done` does around `Loop`."""
        cfg = core_config(self.job)
        box = SimpleNamespace(
            post=SimpleNamespace(remote=self.post), stop_requested=SimpleNamespace(remote=lambda: False)
        )
        state = init_state(cfg)
        loop = worker.Loop(self.run, cfg, self.job, group.Group(), box, Recorder(0))
        worker.train_until_done(load(cfg.data, "train"), state, loop)
        return fingerprint(state)


def kill_before(monkeypatch: pytest.MonkeyPatch, run: Run, when: Callable[[str, str], bool]) -> None:
    """The first operation of the store that fits dies before it does anything."""
    objects, pending = run.store.objects, [True]
    for operation in ("put", "create"):
        call = getattr(objects, operation)

        def killed(key: str, data: Any, operation: str = operation, call: Callable = call) -> Any:
            if pending and when(operation, key):
                pending.clear()
                raise Killed(f"{operation} {key}")
            return call(key, data)

        monkeypatch.setattr(objects, operation, killed)


def test_a_run_that_diverges_returns_goes_on_slower_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = Job(tmp_path, monkeypatch)
    job.train()
    # Diverges at 13 with the whole and the half of the rate (1e-3), not with a quarter. Step 12's checkpoint is suspect
    # (the window of two steps looks back to 12), so each time it is step 8's that is taken.
    assert job.steps == [*range(1, 14), *range(9, 14), *range(9, 17)]
    history = read_rollbacks(job.run)
    assert [(r.number, r.diverged_at, r.to_step, r.lr) for r in history] == [(1, 13, 8, 5e-4), (2, 13, 8, 2.5e-4)]
    assert [list(r.abandoned) for r in history] == [["12"], ["12"]]
    assert [note for note in job.notes if "rollback 2: back to step 8" in note]
    assert [job.rows[step]["lr"] for step in (8, 10, 16)] == [1e-3, 2.5e-4, 2.5e-4]
    assert [job.rows[step]["rollbacks"] for step in (8, 10, 16)] == [0, 2, 2]
    table = runs.read_metrics(job.run)
    assert table["step"].to_pylist() == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert table["rollbacks"].to_pylist() == [0, 0, 0, 0, 0, 2, 2, 2, 2]
    assert [r["to_step"] for r in job.run.read_json("provenance.json")["rollbacks"]] == [8, 8]
    assert job.run.checkpoints() == [8, 12, 16]


def test_the_run_ends_with_the_divergence_when_the_rollbacks_are_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = Job(tmp_path, monkeypatch, max_rollbacks=1)
    for _ in range(2):  # a restart finds the same and tries nothing new
        with pytest.raises(DivergenceError, match="diverged at step 13"):
            job.train()
        assert len(read_rollbacks(job.run)) == 1
    assert any(info.key.startswith("diverged/step-000000013/") for info in job.run.list())


@pytest.mark.full
@pytest.mark.parametrize(
    "when",
    [
        lambda _, key: key.endswith("rollbacks.json"),
        lambda _, key: key.endswith("DAMAGED"),
        lambda _, key: key.endswith("provenance.json"),
        lambda _, key: key.endswith("step-000000012/COMMITTED"),
        lambda _, key: key.endswith("step-000000016.png"),
    ],
    ids=["deciding", "setting aside", "writing provenance", "committing", "last save"],
)
def test_a_kill_at_any_moment_of_a_rollback_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: Callable[[str, str], bool]
):
    with monkeypatch.context() as patch:
        undisturbed = Job(tmp_path / "undisturbed", patch)
        expected = undisturbed.train()
    job = Job(tmp_path / "killed", monkeypatch)
    with monkeypatch.context() as patch:
        kill_before(patch, job.run, when)
        with pytest.raises(Killed):
            job.train()
    assert job.train() == expected
    assert job.run.checkpoints() == undisturbed.run.checkpoints()
    mine, theirs = (
        [{**dataclasses.asdict(r), "abandoned": sorted(r.abandoned)} for r in read_rollbacks(j.run)]
        for j in (job, undisturbed)
    )
    assert mine == theirs
    rows, expected_rows = (
        runs.read_metrics(j.run).drop(["time", "steps_per_s", "device_memory"]) for j in (job, undisturbed)
    )
    assert rows.equals(expected_rows)
    last = job.run.fetch_checkpoint(16, tmp_path / "into")
    state = init_state(core_config(job.job))
    checkpoint.load(state, last)
    assert fingerprint(state) == expected


def test_a_checkpoint_written_again_after_a_rollback_is_not_given_up(tmp_path: Path):
    run = RunStore(str(tmp_path)).run("r")
    for step in (4, 8, 12):
        write_checkpoint(run, step)
    record_rollback(run, [], Rollback(1, 13, "diverged", 12, 8, 0.1, {}))
    messages: list[str] = []
    complete_rollbacks(run, messages.append)
    assert run.checkpoints() == [4, 8]
    assert len(messages) == 1
    assert "given up by rollback 1" in messages[0]
    write_checkpoint(run, 12, b"slower")
    complete_rollbacks(run, pytest.fail)
    assert run.checkpoints() == [4, 8, 12]


@pytest.mark.parametrize(
    "text", [b"{}", b"[1]", b"[{}]", b'{"number": 1}', b"[[]]", b"null", b"torn", b'[{"number": 2}]']
)
def test_a_damaged_list_of_rollbacks_is_an_error_and_no_fresh_learning_rate(tmp_path: Path, text: bytes):
    run = RunStore(str(tmp_path)).run("r")
    run.write_bytes("rollbacks.json", text)
    with pytest.raises(StorageError, match=r"rollbacks\.json.* is damaged"):
        read_rollbacks(run)
