"""Compositions of quadratic energies, whose densities are Gaussians: closed forms of and, or, not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ebm_core.compose import conditional
from ebm_core.config import DataConfig, SamplerConfig
from ebm_core.data.pixels import dequantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.rng import stream
from ebm_core.sampler import chain
from workers.studies.recipes import Concept, Recipe, check_together, draw_shard, own_concepts, parse_concept, recipe

LEFT = DataConfig(name="objects", condition="attributes", attributes=("left", "top"))


def unconditional(count: int) -> list[Concept]:
    return [Concept(i, (), {}) for i in range(count)]


def flat(*levels: float) -> torch.Tensor:
    """Centers (k 1 8 8), each of one level."""
    return torch.stack([torch.full((1, 8, 8), level) for level in levels])


def drawn(models, how: Recipe, count=8, **sampler) -> torch.Tensor:
    """Mean pixel of each image of a shard."""
    cfg = SamplerConfig(**({"step_size": 0.1, "noise_std": 0.0, "generate_steps": 200} | sampler))
    images = draw_shard(models, how, cfg, seed=0, shard=0, count=count)
    return dequantize(images).double().flatten(1)


def test_a_product_ends_at_the_weighted_mean(quadratic):
    models = [quadratic(flat(level)) for level in (0.2, 0.8)]
    even = drawn(models, recipe("and", unconditional(2)))
    assert even.mean().item() == pytest.approx(0.5, abs=1 / 256)
    heavy = drawn(models, recipe("and", unconditional(2), weights=[1, 2]))
    assert heavy.mean().item() == pytest.approx((0.2 + 2 * 0.8) / 3, abs=1 / 256)


@pytest.mark.parametrize(("constants", "factor"), [("code", 1 - 0.1), ("paper", 1 - 3 * 0.1)])
def test_the_published_code_divides_the_step_by_the_number_of_energies(quadratic, constants, factor):
    # Three equal quadratics have slope 3 (x - c): a step leaves 1 - 3 x 0.1 of the distance, a third of it 1 - 0.1.
    models = [quadratic(flat(0.5))] * 3
    start = drawn(models, recipe("and", unconditional(3), constants), generate_steps=1, step_size=1e-9)
    after = drawn(models, recipe("and", unconditional(3), constants), generate_steps=4)
    shrunk = ((after - 0.5).abs().mean() / (start - 0.5).abs().mean()).item()
    assert shrunk == pytest.approx(factor**4, rel=0.02)


def test_a_product_of_gaussians_has_the_known_variance(quadratic):
    # At temperature T the product of n unit Gaussians has variance T / n. That of a chain of steps s, with a = 1 - n s
    # and noise sqrt(2 s T) before the gradient, is 2 s T a^2 / (1 - a^2). Code's constants: s is divided by n.
    models, temperature = [quadratic(flat(level)) for level in (0.4, 0.5, 0.6)], 0.004
    for constants, step in (("paper", 0.02), ("code", 0.02 / 3)):
        how = recipe("and", unconditional(3), constants)
        x = drawn(models, how, count=64, step_size=0.02, temperature=temperature, clamp=False, generate_steps=400)
        a = 1 - 3 * step
        expected = 2 * step * temperature * a**2 / (1 - a**2)
        assert expected == pytest.approx(temperature / 3, rel=0.1)
        assert x.mean().item() == pytest.approx(0.5, abs=0.003)
        assert x.var().item() == pytest.approx(expected, rel=0.08), constants


def test_a_mixture_has_the_mass_of_each_part(quadratic):
    # 0.3 N(-1, 1) + 0.7 N(1, 1): mean 0.4, variance 1 + 1 - 0.16, P(x > 0) = 0.3 Phi(-1) + 0.7 Phi(1)
    models = [quadratic(torch.full((1, 1, 1, 1), level)) for level in (-1.0, 1.0)]
    how = recipe("or", unconditional(2), "paper", weights=[0.3, 0.7])
    cfg = SamplerConfig(step_size=0.05, temperature=1.0, clamp=False)
    x_init = torch.zeros(4096, 1, 1, 1)
    x, _ = chain(how.energy(models), x_init, cfg, stream(0, 0, "mixture"), num_steps=400)
    normal = torch.distributions.Normal(0.0, 1.0)
    mass = 0.3 * normal.cdf(torch.tensor(-1.0)) + 0.7 * normal.cdf(torch.tensor(1.0))
    assert (x > 0).double().mean().item() == pytest.approx(mass.item(), abs=4 * 0.5 / 64)
    assert x.mean().item() == pytest.approx(0.4, abs=4 * 1.4 / 64)
    assert x.var().item() == pytest.approx(1.84, rel=0.1)


def test_a_sharp_mixture_takes_each_chain_to_one_part_or_the_other(quadratic):
    models = [quadratic(flat(level)) for level in (0.3, 0.7)]
    ends = drawn(models, recipe("or", unconditional(2)), count=64, step_size=0.2).mean(dim=1)
    near = torch.minimum((ends - 0.3).abs(), (ends - 0.7).abs())
    assert near.max().item() < 1 / 128
    assert 10 < int((ends > 0.5).sum()) < 54  # noise lies about half way


def test_a_negation_pushes_away_from_what_is_negated(quadratic):
    # |x - c1|^2 / 2 - alpha |x - c2|^2 / 2 is least at (c1 - alpha c2) / (1 - alpha): beyond c1, away from c2.
    models = [quadratic(flat(level)) for level in (0.5, 0.7)]
    for alpha, place in ((0.2, (0.5 - 0.2 * 0.7) / 0.8), (0.5, 0.3)):
        x = drawn(models, recipe("not", unconditional(2), weights=[alpha]))
        assert x.mean().item() == pytest.approx(place, abs=1 / 256)
    published = recipe("not", unconditional(3))
    assert (published.weights, published.step_fraction) == ((1.0, 0.001, 0.001), 1.0)


def test_one_concept_alone_is_its_own_energy(quadratic):
    models = [quadratic(flat(0.2, 0.4)), quadratic(flat(0.9))]
    how = recipe("not", [Concept(0, ((0.0, 1.0),), {"a": 1}), Concept(1, (), {})], weights=[0.5])
    assert drawn(models, how.alone(0)).mean().item() == pytest.approx(0.4, abs=1 / 256)
    assert drawn(models, how.alone(1)).mean().item() == pytest.approx(0.9, abs=1 / 256)


def test_a_shards_bits_depend_on_its_number_and_the_seed(quadratic):
    models, how = [quadratic(flat(0.5))] * 2, recipe("and", unconditional(2))
    cfg = SamplerConfig(step_size=0.1, noise_std=0.1, generate_steps=3)
    first = draw_shard(models, how, cfg, seed=1, shard=2, count=4)
    assert torch.equal(first, draw_shard(models, how, cfg, seed=1, shard=2, count=4))
    assert not torch.equal(first, draw_shard(models, how, cfg, seed=1, shard=3, count=4))
    assert not torch.equal(first, draw_shard(models, how, cfg, seed=2, shard=2, count=4))


def test_energies_that_are_not_finite_are_an_error(quadratic):
    models = [quadratic(flat(0.5)), quadratic(flat(0.5), offset=float("nan"))]
    with pytest.raises(CheckpointError, match="8 of 8 composed images or their energies are not finite"):
        drawn(models, recipe("and", unconditional(2)))


def test_which_images_are_as_asked():
    a, b = Concept(0, ((1.0,),), {"a": 1}), Concept(1, ((1.0,),), {"b": 1})
    read = {"a": np.array([1, 1, 0, 0]), "b": np.array([1, 0, 1, 0])}
    for operation, expected in (("and", [1, 0, 0, 0]), ("or", [1, 1, 1, 0]), ("not", [0, 1, 0, 0])):
        assert recipe(operation, [a, b]).holds(read).astype(int).tolist() == expected, operation
    free = Concept(2, (), {})
    assert recipe("and", [a, free]).holds(read).tolist() == [True, True, False, False]
    both = Concept(0, ((1.0, 1.0),), {"a": 1, "b": 1})
    assert recipe("not", [free, both]).holds(read).tolist() == [False, True, True, True]


def test_own_concepts_leave_the_other_attributes_open(quadratic):
    # rows: (1, 0) three times, (1, 1) once, (0, 1) twice
    rows = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, 1]])
    (first, second), together = own_concepts(rows, ("a", "b"))
    assert first.conditions == ((1.0, 0.0), (1.0, 1.0))
    assert first.odds == pytest.approx((0.75, 0.25))
    assert second.odds == pytest.approx((2 / 3, 1 / 3))
    assert (first.factors, together.factors, together.conditions) == ({"a": 1}, {"a": 1, "b": 1}, ((1.0, 1.0),))
    model, x = quadratic(torch.rand(2, 1, 8, 8)), torch.rand(5, 1, 8, 8)
    found = recipe("and", [first, second], "paper").alone(0).energy([model])(x)
    parts = [conditional(model, torch.tensor(c))(x) for c in ((1.0, 0.0), (1.0, 1.0))]
    torch.testing.assert_close(found, -(0.75 * (-parts[0]).exp() + 0.25 * (-parts[1]).exp()).log())


@pytest.mark.parametrize(
    ("rows", "names", "said"),
    [
        (torch.ones(3, 1), ("a",), "two or more"),
        (torch.eye(2), ("a", "b"), "no image has all of a, b"),
        (torch.tensor([[float(i >> k & 1) for k in range(5)] for i in range(32)]), tuple("abcde"), "at most 16"),
    ],
)
def test_attributes_that_cannot_be_composed(rows, names, said):
    with pytest.raises(ConfigError, match=said):
        own_concepts(rows, names)


def test_what_a_person_writes_of_a_condition():
    concept = parse_concept(1, LEFT, "top=0,left=1")
    assert (concept.conditions, concept.factors) == (((1.0, 0.0),), {"top": 0, "left": 1})
    shapes = replace(LEFT, attributes=("shape=cube",))
    assert parse_concept(0, shapes, "shape=cube=1").factors == {"shape=cube": 1}
    labels = DataConfig(name="objects", condition="label")
    for text in ("cube", "1", "label=cube", "label=1"):
        concept = parse_concept(0, labels, text, ("sphere", "cube", "cylinder", "cone", "torus"))
        assert (concept.conditions, concept.factors) == (((0.0, 1.0, 0.0, 0.0, 0.0),), {"label": 1})
    assert parse_concept(0, DataConfig(name="objects"), "").conditions == ()


@pytest.mark.parametrize(
    ("data", "text", "said"),
    [
        (LEFT, "left=1", "needs top=0 or 1 too"),
        (LEFT, "", "needs left=0 or 1, top=0 or 1 too"),
        (LEFT, "left=2,top=0", "an attribute is 0 or 1"),
        (LEFT, "left=1,left=1,top=0", "named once"),
        (LEFT, "right=1", "this energy knows left=0 or 1, top=0 or 1"),
        (LEFT, "left", "this energy knows"),
        (DataConfig(name="objects", condition="label"), "pear", "one of the classes 0 to 4"),
        (DataConfig(name="objects", condition="label"), "5", "one of the classes"),
        (DataConfig(name="objects"), "left=1", "unconditional"),
    ],
)
def test_conditions_that_an_energy_does_not_know(data, text, said):
    with pytest.raises(ConfigError, match=said):
        parse_concept(0, data, text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"operation": "xor"}, "must be one of and, or, not"),
        ({"constants": "mine"}, "must be one of code, paper"),
        ({"concepts": unconditional(1)}, "at least two"),
        ({"weights": [1.0]}, "takes one for each energy, 2 here"),
        ({"operation": "not", "weights": [1.0, 2.0]}, "each energy after the first, 1 here"),
        ({"operation": "not", "constants": "paper"}, "add `weights` ALPHA"),
        ({"weights": [1.0, -1.0]}, "positive"),
        ({"weights": [1.0, float("nan")]}, "positive"),
        ({"operation": "or", "sharpness": 0.0}, "`sharpness` 0"),
    ],
)
def test_recipes_that_make_no_sense(options, said):
    with pytest.raises(ConfigError, match=said):
        recipe(**({"operation": "and", "concepts": unconditional(2)} | options))


def test_energies_of_different_images_are_not_composed(make_settings):
    small, large = make_settings(), make_settings(data={"image_size": 16})
    check_together([small, small], ["a", "b"])
    with pytest.raises(ConfigError, match=r"^b is of images \(1, 16, 16\), a of \(1, 8, 8\)"):
        check_together([small, large], ["a", "b"])
    with pytest.raises(ConfigError, match="b is of mnist, a of digits"):
        check_together([small, make_settings(data={"name": "mnist"})], ["a", "b"])
