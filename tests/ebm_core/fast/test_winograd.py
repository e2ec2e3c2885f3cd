"""Winograd's convolutions against the definition in float64: values, gradients, gradients of gradients."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from ebm_core.blocks import Conv, standardized
from ebm_core.config import EngineConfig, LossConfig, ModelConfig, SamplerConfig
from ebm_core.errors import ConfigError
from ebm_core.fast import native, winograd
from ebm_core.fast.engine import Engine, prepare
from ebm_core.losses import improved_cd_loss
from ebm_core.models import EnergyModel, build_energy
from ebm_core.sampler import langevin_step, sample_negatives

SHAPES = {  # (batch, c_in, c_out, height, width)
    "one tile": (1, 32, 32, 4, 4),
    "tiles that end outside": (3, 32, 64, 7, 9),
    "a narrow batch of wide maps": (2, 64, 32, 5, 33),
    "weights outweigh tiles": (2, 256, 128, 4, 4),
    "tiles outweigh weights": (16, 32, 32, 32, 32),
    "several rounds of tiles": (9, 96, 64, 28, 28),
}


BOUND = 2e-6
"""Relative error: these shapes have up to 1.7e-6, and with the usual points 0, 1, -1, 2, -2 twice as much."""


@pytest.fixture(autouse=True)
def _loaded() -> None:
    winograd.load()


def tensors(b: int, c_in: int, c_out: int, h: int, w: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((b, c_in, h, w), (c_out, c_in, 3, 3), (c_out,), (b, c_out, h, w))
    return tuple(torch.randn(shape, generator=rng) for shape in shapes)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2 error."""
    return float((ours - exact).norm() / exact.norm())


def by_winograd(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    packed = [winograd.pack(weight.detach(), turned=turned) for turned in (False, True)]
    return winograd.convolve(x, *packed, weight, bias)


def direct(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def gradients(convolve, *given: torch.Tensor) -> list[torch.Tensor]:
    """Of <convolve(x, weight, bias), outer>, by x, weight and bias."""
    *inputs, outer = given
    inputs = [t.clone().requires_grad_() for t in inputs]
    return list(torch.autograd.grad(convolve(*inputs), inputs, outer))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_values_and_gradients_are_those_of_a_convolution(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    given = [t.to(memory_format=layout) if t.ndim == 4 else t for t in tensors(*shape)]
    exact = [t.double() for t in given]
    assert error(by_winograd(*given[:3]), direct(*exact[:3])) < BOUND
    for ours, wanted in zip(gradients(by_winograd, *given), gradients(direct, *exact), strict=True):
        assert ours.shape == wanted.shape
        assert error(ours, wanted) < BOUND


@pytest.mark.parametrize("at", [(1, 1), (0, 2)], ids=["identity", "shift"])
def test_a_kernel_of_one_tap_copies_or_shifts_the_image(at: tuple[int, int]) -> None:
    x = torch.rand(2, 32, 9, 6)
    weight = torch.zeros(32, 32, 3, 3)
    weight[range(32), range(32), at[0], at[1]] = 1.0
    moved = F.pad(x, (1, 1, 1, 1))[:, :, at[0] : at[0] + 9, at[1] : at[1] + 6]
    assert torch.allclose(by_winograd(x, weight, torch.zeros(32)), moved, rtol=0, atol=3e-6)


def mixed(convolve, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of <v, dE/dx> for an energy of two layers: what L_opt needs, with x beside theta."""
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    x, weight, bias = inputs
    energy = convolve(F.silu(convolve(x, weight, bias)), weight, bias).square().sum()
    (slope,) = torch.autograd.grad(energy, x, create_graph=True)
    return list(torch.autograd.grad((slope * v).sum(), inputs))


@pytest.mark.parametrize("size", [(2, 4), (8, 12)], ids=["weights outweigh", "tiles outweigh"])
def test_second_derivatives_are_those_of_a_convolution(size: tuple[int, int]) -> None:
    batch, side = size
    x, weight, bias, v = tensors(batch, 32, 32, side, side)
    given = (x, weight / 17, bias, v)
    exact = mixed(direct, *[t.double() for t in given])
    for ours, wanted in zip(mixed(by_winograd, *given), exact, strict=True):
        assert error(ours, wanted) < 1e-5


def test_nested_function_transforms_see_every_derivative() -> None:
    """The form that a compiled pass differentiates in: torch.func.grad within torch.func.grad."""
    x, weight, bias, v = tensors(2, 32, 32, 8, 8)

    def mixed_in_weight(convolve, x, weight, bias, v) -> torch.Tensor:
        def directional(weight: torch.Tensor) -> torch.Tensor:
            def total(x: torch.Tensor) -> torch.Tensor:
                return convolve(F.silu(convolve(x, weight, bias)), weight, bias).square().sum()

            return (torch.func.grad(total)(x) * v).sum()

        return torch.func.grad(directional)(weight)

    given = (x, weight / 17, bias, v)
    exact = mixed_in_weight(direct, *[t.double() for t in given])
    assert error(mixed_in_weight(by_winograd, *given), exact) < 1e-5


def test_a_graph_for_the_compiler_has_no_weight_in_it_beyond_the_packed_ones() -> None:
    """L_opt's gradient, traced as the compiler does: the weight that nothing reads is neither made nor kept."""
    x, weight, bias, v = tensors(2, 32, 32, 8, 8)
    packed = [winograd.pack(standardized(weight), turned=turned) for turned in (False, True)]

    def gradient(x: torch.Tensor, weight: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        leaf = weight.detach().requires_grad_()
        kernel = standardized(leaf)

        def total(x: torch.Tensor) -> torch.Tensor:
            return winograd.convolve(F.silu(winograd.convolve(x, *packed, kernel, bias)), *packed, kernel, bias).sum()

        return torch.autograd.grad((torch.func.grad(total)(x) * v).sum(), leaf)[0]

    graph = make_fx(gradient, tracing_mode="fake", _allow_non_fake_inputs=True)(x, weight, v)
    graph.graph.eliminate_dead_code()
    convolutions = graph.graph.find_nodes(op="call_function", target=torch.ops.confab.winograd_convolve.default)
    assert len(convolutions) > 4
    assert [node.args[3] for node in convolutions] == [None] * len(convolutions)
    assert torch.equal(graph(x, weight, v), gradient(x, weight, v))


def test_pytorch_finds_the_operators_well_formed() -> None:
    """Schema, derivatives' registration, shapes and strides for the compiler, tracing with derivatives."""
    x, weight, bias, g = (t.requires_grad_() for t in tensors(2, 32, 64, 5, 6))
    packed = [winograd.pack(weight.detach(), turned=turned) for turned in (False, True)]
    ops = torch.ops.confab
    for op, given in (
        (ops.winograd_convolve.default, (x, *packed, weight, bias)),
        (ops.winograd_convolve.default, (x, *packed, None, None)),
        (ops.winograd_convolve.default, (g, *packed, weight, None, True)),
        (ops.winograd_weight_gradient.default, (x.detach(), g.detach())),
        (ops.winograd_pack.default, (weight.detach(), True)),
    ):
        assert set(torch.library.opcheck(op, given).values()) == {"SUCCESS"}


def test_constant_weights_give_the_same_bits_as_changing_ones_and_follow_the_layer() -> None:
    x, weight, bias, outer = tensors(4, 32, 64, 12, 12)
    layer = winograd.PackedConv(torch.nn.Conv2d(32, 64, 3, padding=1))
    layer.take(weight, bias)
    x = x.requires_grad_()
    y = layer(x)
    assert torch.equal(y, by_winograd(x, weight, bias))
    (slope,) = torch.autograd.grad(y, x, outer)
    assert torch.equal(slope, gradients(by_winograd, x.detach(), weight, bias, outer)[0])
    tiny = torch.rand(2, 32, 3, 3)  # smaller than a tile: computed directly
    assert error(layer(tiny), direct(tiny.double(), weight.double(), bias.double())) < 1e-6


@pytest.mark.parametrize("shape", [(16, 32, 32, 16, 16), (6, 128, 128, 4, 4)], ids=["by tiles", "by planes"])
def test_a_sample_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(shape: tuple[int, ...]) -> None:
    x, weight, bias, _ = tensors(*shape)
    whole = by_winograd(x, weight, bias)
    assert torch.equal(whole[3:4], by_winograd(x[3:4], weight, bias))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(by_winograd(x, weight, bias), whole)
    finally:
        torch.set_num_threads(threads)


MODEL = ModelConfig(widths=(32, 32, 64, 64), norm="none")


def moved_model() -> EnergyModel:
    torch.manual_seed(5)
    model = build_energy(MODEL, (3, 32, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def flat_gradient(term: torch.Tensor, model: EnergyModel) -> torch.Tensor:
    slopes = torch.autograd.grad(term, list(model.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([s.flatten() for s in slopes])


def test_the_engines_energies_slopes_and_loss_gradients_are_the_plain_ones() -> None:
    fast = EngineConfig(winograd=True)
    engines = [Engine(prepare(moved_model(), cfg), cfg) for cfg in (fast, EngineConfig())]
    packed = [m for m in engines[0].twin.modules() if isinstance(m, winograd.PackedConv)]
    assert len(packed) > 10
    assert not any(isinstance(m, winograd.PackedConv) for m in engines[1].twin.modules())
    x_data, start, past = (torch.rand(n, 3, 32, 32) for n in (6, 6, 20))
    found = []
    for engine in engines:
        engine.refresh()
        x = x_data.clone().requires_grad_()
        energies = engine.frozen(x)
        sampler = SamplerConfig(step_size=0.1, noise_std=0.0)
        end = langevin_step(engine.chain_energies(None, "last")[0], start, sampler, torch.Generator(), keep_graph=True)
        loss = improved_cd_loss(engine.energy, x_data, end, past, LossConfig())
        terms = {name: flat_gradient(term, engine.model) for name, term in loss.terms.items()}
        found.append({"energies": energies.detach(), "slope": torch.autograd.grad(energies.sum(), x)[0], **terms})
    ours, plain = found
    assert set(plain) == {"energies", "slope", "cd", "opt", "entropy", "l2"}
    for name, wanted in plain.items():
        assert error(ours[name], wanted) < (1e-5 if name in ("energies", "slope") else 1e-4), name


class Calls(TorchDispatchMode):
    """Counts the operators of ours that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "confab":
            self.names[func.name().removeprefix("confab::")] += 1
        return func(*args, **(kwargs or {}))


def test_both_faces_of_the_energy_use_it_and_a_chain_transforms_no_weight() -> None:
    engine = Engine(prepare(moved_model(), EngineConfig(winograd=True)), EngineConfig(winograd=True))
    engine.refresh()
    x = torch.rand(16, 3, 32, 32, requires_grad=True)
    num_packed = sum(isinstance(m, winograd.PackedConv) for m in engine.twin.modules())
    with Calls() as chain:
        torch.autograd.grad(engine.frozen(x).sum(), x)
    assert chain.names == {"winograd_convolve": 2 * num_packed}
    with Calls() as training:
        engine.energy(x).sum().backward()
    assert training.names == {"winograd_convolve": 2 * num_packed, "winograd_weight_gradient": num_packed}


def test_what_is_trained_has_the_weights_of_the_last_refresh_and_its_own_gradients() -> None:
    model = moved_model()
    engine, plain = Engine(model, EngineConfig(winograd=True)), Engine(model, EngineConfig())
    x = torch.rand(4, 3, 32, 32)
    names = [name for name, _ in model.named_parameters()]
    assert {id(p) for p in engine.trained.parameters()} == {id(p) for p in model.parameters()}
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05).add_(0.001)  # much more, and attention saturates: its slopes are rounding then
        engine.refresh()
        found = [torch.autograd.grad(e.energy(x).sum(), list(model.parameters())) for e in (engine, plain)]
        for name, ours, wanted in zip(names, *found, strict=True):
            assert wanted.ndim < 4 or error(ours, wanted) < 1e-5, name
    copied = copy.deepcopy(engine)
    assert {id(p) for p in copied.trained.parameters()} == {id(p) for p in copied.model.parameters()}
    assert not {id(p) for p in copied.trained.parameters()} & {id(p) for p in model.parameters()}


def test_a_gradient_through_all_steps_of_a_chain_is_the_plain_one() -> None:
    model, start = moved_model(), torch.rand(4, 3, 32, 32)
    sampler = SamplerConfig(num_steps=3, step_size=0.1, noise_std=0.0, backprop="all")
    engine = Engine(model, EngineConfig(winograd=True))
    engine.refresh()
    found = []
    for chains, energy in ((engine.chain_energies(None, "all")[0], engine.energy), (model, model)):
        end = sample_negatives(chains, start, sampler, torch.Generator())
        found.append(flat_gradient(improved_cd_loss(energy, start, end, None, LossConfig()).terms["opt"], model))
    assert error(*found) < 1e-4


def test_maps_that_are_smaller_than_a_tile_are_trained_directly() -> None:
    layer = Conv(32, 32, 3, "standardize")
    trained = winograd.TrainedConv(layer, winograd.PackedConv(layer))
    x, weights = torch.rand(2, 32, 3, 3), list(layer.parameters())
    with Calls() as calls:
        ours = torch.autograd.grad(trained(x).square().sum(), weights)
    assert not calls.names
    for slope, wanted in zip(ours, torch.autograd.grad(layer(x).square().sum(), weights), strict=True):
        assert torch.equal(slope, wanted)


def test_a_third_derivative_is_refused() -> None:
    x, weight, bias, outer = (t.requires_grad_() for t in tensors(1, 32, 32, 4, 4))
    (in_weight,) = torch.autograd.grad(by_winograd(x, weight, bias), weight, outer, create_graph=True)
    with pytest.raises(RuntimeError, match="winograd's weight gradient"):
        in_weight.square().sum().backward()


def test_another_engine_of_the_same_model_computes_directly_again() -> None:
    model = moved_model()
    Engine(model, EngineConfig(winograd=True))
    plain = Engine(model, EngineConfig())
    plain.refresh()
    x = torch.rand(16, 3, 32, 32, requires_grad=True)
    with Calls() as calls:
        (plain.energy(x) + plain.frozen(x)).sum().backward()
    assert not calls.names


@pytest.mark.parametrize("other", [{"precision": "bfloat16"}, {"device": "cuda"}])
def test_settings_that_it_does_not_serve_are_refused(other: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"engine.winograd = True: computes in float32 on a CPU, not with"):
        EngineConfig(winograd=True, **other)


def test_what_cannot_be_compiled_is_refused_by_the_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", native.load.__wrapped__)  # as in a process that has not loaded it yet
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(
        ConfigError,
        match=r"engine.winograd = True: there is no C\+\+ compiler here; install g\+\+, or set it to false$",
    ):
        winograd.load.__wrapped__()
