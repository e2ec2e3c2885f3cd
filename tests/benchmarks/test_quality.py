"""Time to a quality: the clock stops at the target, and says so when it was not met."""

import pytest
import torch

from benchmarks import quality
from benchmarks.rivals import TRAINERS
from ebm_core.data import load
from ebm_core.trainer import init_state
from ebm_core.warmup import flow_matching_loss
from orchestrator.settings.job import core_config, job_preset
from orchestrator.settings.overrides import override

TINY = ("model.widths=8,8", "warmup.num_steps=4", "train.num_steps=6", "sampler.generate_steps=4", "buffer.capacity=64")


def test_the_clock_stops_at_the_first_look_within_the_target(capsys: pytest.CaptureFixture):
    assert quality.main(["--every", "2", "--target", "1000", "--further", "60", *TINY]) == 0
    first, further, row = capsys.readouterr().out.splitlines()
    assert further.startswith("after 60 further steps: step      2 ")
    assert first[first.index("fid_judge") :] != further[further.index("fid_judge") :]  # other images
    lines = [first, row]
    assert lines[0].startswith("step      2 ")
    assert lines[1].startswith("| digits | 2 |")


def test_a_target_that_is_not_met_is_exit_status_1_and_a_wrong_setting_2(capsys: pytest.CaptureFixture):
    assert quality.main(["--every", "4", "--target", "0.001", *TINY]) == 1
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert steps == ["4", "6"]  # one look in each phase
    assert quality.main(["sampler.num_stesp=3"]) == 2
    assert "did you mean sampler.num_steps?" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", ["torchebm-cd", "torchebm-em", "plain"])
def test_every_trainer_moves_the_same_network_and_its_average_follows(trainer: str):
    dense = trainer != "plain"  # which has convolutions only
    settings = TINY if dense else (*TINY, "model.kind=plain", "model.output_scale=1", "model.centered=false")
    job = override(job_preset("digits"), [*settings, "buffer.capacity=128"])
    cfg = core_config(job)
    rival, start = TRAINERS[trainer](cfg), init_state(cfg).ema.state_dict()
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(value, start[name]) for name, value in rival.ema.state_dict().items())
    for _ in range(6):  # torchebm-em: its second phase begins after 4
        rival.step(x, None)
    moved = [not torch.equal(value, start[name]) for name, value in rival.ema.named_parameters() if "bias" not in name]
    assert all(moved)
    assert all(torch.isfinite(value).all() for value in rival.ema.parameters())


@pytest.mark.full
def test_torchebms_warm_up_minimises_our_flow_loss_as_we_do():
    settings = ("model.widths=64,64", "warmup.num_steps=150", "train.num_steps=200", "warmup.ema_decay=0.9")
    cfg = core_config(override(job_preset("digits"), settings))
    data = load(cfg.data, "train").fetch(torch.arange(256)).float() / 256
    noise, t = torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 256)
    losses = {}
    for name in ("ours", "torchebm-em"):
        trainer, rng = TRAINERS[name](cfg), torch.Generator().manual_seed(5)
        for _ in range(150):
            trainer.step(data[torch.randperm(256, generator=rng)[:64]], None)
        travel = cfg.sampler.step_size * cfg.sampler.generate_steps
        losses[name] = flow_matching_loss(trainer.ema, noise, data, t, travel, cfg.warmup).item()
    assert losses["ours"] < 0.7  # 1.04 before the first step
    assert losses["torchebm-em"] == pytest.approx(losses["ours"], rel=0.05)
