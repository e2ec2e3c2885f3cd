"""Where and how the step runs: device, threads, memory format. Never what it computes."""

import torch

from ebm_core.config import EngineConfig
from ebm_core.errors import ConfigError
from ebm_core.models import EnergyModel


def resolve_device(cfg: EngineConfig) -> torch.device:
    """The configured device; ConfigError when CUDA is asked for and absent."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device = 'cuda': PyTorch sees no CUDA device here; use engine.device=auto or cpu")
    if cfg.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(cfg.device)


def set_threads(cfg: EngineConfig, default: int) -> None:
    """Threads of the CPU operators in this process: `cfg.num_threads`, or `default` cores."""
    torch.set_num_threads(cfg.num_threads or default)


def prepare(model: EnergyModel, cfg: EngineConfig) -> EnergyModel:
    """The model on its device, in its memory format."""
    memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
    return model.to(resolve_device(cfg), memory_format=memory_format)  # pyright: ignore[reportCallIssue]
