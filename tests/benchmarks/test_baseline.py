"""The baseline of the benchmarks computes what we compute, or the ratios mean nothing."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.baseline import PlainAugment, PlainEnergy, PlainTrainer, plain_langevin_step, plain_terms
from ebm_core.config import AugmentConfig, DataConfig, LossConfig, ModelConfig, OptimizerConfig, SamplerConfig
from ebm_core.errors import ConfigError
from ebm_core.losses import improved_cd_loss
from ebm_core.models import EnergyModel, build_energy
from ebm_core.sampler import langevin_step
from ebm_core.trainer import init_state, train_step
from tests.ebm_core.tiny import batch, tiny_config

LAYOUTS = {
    "cifar10": ModelConfig(widths=(8, 8, 16, 16, 16)),
    "published": ModelConfig(widths=(8, 8, 16, 16, 16), norm="instance"),
    "groups": ModelConfig(widths=(32, 32, 64, 64), norm="group", scale_mode="paper"),
    "faces": ModelConfig(kind="figure11b", widths=(8, 8, 16, 16, 32)),
    "mnist": ModelConfig(kind="mnist", widths=(8, 16, 16), attention=False, multiscale=False),
    "plain": ModelConfig(kind="plain", widths=(8, 16, 16), norm="none", attention=False, multiscale=False),
}
SIZE = 32
"""Pixels, the paper's. At 16 the last maps of `published` are one pixel, where an instance norm divides rounding by its
own size: both float32 implementations are then equally far, 2e-5, from float64."""

TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)}
"""Relative error of energies and input gradients, and of parameter gradients."""


def moved_model(cfg: ModelConfig, dtype: torch.dtype, size: int = SIZE) -> EnergyModel:
    """A model none of whose parameters has its initial 0 or 1, attention's gain among them."""
    torch.manual_seed(3)
    model = build_energy(cfg, (3, size, size)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def error(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Relative L2 error."""
    ours, other = ours.detach(), other.detach()
    return float((ours - other).norm() / other.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, SIZE), (torch.float32, SIZE), (torch.float64, 16)],
    ids=["float64", "float32", "float64-16"],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_energies_and_slopes_equal_ours(layout: str, dtype: torch.dtype, size: int) -> None:
    model = moved_model(LAYOUTS[layout], dtype, size)
    plain = PlainEnergy.copy_of(model, LAYOUTS[layout])
    x = torch.rand(5, 3, size, size, dtype=dtype)
    slopes, energies = [], []
    for energy in (model, plain):
        at = x.clone().requires_grad_()
        energies.append(energy(at))
        slopes.append(torch.autograd.grad(energies[-1].sum(), at)[0])
    assert error(*energies) < TOLERANCE[dtype][0]
    assert error(*slopes) < TOLERANCE[dtype][0]


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_term_and_its_gradient_equals_ours(layout: str, dtype: torch.dtype) -> None:
    model = moved_model(LAYOUTS[layout], dtype)
    plain = PlainEnergy.copy_of(model, LAYOUTS[layout])
    cfg = tiny_config(
        data=DataConfig(image_size=SIZE),
        model=LAYOUTS[layout],
        sampler=SamplerConfig(step_size=0.01, noise_std=0.0),
        loss=LossConfig(kl_weight=0.7, entropy_weight=0.4, l2_weight=0.3),
    )
    x_data, start, past = (torch.rand(n, 3, SIZE, SIZE, dtype=dtype) for n in (4, 4, 9))
    end = langevin_step(model, start, cfg.sampler, torch.Generator(), keep_graph=True)
    ours = improved_cd_loss(model, x_data, end, past, cfg.loss).terms
    noise = torch.zeros_like(start)
    plain_end = plain_langevin_step(plain, start, cfg.sampler, noise)
    theirs = plain_terms(plain, x_data, plain_end, start, noise, past, cfg)
    assert set(ours) == set(theirs) == {"cd", "opt", "entropy", "l2"}
    names = [name for name, _ in model.named_parameters()]
    others = dict(plain.named_parameters())
    for term in ours:
        close = TOLERANCE[dtype][0]
        assert torch.isclose(ours[term], theirs[term], rtol=close, atol=close)  # cd is a difference near 0
        both = [
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
            for loss, parameters in (
                (ours[term], list(model.parameters())),
                (theirs[term], [others[name] for name in names]),
            )
        ]
        flat = [torch.cat([slope.flatten() for slope in slopes]) for slopes in both]
        assert flat[1].norm() > 0
        assert error(flat[0], flat[1]) < TOLERANCE[dtype][1]


def test_one_step_moves_the_parameters_as_ours_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(
        sampler=SamplerConfig(num_steps=3, step_size=1.0, noise_std=0.0),
        optimizer=OptimizerConfig(lr=1e-3, grad_clip=0.5),
        augment=AugmentConfig(enabled=False),
    )
    state = init_state(cfg)
    plain = PlainTrainer(cfg, state.model)
    start = batch(7, cfg)
    monkeypatch.setattr("ebm_core.trainer.chain_starts", lambda *_: (start, None, None))
    before = {name: p.clone() for name, p in state.model.named_parameters()}
    metrics = train_step(state, batch(0, cfg), cfg)
    plain_metrics = plain.step(batch(0, cfg), start)
    assert plain_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    moved = torch.cat([(p - before[name]).detach().flatten() for name, p in state.model.named_parameters()])
    others = dict(plain.energy.named_parameters())
    plain_moved = torch.cat([(others[name] - old).detach().flatten() for name, old in before.items()])
    assert torch.cosine_similarity(moved, plain_moved, dim=0) > 0.999
    averages = dict(plain.ema.named_parameters())
    for name, average in state.ema.named_parameters():
        assert torch.allclose(average, averages[name], atol=1e-5)
    assert plain.num_seen == cfg.train.batch_size


def test_its_augmentation_moves_images_within_their_range() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16)).astype(np.uint8)
    moved = PlainAugment(AugmentConfig(), 16)(levels)
    assert moved.shape == levels.shape
    assert moved.dtype == np.uint8
    assert (moved != levels).any(axis=(1, 2, 3)).all()


def test_what_it_lacks_is_refused() -> None:
    cfg = dataclasses.replace(LAYOUTS["plain"], spectral_norm=True)
    with pytest.raises(ConfigError, match=r"model.spectral_norm = True: the baseline has none; set it to false"):
        PlainEnergy(cfg, 3)
    conditional = build_energy(LAYOUTS["plain"], (3, SIZE, SIZE), num_conditions=2)
    with pytest.raises(ConfigError, match="the baseline is unconditional"):
        PlainEnergy.copy_of(conditional, LAYOUTS["plain"])
