"""Ranges: what they draw, and what is refused before anything starts."""

import math

import pytest

from ebm_core.errors import ConfigError
from orchestrator.settings.job import job_preset
from orchestrator.settings.overrides import override
from orchestrator.sweeps.ranges import Range, draw_random, is_range, parse_range, parse_space

BASE = job_preset("digits_paper")


def test_draws_lie_in_the_range_and_follow_its_distribution():
    ranges = {
        "a": parse_range("a", "loguniform(10,1000)"),
        "b": parse_range("b", "uniform(-1, 3)"),
        "c": parse_range("c", "randint(2,5)"),
        "d": parse_range("d", "choice(0,0.3,1)"),
    }
    drawn = [draw_random(ranges, 0, index) for index in range(2000)]
    logs = [math.log10(float(values["a"])) for values in drawn]
    assert all(1 <= value <= 3 for value in logs)
    assert sum(logs) / 2000 == pytest.approx(2, abs=4 * (2 / math.sqrt(12)) / math.sqrt(2000))
    plain = [float(values["b"]) for values in drawn]
    assert all(-1 <= value <= 3 for value in plain)
    assert sum(plain) / 2000 == pytest.approx(1, abs=4 * (4 / math.sqrt(12)) / math.sqrt(2000))
    assert {values["c"] for values in drawn} == {"2", "3", "4", "5"}
    assert {values["d"] for values in drawn} == {"0", "0.3", "1"}


def test_a_trial_of_a_random_search_depends_on_seed_number_and_path_alone():
    one = {"x": Range("uniform", 0, 1)}
    two = {"y": Range("uniform", 0, 1), "x": Range("uniform", 0, 1)}
    assert draw_random(one, 3, 7)["x"] == draw_random(two, 3, 7)["x"]
    values = {draw_random(one, seed, index)["x"] for seed in range(5) for index in range(5)}
    assert len(values) == 25


def test_a_drawn_text_is_the_very_number():
    value = draw_random({"sampler.step_size": Range("uniform", 1, 2)}, 0, 0)["sampler.step_size"]
    assert override(BASE, [f"sampler.step_size={value}"]).sampler.step_size == float(value)


def test_choices_may_hold_lists():
    one = parse_range("model.widths", "choice([32,64,128],[16,32,64])")
    assert one.options == ("[32,64,128]", "[16,32,64]")
    parse_space({"model.widths": "choice([32,64,128],[16,32,64])"}, BASE)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("sampler.step_size", "loguniform(10,1)", "below the highest"),
        ("sampler.step_size", "loguniform(0,1)", "positive"),
        ("sampler.step_size", "uniform(1)", "two numbers"),
        ("sampler.step_size", "uniform(1,inf)", "finite"),
        ("sampler.step_size", "normal(0,1)", "write uniform"),
        ("sampler.step_size", "choice()", "at least one option"),
        ("sampler.step_size", "choice(1,1)", "twice"),
        ("sampler.step_size", "uniform(-1,1)", "sampler.step_size = -1.0: must be positive"),
        ("sampler.step_size", "choice(1,many)", "must be a number"),
        ("sampler.num_steps", "uniform(1,3)", "must be a whole number"),
        ("sampler.num_stesp", "randint(1,3)", "did you mean sampler.num_steps?"),
        ("sampler.num_steps", "randint(0,3)", "sampler.num_steps = 0"),
        ("name", "choice(a,b)", "a sweep names its runs"),
    ],
)
def test_an_impossible_range_is_refused_with_its_path(path: str, text: str, said: str):
    with pytest.raises(ConfigError) as end:
        parse_space({path: text}, BASE)
    assert said in str(end.value)
    assert "\n" not in str(end.value)
    assert path.split(".")[0] in str(end.value)


def test_no_plain_setting_looks_like_a_range():
    assert not any(is_range(text) for text in ("1", "32,64", "[1, 2]", "null", "s3://a/b", "last"))
