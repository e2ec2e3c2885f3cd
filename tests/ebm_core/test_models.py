"""Oracles: the published parameter counts, finite differences in float64, and layers written out by hand."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from ebm_core.blocks import Conv, Dense, NormSwish, ResBlockDown, SelfAttention, refresh_spectral, standardized
from ebm_core.config import ModelConfig
from ebm_core.errors import ConfigError, DataError
from ebm_core.models import EnergyModel, build_energy, half_resolution
from ebm_core.presets import PRESETS

KINDS = ("figure11a", "figure11b", "mnist", "plain")
NORMS = ("layer", "group", "instance", "none")
FIGURE_11B = (64, 128, 128, 128, 256, 512, 1024)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def counts(cfg: ModelConfig, size: int) -> list[int]:
    with torch.device("meta"):
        return [count(scale) for scale in build_energy(cfg, (3, size, size)).scales]


def tiny(seed: int = 0, num_conditions: int = 0, channels: int = 1, size: int = 8, **settings) -> EnergyModel:
    """A small energy of three scales in float64, with attention switched on (its gain starts at 0)."""
    torch.manual_seed(seed)
    cfg = ModelConfig(**{"widths": (4, 4, 6, 8), **settings})
    model = build_energy(cfg, (channels, size, size), num_conditions).double()
    for layer in model.modules():
        if isinstance(layer, SelfAttention):
            torch.nn.init.constant_(layer.gain, 0.7)
    return model


def images(model: EnergyModel, num: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(num, *model.image_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_figure_11a_has_the_published_codes_parameter_counts():
    cfg = ModelConfig(kind="figure11a", widths=(64, 64, 128, 256, 512), norm="instance", scale_mode="code")
    assert counts(cfg, 32) == [4_859_234, 1_295_809, 409_153]
    assert sum(counts(cfg, 32)) == 6_564_196


def test_figure_11a_in_the_papers_scale_mode_has_its_13_99_million_parameters():
    # "13.99 million": three scales, the smaller ones without the first one or two stages, attention in all of them.
    assert sum(counts(ModelConfig(scale_mode="paper"), 32)) == 13_987_110


@pytest.mark.parametrize(("base", "total"), [(128, 27_053_700), (64, 6_772_548)])  # published: 27 and 6.8 million
def test_figure_11b_has_the_published_codes_parameter_counts(base: int, total: int):
    widths = tuple(width * base // 128 for width in FIGURE_11B)
    assert sum(counts(ModelConfig(kind="figure11b", widths=widths), 128)) == total


def test_the_digits_net_has_five_convolutions_and_0_21_million_parameters():
    cfg = PRESETS["digits_paper"]()
    model = build_energy(cfg.model, cfg.image_shape)
    assert sum(isinstance(layer, Conv) for layer in model.modules()) == 5
    assert count(model) == 210_657


def test_normalizations_differ_by_no_parameter_and_none_saves_a_gain_and_a_bias_per_channel():
    totals = {norm: sum(counts(ModelConfig(norm=norm), 32)) for norm in NORMS}
    assert totals["layer"] == totals["group"] == totals["instance"]
    widths = (64, 64, 64, 64, 128, 128, 256, 256), (64, 64, 64, 64, 128, 128), (64, 64, 64, 64)  # blocks of each scale
    assert totals["layer"] - totals["none"] == 2 * 2 * sum(map(sum, widths))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_starts_with_small_finite_energies(name: str):
    cfg = PRESETS[name]()
    torch.manual_seed(0)
    model = build_energy(cfg.model, cfg.image_shape)
    with torch.no_grad():
        parts = model.parts(torch.rand(1 if cfg.data.image_size > 64 else 2, *cfg.image_shape))
    assert parts.shape[1] == (3 if cfg.model.multiscale else 1)
    assert parts.abs().max() < 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_ablation_of_figure_9_starts_with_energies_of_order_one(norm: str, spectral_norm: bool):
    torch.manual_seed(0)
    cfg = ModelConfig(widths=(32, 32, 64, 128, 256), norm=norm, spectral_norm=spectral_norm)
    with torch.no_grad():
        assert build_energy(cfg, (3, 32, 32))(torch.rand(2, 3, 32, 32)).abs().max() < 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [*NORMS, "spectral"])
def test_first_and_second_derivatives_agree_with_finite_differences(kind: str, norm: str):
    # L_opt differentiates the slope of the last Langevin step once more, so both must be right for every layout.
    spectral = norm == "spectral"
    model = tiny(kind=kind, norm="layer" if spectral else norm, spectral_norm=spectral)
    x = images(model, 1).requires_grad_()
    assert torch.autograd.gradcheck(model, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(model, x, fast_mode=True)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_slopes_derivative_in_every_parameter_agrees_with_finite_differences(spectral_norm: bool):
    # d/dtheta of dE/dx is what Eq. 6 needs; u is a constant of the step, so its sigma has an ordinary derivative.
    model = tiny(num_conditions=2, spectral_norm=spectral_norm)
    x, condition = images(model, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def slope(theta: torch.Tensor) -> torch.Tensor:
        values = theta.split([shape.numel() for shape in shapes.values()])
        weights = {name: value.view(shapes[name]) for name, value in zip(shapes, values, strict=True)}
        start = x.clone().requires_grad_()
        energy = functional_call(model, weights, (start, condition))
        return torch.autograd.grad(energy.sum(), start, create_graph=True)[0]

    theta = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    assert torch.autograd.gradcheck(slope, theta, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_samples_energy_does_not_depend_on_its_batch(kind: str, norm: str):
    model = tiny(kind=kind, norm=norm, num_conditions=3)
    x, condition = images(model, 5), torch.eye(5, 3, dtype=torch.float64)
    energies = model(x, condition)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(model(x[order], condition[order]), energies[order], rtol=0, atol=1e-12)
    alone = torch.cat([model(x[i : i + 1], condition[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, energies, rtol=0, atol=1e-12)
    assert energies.unique().numel() == 5


def test_the_energy_is_the_sum_of_three_energies_at_full_half_and_quarter_resolution():
    model = tiny(size=16)
    x = images(model, 3)
    parts = model.parts(x)
    full, half, quarter = (scale(y, None) for scale, y in zip(model.scales, pyramid(x), strict=True))
    torch.testing.assert_close(parts, torch.stack([full, half, quarter], dim=1))
    torch.testing.assert_close(model(x), full + half + quarter)


def pyramid(x: torch.Tensor) -> list[torch.Tensor]:
    return [x, half_resolution(x), half_resolution(half_resolution(x))]


def test_a_smaller_image_is_the_mean_over_3_by_3_pixels_without_those_beyond_the_border():
    x = images(tiny(), 2)
    small = half_resolution(x)
    assert small.shape == (2, 1, 4, 4)
    torch.testing.assert_close(small[:, :, 1, 2], x[:, :, 1:4, 3:6].mean(dim=(2, 3)))
    torch.testing.assert_close(small[:, :, 0, 0], x[:, :, :2, :2].mean(dim=(2, 3)))
    torch.testing.assert_close(half_resolution(torch.full((1, 3, 7, 9), 0.3)), torch.full((1, 3, 4, 5), 0.3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(9, 13), (28, 11)])
def test_odd_and_oblong_sizes_work(kind: str, size: tuple[int, int]):
    cfg = ModelConfig(kind=kind, widths=(4, 4, 6, 8))
    assert build_energy(cfg, (3, *size))(torch.rand(2, 3, *size)).shape == (2,)


def test_attention_is_the_published_softmax_of_query_times_key():
    torch.manual_seed(0)
    layer = SelfAttention(16, ModelConfig()).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, None), x)  # the gain starts at 0
    torch.nn.init.constant_(layer.gain, 0.5)
    query, key, value = (conv(x).flatten(2) for conv in (layer.query, layer.key, layer.value))  # (b, channels, pixels)
    odds = torch.einsum("bcp,bcq->bpq", query, key).softmax(dim=2)
    expected = x + 0.5 * torch.einsum("bcq,bpq->bcp", value, odds).view_as(x)
    torch.testing.assert_close(layer(x, None), expected)
    assert query.shape[1] == 2


@pytest.mark.parametrize(
    ("norm", "width", "reference"),
    [
        ("layer", 6, lambda x: F.layer_norm(x, x.shape[1:])),
        ("group", 64, lambda x: F.group_norm(x, 32)),
        ("group", 24, lambda x: F.group_norm(x, 8)),
        ("instance", 128, F.instance_norm),
        ("instance", 256, lambda x: F.group_norm(x, 32)),
        ("none", 6, lambda x: x),
    ],
)
def test_normalization_is_pytorchs_own_and_swish_follows(norm, width, reference):
    x = torch.randn(2, width, 3, 4, dtype=torch.float64)
    layer = NormSwish(width, ModelConfig(norm=norm), 0).double()
    torch.testing.assert_close(layer(x, None), F.silu(reference(x)))
    if norm != "none":
        torch.nn.init.constant_(layer.weight, 2.0)
        layer.bias.data = torch.arange(width, dtype=torch.float64)
        torch.testing.assert_close(layer(x, None), F.silu(2 * reference(x) + torch.arange(width)[:, None, None]))


def test_a_down_block_is_its_formula_written_out():
    torch.manual_seed(0)
    block = ResBlockDown(4, 6, ModelConfig(norm="layer"), 0).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    inner = x
    for conv in (block.block.conv1, block.block.conv2):
        inner = F.conv2d(inner, standardized(conv.weight), conv.bias, padding=1)
        inner = F.silu(F.layer_norm(inner, (4, 7, 7)))
    pooled = F.avg_pool2d(F.conv2d(x + inner, block.conv.weight, block.conv.bias, padding=1), 3, 2, 1)
    torch.testing.assert_close(block(x, None), F.silu(pooled))
    assert pooled.shape == (2, 6, 4, 4)


def test_standardized_filters_have_zero_mean_and_unit_length():
    filters = standardized(torch.randn(5, 3, 3, 3, dtype=torch.float64) + 1).flatten(1)
    torch.testing.assert_close(filters.mean(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_under_layer_norm_standardized_filters_make_the_scale_of_a_weight_irrelevant():
    model, louder = tiny(), tiny()
    for layer in louder.modules():
        if isinstance(layer, Conv) and layer.reweigh == "standardize":
            layer.weight.data.mul_(3.0)
    x = images(model, 2)
    torch.testing.assert_close(louder(x), model(x))


def largest_singular_value(layer: Conv | Dense) -> float:
    return torch.linalg.svdvals(layer.effective_weight().detach().flatten(1))[0].item()


def test_spectral_normalization_gives_every_weight_largest_singular_value_1():
    torch.manual_seed(0)
    model = build_energy(ModelConfig(widths=(8, 8, 16, 32), spectral_norm=True), (3, 16, 16), num_conditions=4)
    layers = [layer for layer in model.modules() if isinstance(layer, (Conv, Dense))]
    assert [largest_singular_value(layer) for layer in layers] == pytest.approx([1.0] * len(layers), abs=1e-5)
    for _ in range(20):  # as in training: each step moves every weight by about the learning rate, then refreshes
        for layer in layers:
            layer.weight.data.add_(2e-4 * torch.randn_like(layer.weight))
        model.refresh()
    assert [largest_singular_value(layer) for layer in layers] == pytest.approx([1.0] * len(layers), abs=1e-3)


def test_refreshing_finds_the_singular_value_of_a_weight_that_was_replaced():
    torch.manual_seed(0)
    layer = Conv(4, 8, 3, "spectral")
    layer.weight.data = torch.randn_like(layer.weight)
    assert largest_singular_value(layer) > 1.1  # u is stale, so sigma is too small
    for _ in range(100):
        refresh_spectral(layer)
    assert largest_singular_value(layer) == pytest.approx(1, abs=1e-3)


def test_the_gradient_flows_through_the_singular_value():
    # E is unchanged when W grows by a factor, so the gradient is orthogonal to W. Without sigma's share it is not.
    layer = Dense(7, 5, spectral=True).double()
    loss = layer.effective_weight().mul(torch.randn(5, 7, dtype=torch.float64)).sum()
    (slope,) = torch.autograd.grad(loss, layer.weight)
    assert (slope * layer.weight).sum().abs().item() < 1e-12
    assert slope.norm().item() > 0.1


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_only_refresh_changes_the_models_state(spectral_norm: bool):
    model = tiny(spectral_norm=spectral_norm, num_conditions=2).train()
    before = copy.deepcopy(model.state_dict())
    x = images(model, 2).requires_grad_()
    model(x, torch.ones(2, 2, dtype=torch.float64)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.refresh()
    changed = {
        name.rsplit(".", 1)[1] for name, value in model.state_dict().items() if not torch.equal(before[name], value)
    }
    assert changed == ({"u"} if spectral_norm else set())


def test_construction_is_determined_by_the_seed():
    one, same, other = (tiny(seed, spectral_norm=True).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["scales.0.stem.weight"], other["scales.0.stem.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_gains_and_biases_a_conditional_energy_is_the_unconditional_one(kind: str):
    model = tiny(kind=kind, num_conditions=3)
    x, condition = images(model, 3), torch.eye(3, dtype=torch.float64)
    told = model(x[:1].expand(3, -1, -1, -1), condition)
    assert told.unique().numel() == 3  # the condition matters ...
    for layer in model.modules():
        if isinstance(layer, NormSwish):
            for p in layer.modulation.parameters():
                torch.nn.init.zeros_(p)
    plain = tiny(kind=kind)
    assert not any("modulation" in name or "embedding" in name for name, _ in plain.named_parameters())
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    torch.testing.assert_close(model(x, condition), plain(x))  # ... through these alone


@pytest.mark.parametrize(
    ("num_conditions", "x", "condition", "error", "words"),
    [
        (0, torch.rand(2, 1, 9, 8), None, DataError, "data.image_size"),
        (0, torch.rand(2, 3, 8, 8), None, DataError, r"\(2, 3, 8, 8\).*\(batch, 1, 8, 8\)"),
        (0, torch.rand(1, 8, 8), None, DataError, r"\(1, 8, 8\)"),
        (0, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, DataError, "uint8"),
        (0, torch.rand(2, 1, 8, 8).double(), None, DataError, "float64"),
        (0, torch.rand(2, 1, 8, 8), torch.ones(2, 3), ConfigError, "unconditional"),
        (3, torch.rand(2, 1, 8, 8), None, ConfigError, r"\(batch, 3\)"),
        (3, torch.rand(2, 1, 8, 8), torch.ones(2, 4), DataError, r"\(2, 4\).*\(2, 3\)"),
        (3, torch.rand(2, 1, 8, 8), torch.ones(1, 3), DataError, r"\(1, 3\).*\(2, 3\)"),
        (3, torch.rand(2, 1, 8, 8), torch.ones(2), DataError, r"\(2,\)"),
        (3, torch.rand(2, 1, 8, 8), torch.ones(2, 3, dtype=torch.int64), DataError, "one-hot"),
    ],
)
def test_wrong_input_stops_with_one_line(num_conditions, x, condition, error, words):
    model = tiny(num_conditions=num_conditions).float()
    with pytest.raises(error, match=words) as caught:
        model(x, condition)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "image_shape", "words"),
    [
        ({"widths": (4, 4, 4)}, (3, 32, 32), "model.multiscale=false"),
        ({"widths": (4, 4), "multiscale": False}, (3, 32, 32), "model.attention=false"),
        ({"widths": (4,) * 6}, (3, 28, 28), "fewer widths"),
        ({"widths": (4,) * 6, "kind": "plain"}, (3, 64, 16), "fewer widths"),
        ({}, (3, 0, 32), "image_shape"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(settings: dict, image_shape, words: str):
    with pytest.raises(ConfigError, match=words):
        build_energy(ModelConfig(**settings), image_shape)


def test_a_negative_number_of_conditions_is_refused():
    with pytest.raises(ConfigError, match="num_conditions = -1"):
        build_energy(ModelConfig(), (3, 32, 32), num_conditions=-1)


@pytest.mark.parametrize(("kind", "size"), [("plain", 28), ("figure11a", 33), ("mnist", 28), ("plain", 29)])
@pytest.mark.parametrize("multiscale", [False, True])
def test_a_head_of_places_has_a_weight_for_each_place_and_tells_them_apart(kind, size, multiscale):
    widths = (4, 4, 4, 4) if multiscale else (4, 4)
    cfg = ModelConfig(kind=kind, widths=widths, norm="none", attention=False, multiscale=multiscale, head="places")
    model = build_energy(cfg, (1, size, size))
    x = torch.zeros(2, 1, size, size)
    x[0, 0, 2, 2] = x[1, 0, size - 3, size - 3] = 1.0
    assert model(x).shape == (2,)
    with torch.no_grad():  # every weight but those of one corner's channel is 0: only that corner counts
        for scale in model.scales:
            scale.head.weight.zero_()
            scale.head.weight[0, 0] = 1.0
    blank = model(torch.zeros(1, 1, size, size))
    assert float((model(x[:1]) - blank).detach().abs()) > 100 * float((model(x[1:]) - blank).detach().abs())


def test_a_dense_energy_sees_all_pixels_and_its_scale_multiplies_it():
    cfg = ModelConfig(kind="dense", widths=(16, 8), norm="none", attention=False, multiscale=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_energy(cfg, (1, 8, 8))
        torch.manual_seed(0)
        small = build_energy(replace(cfg, output_scale=0.01), (1, 8, 8))
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    torch.testing.assert_close(small(x), 0.01 * model(x))
    (slope,) = torch.autograd.grad(model(x).sum(), x)
    assert bool((slope != 0).all())
    assert sum(p.numel() for p in model.parameters()) == 64 * 16 + 16 + 16 * 8 + 8 + 8 + 1


@pytest.mark.parametrize("wrong", [{"attention": True}, {"multiscale": True}, {"norm": "layer"}])
def test_a_dense_energy_refuses_what_needs_convolutions(wrong):
    settings = {"norm": "none", "attention": False, "multiscale": False} | wrong
    with pytest.raises(ConfigError, match=f"model.{next(iter(wrong))} = .*dense"):
        build_energy(ModelConfig(kind="dense", widths=(16, 8), **settings), (1, 8, 8))


def test_a_conditional_dense_energy_depends_on_its_condition():
    cfg = ModelConfig(kind="dense", widths=(16, 8), norm="none", attention=False, multiscale=False)
    model = build_energy(cfg, (1, 8, 8), num_conditions=3)
    x = torch.rand(2, 1, 8, 8)
    a, b = (model(x, torch.eye(3)[[i, i]]) for i in range(2))
    assert bool((a != b).all())


@pytest.mark.parametrize("kind", ["dense", "plain"])
def test_a_centered_energy_sees_images_between_minus_one_and_one(kind):
    cfg = ModelConfig(kind=kind, widths=(8, 8), norm="none", attention=False, multiscale=False, centered=True)
    model = build_energy(cfg, (1, 8, 8))
    plain = copy.deepcopy(model)
    plain.centered = False
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(x), plain(2 * x - 1))
