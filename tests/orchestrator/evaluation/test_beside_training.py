"""What a scorer does with checkpoints, its actors plain evaluators in this process; tests/cluster has real ones."""

import json
import re
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ebm_core import checkpoint
from ebm_core.errors import CheckpointError, ConfigError, DataError
from ebm_core.manifest import describe, manifest_bytes
from ebm_core.trainer import init_state
from orchestrator.cluster.connection import ClusterError
from orchestrator.evaluation import beside_training
from orchestrator.evaluation.actors import check_weights
from orchestrator.evaluation.beside_training import Scorer
from orchestrator.records import scores
from orchestrator.records.scores import awaiting_scores, best_step, find_step, spared, unscored
from orchestrator.settings.job import JobConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.interface import StorageError
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training import driver
from workers.evaluator import Evaluator
from workers.features.weights import Weights
from workers.metrics import diversity


def job(folder: Path, *settings: str) -> JobConfig:
    tiny = ["model.widths=4,8", "buffer.capacity=16", "sampler.generate_steps=2", "engine.num_threads=1"]
    evaluation = ["evaluation.every=2", "evaluation.metrics=energy_gap,fid_small", "evaluation.num_images=8"]
    return override(job_preset("digits_paper"), [f"storage={folder}", "name=run", *tiny, *evaluation, *settings])


def store(run: Run, settings: JobConfig, step: int) -> None:
    cfg = core_config(settings)
    state = replace(init_state(cfg), step=step)
    with tempfile.TemporaryDirectory() as temp:
        names = checkpoint.write_shared(state, cfg, Path(temp)) + checkpoint.write_shards(state, Path(temp))
        attempt = run.new_attempt()
        for name in names:
            run.put_checkpoint_file(step, attempt, Path(temp) / name)
        run.commit(step, attempt, manifest_bytes(describe(Path(temp), names), step))


class Here:
    """A pool of one evaluator in this process; `before` may raise what an actor might."""

    before = staticmethod(lambda function: None)
    made = 0

    def __init__(self, run: Run) -> None:
        self._run, self._open = run, (-1, None)
        type(self).made += 1

    def run(self, calls, take=None):
        found = {}
        for key, (step, call) in calls.items():
            self.before(call.function)
            if self._open[0] != step:
                with tempfile.TemporaryDirectory() as folder:
                    evaluator = Evaluator.from_checkpoint(self._run.fetch_checkpoint(step, Path(folder)))
                self._open = (step, evaluator)
            (take or found.__setitem__)(key, call(self._open[1]))
        return found

    def close(self) -> None: ...


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """(run, job) and a scorer of it that has come to rest after it was offered some steps."""
    run = RunStore(str(tmp_path)).run("run")
    monkeypatch.setattr(Here, "made", 0)
    monkeypatch.setattr(beside_training, "Pool", lambda make, num_actors, say: Here(run))

    def work(settings: JobConfig, *steps: int) -> list[str]:
        scorer = Scorer(settings, run)
        for step in steps:
            scorer.offer(step)
        scorer._steps.join()
        scorer.close()
        scorer._thread.join()
        return scorer.messages()

    return run, work


def results(run: Run) -> dict[str, bytes]:
    return {info.key: run.read_bytes(info.key) for info in [*run.list("evaluations/"), *run.list("samples/")]}


KEYS = {f"evaluations/step-000000002/{name}.json" for name in ("energy_gap", "fid_small")} | {
    "samples/step-000000002-ema.png"
}


def test_results_attach_to_their_checkpoint_and_a_second_scoring_overwrites_them(scored, tmp_path):
    run, work = scored
    store(run, job(tmp_path), 2)
    store(run, job(tmp_path), 3)
    assert work(job(tmp_path), 2, 3) == []  # 3 is no multiple of evaluation.every
    first = results(run)
    assert first.keys() == KEYS
    run.write_bytes("evaluations/step-000000002/fid_small.json", b"torn")
    assert work(job(tmp_path), 2, 2) == []
    assert results(run) == first
    assert not unscored(run, job(tmp_path))


def test_checkpoints_that_an_earlier_job_left_unscored_come_first(scored, tmp_path):
    run, work = scored
    for step in (2, 4):
        store(run, job(tmp_path), step)
    assert unscored(run, job(tmp_path))
    assert work(job(tmp_path)) == []
    assert sorted(scores.read_scores(run, 4)) == ["energy_gap", "fid_small"]
    assert results(run).keys() > KEYS
    assert unscored(run, job(tmp_path, "evaluation.metrics=nearest_train"))  # another score is wanted


def test_the_best_checkpoint_stays_however_old_until_a_better_one_comes(scored, tmp_path):
    run, _ = scored
    settings = job(tmp_path, "checkpoint.best=fid_small")
    run.write_config({"checkpoint": {"best": "fid_small"}, "data": {"name": "digits"}})
    values = {2: 5.0, 4: 3.0, 6: 4.0, 8: float("nan"), 10: 3.0, 12: 9.0, 14: 2.0, 16: 7.0, 18: 8.0}
    kept = {}
    for step, value in values.items():
        store(run, settings, step)
        document = json.dumps({"value": value}).encode()
        run.write_bytes(f"evaluations/step-{step:09d}/fid_small.json", document)
        for key in (f"evaluations/step-{step:09d}/energy_gap.json", f"samples/step-{step:09d}-ema.png"):
            run.write_bytes(key, b"{}")
        run.retain(2, pytest.fail, spared(run, settings))
        kept[step] = (run.checkpoints(), find_step(run, "best"))
    assert kept == {
        2: ([2], 2),
        4: ([2, 4], 4),
        6: ([4, 6], 4),
        8: ([4, 6, 8], 4),
        10: ([4, 8, 10], 4),  # of two that are equal the older one
        12: ([4, 10, 12], 4),
        14: ([12, 14], 14),
        16: ([14, 16], 14),
        18: ([14, 16, 18], 14),
    }
    assert best_step(run, "inception_score") is None
    run.write_bytes("evaluations/step-000000014/fid_small.json", b"torn")
    assert best_step(run, "fid_small") == 16
    assert [find_step(run, asked) for asked in (None, 16, "18")] == [18, 16, 18]
    for asked in (17, "-1", "last"):
        with pytest.raises(ConfigError, match=f"`step` {asked}: run run has 14, 16, 18, and best"):
            find_step(run, asked)


def test_more_is_better_where_the_score_says_so(scored, tmp_path):
    run, _ = scored
    for step, value in ((2, float("nan")), (4, 3.0), (6, 2.0)):
        store(run, job(tmp_path), step)
        run.write_bytes(f"evaluations/step-{step:09d}/classifier.json", json.dumps({"value": value}).encode())
    assert best_step(run, "classifier") == 4
    run.write_config({"data": {"name": "digits"}})
    with pytest.raises(CheckpointError, match="`step` best: no checkpoint of run run has a score fid_judge"):
        find_step(run, "best")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["checkpoint.best=fid"], "checkpoint.best = 'fid': must be a score of evaluation.metrics: fid_small"),
        (["checkpoint.best=energy_gap"], "checkpoint.best = 'energy_gap': must be a score of evaluation.metrics: fid_"),
        (["checkpoint.best=fid_small", "evaluation.every=0"], "checkpoint.best = 'fid_small': needs scores beside"),
    ],
)
def test_a_best_that_nothing_decides_is_refused(tmp_path, settings, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        job(tmp_path, *settings)


def test_checkpoints_stay_until_they_are_scored_but_never_many(scored, tmp_path):
    run, work = scored
    slow = job(tmp_path)  # every 2 steps
    for step in range(1, 31):
        store(run, slow, step)
        run.retain(2, pytest.fail, awaiting_scores(run, slow))
    assert run.checkpoints() == [*range(16, 29, 2), 29, 30]  # eight that wait, and the two newest
    assert work(slow) == []
    assert awaiting_scores(run, slow) == []
    run.retain(2, pytest.fail, awaiting_scores(run, slow))
    assert run.checkpoints() == [29, 30]
    assert awaiting_scores(run, job(tmp_path, "evaluation.every=0")) == []


def test_a_scorer_that_dies_once_is_tried_again_with_fresh_actors(scored, tmp_path, monkeypatch):
    run, work = scored
    store(run, job(tmp_path), 2)
    died = threading.Event()

    def die_once(function: object) -> None:
        if function is Evaluator.score_shard and not died.is_set():
            died.set()
            raise ClusterError("4 scoring actors have died")

    monkeypatch.setattr(Here, "before", staticmethod(die_once))
    assert work(job(tmp_path), 2) == ["scoring step 2 failed (4 scoring actors have died); trying again"]
    assert results(run).keys() == KEYS
    assert Here.made == 2


def test_a_scorer_that_cannot_work_gives_up_stores_nothing_and_goes_on_with_the_next(scored, tmp_path, monkeypatch):
    run, work = scored
    for step in (2, 4):
        store(run, job(tmp_path), step)
    calls = iter(["bad", "bad"])

    def fail_at_first(function: object) -> None:
        if function is Evaluator.grid_png and next(calls, None):
            raise DataError("no grid today")

    monkeypatch.setattr(Here, "before", staticmethod(fail_at_first))
    said = work(job(tmp_path), 2, 4)
    assert said == [
        "scoring step 2 failed (no grid today); trying again", "scoring step 2 failed (no grid today); giving up"
    ]  # fmt: skip
    assert {key.split("/")[1][:14] for key in results(run)} == {"step-000000004"}  # nothing half-done of step 2


def test_a_checkpoint_that_retention_deleted_first_is_skipped_with_a_message(scored, tmp_path):
    run, work = scored
    store(run, job(tmp_path), 4)
    said = work(job(tmp_path), 2, 4)
    assert said == ["step 2 is not scored: its turn came after checkpoint.keep=3 deleted it"]
    assert sorted(scores.read_scores(run, 4)) == ["energy_gap", "fid_small"]


def test_studies_can_be_named_beside_metrics(scored, tmp_path):
    run, work = scored
    settings = job(tmp_path, "evaluation.metrics=energy_gap,ood")
    store(run, settings, 2)
    assert work(settings, 2) == []
    assert sorted(scores.read_scores(run, 2)) == ["energy_gap", "ood"]
    assert "evaluations/step-000000002/ood-energies.parquet" in results(run)


def test_scores_whose_weights_are_missing_are_refused_when_training_starts(tmp_path):
    with pytest.raises(DataError, match="run `ebm data mobilenet --from FILE`"):
        check_weights(("energy_gap", "ood", "fid_medium"), Weights(tmp_path))
    check_weights(("energy_gap", "ood", "fid_small"), Weights(tmp_path))


def test_a_store_that_fails_after_the_last_score_costs_no_finished_job(tmp_path):
    def fail(*_: object) -> None:
        raise StorageError("cannot delete s3://runs/r: the server keeps failing")

    notes: list[str] = []
    finished = driver._Supervisor.__new__(driver._Supervisor)
    finished._job, finished._signal = job(tmp_path), None
    finished._scorer = SimpleNamespace(busy=lambda: False)
    finished._display = SimpleNamespace(note=notes.append)
    finished._run = SimpleNamespace(checkpoints=lambda: list(range(9)), retain=fail, list=lambda prefix: [])
    finished._read_mail = lambda: None
    finished._finish_scoring()
    assert notes == ["older checkpoints stay: cannot delete s3://runs/r: the server keeps failing"]


def test_samples_that_have_collapsed_are_said_to_have_once(scored, tmp_path, monkeypatch):
    run, work = scored
    settings = job(tmp_path, "evaluation.metrics=diversity")
    store(run, settings, 2)
    assert work(settings, 2) == []  # near noise: as diverse as can be
    monkeypatch.setattr(diversity, "LEAST_RATIO", 100.0)
    for step in (4, 6):
        store(run, settings, step)
    (said,) = work(settings, 4, 6)
    assert said.startswith("step 4: diversity: the generated images are less diverse than real ones")
    assert scores.read_scores(run, 6)["diversity"]["collapsed"] is True
