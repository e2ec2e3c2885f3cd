"""Run as a program: one rank's gradient of a global batch in float64, averaged over the ranks through gloo.

python gloo_gradient.py RANK WORLD_SIZE FOLDER writes FOLDER/<rank>-of-<world size>.safetensors.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from ebm_core.config import LossConfig, ModelConfig, SamplerConfig
from ebm_core.losses import improved_cd_loss
from ebm_core.models import build_energy
from ebm_core.rng import Shards, streams
from ebm_core.sampler import sample_negatives
from orchestrator.training.group import average_gradients

BATCH_SIZE, SHAPE = 16, (1, 8, 8)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = build_energy(ModelConfig(kind="plain", widths=(8, 8, 8), attention=False, multiscale=False), SHAPE).double()
    images = torch.rand(3, BATCH_SIZE, *SHAPE)
    shards = Shards.of_rank(rank, world_size, 4)
    part = shards.span(BATCH_SIZE)
    x_data, x_init, past = images[0, part], images[1, part], images[2]

    cfg = SamplerConfig(num_steps=3, step_size=1.0, noise_std=0.0)
    x_neg = sample_negatives(model, x_init, cfg, streams(0, 1, "chain", shards, BATCH_SIZE))
    loss = improved_cd_loss(model, x_data, x_neg, past, LossConfig())
    loss.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    single = torch.tensor([float(rank)], dtype=torch.float32)  # another dtype in the same call
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
        average_gradients([*gradients.values(), single])
        dist.destroy_process_group()
    save_file({**gradients, "ranks/mean": single}, folder / f"{rank}-of-{world_size}.safetensors")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
