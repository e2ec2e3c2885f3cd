"""One `override()` for all: what it accepts, what it refuses, and what may change when a run goes on."""

import json

import pytest

from ebm_core.config import to_tree
from ebm_core.errors import ConfigError
from ebm_core.presets import PRESETS
from orchestrator.settings.job import JobConfig, job_preset, parse
from orchestrator.settings.overrides import override
from orchestrator.settings.trees import check_resumable, describe, differences


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("sampler.step_size=50", "sampler.step_size", 50.0),
        ("sampler.step_size=5e-1", "sampler.step_size", 0.5),
        ("sampler.num_steps=60", "sampler.num_steps", 60),
        ("model.widths=32,64,64,64", "model.widths", [32, 64, 64, 64]),
        ("model.widths=[32, 64, 64, 64]", "model.widths", [32, 64, 64, 64]),
        ("optimizer.betas=0.5,0.99", "optimizer.betas", [0.5, 0.99]),
        ("optimizer.betas=[0, 0.99]", "optimizer.betas", [0.0, 0.99]),
        ("loss.opt_samples=null", "loss.opt_samples", None),
        ("loss.opt_samples=16", "loss.opt_samples", 16),
        ("model.multiscale=false", "model.multiscale", False),
        ("model.norm=none", "model.norm", "none"),
        ("buffer.kind=fifo", "buffer.kind", "fifo"),
        ("name=a.run_1-x", "name", "a.run_1-x"),
        ("name=null", "name", None),
        ("storage=s3://bucket/with=sign", "storage", "s3://bucket/with=sign"),
        ("data.root=/a folder/with spaces", "data.root", "/a folder/with spaces"),
        ("evaluation.metrics=energy_gap,fid_small", "evaluation.metrics", ["energy_gap", "fid_small"]),
        ("evaluation.metrics=", "evaluation.metrics", []),
        ("cluster.cpus_per_worker=2", "cluster.cpus_per_worker", 2),
        ("seed=9007199254740993", "seed", 9007199254740993),
    ],
)
def test_a_setting_reaches_its_field_with_its_type(setting: str, path: str, value: object):
    branch: object = to_tree(override(job_preset("cifar10"), [setting]))
    for name in path.split("."):
        assert isinstance(branch, dict)
        branch = branch[name]
    assert branch == value
    assert type(branch) is type(value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampler.num_steps=1.5", ["sampler.num_steps", "'1.5'", "whole number"]),
        ("sampler.num_steps=", ["sampler.num_steps", "whole number"]),
        ("sampler.num_steps=ten", ["sampler.num_steps", "'ten'", "whole number"]),
        ("sampler.num_steps=0", ["sampler.num_steps", "0", "1 to 100000"]),
        ("sampler.num_steps=null", ["sampler.num_steps", "'null'", "whole number"]),
        ("sampler.step_size=big", ["sampler.step_size", "'big'", "a number"]),
        ("sampler.step_size=nan", ["sampler.step_size", "nan", "finite"]),
        ("sampler.step_size=inf", ["sampler.step_size", "inf", "finite"]),
        ("sampler.noise_std=-1", ["sampler.noise_std", "-1", "negative"]),
        ("model.multiscale=yes", ["model.multiscale", "'yes'", "true or false"]),
        ("model.multiscale=1", ["model.multiscale", "'1'", "true or false"]),
        ("model.multiscale=True", ["model.multiscale", "'True'", "true or false"]),
        ("model.norm=batch", ["model.norm", "'batch'", "layer, group, instance, none"]),
        ("model.widths=32,x", ["model.widths", "'32,x'", "whole numbers separated by commas"]),
        ("model.widths=[32, 64", ["model.widths", "whole numbers"]),
        ("model.widths=[32.5, 64]", ["model.widths", "whole numbers"]),
        ("model.widths=64", ["model.widths", "two widths"]),
        ("optimizer.betas=0.5", ["optimizer.betas", "2 numbers"]),
        ("optimizer.betas=0.5,0.9,0.9", ["optimizer.betas", "2 numbers"]),
        ("optimizer.betas=0.5,1.5", ["optimizer.betas", "1.5"]),
        ("loss.opt_samples=few", ["loss.opt_samples", "'few'", "whole number, or null"]),
        ("sampler.steps=3", ["'sampler.steps'", "sampler.num_steps"]),
        ("step_size=3", ["'step_size'", "sampler.step_size"]),
        ("smapler.step_size=3", ["'smapler.step_size'", "sampler.step_size"]),
        ("train.sampler.step_size=3", ["'train.sampler.step_size'", "sampler.step_size"]),
        ("=3", ["unknown setting ''"]),
        ("sampler=3", ["'sampler'", "section", "sampler.num_steps"]),
        ("sampler.num_steps", ["'sampler.num_steps'", "PATH=VALUE"]),
        ("--sampler.num_steps=3", ["sampler.num_steps"]),
        ("name=a/b", ["name", "'a/b'", "letters"]),
        ("name=../up", ["name", "'../up'"]),
        ("name=.hidden", ["name", "'.hidden'"]),
        ("name=-x", ["name", "'-x'"]),
        ("name=", ["name", "''"]),
        ("storage=", ["storage", "''"]),
        ("checkpoint.keep=1", ["checkpoint.keep", "1", "at least 2"]),
        ("checkpoint.every=0", ["checkpoint.every", "at least 1"]),
        ("evaluation.metrics=fid_smal", ["evaluation.metrics", "'fid_smal'", "did you mean fid_small?"]),
        ("evaluation.num_images=1", ["evaluation.num_images", "1"]),
        ("evaluation.every=-5", ["evaluation.every", "-5"]),
        ("cluster.num_workers=0", ["cluster.num_workers", "0"]),
        ("cluster.num_workers=3", ["cluster.num_workers", "3", "buffer.num_shards = 8"]),
        ("cluster.cpus_per_worker=0", ["cluster.cpus_per_worker", "0"]),
        ("cluster.gpus_per_worker=0", ["cluster.gpus_per_worker", "0.0", "0.01 to 1"]),
        ("cluster.gpus_per_worker=2", ["cluster.gpus_per_worker", "2.0", "a worker uses one card"]),
        ("cluster.gpus_per_worker=nan", ["cluster.gpus_per_worker", "nan"]),
        ("cluster.gpus_per_worker=half", ["cluster.gpus_per_worker", "'half'", "a number"]),
        ("cluster.gpus_per_worker=0.5", ["cluster.gpus_per_worker", "0.5", "needs cluster.use_gpu=true"]),
        ("cluster.max_failures=-1", ["cluster.max_failures", "-1"]),
        ("engine.device=cuda", ["engine.device", "cluster.use_gpu=true"]),
        ("data.name=cifar11", ["data.name", "'cifar11'", "did you mean cifar10"]),
        ("data.image_size=4", ["data.image_size", "4"]),
        ("seed=-1", ["seed", "-1"]),
        ("train.batch_size=" + "9" * 5000, ["train.batch_size"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(setting: str, said: list[str]):
    with pytest.raises(ConfigError) as refusal:
        override(job_preset("cifar10"), [setting])
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 1500
    for part in said:
        assert part in message


def test_the_batch_must_be_divided_evenly_over_the_workers():
    with pytest.raises(ConfigError, match=r"cluster\.num_workers = 2: must divide train\.batch_size = 65"):
        override(job_preset("cifar10"), ["train.batch_size=65", "cluster.num_workers=2"])


def test_workers_of_one_job_share_no_card():
    shares = ["cluster.use_gpu=true", "cluster.gpus_per_worker=0.5", "cluster.num_workers=2"]
    with pytest.raises(ConfigError, match=r"cluster\.gpus_per_worker = 0\.5: needs cluster\.num_workers=1"):
        override(job_preset("cifar10"), shares)


def test_settings_that_only_fit_together_may_come_in_any_order():
    both = ["buffer.num_shards=3", "cluster.num_workers=3", "train.batch_size=66"]
    assert override(job_preset("cifar10"), both) == override(job_preset("cifar10"), both[::-1])


def test_every_size_of_an_elastic_job_must_divide_batch_and_shards():
    elastic = ["cluster.num_workers=4", "cluster.min_workers=1"]
    with pytest.raises(
        ConfigError, match=r"min_workers = 1: the job may run on 1 to 4 workers, and \[3\] of them do not"
    ):
        override(job_preset("digits_paper"), elastic)
    assert override(job_preset("digits_paper"), [*elastic, "buffer.num_shards=12", "train.batch_size=24"])
    assert (
        override(job_preset("digits_paper"), ["cluster.num_workers=2", "cluster.min_workers=1"]).cluster.least_workers
        == 1
    )
    assert job_preset("digits_paper").cluster.least_workers == 1


def test_the_last_of_equal_paths_wins():
    assert override(job_preset("cifar10"), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json_unchanged(preset: str):
    job = job_preset(preset)
    assert parse(json.loads(json.dumps(to_tree(job)))) == job


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'cifar': .*cifar10.*did you mean cifar10\?"):
        job_preset("cifar")


def test_a_stored_tree_with_an_unknown_setting_is_refused():
    tree = to_tree(JobConfig()) | {"surprise": 1}
    with pytest.raises(ConfigError, match="surprise"):
        parse(tree)


def test_differences_are_the_dotted_paths_that_changed():
    a, b = (
        to_tree(job_preset("digits_paper")),
        to_tree(override(job_preset("digits_paper"), ["seed=1", "model.widths=8,16"])),
    )
    assert differences(a, b) == ["model.widths", "seed"]
    assert differences(a, a) == []
    assert differences({"x": 1}, {}) == ["x"]


@pytest.mark.parametrize(
    "setting",
    [
        "train.num_steps=9",
        "train.log_every=3",
        "checkpoint.every=2",
        "evaluation.metrics=",
        "cluster.num_workers=2",
        "engine.num_threads=1",
        "storage=/elsewhere",
        "data.root=/other",
    ],
)
def test_a_run_may_go_on_with_settings_that_do_not_decide_its_numbers(setting: str):
    job = override(job_preset("digits_paper"), ["name=a"])
    check_resumable(to_tree(job), override(job, [setting]))


@pytest.mark.parametrize(
    "setting",
    ["seed=7", "train.batch_size=32", "sampler.step_size=3", "buffer.num_shards=4", "engine.channels_last=true"],
)
def test_a_run_may_not_go_on_with_settings_that_change_its_numbers(setting: str):
    job = override(job_preset("digits_paper"), ["name=a"])
    path = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"run 'a' exists with other settings: {path} was .*, now .*"):
        check_resumable(to_tree(job), override(job, [setting]))


def test_a_setting_that_a_stored_run_never_had_counts_as_its_default():
    stored = to_tree(override(job_preset("digits_paper"), ["name=a"]))
    del stored["loss"]["kl_weight"], stored["sampler"]["hmc_leapfrog_steps"]
    check_resumable(stored, override(parse(stored), ["name=a"]))
    with pytest.raises(ConfigError, match=r"sampler.hmc_leapfrog_steps was None, now 7"):
        check_resumable(stored, override(parse(stored), ["name=a", "sampler.hmc_leapfrog_steps=7"]))


def test_the_description_shows_every_setting_with_a_value_that_can_be_pasted_back():
    text = describe(job_preset("digits_paper"))
    assert "sampler:\n" in text
    assert "  widths: [" in text
    assert 'name: null\nstorage: "./runs"' in text


@pytest.mark.parametrize(
    ("preset", "settings", "expected"),
    [
        ("digits", [], ["energy_gap", "fid_judge", "diversity", "nearest_train", "classifier"]),
        ("lsun_bedroom", [], ["energy_gap", "fid_rotation", "diversity", "nearest_train"]),
        ("cifar10", ["data.name=image_folder"], ["energy_gap", "fid_rotation", "diversity", "nearest_train"]),
        ("celeba_hq", ["data.name=cifar100"], ["energy_gap", "fid_judge", "diversity", "nearest_train"]),
        ("cifar10", ["data.name=image_folder", "evaluation.metrics=fid_judge"], ["fid_judge"]),
        ("cifar10", ["evaluation.metrics=fid_small", "data.name=svhn"], ["fid_small"]),
    ],
)
def test_a_data_set_is_judged_by_its_labels_where_it_has_any(preset: str, settings: list[str], expected: list[str]):
    assert list(override(job_preset(preset), settings).evaluation.metrics) == expected
