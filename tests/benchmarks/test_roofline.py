"""The groups of the roofline picture are the layers of the model."""

import torch

from benchmarks.roofline import Group, draw, layer_groups
from ebm_core.config import ModelConfig
from ebm_core.models import build_energy


def test_every_layer_is_in_one_group_and_its_operations_are_counted(tmp_path) -> None:
    cfg = ModelConfig(widths=(4, 4, 8), norm="instance", multiscale=False)
    groups = layer_groups(build_energy(cfg, (3, 8, 8)), torch.rand(2, 3, 8, 8), rounds=1)
    found = {group.name: group for group in groups}
    # at 8 x 8: stem, then the block before the down, the down's own block and its convolution
    assert found["conv 3x3, 4 to 4 at 8 x 8"].count == 5
    assert found["norm, swish, 4 at 8 x 8"].count == 4
    assert found["conv 3x3, 4 to 8 at 4 x 4"].count == 1
    assert found["attention, 8 at 2 x 2"].count == 1
    assert found["conv 3x3, 4 to 4 at 8 x 8"].flops == 2 * (2 * 2 * 64 * 9 * 4 * 4)  # forwards and backwards
    assert found["norm, swish, 4 at 8 x 8"].flops == 0
    assert found["norm, swish, 4 at 8 x 8"].num_bytes == 4 * 4 * (2 * 4 * 64)
    draw(groups, 1e9, 1e9, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_is_operations_where_there_are_some_and_else_bytes() -> None:
    assert Group("conv", 1, 0.5, 100, 40).rate == 200
    assert Group("norm", 1, 0.5, 0, 40).rate == 80
