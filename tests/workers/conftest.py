"""Energies whose chains have a closed form, and real digits, for the tests of this folder."""

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from ebm_core import presets
from ebm_core.config import DataConfig, TrainConfig, from_tree, to_tree
from ebm_core.data import Dataset, load
from ebm_core.models import EnergyModel


class Quadratic(EnergyModel):
    """E(x, c) = |x - center_c|^2 / 2 + offset: a noiseless Langevin step multiplies x - center_c by (1 - step_size)."""

    def __init__(self, centers: Tensor, offset: float = 0.0) -> None:
        """centers (k c h w), one for each of k conditions; a single one: unconditional."""
        nn.Module.__init__(self)
        self.image_shape = tuple(centers.shape[1:])
        self.num_conditions = len(centers) if len(centers) > 1 else 0
        self.centers, self.offset = nn.Parameter(centers, requires_grad=False), offset

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        center = self.centers if condition is None else condition.to(x) @ self.centers.flatten(1)
        return (x - center.reshape(-1, *self.image_shape)).square().flatten(1).sum(1) / 2 + self.offset


def settings(**sections: dict[str, object]) -> TrainConfig:
    """The digits preset with short chains, `sections` changed."""
    tree = to_tree(presets.digits())
    tree["sampler"] |= {"generate_steps": 3, "step_size": 0.5, "noise_std": 0.0}
    for name, values in sections.items():
        tree[name] |= values
    return from_tree(TrainConfig, tree)


@pytest.fixture(scope="session")
def quadratic() -> type[Quadratic]:
    return Quadratic


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., TrainConfig]:
    return settings


@pytest.fixture(scope="session")
def digits() -> tuple[Dataset, Dataset]:
    """Real digits: 1,500 to train on and 297 held out."""
    cfg: DataConfig = presets.digits().data
    return load(cfg, "train"), load(cfg, "test")
