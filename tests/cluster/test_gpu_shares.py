"""Shares of a GPU, on a Ray that counts one GPU which is not there: what is asked for, granted, and how many fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator.cluster import ray_internals
from orchestrator.cluster.connection import ClusterError
from orchestrator.cluster.resources import places, worker_resources
from orchestrator.evaluation.actors import FetchCheckpoint, new_actor
from orchestrator.monitoring.exporter import open_exporter
from orchestrator.settings.job import EvaluationConfig, JobConfig, job_preset
from orchestrator.settings.overrides import override
from orchestrator.sweeps.driver import DRIVER_RESOURCES
from orchestrator.sweeps.plan import SweepRequest, make_plan
from orchestrator.sweeps.room import find_room
from orchestrator.training.driver import scaling
from tests.conftest import local_ray
from workers.features.weights import Weights

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
    pytest.mark.filterwarnings(r"ignore::ResourceWarning:ray\..*"),
]
GPU = ("cluster.use_gpu=true",)


@pytest.fixture(scope="module", autouse=True)
def ray_with_a_gpu() -> Iterator[None]:
    with local_ray(num_cpus=4, num_gpus=1):
        yield


def job(*settings: str) -> JobConfig:
    return override(job_preset("digits_paper"), [*GPU, *settings])


@pytest.mark.full
def test_a_worker_of_half_a_gpu_gets_half_a_gpu_from_ray(tmp_path_factory: pytest.TempPathFactory):
    half = job("cluster.gpus_per_worker=0.5", "cluster.cpus_per_worker=1")
    resources = worker_resources(half)
    assert resources == {"CPU": 1, "GPU": 0.5}

    def tell() -> float | None:
        return ray.get_runtime_context().get_assigned_resources().get("GPU")

    folder = str(tmp_path_factory.mktemp("train"))
    trainer = DataParallelTrainer(
        tell, scaling_config=scaling(half, resources), run_config=RunConfig(name="half", storage_path=folder)
    )
    assert trainer.fit().return_value == 0.5


@pytest.mark.full
def test_what_a_trial_starts_may_lie_outside_of_what_it_has_reserved(tmp_path: Path):
    # Tune gives a trial's process a placement group, and whatever that process starts would have to fit into it.
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([DRIVER_RESOURCES])
    inside: Any = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    def start() -> list[Any]:
        fetch = FetchCheckpoint(str(tmp_path), "run", {})
        request = EvaluationConfig(metrics=("energy_gap",), use_gpu=True)
        return [open_exporter(ray_internals.temp_folder), new_actor(fetch, request, Weights.default(), num_cpus=0)]

    trial = ray.remote(num_cpus=0, scheduling_strategy=inside)(start)
    for actor in ray.get(trial.remote()):
        ray.get(actor.__ray_ready__.remote())
        ray.kill(actor)


def test_a_job_on_gpus_asks_for_a_whole_one_and_a_job_on_cpus_for_none():
    assert worker_resources(job("cluster.cpus_per_worker=2")) == {"CPU": 2, "GPU": 1}
    assert worker_resources(override(job_preset("digits_paper"), ["cluster.cpus_per_worker=2"])) == {"CPU": 2}


def test_more_whole_gpus_than_there_are_is_refused():
    with pytest.raises(ClusterError, match=r"each needs 1 CPU and 1 GPU, this Ray has 4 CPUs and 1 GPUs"):
        worker_resources(job("cluster.num_workers=2", "cluster.cpus_per_worker=1"))


@pytest.mark.parametrize(("share", "concurrent", "cpus"), [("1", 1, 4), ("0.5", 2, 2), ("0.25", 4, 1), ("0.3", 3, 1)])
def test_so_many_trials_share_the_card_and_all_cpus(share: str, concurrent: int, cpus: int):
    settings = (*GPU, f"cluster.gpus_per_worker={share}")
    plan, base = make_plan("table2", SweepRequest(preset="digits_paper", settings=settings))
    room = find_room(plan, base, None)
    assert (room.concurrent, room.cpus_per_worker, room.gpus) == (concurrent, cpus, float(share))


@pytest.mark.parametrize(
    ("gpus", "share", "expected"), [(2, 0.6, 2), (2, 0.5, 4), (3, 1.0, 3), (1, 0.1, 10), (0, 0.5, 0), (2, 0.0, 64)]
)
def test_a_share_lies_on_one_card(gpus: int, share: float, expected: int):
    assert places({"CPU": 64.0, "GPU": float(gpus)}, 1, share) == expected
