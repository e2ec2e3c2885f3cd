import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.cluster import ray_internals
from orchestrator.monitoring.exporter import open_exporter


@pytest.mark.cluster
def test_a_sweeps_trial_reaches_the_exporter_from_within_its_placement_group(cluster):
    group = placement_group([{"CPU": 0.01}])
    ray.get(group.ready(), timeout=60)
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    def opened() -> str:
        exporter = open_exporter(ray_internals.temp_folder)
        target = ray.get(exporter.__ray_call__.remote(lambda self: self.target))
        ray.kill(exporter)
        return target

    try:
        found = ray.get(ray.remote(num_cpus=0.01, scheduling_strategy=inside)(opened).remote(), timeout=60)
    finally:
        remove_placement_group(group)
    assert found.rpartition(":")[2].isdigit()
