"""The workers' process group: how it is set up, and the average over it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch import Tensor

from orchestrator.cluster import ray_internals


def use_nodes_interface() -> None:
    """Have gloo and nccl use the interface of this node's address in Ray; settings of the user stay.

    By default gloo looks up the host's own name, which many installations resolve to loopback: then no worker reaches
    one on another node.
    """
    address = ray.util.get_node_ip_address()
    for name, held in psutil.net_if_addrs().items():
        if address in (one.address for one in held):
            for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(variable, name)
            return


COLLECTIVE_TIMEOUT_S = 600
"""After so long without an answer from its peers a worker gives up, and the job restarts from its newest checkpoint."""


class _Backend(ray_internals.torch_backend()):
    """Ray's process group, on the network of the node's address."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_nodes_interface)
        super().on_start(worker_group, backend_config)


class _ProcessGroup(TorchConfig):
    """Settings of it."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def average_gradients(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the workers, in place: one flattened all-reduce for each dtype."""
    world_size = dist.get_world_size()
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        dist.all_reduce(flat)
        flat /= world_size
        for tensor, mean in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@dataclass(frozen=True)
class Group:
    """This worker among the others; the exchanges are no-ops for a single worker."""

    rank: int = 0
    size: int = 1

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values
