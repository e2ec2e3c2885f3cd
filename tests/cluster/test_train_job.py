"""The job on a real Ray: bit-identical resume, lost workers, divergence, and errors that reach the person."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from ebm_core import checkpoint
from ebm_core.config import to_tree
from ebm_core.data import labelled_batches, load
from ebm_core.errors import CheckpointError, DivergenceError
from ebm_core.manifest import FileEntry, describe, parse_manifest
from ebm_core.trainer import init_state, train_step
from orchestrator.cli import app
from orchestrator.cluster import connection, resources
from orchestrator.evaluation.beside_training import Scorer
from orchestrator.records import runs, scores
from orchestrator.records.rows import WALL_CLOCK, Row
from orchestrator.settings.job import JobConfig, core_config, job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.run_store import Run, RunStore
from orchestrator.training.driver import run_training
from orchestrator.training.start import RunResult, resolved

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.xdist_group("ray"),
    # Ray copies deprecated settings of its own.
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

ROOT = Path(__file__).parents[2]
TINY = [
    "model.widths=4,8,8",
    "sampler.num_steps=3",
    "sampler.generate_steps=4",
    "loss.num_past=20",
    "buffer.capacity=40",
    "train.batch_size=8",
    "train.log_every=2",
    "train.num_steps=6",
    "checkpoint.every=3",
    "evaluation.every=0",
    "evaluation.metrics=",
    "engine.num_threads=1",
    "cluster.cpus_per_worker=1",
]


@pytest.fixture(scope="module", autouse=True)
def _shared(cluster: None) -> None:
    """Every test of this file trains, or asks, on the Ray that tests share."""


@dataclass
class Notes:
    """A display that keeps what it was told."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, row: Row) -> None:
        self.rows.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None: ...


def tiny_job(folder: Path, *settings: str) -> JobConfig:
    return resolved(override(job_preset("digits_paper"), [*TINY, f"storage={folder}", "name=run", *settings]))


def train(folder: Path, *settings: str) -> tuple[RunResult, Notes]:
    display = Notes()
    return run_training(tiny_job(folder, *settings), display=display), display


def stored(folder: Path) -> Run:
    return RunStore(str(folder)).run("run")


def files_of(run: Run, step: int, into: Path) -> dict[str, FileEntry]:
    """Name, size and SHA-256 of each file of a stored checkpoint, verified."""
    folder = run.fetch_checkpoint(step, into)
    return {entry.name: entry for entry in parse_manifest((folder / checkpoint.MANIFEST).read_bytes()).files}


def numbers_of(run: Run) -> list[dict[str, float]]:
    """All logged columns but the wall clock."""
    return runs.read_metrics(run).drop_columns(list(WALL_CLOCK)).to_pylist()


def plain_loop(job: JobConfig, folder: Path) -> dict[str, FileEntry]:
    """The checkpoint files that the same steps give in this process, without Ray, storage or restarts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cfg = core_config(job)
        state = init_state(cfg)
        for x_data, condition in labelled_batches(
            load(cfg.data, "train"), cfg.train.batch_size, seed=cfg.seed, stop=cfg.train.num_steps, shards=state.shards
        ):
            train_step(state, x_data, cfg, condition=condition)
    finally:
        torch.set_num_threads(before)
    folder.mkdir()
    names = checkpoint.write_shared(state, cfg, folder) + checkpoint.write_shards(state, folder)
    return {entry.name: entry for entry in describe(folder, names)}


def store_checkpoint(run: Run, job: JobConfig, step: int, folder: Path) -> None:
    """Commit a checkpoint of an untrained model as that of `step`."""
    state = init_state(core_config(job))
    state.step = step
    manifest = checkpoint.save(state, core_config(job), folder)
    attempt = run.new_attempt()
    for entry in manifest.files:
        run.put_checkpoint_file(step, attempt, folder / entry.name)
    run.commit(step, attempt, (folder / checkpoint.MANIFEST).read_bytes())


@pytest.mark.full
def test_a_stopped_and_resumed_worker_writes_what_a_plain_loop_writes(tmp_path: Path):
    train(tmp_path, "train.num_steps=3")
    first = numbers_of(stored(tmp_path))
    result, display = train(tmp_path)
    assert result.step == 6
    assert any("resuming at step 3" in note for note in display.notes)
    assert files_of(stored(tmp_path), 6, tmp_path / "a") == plain_loop(tiny_job(tmp_path), tmp_path / "b")
    rows = numbers_of(stored(tmp_path))
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    assert rows[:2] == first
    assert [row["step"] for row in display.rows] == [4, 6]

    again, display = train(tmp_path)
    assert again.already_finished
    assert display.rows == []


@pytest.mark.full
def test_two_workers_resume_bit_identically(tmp_path: Path):
    train(tmp_path / "once", "cluster.num_workers=2")
    train(tmp_path / "twice", "cluster.num_workers=2", "train.num_steps=3")
    train(tmp_path / "twice", "cluster.num_workers=2")
    once, twice = stored(tmp_path / "once"), stored(tmp_path / "twice")
    files = files_of(once, 6, tmp_path / "a")
    assert files == files_of(twice, 6, tmp_path / "b")
    assert {f"buffer-shard-{shard:04d}.safetensors" for shard in range(8)} < files.keys()
    assert numbers_of(once) == numbers_of(twice)
    # Both ranks' chains are in the buffer: 6 steps of 8 samples fill its 40 slots.
    buffered = [load_file(path) for path in (tmp_path / "a" / "step-000000006").glob("buffer-shard-*")]
    assert len(buffered) == 8
    assert all(any(tensor.any() for tensor in shard.values()) for shard in buffered)


def test_a_killed_worker_costs_a_restart_and_no_number(tmp_path: Path):
    killer = Killer(lambda: (tmp_path / "run" / "checkpoints" / "step-000000003" / "COMMITTED").exists())
    with killer:
        result, display = train(tmp_path, "train.num_steps=30")
    assert killer.killed
    # Ray's own choice, 15 more than this process, would have training wait for everything else.
    assert killer.niceness == os.getpriority(os.PRIO_PROCESS, 0)
    assert result.step == 30
    assert any("lost a worker" in note for note in display.notes)
    job = tiny_job(tmp_path, "train.num_steps=30")
    assert files_of(stored(tmp_path), 30, tmp_path / "a") == plain_loop(job, tmp_path / "b")
    assert [row["step"] for row in numbers_of(stored(tmp_path))] == [1, *range(2, 31, 2)]


@pytest.mark.full
def test_a_hung_worker_is_found_and_replaced_and_costs_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "3")
    with Killer(
        lambda: (tmp_path / "run" / "checkpoints" / "step-000000003" / "COMMITTED").exists(), by=signal.SIGSTOP
    ) as hung:
        result, display = train(tmp_path, "train.num_steps=30")
    assert result.step == 30
    assert any("lost a worker (WorkerHealthCheckTimeoutError" in note for note in display.notes), display.notes
    assert hung.killed is not None
    assert not Path(f"/proc/{hung.killed}").exists()
    job = tiny_job(tmp_path, "train.num_steps=30")
    assert files_of(stored(tmp_path), 30, tmp_path / "a") == plain_loop(job, tmp_path / "b")


@pytest.mark.full
def test_divergence_ends_the_run_saves_what_it_had_and_is_not_retried(tmp_path: Path):
    display = Notes()
    with pytest.raises(DivergenceError) as end:
        run_training(tiny_job(tmp_path, "train.energy_limit=1e-9", "checkpoint.every=1"), display=display)
    step = end.value.step
    assert not any("restarting" in note for note in display.notes)
    kept = {info.key for info in stored(tmp_path).list("diverged/")}
    assert f"diverged/step-{step:09d}/model.safetensors" in kept
    assert f"diverged/step-{step:09d}/buffer-shard-0007.safetensors" in kept
    assert step not in stored(tmp_path).checkpoints()  # nothing resumes from it
    assert runs.summaries(RunStore(str(tmp_path)))[0].state == "diverged"


@pytest.mark.full
def test_two_workers_roll_back_together_to_before_the_drift_and_go_on_slower(tmp_path: Path):
    # At this learning rate the energies pass 0.5 at step 6; at a millionth they stay where step 4 left them.
    wild = ["optimizer.lr=0.01", "train.energy_limit=0.5", "train.on_divergence=rollback", "train.gap_window=2"]
    wild += ["train.gap_patience=2", "train.rollback_lr_factor=1e-4", "checkpoint.every=1", "checkpoint.keep=12"]
    settings = [*wild, "cluster.num_workers=2", "train.num_steps=12"]
    result, display = train(tmp_path, *settings)
    assert result.step == 12
    (note,) = [note for note in display.notes if "back to step" in note]
    assert "back to step 4, before the drift" in note
    assert "optimizer.lr = 1e-06" in note
    rows = runs.read_metrics(stored(tmp_path))
    assert rows["step"].to_pylist() == [1, 2, 4, 6, 8, 10, 12]
    assert rows["lr"].to_pylist() == pytest.approx([0.01] * 3 + [1e-6] * 4)
    assert rows["rollbacks"].to_pylist() == [0] * 3 + [1] * 4


@pytest.mark.full
def test_an_error_in_a_worker_is_one_line_and_status_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # The only checkpoint is damaged: a worker finds out when it restores.
    job = tiny_job(tmp_path)
    run = stored(tmp_path)
    run.write_config(to_tree(job))
    store_checkpoint(run, job, 3, tmp_path / "made")
    (model,) = tmp_path.glob("run/checkpoints/*/*/model.safetensors")
    damaged = bytearray(model.read_bytes())
    damaged[-1] ^= 1
    model.write_bytes(damaged)

    monkeypatch.setattr(sys, "argv", ["ebm", "train", "digits_paper", *TINY, f"storage={tmp_path}", "name=run"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("ebm: ") for line in lines) == 1
    assert "all are damaged" in lines[-1]
    assert not any("Traceback" in line or "restarting" in line for line in lines)
    with pytest.raises(CheckpointError):
        run.newest_sound(tmp_path / "none")


def scored(tmp_path: Path, metric: str, with_checkpoint: bool = True) -> tuple[Run, list[str]]:
    """What a scorer makes of the checkpoint of step 3, and what it says."""
    job = tiny_job(tmp_path, f"evaluation.metrics={metric}", "evaluation.num_images=8", "evaluation.every=3")
    run = stored(tmp_path)
    if with_checkpoint:
        store_checkpoint(run, job, 3, tmp_path / "made")
    scorer = Scorer(job, run)
    scorer.offer(2)  # neither a multiple of evaluation.every nor the last
    scorer.offer(3)
    while scorer.busy():
        time.sleep(0.05)
    scorer.close()
    return run, scorer.messages()


def test_a_scorer_stores_scores_and_a_grid_beside_the_checkpoint(tmp_path: Path):
    run, messages = scored(tmp_path, "energy_gap")
    assert messages == []
    assert scores.read_scores(run, 3)["energy_gap"]["num_images"] == 8
    grid = scores.grid_key(run, 3)
    assert grid is not None
    assert run.read_bytes(grid).startswith(b"\x89PNG")


@pytest.mark.full
def test_a_scorer_that_fails_is_tried_once_more_and_then_leaves_the_run_alone(tmp_path: Path):
    job = tiny_job(tmp_path)
    store_checkpoint(stored(tmp_path), job, 3, tmp_path / "made")
    for model in tmp_path.glob("run/checkpoints/*/*/ema.safetensors"):
        model.write_bytes(model.read_bytes()[:-1])
    run, said = scored(tmp_path, "energy_gap", with_checkpoint=False)
    assert [message.rpartition("; ")[2] for message in said] == ["trying again", "giving up"]
    assert all("scoring step 3 failed (" in message and "bytes, not" in message for message in said)
    assert scores.read_scores(run, 3) == {}


def test_a_checkpoint_that_retention_deleted_is_skipped_with_a_message(tmp_path: Path):
    run, said = scored(tmp_path, "energy_gap", with_checkpoint=False)
    assert said == ["step 3 is not scored: its turn came after checkpoint.keep=3 deleted it"]
    assert scores.read_scores(run, 3) == {}


def evaluations_by(scorer: Scorer, run: Run) -> dict[str, bytes]:
    """Everything that a scorer leaves behind when it has done its work."""
    while scorer.busy():
        time.sleep(0.05)
    scorer.close()
    keys = [info.key for info in [*run.list("evaluations/"), *run.list("samples/")]]
    return {key: run.read_bytes(key) for key in keys}


@pytest.mark.full
def test_a_scorer_killed_in_the_middle_is_replaced_and_its_retry_overwrites(tmp_path: Path):
    metrics = ["energy_gap", "fid_small", "ood"]
    settings = [f"evaluation.metrics={','.join(metrics)}", "evaluation.num_images=1200", "evaluation.every=3"]
    job, run = tiny_job(tmp_path, *settings, "sampler.generate_steps=300"), stored(tmp_path)
    store_checkpoint(run, job, 3, tmp_path / "made")
    first = evaluations_by(Scorer(job, run), run)  # a checkpoint that an earlier job left unscored
    assert {f"evaluations/step-000000003/{name}.json" for name in metrics} < first.keys()
    run.write_bytes("evaluations/step-000000003/fid_small.json", b"torn")
    scorer, started = Scorer(job, run), time.monotonic()
    with Killer(lambda: time.monotonic() > started + 4, b"ScoreActor.call") as killer:
        scorer.offer(3)
        again = evaluations_by(scorer, run)
    assert killer.killed
    assert scorer.messages() == ["a scoring actor died; its shard is made again"]
    assert again == first


@pytest.mark.full
def test_a_finished_run_without_scores_is_scored_when_it_is_run_again(tmp_path: Path):
    train(tmp_path, "train.num_steps=3")
    before = files_of(stored(tmp_path), 3, tmp_path / "before")
    again = ["train.num_steps=3", "evaluation.every=3", "evaluation.metrics=energy_gap", "evaluation.num_images=8"]
    result, _ = train(tmp_path, *again)
    assert not result.already_finished
    assert result.scores["energy_gap"]["num_images"] == 8
    assert result.grid == "samples/step-000000003-ema.png"
    assert files_of(stored(tmp_path), 3, tmp_path / "after") == before
    assert train(tmp_path, *again)[0].already_finished


@pytest.mark.full
def test_a_terminated_job_stores_a_checkpoint_and_says_how_to_go_on(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    settings = [*TINY, f"storage={tmp_path}", "name=run", "train.num_steps=100000", "checkpoint.every=90000"]
    job = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "train", "digits_paper", *settings],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stderr is not None
    said = []
    for line in job.stderr:
        said.append(line)
        if line.startswith("step "):
            job.send_signal(signal.SIGTERM)
            break
    rest = job.communicate(timeout=100)[1]
    assert job.returncode == 128 + signal.SIGTERM, "".join(said) + rest
    (step,) = stored(tmp_path).checkpoints()
    assert f"stopped at step {step} of 100000" in rest
    assert "ebm train digits_paper name=run" in rest
    assert "Traceback" not in rest


def test_a_job_that_can_never_fit_is_refused_before_anything_is_stored(tmp_path: Path):
    with pytest.raises(
        connection.ClusterError, match=r"cluster\.num_workers = 8: each needs 1 CPU, this Ray has 2 CPUs"
    ):
        train(tmp_path, "cluster.num_workers=8")
    with pytest.raises(connection.ClusterError, match="1 GPU"):
        train(tmp_path, "cluster.use_gpu=true")
    assert not (tmp_path / "run").exists()


@ray.remote(num_cpus=0)
class Reserver:
    """Reserves half a CPU, as Ray Train's controller does for its workers."""

    def reserve(self) -> str:
        group = ray.util.placement_group([{"CPU": 0.5}])
        ray.get(group.ready())
        return group.id.hex()


def test_a_reservation_whose_maker_has_died_is_removed_and_that_of_a_living_one_is_not():
    dead, alive = Reserver.remote(), Reserver.remote()
    orphan, kept = ray.get([dead.reserve.remote(), alive.reserve.remote()])
    own = ray.util.placement_group([{"CPU": 0.001}])  # a driver's, as Tune's are

    def state(group: str) -> str:
        return ray.util.placement_group_table()[group]["state"]

    ray.kill(dead)
    deadline = time.monotonic() + 30
    while not (removed := resources.remove_orphaned_groups()) and time.monotonic() < deadline:
        assert state(orphan) == "CREATED"  # Ray itself leaves it, as long as this process lives
        time.sleep(0.1)
    assert removed == 1
    while state(orphan) != "REMOVED" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (state(orphan), state(kept), state(own.id.hex())) == ("REMOVED", "CREATED", "CREATED")
    ray.kill(alive)
    while not resources.remove_orphaned_groups():
        time.sleep(0.1)
    ray.util.remove_placement_group(own)


def test_two_gloo_workers_average_to_the_gradient_of_the_whole_batch(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("gloo_gradient.py"))
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), str(size), str(tmp_path)], env=environment)
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]
    assert [process.wait(timeout=100) for process in ranks] == [0, 0, 0]
    whole = load_file(tmp_path / "0-of-1.safetensors")
    means = [load_file(tmp_path / f"{rank}-of-2.safetensors") for rank in range(2)]
    assert whole.pop("ranks/mean") == 0.0
    for mean in means:
        assert mean.pop("ranks/mean") == torch.tensor([0.5])
        assert mean.keys() == whole.keys()
        for name, gradient in whole.items():
            assert gradient.dtype == torch.float64
            torch.testing.assert_close(mean[name], gradient, rtol=1e-12, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3


class Killer:
    """Kills -9, or stops, a worker of this process's Ray (by default one that trains) as soon as `when` holds."""

    def __init__(
        self, when: Callable[[], bool], title: bytes = b"RayTrainWorker", by: signal.Signals = signal.SIGKILL
    ) -> None:
        self.killed: int | None = None
        self.niceness: int | None = None
        """Of the process, before."""
        self._title, self._by = title, by
        self._when, self._over = when, threading.Event()
        self._thread = threading.Thread(target=self._wait)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _wait(self) -> None:
        while not self._over.is_set():
            if self._when() and (workers := _workers(os.getpid(), self._title)):
                self.killed, self.niceness = workers[0], os.getpriority(os.PRIO_PROCESS, workers[0])
                os.kill(self.killed, self._by)
                return
            time.sleep(0.02)


def _workers(ancestor: int, wanted: bytes) -> list[int]:
    """Processes below `ancestor` whose title has `wanted` in it."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])

    def descends(process: int) -> bool:
        while process > 1:
            if process == ancestor:
                return True
            process = parents.get(process, 0)
        return False

    return [process for process, title in titles.items() if wanted in title and descends(process)]
