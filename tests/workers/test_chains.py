"""Long chains of an energy whose chains are known step by step, and quantities of known images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebm_core.errors import CheckpointError, ConfigError
from workers import chains


def run(model, cfg, variant="descent", num_chains=6, num_steps=40, seed=0, **options):
    return chains.run_variant(
        model, cfg, variant, num_chains=num_chains, num_steps=num_steps, seed=seed, **options
    )  # fmt: skip


@pytest.fixture
def center() -> torch.Tensor:
    return torch.full((1, 1, 8, 8), 0.5)


def test_descent_on_a_quadratic_shrinks_as_the_closed_form_says(quadratic, make_settings, center):
    cfg = make_settings(sampler={"step_size": 0.05, "noise_std": 0.3, "clamp": False})
    study = run(quadratic(center), cfg)
    assert study.times == tuple(range(0, 41, 2))
    assert study.states.shape == (21, 6, 1, 8, 8)
    shrink = 0.95 ** np.asarray(study.times)
    for name, power in (("gradient_norm", 1), ("energy", 2), ("pairwise_distance", 1), ("nearest_distance", 1)):
        assert study.curves[name] == pytest.approx(study.curves[name][0] * shrink**power, rel=1e-4), name


def test_noise_and_transitions_are_what_the_variants_differ_in(quadratic, make_settings, center):
    cfg = make_settings(
        sampler={"step_size": 0.5, "noise_std": 0.05, "transition_every": 10, "transition_free_steps": 0},
        augment={"enabled": True},
    )
    found = {name: run(quadratic(center), cfg, name) for name in chains.VARIANTS}
    starts = [study.states[0] for study in found.values()]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    assert found["descent"].curves["pairwise_distance"][-1] < 1e-6
    # stationary: noise then halving leaves a variance of 0.05^2 / 3 per pixel; two chains differ by twice that
    expected = (2 * 64 * 0.05**2 / 3) ** 0.5
    assert found["no_transitions"].curves["pairwise_distance"][5:].mean() == pytest.approx(expected, rel=0.1)
    assert not torch.equal(found["test_time"].states[-1], found["no_transitions"].states[-1])
    without = run(quadratic(center), replace(cfg, augment=replace(cfg.augment, enabled=False)), "test_time")
    assert torch.equal(without.states, found["no_transitions"].states)


def test_quantities_of_known_states():
    x = torch.zeros(3, 1, 8, 8)
    x[1], x[2] = 1.0, 0.25
    seen = chains.look_at(lambda at: at.flatten(1).sum(1), x)
    assert seen["energy"] == pytest.approx((0 + 64 + 16) / 3)
    assert seen["gradient_norm"] == pytest.approx(8)
    assert seen["clamped_fraction"] == pytest.approx(2 / 3)
    assert seen["total_variation"] == 0
    assert seen["pairwise_distance"] == pytest.approx((8 + 2 + 6) / 3)
    assert seen["nearest_distance"] == pytest.approx((2 + 6 + 2) / 3)


def test_the_report_tells_chains_that_get_worse(quadratic, make_settings, center):
    study = run(quadratic(center), make_settings())
    made = chains.report({"descent": study}, lambda state: 1 + float(state.double().std()))
    json.dumps(made, allow_nan=False)
    small = made["variants"]["descent"]["fid_small"]
    assert made["value"] == small[-1] / min(small)
    assert (made["num_chains"], made["num_steps"]) == (6, 40)
    course = iter([3.0, 1.0, *[2.0] * 19])
    assert chains.report({"test_time": study}, lambda _: next(course))["value"] == 2


def test_conditions_reach_the_chains(quadratic, make_settings):
    centers = torch.stack([torch.full((1, 8, 8), level) for level in (0.2, 0.8)])
    condition = torch.eye(2)[torch.arange(6) % 2]
    study = run(quadratic(centers), make_settings(sampler={"step_size": 0.5}), condition=condition)
    assert study.states[-1].double().mean(dim=(1, 2, 3)).tolist() == pytest.approx([51, 205] * 3, abs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"variant": "hot"}, "known: test_time"), ({"num_chains": 1}, "2 chains"), ({"num_steps": 19}, "20 steps")],
)
def test_what_a_study_cannot_be(quadratic, make_settings, center, options, said):
    with pytest.raises(ConfigError, match=said):
        run(quadratic(center), make_settings(), **options)


def test_chains_that_diverge_are_named(quadratic, make_settings, center):
    cfg = make_settings(sampler={"step_size": 1e6, "clamp": False})
    with pytest.raises(CheckpointError, match="leave the finite numbers"):
        run(quadratic(center), cfg)
