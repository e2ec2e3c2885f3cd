"""Energies whose chains have a closed form, and real digits, for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ebm_core import presets
from ebm_core.config import DataConfig, TrainConfig, from_tree, to_tree
from ebm_core.data import Dataset, load
from ebm_core.data.vision import torchvision
from ebm_core.manifest import sha256_file
from ebm_core.models import EnergyModel
from workers.features.weights import Weights


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
    tree = to_tree(presets.digits_paper())
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
    cfg: DataConfig = presets.digits_paper().data
    return load(cfg, "train"), load(cfg, "test")


def random_state(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """A state dict for a network in which activations keep their size: He's scale, normalisations that change a bit."""
    rng = torch.Generator().manual_seed(seed)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for name, value in state.items():
        if value.ndim >= 2:
            value.normal_(generator=rng).mul_((2 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "bn.weight", "1.weight")):
            value.uniform_(0.8, 1.2, generator=rng)
    return state


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the published one is made, with random weights."""
    torchvision()
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = module.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_state(net, seed=0), path)
    return path


@pytest.fixture(scope="session")
def deep_weights(inception_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Random weights of both networks, installed as a person would install them."""
    folder = tmp_path_factory.mktemp("cache")
    weights = Weights(folder, inception_sha256=sha256_file(inception_file))
    weights.install("inception", inception_file)
    torch.save(random_state(torchvision().models.mobilenet_v2(weights=None), seed=1), folder / "mobile.pth")
    weights.install("mobilenet", folder / "mobile.pth")
    return weights
