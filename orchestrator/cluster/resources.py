"""What a job reserves of a Ray, and whether there is room for it."""

import math
from collections.abc import Mapping

import ray

from orchestrator.cluster import ray_internals
from orchestrator.cluster.connection import ClusterError
from orchestrator.settings.job import JobConfig


def worker_resources(job: JobConfig) -> dict[str, float]:
    """What each worker reserves: its CPUs (null: the largest equal share) and, with cluster.use_gpu, its GPU or share.

    Raises ClusterError when this Ray can never hold cluster.num_workers such workers, or cluster.min_workers where set:
    an elastic job is laid out for as many as there is room for now.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu, wanted = gpu_share(job), job.cluster.cpus_per_worker
    room = sum(places(n, wanted or 1, gpu) for n in nodes)
    workers = max(job.cluster.least_workers, min(job.cluster.num_workers, room))

    def fits(cpus: int) -> bool:
        return sum(places(n, cpus, gpu) for n in nodes) >= workers

    most = int(max((n.get("CPU", 0) for n in nodes), default=0))
    cpus = wanted or next((c for c in range(most, 0, -1) if fits(c)), 0)
    if cpus == 0 or not fits(cpus):
        total = {kind: sum(n.get(kind, 0) for n in nodes) for kind in ("CPU", "GPU")}
        asked = "num_workers" if job.cluster.min_workers is None else "min_workers"
        need = f"{wanted or 1} CPU{f' and {gpu:g} GPU' if gpu else ''}"
        raise ClusterError(
            f"cluster.{asked} = {workers}: each needs {need}, this Ray has {total['CPU']:g} CPUs and "
            f"{total['GPU']:g} GPUs on {len(nodes)} node{'s' if len(nodes) != 1 else ''}; ask for fewer or add nodes"
        )
    return {"CPU": cpus, "GPU": gpu} if gpu else {"CPU": cpus}


def gpu_share(job: JobConfig) -> float:
    """GPUs that each worker reserves: 0, 1 or a part of one."""
    return job.cluster.gpus_per_worker if job.cluster.use_gpu else 0.0


def places(node: Mapping[str, float], cpus: int, gpu: float) -> int:
    """How many workers of so many CPUs and so much of one GPU a node holds. Ray never spreads a share over cards."""
    room = int(node.get("CPU", 0) // cpus)
    return min(room, int(node.get("GPU", 0)) * math.floor(1 / gpu + 1e-9)) if gpu else room


def remove_orphaned_groups() -> int:
    """Remove reservations of this Ray job whose maker is dead, and say how many.

    Ray removes a reservation (placement group) with its maker only when the driver is gone as well. When workers of a
    job die while their process group is being set up, Ray Train's controller leaves its reservation behind, and the
    restarted job waits for CPUs that nobody uses. Trials of a sweep share a Ray job: their makers are alive, or a
    driver, as of what Tune reserves, which Ray's table has as a dead actor without a name.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    orphans = ray_internals.orphaned_groups()
    for group in orphans:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
    return len(orphans)


def free_cpus() -> float:
    """CPUs that nobody has reserved now."""
    return ray.available_resources().get("CPU", 0.0)
