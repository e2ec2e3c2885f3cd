"""The engine's faster passes compute what the model computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ebm_core import checkpoint
from ebm_core.augment import AugmentParams, apply_params
from ebm_core.config import EngineConfig, LossConfig, ModelConfig, SamplerConfig
from ebm_core.errors import ConfigError
from ebm_core.fast.augment import apply_natively
from ebm_core.fast.engine import Engine, frozen_twin, prepare
from ebm_core.losses import frozen_energy, improved_cd_loss
from ebm_core.models import EnergyModel, build_energy
from ebm_core.sampler import langevin_step
from ebm_core.trainer import TrainState, fingerprint, init_state, train_step
from tests.ebm_core.tiny import batch, tiny_config

LAYOUTS = {
    "standardised": ModelConfig(widths=(4, 4, 8, 8), norm="layer"),
    "spectral": ModelConfig(widths=(4, 4, 8, 8), norm="none", spectral_norm=True),
    "instance": ModelConfig(widths=(4, 4, 8, 8), norm="instance", multiscale=False),
}


def moved_model(cfg: ModelConfig, num_conditions: int = 0) -> EnergyModel:
    torch.manual_seed(5)
    model = build_energy(cfg, (3, 16, 16), num_conditions)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def slope(energy, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x)[0]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_conditions", [0, 3])
def test_the_frozen_energy_has_the_models_bits(layout: str, num_conditions: int) -> None:
    model = moved_model(LAYOUTS[layout], num_conditions)
    engine = Engine(model, EngineConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.refresh()
    engine.refresh()  # the twin was made before the weights moved
    x = torch.rand(3, 3, 16, 16)
    condition = torch.rand(3, num_conditions) if num_conditions else None
    assert torch.equal(engine.frozen(x, condition), frozen_energy(model, x, condition))
    assert torch.equal(
        slope(lambda at: engine.frozen(at, condition), x), slope(lambda at: frozen_energy(model, at, condition), x)
    )


def test_nothing_reaches_the_parameters_through_the_frozen_energy() -> None:
    model = moved_model(LAYOUTS["standardised"])
    engine = Engine(model, EngineConfig())
    engine.refresh()
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    engine.frozen(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert not any(p.requires_grad for p in engine.twin.parameters())


def bfloat16_and_float32(model: EnergyModel) -> tuple[Engine, Engine]:
    engines = Engine(prepare(model, EngineConfig(precision="bfloat16")), EngineConfig(precision="bfloat16"))
    plain = Engine(model, EngineConfig())
    engines.refresh()
    plain.refresh()
    return engines, plain


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_passes_point_where_float32_passes_do_and_return_float32(layout: str) -> None:
    fast, plain = bfloat16_and_float32(moved_model(LAYOUTS[layout]))
    x = torch.rand(8, 3, 16, 16)
    for at_fast, at_plain in ((fast.frozen, plain.frozen), (fast.energy, plain.energy)):
        assert at_fast(x).dtype == torch.float32
        assert torch.allclose(at_fast(x), at_plain(x), atol=0.02, rtol=0.02)
        assert slope(at_fast, x).dtype == torch.float32
        assert cosine(slope(at_fast, x), slope(at_plain, x)) > 0.995
    assert all(p.dtype == torch.float32 for p in fast.model.parameters())


def test_bfloat16_gradients_of_every_term_point_where_float32_ones_do() -> None:
    model = moved_model(LAYOUTS["standardised"])
    fast, plain = bfloat16_and_float32(model)
    x_data, start, past = (torch.rand(n, 3, 16, 16) for n in (8, 8, 20))
    sampler = SamplerConfig(step_size=0.1, noise_std=0.0)
    gradients = []
    for engine in (fast, plain):
        end = langevin_step(engine.chain_energies(None, "last")[0], start, sampler, torch.Generator(), keep_graph=True)
        loss = improved_cd_loss(engine.energy, x_data, end, past, LossConfig())
        gradients.append({name: flat_gradient(term, model) for name, term in loss.terms.items()})
    for name in gradients[0]:
        assert cosine(gradients[0][name], gradients[1][name]) > 0.9, name


def flat_gradient(term: torch.Tensor, model: EnergyModel) -> torch.Tensor:
    slopes = torch.autograd.grad(
        term, list(model.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([s.flatten() for s in slopes])


def trained(state: TrainState, cfg, until: int) -> TrainState:
    while state.step < until:
        train_step(state, batch(state.step, cfg), cfg)
    return state


def test_a_bfloat16_run_resumes_to_the_same_bits(tmp_path) -> None:
    cfg = tiny_config(engine=EngineConfig(precision="bfloat16"))
    whole = trained(init_state(cfg), cfg, 6)
    checkpoint.save(trained(init_state(cfg), cfg, 3), cfg, tmp_path)
    resumed = init_state(cfg)
    checkpoint.load(resumed, tmp_path)
    assert fingerprint(trained(resumed, cfg, 6)) == fingerprint(whole)


def compiled_child(folder: Path, what: str):
    child = [sys.executable, "-m", "tests.ebm_core.fast.compiled_child", str(folder), what]
    done = subprocess.run(child, capture_output=True, text=True, timeout=CHILD_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


CHILD_S = 1200
"""Forty to fifty kernels go through the C++ compiler: 80 s of a fast core, three minutes of a slow one."""


@pytest.mark.full
@pytest.mark.timeout(CHILD_S + 60)
def test_compiled_norms_of_every_term_are_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what other tests have compiled would hide a fault
    ours, plain = compiled_child(tmp_path, "norms")
    assert set(ours) == {"grad_norm", *(f"grad_norm/{term}" for term in ("cd", "opt", "entropy", "l2"))}
    assert ours == pytest.approx(plain, rel=1e-4)


def agree_and_resume(found: dict) -> None:
    assert set(found["errors"]) == {"slope", "end", "cd", "opt", "entropy", "l2"}
    assert max(found["errors"].values()) < 1e-4
    assert found["errors"]["slope"] < 1e-5
    assert found["resumed"] == found["whole"]


@pytest.mark.full
@pytest.mark.timeout(CHILD_S + 60)
@pytest.mark.parametrize("convolutions", ["direct", "winograd"])
def test_compiled_passes_agree_resume_and_never_compile_again(convolutions: str, tmp_path) -> None:
    """In a process of its own: what verifies shapes in the tests is not made to be compiled."""
    found = compiled_child(tmp_path, convolutions)
    agree_and_resume(found)
    compiled, plain = found["kept"]
    assert compiled < plain  # where normalisation and swish keep their inputs alone


@pytest.mark.timeout(CHILD_S + 60)
def test_traced_passes_agree_resume_and_are_traced_once_and_the_chains_slope_is_compiled(tmp_path: Path) -> None:
    """The test above in small: C++ for one pass of three, by Winograd where that serves and directly elsewhere."""
    agree_and_resume(compiled_child(tmp_path, "small"))


def test_backprop_through_all_steps_keeps_its_own_gradient_when_compiled() -> None:
    # A compiled slope is a value that does not depend on x; here it must, and as the model's does. Not to the bit: its
    # convolutions have derivatives of ours, which some CPUs round otherwise (1.5e-8 of 0.05).
    model = moved_model(LAYOUTS["instance"])
    engine = Engine(model, EngineConfig(compile=True))
    energy, _ = engine.chain_energies(None, "all")
    images = torch.rand(2, 3, 16, 16)

    def slope_and_its_slope(function) -> tuple[torch.Tensor, torch.Tensor]:
        x = images.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        return first.detach(), torch.autograd.grad(first.square().sum(), x)[0]

    for ours, theirs in zip(slope_and_its_slope(energy), slope_and_its_slope(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * float(theirs.abs().max()))


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(
        ConfigError, match=r"engine.compile = True: there is no C\+\+ compiler here; install g\+\+ or set"
    ):
        init_state(tiny_config(engine=EngineConfig(compile=True)))


def test_a_compiled_engine_augments_in_cpp_and_another_one_in_python() -> None:
    model = moved_model(LAYOUTS["instance"])
    assert Engine(model, EngineConfig(compile=True)).transition is apply_natively
    assert Engine(model, EngineConfig()).transition is apply_params


def test_a_step_augments_as_its_engine_does() -> None:
    cfg = tiny_config()
    state = init_state(cfg)
    seen: list[int] = []

    def transition(x: torch.Tensor, params: AugmentParams, kernel: int) -> torch.Tensor:
        seen.append(len(x))
        return apply_params(x, params, kernel)

    state.engine.transition = transition
    for _ in range(2):  # the first step's chains start from noise
        train_step(state, torch.rand(cfg.train.batch_size, *cfg.image_shape), cfg)
    assert seen == [cfg.train.batch_size]


def test_a_twin_keeps_convolutions_alone_in_bfloat16() -> None:
    twin = frozen_twin(moved_model(LAYOUTS["standardised"]), torch.bfloat16)
    kinds = {name.split(".")[-2]: p.dtype for name, p in twin.named_parameters()}
    assert kinds["conv1"] == kinds["stem"] == torch.bfloat16
    assert kinds["norm1"] == kinds["head"] == torch.float32
