"""`ebm profile` on a model that takes a second."""

import dataclasses

import torch
from typer.testing import CliRunner

from ebm_core.profile import PARTS, Clock, profile_step
from orchestrator.cli.app import app
from tests.ebm_core.tiny import tiny_config


def test_the_parts_are_disjoint_and_add_up_to_the_step():
    found = profile_step(tiny_config(), num_steps=3)
    assert set(found.seconds) == set(PARTS)
    assert min(found.seconds.values()) >= 0
    for part in ("sampling", "forwards", "backward", "KL", "buffer", "augmentation", "L_ent", "optimizer", "EMA"):
        assert found.seconds[part] > 0, part
    assert 0.5 * found.step_seconds < sum(found.seconds.values()) < 1.5 * found.step_seconds  # medians of each
    assert 0 < found.overhead < 1
    assert found.hours(2) > 0


def test_kl_is_what_is_left_of_the_backward_pass_once_the_samples_have_their_gradient():
    cfg = tiny_config()
    loop = dataclasses.replace(cfg.train, grad_norms_every=1)  # further passes through the samples, not in this part
    found = [
        profile_step(dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, **weights), train=loop), num_steps=1)
        for weights in ({}, {"kl_weight": 0.0}, {"kl_weight": 0.0, "entropy_weight": 0.0})
    ]
    assert [profile.seconds["KL"] > 0 for profile in found] == [True, True, False]
    assert all(profile.seconds["EMA"] > 0 for profile in found)


def test_a_part_that_is_renamed_is_two_that_add_up(monkeypatch):
    ticks = iter(range(100))
    clock = Clock(torch.device("cpu"))
    monkeypatch.setattr(clock, "now", lambda: float(next(ticks)))
    with clock.part("step"):  # 0 to 8
        with clock.part("backward"):  # 1 to 7
            with clock.part("inner"):  # 2 to 3
                clock.rename("backward", "KL")  # not the innermost: nothing happens, and nobody looks at the clock
            clock.rename("backward", "KL")  # 4
            with clock.part("inner"):  # 5 to 6
                pass
        clock.rename("backward", "KL")
    assert clock.seconds == {"inner": 2.0, "backward": 2.0, "KL": 2.0, "step": 2.0}


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
