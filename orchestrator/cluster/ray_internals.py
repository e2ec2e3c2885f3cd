"""Everything of Ray's private API that this program uses, and nothing else: a test finds none of it elsewhere.

Each function says why no public call does, and which one would replace it.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, cast

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray keeps the address 127.0.0.1 that it is given; by default on Linux it looks for one that other machines
can reach, and its processes listen on all."""

LOOPBACK_ADDRESS = {"_node_ip_address": "127.0.0.1"}
"""Argument of `ray.init` for a Ray on loopback: its public form has no address for the Ray that it starts. A public
`node_ip_address`, as `ray start` has one, would replace it."""

PROCESSES = ("raylet", "gcs_server", "ray::", "/ray/dashboard", "/ray/_private")
"""Parts of the command lines of Ray's own processes. A public list of a node's processes would replace it."""


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """A Ray started inside listens on loopback alone, unless the user has set the variable to something else.

    Private because Ray reads LOOPBACK once, when it is imported. An argument of `ray.init` would replace it.
    """
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


def show_token() -> None:
    """Have this process show the user's token, if there is one and nothing says otherwise.

    `ray start` asks for it as soon as it lies there; Ray's clients show it only when RAY_AUTH_MODE tells them to. A
    cluster that asks for none does not mind. Private because Ray has read its environment when it was imported; a
    client that shows a token that is there would replace it.
    """
    from ray import _raylet

    native: Any = _raylet
    token = native.AuthenticationTokenLoader.instance()
    if "RAY_AUTH_MODE" not in os.environ and token.has_token(ignore_auth_mode=True):
        os.environ["RAY_AUTH_MODE"] = "token"
        native.Config.initialize("")  # Ray has read its environment by now


def bootstrap_address(named: str | None) -> str | None:
    """host:port of the Ray of that address, or of one that runs here; None if none was named and none is found.

    Raises ConnectionError or ValueError. Private because `ray.init(address="auto")` connects before it says where; a
    public look-up of the address would replace it.
    """
    from ray._private import services

    return services.canonicalize_bootstrap_address(named or cast(str, None))  # None: look for one


def no_cluster_messages() -> None:
    """Keep the cluster's warnings off our stdout, where they would stand amid a command's own lines.

    Private because `ray.init(log_to_driver=False)` leaves them on; a level for them in `ray.init` would replace it.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False


def is_head() -> bool | None:
    """Whether the Ray that this process holds was started by it; None without one.

    Private because the runtime context does not say who started the node; `ray.get_runtime_context()` with a flag for
    it would replace it.
    """
    from ray._private import worker

    node = worker._global_node
    return None if node is None else node.head


def temp_folder() -> str:
    """The folder on this node where Ray keeps its sessions and its service-discovery file.

    Private because no public call names it; `ray.get_runtime_context()` with the folder would replace it.
    """
    from ray._private import worker

    node: Any = worker._global_node
    return node.get_temp_dir_path()


def orphaned_groups() -> list[str]:
    """Ids of this Ray job's reservations (placement groups) whose maker is dead, in hexadecimal.

    Private because the public table of placement groups names no maker. `ray.util.state.list_placement_groups` with
    the maker and whether it lives would replace it.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id()).binary()
    table_data: Any = gcs_pb2
    kind, found = table_data.PlacementGroupTableData, []
    for packed in state._connect_and_get_accessor().get_placement_group_table():
        group = kind.FromString(packed)
        orphan = group.creator_actor_dead and group.creator_actor_id != ray.ActorID.nil().binary()
        if group.creator_job_id == job and orphan and not group.is_detached and group.state != kind.REMOVED:
            found.append(ray.PlacementGroupID(group.placement_group_id).hex())
    return found


def cause(failure: BaseException) -> BaseException:
    """What a worker of Ray Train raised, without what Ray put around it.

    Private because the wrapper has no public name for it; `__cause__` set by Ray Train would replace it.
    """
    return getattr(failure, "_base_exc", failure)


def torch_backend() -> Any:
    """The class that sets up Ray Train's process group.

    Private because a TorchConfig can say which backend, not which interface; such a field would replace it.
    """
    from ray.train.torch.config import _TorchBackend

    return _TorchBackend
