"""Long chains of an energy whose chains are known step by step, and quantities of known images."""

import json
import math

import numpy as np
import pytest
import torch

from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.rng import stream, uniform
from ebm_core.sampler import chain
from workers.studies import chains


def plan(num_chains=6, num_steps=40, seed=0) -> chains.Plan:
    return chains.Plan(num_chains=num_chains, num_steps=num_steps, descent_steps=num_steps, seed=seed)


def run(model, cfg, variant="descent", condition=None, **sizes):
    return chains.run_variant(model, cfg, variant, plan(**sizes), condition)


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
    assert chains.variants(cfg, plan()) == tuple(chains.VARIANTS)
    found = {name: run(quadratic(center), cfg, name) for name in chains.VARIANTS}
    starts = [study.states[0] for study in found.values()]
    assert all(torch.equal(starts[0], start) for start in starts)
    assert found["descent"].curves["pairwise_distance"][-1] < 1e-6
    # stationary: noise then halving leaves a variance of 0.05^2 / 3 per pixel; two chains differ by twice that
    expected = (2 * 64 * 0.05**2 / 3) ** 0.5
    assert found["no_transitions"].curves["pairwise_distance"][5:].mean() == pytest.approx(expected, rel=0.1)
    # transitions at 10, 20, 30: what they change is gone after ten halvings, without noise to the last bit
    still = run(quadratic(torch.rand(1, 1, 8, 8, generator=stream(0, 0, "center"))), cfg, "no_noise")
    assert still.curves["energy"][5] < 1e-4
    assert still.curves["energy"][6] > 1e-3
    assert not torch.equal(found["test_time"].states[-1], found["no_transitions"].states[-1])


def test_variants_without_an_augmentation_are_not_run_twice(make_settings):
    assert chains.variants(make_settings(), plan()) == ("no_transitions", "descent")
    enabled = make_settings(augment={"enabled": True}, sampler={"transition_every": 0})
    assert chains.variants(enabled, plan()) == ("no_transitions", "descent")
    asked = chains.Plan(transition_every=7)
    assert chains.variants(enabled, asked) == tuple(chains.VARIANTS)
    assert chains.sampler_of(enabled, asked, "test_time").transition_every == 7
    with pytest.raises(ConfigError, match=r"augment\.enabled=false"):
        chains.variants(make_settings(), asked)


def test_segments_are_the_samplers_own_chain(quadratic, make_settings, center):
    # Without noise no draw differs, so the joined segments must end where one uninterrupted chain ends.
    cfg = make_settings(sampler={"step_size": 0.05, "noise_std": 0.0})
    x = uniform((6, 1, 8, 8), stream(3, 0, "chains"))
    _, recorded = chain(quadratic(center), x, cfg.sampler, stream(0, 0, "unused"), num_steps=40, record_every=2)
    study = run(quadratic(center), cfg, seed=3)
    expected = (torch.stack([x, *recorded]) * 256).floor().clamp(0, 255).to(torch.uint8)
    assert torch.equal(study.states, expected)


def test_the_memory_of_a_quadratic_is_that_of_its_autoregression(quadratic, make_settings, center):
    # y = x + w, then center + (1 - step) (y - center): an autoregression of coefficient 0.8 in every pixel, time 9.
    cfg = make_settings(sampler={"step_size": 0.2, "noise_std": 0.05, "clamp": False})
    study = run(quadratic(center), cfg, "no_transitions", num_chains=32, num_steps=400)  # a draw every 2 steps
    pixels, energy = study.memory["pixels"], study.memory["energy"]
    assert pixels is not None
    assert energy is not None
    assert pixels.resolved
    assert pixels.time == pytest.approx(9, rel=0.12)
    # the energy is a square of Gaussians: rho(k)^2 = 0.64^k
    assert energy.time == pytest.approx(1.64 / 0.36, rel=0.25)
    still = run(quadratic(center + 0.5 / 256), cfg, "descent", num_steps=1000)
    assert still.memory == {"energy": None, "pixels": None}


def test_draws_between_looks_divide_a_segment():
    for every, stride in ((1, 1), (10, 1), (50, 5), (150, 15), (53, 53), (12, 2)):
        sizes = chains.Plan(num_steps=20 * every, descent_steps=20)
        assert (sizes.every("test_time"), sizes.stride("test_time"), sizes.every("descent")) == (every, stride, 1)


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
    made = chains.report({"descent": study}, {"fid_small": lambda state: 1 + float(state.double().std())})
    json.dumps(made, allow_nan=False)
    small = made["variants"]["descent"]["fid_small"]
    assert made["value"] == small[-1] / min(small)
    assert (made["num_chains"], made["num_steps"]) == (6, 40)
    assert "class_score" not in made["variants"]["descent"]
    course = iter([3.0, 1.0, *[2.0] * 19])
    assert (
        chains.report({"test_time": study}, {"fid_judge": lambda _: next(course), "fid_small": lambda _: 1.0})["value"]
        == 2
    )
    sure = np.eye(3)[np.arange(6) % 3]
    judged = chains.report({"descent": study}, {"fid_small": lambda _: 1.0}, lambda _: sure)
    assert judged["variants"]["descent"]["class_score"] == pytest.approx([3.0] * 21)


def test_the_class_score_runs_from_1_to_the_number_of_classes():
    assert chains.class_score(np.full((4, 5), 0.2)) == pytest.approx(1)
    assert chains.class_score(np.eye(5)) == pytest.approx(5)
    assert chains.class_score(np.eye(5)[[0, 0, 0]]) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    mutual = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    assert chains.class_score(p) == pytest.approx(math.exp(mutual))


def test_conditions_reach_the_chains(quadratic, make_settings):
    centers = torch.stack([torch.full((1, 8, 8), level) for level in (0.2, 0.8)])
    condition = torch.eye(2)[torch.arange(6) % 2]
    study = run(quadratic(centers), make_settings(sampler={"step_size": 0.5}), condition=condition)
    assert study.states[-1].double().mean(dim=(1, 2, 3)).tolist() == pytest.approx([51, 205] * 3, abs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "hot"}, "known: test_time"),
        ({"num_chains": 1}, "2 to 100000"),
        ({"num_steps": 19}, "20 to 1000000"),
    ],
)
def test_what_a_study_cannot_be(quadratic, make_settings, center, options, said):
    with pytest.raises(ConfigError, match=said):
        run(quadratic(center), make_settings(), **options)


def test_a_segment_that_does_not_follow_is_refused(quadratic, make_settings, center):
    first = chains.advance(quadratic(center), make_settings(), plan(), "descent", 0, None)
    for number, before in ((1, None), (0, first), (21, first), (-1, None)):
        with pytest.raises(ConfigError, match="it follows segment"):
            chains.advance(quadratic(center), make_settings(), plan(), "descent", number, before)


def test_chains_that_diverge_are_named(quadratic, make_settings, center):
    cfg = make_settings(sampler={"step_size": 1e6, "clamp": False})
    with pytest.raises(CheckpointError, match="leave the finite numbers"):
        run(quadratic(center), cfg)
