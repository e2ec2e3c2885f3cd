"""Settings refuse what cannot be meant, and survive the trip through JSON."""

import dataclasses
import json

import pytest

from ebm_core.config import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    EngineConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
    from_tree,
    to_tree,
)
from ebm_core.errors import ConfigError
from ebm_core.presets import PRESETS

WRONG = [
    (DataConfig, {"image_size": 4}, "data.image_size = 4"),
    (DataConfig, {"channels": 2}, "data.channels = 2"),
    (DataConfig, {"limit": 0}, "data.limit = 0"),
    (DataConfig, {"root": ""}, "data.root = ''"),
    (DataConfig, {"attributes": ("smiling",)}, "data.attributes"),
    (ModelConfig, {"widths": (64,)}, "model.widths"),
    (ModelConfig, {"widths": (64, 0)}, "model.widths"),
    (SamplerConfig, {"num_steps": 0}, "sampler.num_steps = 0"),
    (SamplerConfig, {"step_size": 0.0}, "sampler.step_size = 0.0"),
    (SamplerConfig, {"step_size": float("nan")}, "sampler.step_size = nan"),
    (SamplerConfig, {"noise_std": -0.1}, "sampler.noise_std = -0.1"),
    (SamplerConfig, {"temperature": float("inf")}, "sampler.temperature = inf"),
    (SamplerConfig, {"kind": "hmc", "backprop": "all"}, "sampler.backprop"),
    (LossConfig, {"kl_weight": -1.0}, "loss.kl_weight = -1.0"),
    (LossConfig, {"entropy_weight": float("nan")}, "loss.entropy_weight = nan"),
    (LossConfig, {"num_past": 0}, "loss.num_past = 0"),
    (BufferConfig, {"capacity": 4}, "buffer.capacity = 4: must be at least buffer.num_shards"),
    (BufferConfig, {"restart_fraction": 1.5}, "buffer.restart_fraction = 1.5"),
    (AugmentConfig, {"crop_scale": (0.9, 0.3)}, "augment.crop_scale"),
    (AugmentConfig, {"blur_kernel": 4}, "augment.blur_kernel = 4"),
    (AugmentConfig, {"flip_prob": -0.5}, "augment.flip_prob = -0.5"),
    (OptimizerConfig, {"lr": 0.0}, "optimizer.lr = 0.0"),
    (OptimizerConfig, {"betas": (0.0, 1.0)}, "optimizer.betas"),
    (OptimizerConfig, {"grad_clip": 0.0}, "optimizer.grad_clip = 0.0"),
    (OptimizerConfig, {"ema_decay": 1.0}, "optimizer.ema_decay = 1.0"),
    (LoopConfig, {"num_steps": 0}, "train.num_steps = 0"),
    (LoopConfig, {"batch_size": 0}, "train.batch_size = 0"),
    (LoopConfig, {"gap_limit": 0.5}, "train.gap_limit = 0.5"),
    (EngineConfig, {"num_threads": 0}, "engine.num_threads = 0"),
]


@pytest.mark.parametrize(("section", "values", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_a_wrong_value_is_refused_with_its_path_and_value(section, values, message):
    with pytest.raises(ConfigError) as caught:
        section(**values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_layers_that_do_not_fit_the_image_are_refused():
    with pytest.raises(ConfigError, match=r"model.widths = .*do not fit images of 8 x 8; give fewer widths"):
        TrainConfig(data=DataConfig(image_size=8))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    cfg = PRESETS[name]()
    assert from_tree(TrainConfig, json.loads(json.dumps(to_tree(cfg)))) == cfg


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sampler": {"stepsize": 1}}, "unknown setting 'sampler.stepsize'"),
        ({"sampler": 3}, "sampler = 3: must be a section"),
        ({"seed": "0"}, "seed = '0': must be of type int"),
        ({"seed": True}, "seed = True: must be of type int"),
        ({"model": {"widths": [64, 2.5]}}, "model.widths = 2.5: must be of type int"),
        ({"augment": {"crop_scale": [0.3]}}, "augment.crop_scale = [0.3]: must be a list of 2"),
        ({"model": {"norm": "batch"}}, "model.norm = 'batch': must be one of layer, group, instance, none"),
        ({"data": {"dither": 1}}, "data.dither = 1: must be of type bool"),
    ],
)
def test_a_tree_of_another_form_is_refused(tree, message):
    with pytest.raises(ConfigError) as caught:
        from_tree(TrainConfig, tree)
    assert str(caught.value).startswith(message)


def test_presets_have_the_numbers_of_appendix_a2():
    cifar10, faces = PRESETS["cifar10"](), PRESETS["celeba_hq"]()
    assert (cifar10.sampler.num_steps, cifar10.sampler.step_size, cifar10.sampler.noise_std) == (40, 100.0, 0.001)
    assert (faces.sampler.num_steps, faces.sampler.step_size, faces.sampler.noise_std) == (40, 1000.0, 0.001)
    assert (cifar10.augment.color_strength, cifar10.augment.blur_kernel) == (1.0, 5)
    assert (faces.augment.color_strength, faces.augment.blur_kernel) == (0.5, 11)
    assert cifar10.augment.crop_scale == faces.augment.crop_scale == (0.3, 1.0)
    assert (cifar10.buffer.capacity, cifar10.buffer.restart_fraction) == (10_000, 0.05)
    assert (cifar10.loss.kl_weight, cifar10.loss.entropy_weight, cifar10.loss.num_past) == (1.0, 1.0, 1000)
    assert (cifar10.optimizer.ema_decay, cifar10.optimizer.lr) == (0.999, 2e-4)
    assert faces.image_shape == (3, 128, 128)
    assert dataclasses.asdict(PRESETS["lsun_bedroom"]().sampler) == dataclasses.asdict(faces.sampler)


def test_a_home_folder_in_data_root_is_the_one_of_whoever_said_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/here")
    cfg = TrainConfig(data=DataConfig(root="~/data"))
    stored = to_tree(cfg)
    assert stored["data"]["root"] == "/home/here/data"
    monkeypatch.setenv("HOME", "/home/elsewhere")  # another node reads what was stored
    assert from_tree(TrainConfig, stored).data.root == "/home/here/data"
    assert dataclasses.replace(cfg.data, limit=5).root == "/home/here/data"
    for plain in ("data", "./~/data", "/a~", "s3://bucket/place"):
        assert DataConfig(root=plain).root == plain
