"""Train energy-based models by improved contrastive divergence, in plain PyTorch.

cfg = ebm_core.presets.cifar10()
state = ebm_core.init_state(cfg, seed=0)
for x_data in ebm_core.batches("cifar10", cfg.train.batch_size, seed=0):
    terms = ebm_core.train_step(state, x_data, cfg)
images = ebm_core.generate(state.ema, count=64, cfg=cfg.sampler, rng=torch.Generator().manual_seed(1))
"""

from ebm_core import presets
from ebm_core.augment import augment
from ebm_core.buffer import FifoBuffer, PersistentBuffer, ReservoirBuffer
from ebm_core.checkpoint import load, load_energy, save
from ebm_core.compose import conditional, mixture, negation, product
from ebm_core.config import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    EngineConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
    WarmupConfig,
    from_tree,
    to_tree,
)
from ebm_core.data import DATASETS, batches, labelled_batches
from ebm_core.ema import ema_update
from ebm_core.errors import CheckpointError, ConfigError, DataError, DivergenceError, EbmError
from ebm_core.losses import (
    Loss,
    contrastive_divergence,
    energy_l2,
    frozen_energy,
    improved_cd_loss,
    nearest_neighbor_entropy,
)
from ebm_core.models import EnergyModel, build_energy
from ebm_core.sampler import chain, generate, hmc_step, langevin_step, sample_negatives
from ebm_core.trainer import TrainState, init_state, train_step
from ebm_core.warmup import flow_matching_loss

__all__ = [
    "DATASETS",
    "AugmentConfig",
    "BufferConfig",
    "CheckpointError",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DivergenceError",
    "EbmError",
    "EnergyModel",
    "EngineConfig",
    "FifoBuffer",
    "LoopConfig",
    "Loss",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PersistentBuffer",
    "ReservoirBuffer",
    "SamplerConfig",
    "TrainConfig",
    "TrainState",
    "WarmupConfig",
    "augment",
    "batches",
    "build_energy",
    "chain",
    "conditional",
    "contrastive_divergence",
    "ema_update",
    "energy_l2",
    "flow_matching_loss",
    "from_tree",
    "frozen_energy",
    "generate",
    "hmc_step",
    "improved_cd_loss",
    "init_state",
    "labelled_batches",
    "langevin_step",
    "load",
    "load_energy",
    "mixture",
    "nearest_neighbor_entropy",
    "negation",
    "presets",
    "product",
    "sample_negatives",
    "save",
    "to_tree",
    "train_step",
]
