"""How many trials of a sweep there are, and how they share a Ray."""

from dataclasses import dataclass, replace
from typing import Any

import ray

from orchestrator.cluster import resources
from orchestrator.records.sweeps import SweepPlan
from orchestrator.settings.job import JobConfig
from orchestrator.settings.overrides import override
from orchestrator.sweeps.ranges import parse_range


@dataclass(frozen=True)
class Room:
    """How the trials share this Ray."""

    concurrent: int
    cpus_per_worker: int
    cpus: float
    """Of one trial."""
    gpus: float


def num_trials(plan: SweepPlan) -> int:
    """How many trials the plan has."""
    return len(plan.rows) * len(plan.seeds) if plan.kind == "grid" else plan.num_trials


def find_room(plan: SweepPlan, base: JobConfig, max_concurrent: int | None) -> Room:
    """How many trials run at once on this Ray, and what each gets. ClusterError when one of them can never fit.

    Without cluster.cpus_per_worker the CPUs are shared evenly by max_concurrent trials; without that, it is one each.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers, gpu = base.cluster.num_workers, resources.gpu_share(base)
    cpus = base.cluster.cpus_per_worker
    if cpus is None:
        total = sum(node.get("CPU", 0) for node in nodes)
        slots = max_concurrent or sum(resources.places(node, 1, gpu) for node in nodes) // workers
        cpus = max(1, int(total // max(1, slots * workers)))
        cpus = min(cpus, int(max(node.get("CPU", 0) for node in nodes)) or 1)
    for settings in _all_cluster_settings(plan):
        job = override(base, settings)
        wanted = job.cluster.cpus_per_worker or cpus
        resources.worker_resources(replace(job, cluster=replace(job.cluster, cpus_per_worker=wanted)))
    most = max(1, sum(resources.places(node, cpus, gpu) for node in nodes) // workers)
    return Room(min(most, max_concurrent or most, num_trials(plan)), cpus, float(cpus * workers), gpu * workers)


def _all_cluster_settings(plan: SweepPlan) -> list[list[str]]:
    """The settings of what a trial reserves, for each row, or for each end of a range."""

    def kept(settings: Any) -> list[str]:
        return [setting for setting in settings if setting.startswith("cluster.")]

    rows = [kept(row.settings) for row in plan.rows]
    ends = []
    for path, text in plan.space.items():
        if path.startswith("cluster."):
            ends += [[f"{path}={end}"] for end in parse_range(path, text).ends()]
    return [[], *(row for row in rows if row), *ends]
