"""Names of the parts of a training step, for whoever runs it under PyTorch's profiler (`profile.py` does)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

_NOTHING = nullcontext()


def part(name: str) -> AbstractContextManager[Any]:
    """`record_function(name)` while a profiler runs, else nothing: without one it costs 6 us, and cold caches more."""
    return record_function(name) if torch.autograd._profiler_enabled() else _NOTHING  # pyright: ignore[reportPrivateImportUsage]
