"""Scores and sample grids of committed checkpoints, made by an actor beside training. Its failures never reach training."""

import json
import queue
import threading
from collections.abc import Callable
from typing import Any

import ray

from orchestrator.config import JobConfig
from orchestrator.runs import step_folder

ATTEMPTS = 2
"""A scorer that fails or dies is tried once more with a fresh actor."""


def is_scored(step: int, job: JobConfig) -> bool:
    """Whether a checkpoint gets scores: multiples of evaluation.every, and the last step."""
    every = job.evaluation.every
    return step == job.train.num_steps or (every > 0 and step % every == 0)
