"""`ebm profile` on a model that takes a second."""

import dataclasses
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ebm_core.profile import PARTS, parts_of, profile_step
from orchestrator.cli.app import app
from tests.ebm_core.tiny import tiny_config


def test_the_parts_are_disjoint_and_add_up_to_the_step():
    found = profile_step(tiny_config(), num_steps=3)
    assert set(found.seconds) == set(PARTS)
    assert min(found.seconds.values()) >= 0
    for part in ("sampling", "forwards", "backward", "KL", "buffer", "augmentation", "L_ent", "optimizer", "EMA"):
        assert found.seconds[part] > 0, part
    assert sum(found.seconds.values()) == found.step_seconds
    assert 0 < found.overhead < 1
    assert found.hours(2) > 0


@pytest.mark.full
def test_kl_is_what_is_left_of_the_backward_pass_once_the_samples_have_their_gradient():
    cfg = tiny_config()
    loop = dataclasses.replace(cfg.train, grad_norms_every=1)  # further passes through the samples, not in this part
    found = [
        profile_step(dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, **weights), train=loop), num_steps=1)
        for weights in ({}, {"kl_weight": 0.0}, {"kl_weight": 0.0, "entropy_weight": 0.0})
    ]
    assert [profile.seconds["KL"] > 0 for profile in found] == [True, True, False]
    assert all(profile.seconds["EMA"] > 0 for profile in found)


def event(name: str, start: float, end: float, kernels: tuple[float, ...] = ()) -> SimpleNamespace:
    """What the profiler gives for a part, or for an operator (a name with a colon) and the kernels that it launched."""
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=1e6 * start, end=1e6 * end),
        is_user_annotation=":" not in name,
        device_type=SimpleNamespace(name="CPU"),
        kernels=[SimpleNamespace(duration=1e6 * seconds) for seconds in kernels],
    )


def spent(found: dict[str, float]) -> dict[str, float]:
    return {part: round(seconds, 9) for part, seconds in found.items() if seconds}


def test_an_inner_part_is_not_counted_for_the_outer_one():
    events = [event("step", 0, 10), event("buffer", 1, 7), event("augmentation", 2, 4), event("EMA", 8, 9)]
    (found,) = parts_of(events)
    assert spent(found) == {"other": 3.0, "buffer": 4.0, "augmentation": 2.0, "EMA": 1.0}
    assert set(found) == set(PARTS)


def test_the_mark_of_kl_parts_a_backward_pass_and_nothing_else():
    events = [
        event("step", 0, 10),
        event("KL", 0.5, 0.5),  # the norms of single terms go back through the samples too, outside this part
        event("backward", 1, 6),
        event("KL", 4, 4.25),
        event("optimizer", 7, 9),
    ]
    (found,) = parts_of(events)
    assert spent(found) == {"other": 3.0, "backward": 3.0, "KL": 2.0, "optimizer": 2.0}


def test_each_step_has_its_own_parts_and_others_names_are_none():
    events = [event("step", 0, 2), event("sampling", 0, 1), event("my own", 0, 1), event("step", 3, 6)]
    assert [spent(found) for found in parts_of(events)] == [{"sampling": 1.0, "other": 1.0}, {"other": 3.0}]


def test_on_a_gpu_a_part_has_the_kernels_that_it_launched():
    events = [
        event("step", 0, 10),
        event("sampling", 1, 2),
        event("aten::conv2d", 1.5, 1.6, kernels=(3.0, 1.0)),  # they run long after the part has gone on
        event("backward", 3, 6),
        event("aten::mm", 3.5, 3.6, kernels=(1.5,)),
        event("KL", 4, 4),
        event("aten::mm", 5, 5.1, kernels=(2.0,)),
        event("aten::mm", 20, 21, kernels=(9.0,)),  # after the step
    ]
    (found,) = parts_of(events)
    assert spent(found) == {"sampling": 4.0, "backward": 1.5, "KL": 2.0, "other": 2.5}


def test_flops_are_those_of_the_convolutions():
    cfg = tiny_config()
    # 8 images: stem 1 -> 4 at 8 x 8; then per down a 3x3 convolution and a 4x4 one of stride 2: 4 -> 8 and 8 -> 8
    forward = 2 * 8 * (64 * 9 * 4 + 64 * 9 * 16 + 16 * 16 * 32 + 16 * 9 * 64 + 4 * 16 * 64 + 8)
    assert profile_step(cfg, num_steps=1).langevin_flops == 2 * forward


def test_the_command_prints_a_table_and_refuses_what_it_cannot_do():
    shown = CliRunner().invoke(app, ["profile", "digits_paper", "train.batch_size=8", "--steps", "1"])
    assert shown.exit_code == 0
    for word in ("sampling", "outside the network", "GFLOP/s", "a run of 1500 steps"):
        assert word in shown.output
