"""Time to a quality: the clock stops at the target, and says so when it was not met."""

import pytest

from benchmarks import quality

TINY = ("model.widths=8,8", "warmup.num_steps=4", "train.num_steps=6", "sampler.generate_steps=4", "buffer.capacity=64")


def test_the_clock_stops_at_the_first_look_within_the_target(capsys: pytest.CaptureFixture):
    assert quality.main(["--every", "2", "--target", "1000", *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step      2 ")
    assert lines[1].startswith("| digits | 2 |")


def test_a_target_that_is_not_met_is_exit_status_1_and_a_wrong_setting_2(capsys: pytest.CaptureFixture):
    assert quality.main(["--every", "4", "--target", "0.001", *TINY]) == 1
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert steps == ["4", "6"]  # one look in each phase
    assert quality.main(["sampler.num_stesp=3"]) == 2
    assert "did you mean sampler.num_steps?" in capsys.readouterr().err
