"""Starting or finding a Ray, quietly, and how much of it a worker gets."""

import contextlib
import fcntl
import logging
import math
import os
import secrets
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayActorError

from ebm_core.errors import EbmError
from ebm_core.manifest import FileEntry
from orchestrator.saving import Deposits
from orchestrator.settings.job import JobConfig

QUIET_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a lost worker, and the end, are noticed at the controller's next poll
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # of a worker that hangs; Ray waits 600 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # S3 servers other than AWS refuse the newer default
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
"""Set for the driver unless the environment has them; Ray hands its own on to the workers."""

WORKER_ENV = {"GOMP_SPINCOUNT": "10000", "RAY_worker_niceness": "0"}
"""Of the processes that train.

How long threads that wait for each other spin before they sleep. Milliseconds of the digits step with 2 threads on
two cores, alone, beside a process that uses a fifth of a core, and beside one that uses a whole core: by default (about
300,000) 105, 126 and 919; with 10,000: 105, 128 and 442; with 1,000: 161 to 173, 188 and 228.

Ray gives its workers a niceness of 15, so that whatever else runs goes before training: docs/results/performance.md."""


class ClusterError(EbmError):
    """No Ray answers, or the one that does cannot hold the job."""


def start_ray(address: str | None = None, say: Callable[[str], None] = lambda _: None) -> None:
    """Connect to `address`, else to RAY_ADDRESS, else to the cluster that `ray start` left here, else start one.

    A Ray started here listens on loopback alone, asks for a token (unless RAY_AUTH_MODE says otherwise) and ends with
    this process; one that this process already holds is used as it is. `say` hears what is done. Raises ClusterError
    when a named address does not answer.
    """
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    _show_token()
    named = address or os.environ.get("RAY_ADDRESS") or None
    found, alone = _find(named)
    with _loopback() if alone else contextlib.nullcontext():
        if found is None:
            say("starting a Ray on this machine")
            _make_token()
            _init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1")
        else:
            say(f"joining the Ray at {found}")
            _init(address=found)


def _find(named: str | None) -> tuple[str | None, bool]:
    """(host:port of the Ray to join, or None; whether it is on loopback alone, as one to start would be)."""
    try:
        if found := _find_address(named):
            return found, False
    except ClusterError:
        pass  # one that listens on loopback alone does not answer at this machine's other address
    with _loopback():
        return _find_address(named), True


LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray keeps the address 127.0.0.1 that it is given; by default on Linux it looks for one that other machines
can reach, and its processes listen on all."""


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """A Ray started inside listens on loopback alone, unless the user has set the variable to something else."""
    from ray._private import ray_constants

    if os.environ.get(LOOPBACK, "0") != "0":
        yield
        return
    before, had = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(LOOPBACK)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[LOOPBACK] = False, "0"  # this process has read it, its children not
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if had is None:
            del os.environ[LOOPBACK]


def _show_token() -> None:
    """Have this process show the user's token, if there is one and nothing says otherwise.

    `ray start` asks for it as soon as it lies there; Ray's clients show it only when RAY_AUTH_MODE tells them to. A
    cluster that asks for none does not mind.
    """
    from ray import _raylet

    native: Any = _raylet
    token = native.AuthenticationTokenLoader.instance()
    if "RAY_AUTH_MODE" not in os.environ and token.has_token(ignore_auth_mode=True):
        os.environ["RAY_AUTH_MODE"] = "token"
        native.Config.initialize("")  # Ray has read its environment by now


def _make_token() -> None:
    """A token for this user's Ray, in Ray's own place. Ray makes one too, which everybody on the machine can read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # there is one, or Ray will say what is wrong with this place
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))


def _find_address(named: str | None) -> str | None:
    """host:port of the Ray to join; None when none was named and none runs here."""
    from ray._private import services

    try:
        found = services.canonicalize_bootstrap_address(named or cast(str, None))  # None: look for one
    except (ConnectionError, ValueError) as why:
        raise ClusterError(f"--address {named}: {first_line(why)}") from None
    if found is None or "://" in found or _answers(found):
        return found
    if named is None:
        return None  # the file that `ray start` wrote outlived its cluster
    raise ClusterError(
        f"no Ray answers at {named}; start one with `RAY_AUTH_MODE=token ray start --head`, or leave out --address"
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def _init(**kwargs: Any) -> None:
    from ray._private import worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    worker._worker_logs_enabled = False  # else the cluster's warnings appear on our stdout, amid a command's own lines
    try:
        with _interrupts_wait():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **kwargs)
    except Exception as why:  # a machine too busy to start it in time gets Ray's bare Exception
        raise ClusterError(f"Ray could not be reached or started: {first_line(why)}") from None
    for name in ("ray", "ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold a Ctrl-C back until Ray has started, for it crashes when interrupted; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            ray.shutdown()
            raise KeyboardInterrupt


def first_line(why: BaseException) -> str:
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    return lines[0] if lines else type(why).__name__


class Sealed(Mapping[str, str]):
    """Variables for `adopt` alone: to whatever shows, logs or writes down a job's data, this is an empty mapping.

    On a Ray the values lie in its object store, so that even a pickle of this (Tune writes some) holds none of them.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._held = ray.put(dict(values)) if ray.is_initialized() else dict(values)

    def opened(self) -> dict[str, str]:
        """The variables."""
        return ray.get(self._held) if isinstance(self._held, ray.ObjectRef) else self._held

    def __getitem__(self, name: str) -> str:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "Sealed()"


def storage_environment() -> Sealed:
    """What boto3 reads from the environment. It travels sealed with the job's data: what Ray knows of a job, its
    settings, its runtime environment and the configuration of its loop, Ray shows to all."""
    return Sealed({name: value for name, value in os.environ.items() if name.startswith("AWS_")})


def adopt(environment: Mapping[str, str]) -> None:
    """Take over the driver's variables in a worker; what the worker's own machine sets stays."""
    values = environment.opened() if isinstance(environment, Sealed) else environment
    for name, value in values.items():
        os.environ.setdefault(name, value)


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
    from ray._private.state import state
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id()).binary()
    table_data: Any = gcs_pb2
    kind, removed = table_data.PlacementGroupTableData, 0
    for packed in state._connect_and_get_accessor().get_placement_group_table():
        group = kind.FromString(packed)
        orphan = group.creator_actor_dead and group.creator_actor_id != ray.ActorID.nil().binary()
        if group.creator_job_id == job and orphan and not group.is_detached and group.state != kind.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            removed += 1
    return removed


def use_nodes_interface() -> None:
    """Have gloo and nccl use the interface of this node's address in Ray; settings of the user stay.

    By default gloo looks up the host's own name, which many installations resolve to loopback: then no worker reaches
    one on another node.
    """
    address = ray.util.get_node_ip_address()
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            if socket.inet_ntoa(answer[20:24]) == address:
                for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                    os.environ.setdefault(variable, name)
                return


def is_shared() -> bool:
    """Whether this Ray was there before this process, and stays: one that ends with us nobody watches from outside."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and not node.head


def free_cpus() -> float:
    """CPUs that nobody has reserved now."""
    return ray.available_resources().get("CPU", 0.0)


@contextlib.contextmanager
def ray_session(address: str | None = None, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """A Ray for the length of a block; one that this process found running stays."""
    held = ray.is_initialized()
    start_ray(address, say)
    try:
        yield
    finally:
        if not held:
            ray.shutdown()


class Mailbox:
    """What workers tell the driver, and whether the driver wants them to stop. An actor without CPUs."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._stop = False
        self._deposits = Deposits()

    def post(self, kind: str, payload: Any) -> None:
        """Leave a message; kinds are `started`, `row`, `note`, `checkpoint`, `checkpoint_duration`
        and `error`."""
        self._messages.append((kind, payload))

    def drain(self) -> list[tuple[str, Any]]:
        """All messages since the last call, oldest first."""
        messages, self._messages = self._messages, []
        return messages

    def request_stop(self) -> None:
        """Ask the workers to store a checkpoint and leave."""
        self._stop = True

    def stop_requested(self) -> bool:
        """What rank 0 asks between steps."""
        return self._stop

    def deposit(self, attempt: str, rank: int, entries: Sequence[FileEntry]) -> None:
        """A rank has stored these files of a checkpoint."""
        self._deposits.add(attempt, rank, entries)

    def deposits(self, attempt: str) -> Mapping[int, list[FileEntry]]:
        """What the ranks have stored of a checkpoint so far."""
        return self._deposits.of(attempt)


def open_mailbox() -> Any:
    """A Mailbox actor on the driver's node. Raises ClusterError when it cannot live there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
    try:
        ray.get(mailbox.drain.remote())
    except RayActorError as why:
        if "No module named" in str(why):
            raise ClusterError("this Ray's nodes lack confab-ebm: install it on each and restart Ray") from None
        raise ClusterError(f"this Ray cannot run our actors: {first_line(why)}") from None
    return mailbox
