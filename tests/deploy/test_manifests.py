"""What is under deploy/ means what it should, as far as that can be seen without Kubernetes, a cloud or Docker."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override
from orchestrator.storage.uri import open_objects

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEPLOY = ROOT / "deploy"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))
CLUSTERS = [path for path in KUBERAY if path.name.startswith("ebm-")]
JOBS = [path for path in KUBERAY if path.name.startswith("job-")]
SECRET = re.compile(r"(?i)(password|secret|token|access_key)")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def name(path: Path) -> str:
    return path.stem


def pods(cluster: dict) -> list[dict]:
    spec = cluster["spec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def check(tree: Any, schema: str) -> None:
    jsonschema.validate(tree, json.loads((HERE / schema).read_text()))


def test_there_is_a_cluster_and_a_job_for_cpus_one_gpu_and_many():
    assert [name(path) for path in KUBERAY] == ["ebm-cpu", "ebm-gpu", "ebm-spot", "job-cpu", "job-gpu", "job-spot"]


@pytest.mark.parametrize("path", KUBERAY, ids=name)
def test_a_manifest_has_fields_that_kuberay_knows_with_values_of_their_type(path: Path):
    check(read(path), "kuberay.json")


def test_the_schema_refuses_a_field_that_nobody_knows_and_a_value_of_another_type():
    tree = read(CLUSTERS[0])
    tree["spec"]["headGroupSpecs"] = tree["spec"]["headGroupSpec"]
    with pytest.raises(jsonschema.ValidationError):
        check(tree, "kuberay.json")
    tree = read(CLUSTERS[0])
    tree["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # parameters are text
    with pytest.raises(jsonschema.ValidationError):
        check(tree, "kuberay.json")


@pytest.mark.parametrize("path", CLUSTERS, ids=name)
def test_a_cluster_asks_for_a_token_limits_each_container_and_runs_nobody_as_root(path: Path):
    cluster = read(path)
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["rayVersion"] == pinned("ray")
    for pod in pods(cluster):
        for container in pod["spec"]["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["runAsNonRoot"]
            assert re.fullmatch(r".+:\d+\.\d+\.\d+", container["image"])
            assert container["envFrom"] == [{"secretRef": {"name": "ebm-s3"}}]
            for variable in container["env"]:
                assert "value" not in variable or not SECRET.search(variable["name"])


@pytest.mark.parametrize("path", CLUSTERS, ids=name)
def test_a_head_leaves_a_stopped_job_time_for_its_checkpoint_and_its_metrics_a_port(path: Path):
    pod = pods(read(path))[0]
    (container,) = pod["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) < pod["spec"]["terminationGracePeriodSeconds"]
    assert int(environment["EBM_METRICS_PORT"]) in {port["containerPort"] for port in container["ports"]}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == environment["EBM_METRICS_PORT"]


def test_spot_workers_come_and_go_with_the_work():
    spec = read(DEPLOY / "kuberay/ebm-spot.yaml")["spec"]
    assert spec["enableInTreeAutoscaling"]
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert any("spot" in key for key in group["template"]["spec"]["nodeSelector"])


@pytest.mark.parametrize("path", JOBS, ids=name)
def test_a_job_is_a_command_that_we_accept_on_a_cluster_that_can_hold_it(path: Path):
    spec = read(path)["spec"]
    program, command, preset, *settings = shlex.split(spec["entrypoint"])
    assert (program, command) == ("ebm", "train")
    job = override(job_preset(preset), settings)
    assert job.name == spec["metadata"]["ebm.run"]
    assert job.storage.startswith("s3://")
    open_objects(job.storage)
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    (cluster,) = (read(p) for p in CLUSTERS if name(p) == spec["clusterSelector"]["ray.io/cluster"])
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert job.cluster.num_workers <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert job.cluster.use_gpu == ("nvidia.com/gpu" in limits)


def pinned(package: str) -> str:
    return re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]


def test_the_compose_file_keeps_the_specification_and_names_only_what_it_has():
    path = DEPLOY / "compose/compose.yaml"
    tree = read(path)
    check(tree, "compose.json")
    services = tree["services"]
    assert {"head", "worker", "s3", "prometheus", "grafana"} <= services.keys()
    for service in services.values():
        assert re.fullmatch(r"\S+:[\w.-]*\d[\w.-]*", service["image"])
        assert {"cpus", "memory"} == service["deploy"]["resources"]["limits"].keys()
        assert set(service.get("secrets", [])) <= tree["secrets"].keys()
        assert service.get("depends_on", {}).keys() <= services.keys()
        for waited, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[waited]
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert source in tree["volumes"] or (path.parent / source).exists(), mount
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for variable, value in service.get("environment", {}).items():
            assert not SECRET.search(variable) or str(value).startswith("/run/secrets/"), variable
        build = service.get("build")
        assert build is None or (path.parent / build["context"] / build["dockerfile"]).is_file()


def test_every_node_of_the_compose_file_asks_for_the_token():
    services = read(DEPLOY / "compose/compose.yaml")["services"].values()
    nodes = [service for service in services if service.get("command", [])[:2] == ["ray", "start"]]
    assert len(nodes) == 2
    for node in nodes:
        assert node["environment"]["RAY_AUTH_MODE"] == "token"
        assert "ray_token" in node["secrets"]


DOCUMENTED = (ROOT / "README.md", *ROOT.glob("docs/*.md"), *(ROOT / "orchestrator").rglob("*.py"))
SCRIPTS = [path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".sh") and path.parent.name != "kuberay"]
STARTS = re.compile(r"\bray start\s+--(head|address)")


def test_every_ray_start_that_is_documented_or_scripted_asks_for_a_token():
    found = 0
    for path in (*DOCUMENTED, *SCRIPTS):
        text = path.read_text()
        for match in STARTS.finditer(text):
            found += 1
            before = text if path.suffix == ".sh" else text[max(0, match.start() - 140) : match.start()]
            assert re.search(r"RAY_AUTH_MODE[=:] ?token", before), f"{path}: {text[match.start() :][:60]!r}"
    assert found >= 5
    assert "ENV" in (image := (DEPLOY / "docker/Dockerfile").read_text())
    assert "RAY_AUTH_MODE=token" in image


def test_the_schema_of_compose_refuses_a_misspelt_key_and_a_duration_without_a_unit():
    for key, value in (("comand", []), ("stop_grace_period", "90")):
        tree = read(DEPLOY / "compose/compose.yaml")
        tree["services"]["head"][key] = value
        with pytest.raises(jsonschema.ValidationError):
            check(tree, "compose.json")


def test_the_image_is_made_in_stages_pinned_unprivileged_and_asked_for_its_health():
    lines = (DEPLOY / "docker/Dockerfile").read_text().splitlines()
    stages = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(stages) == 2
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", stage) for stage in stages)
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last if line.startswith("USER ")]
    assert users == ["1000"]
    assert not any(line.startswith("RUN") for line in last[last.index("USER 1000") :])
    assert sum(line.startswith("HEALTHCHECK ") for line in last) == 1
    assert any(
        line.startswith("RUN apt-get") and " g++ " in line for line in last
    )  # torch.compile needs it at run time
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored
    assert any("-c constraints.txt" in line for line in lines)


def test_the_launcher_file_keeps_the_schema_of_the_ray_that_is_installed():
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    tree = read(DEPLOY / "ray-cluster/aws.yaml")
    jsonschema.validate(tree, schema)
    assert tree["head_node_type"] in tree["available_node_types"]
    for commands in (tree["head_start_ray_commands"], tree["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    assert tree["available_node_types"]["spot-gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
