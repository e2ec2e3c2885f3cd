"""The variables that worker processes get, and how secret ones travel."""

import os
from collections.abc import Iterator, Mapping

import ray

WORKER_ENV = {"GOMP_SPINCOUNT": "10000", "RAY_worker_niceness": "0"}
"""Of the processes that train.

How long threads that wait for each other spin before they sleep. Milliseconds of the digits step with 2 threads on
two cores, alone, beside a process that uses a fifth of a core, and beside one that uses a whole core: by default (about
300,000) 105, 126 and 919; with 10,000: 105, 128 and 442; with 1,000: 161 to 173, 188 and 228.

Ray gives its workers a niceness of 15, so that whatever else runs goes before training: docs/results/performance.md."""


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
