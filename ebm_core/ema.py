"""The average of the parameters over training, which is what gets evaluated (Section 3.1: decay 0.999)."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ebm_core.config import require


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, in place, for every parameter; buffers are copied.

    After n updates towards a fixed model the distance to it has shrunk by decay^n. `average` must be a copy of `model`
    (same parameters in the same order); decay 0 copies. ConfigError for a decay outside 0 to 1.
    """
    require(0 <= decay <= 1, "optimizer.ema_decay", decay, "must lie in 0 to 1")
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(model.parameters()), None)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
