import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ebm_core.checkpoint import save
from ebm_core.data import dequantize
from ebm_core.errors import CheckpointError, ConfigError, DataError, EbmError
from ebm_core.trainer import init_state
from workers.evaluator import Evaluator
from workers.metrics.metric import combine
from workers.metrics.registry import METRICS

HERE = [name for name, metric in METRICS.items() if metric.extractor not in ("medium", "inception")]
"""Metrics that need no file of weights."""


@pytest.fixture
def make(quadratic, make_settings, digits):
    """An evaluator of a quadratic energy around the mean training digit, with noisy chains."""
    mean = dequantize(digits[0].fetch(torch.arange(1500))).mean(0, keepdim=True)

    def build(model=None, data=digits, cfg=None, **sizes) -> Evaluator:
        cfg = cfg or make_settings(sampler={"noise_std": 0.2, "generate_steps": 5})
        return Evaluator(
            model or quadratic(mean), cfg, *data, "d" * 64, **({"shard_size": 16, "batch_size": 8} | sizes)
        )

    return build


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, make_settings):
    """A saved, untrained model of the digits preset whose average differs from its newest weights."""
    cfg = make_settings(model={"widths": [4, 8]}, buffer={"capacity": 64})
    state = init_state(cfg)
    with torch.no_grad():
        for parameter in state.ema.parameters():
            parameter.mul_(1.5)
    folder = tmp_path_factory.mktemp("checkpoint")
    save(state, cfg, folder)
    return folder, state, cfg


def test_all_metrics_come_back_as_json_with_their_protocol(make, digits):
    evaluator = make()
    found = evaluator.score(HERE, num_images=40, seed=3)
    assert list(found) == HERE
    for name, result in found.items():
        again = json.loads(json.dumps(result, allow_nan=False))
        assert again["metric"] == name
        assert isinstance(again["value"], float)
        assert (again["num_images"], again["seed"], again["dataset"]) == (40, 3, "digits")
        assert again["checkpoint_digest"] == "d" * 64
        assert again["data_fingerprint"] == digits[0].fingerprint()
        assert again["protocol"]["sampler"]["generate_steps"] == 5
        heldout = 40 if METRICS[name].real_sets else 297  # a floor at an equal count
        assert again["protocol"]["num_heldout"] == heldout
        assert again["protocol"].get("num_train", 1500) == 1500
        if METRICS[name].extractor in ("judge", "rotation"):
            assert min(again["extractor"]["accuracy"].values()) > 0.9


def test_the_energies_scored_are_those_of_the_stored_images(make):
    evaluator = make()
    images = evaluator.grid(40, seed=3)
    center = evaluator.model.centers[0]
    expected = ((dequantize(images) - center) ** 2).flatten(1).sum(1).double() / 2
    found = evaluator.score(["energy_gap"], 40, seed=3)["energy_gap"]
    assert found["energy_generated"] == pytest.approx(float(expected.mean()), rel=1e-6)
    np.testing.assert_allclose(evaluator.energies(images), expected.numpy(), rtol=1e-5)


def test_shards_scored_apart_and_delivered_twice_give_what_one_evaluator_finds(make):
    whole, plan = make().score(HERE, 40, seed=1), make().make_plan(HERE, 40)
    other = make()
    apart = {shard: make().score_shard(HERE, shard, 40, seed=1) for shard in (2, 0, 1)}
    for name in HERE:
        metric = METRICS[name]
        made = combine(metric, [(shard, apart[shard][name]) for shard in (2, 0, 2, 1)], 3)
        known = {}
        for real in plan.real_sets:
            if name in real.metrics:
                shards = list(range(-(-real.count // 16)))
                order = [*reversed(shards), *shards[:2]]
                known[real.which] = combine(metric, ((i, other.score_real(real, i)[name]) for i in order), len(shards))
        assert json.dumps(other.finish(name, made, known, plan, 40, seed=1)) == json.dumps(whole[name])


def test_the_grid_is_the_first_images_that_are_scored_and_is_drawn_once(make, monkeypatch):
    evaluator = make()
    grid = evaluator.grid(20, seed=2)
    assert grid.dtype == torch.uint8
    assert torch.equal(grid, torch.cat([evaluator.images(0, 2), evaluator.images(1, 2)])[:20])
    assert not torch.equal(evaluator.images(0, 2), evaluator.images(0, 3))
    evaluator.score(["energy_gap"], 40, seed=2)
    monkeypatch.setattr("workers.evaluator.generate_images", None)  # a call would fail
    assert torch.equal(evaluator.grid(16, seed=2), grid[:16])


def test_conditional_energies_are_scored_under_their_own_labels(make, quadratic, make_settings, digits):
    # One center a class, its mean digit: each chain ends at the center of its label, so generated images have less
    # energy under their own label than real ones have, and each class comes equally often.
    train = digits[0]
    pixels = dequantize(train.fetch(torch.arange(1500)))
    centers = torch.stack([pixels[train.labels == k].mean(0) for k in range(10)])
    cfg = make_settings(data={"condition": "label"}, sampler={"step_size": 1.0, "generate_steps": 1})
    found = make(quadratic(centers), cfg=cfg).score(["energy_gap", "classifier"], 100)
    within = (pixels - centers[train.labels]).square().flatten(1).sum(1) / 2
    assert found["energy_gap"]["energy_train"] == pytest.approx(float(within.mean()), rel=1e-5)
    assert found["energy_gap"]["energy_generated"] == pytest.approx(0, abs=1e-3)
    assert found["classifier"]["images_per_class"] == [10] * 10


def test_a_checkpoint_is_scored_by_its_averaged_weights_and_named_by_its_manifest(checkpoint):
    folder, state, cfg = checkpoint
    evaluator = Evaluator.from_checkpoint(folder, shard_size=8, batch_size=8)
    images = evaluator.images(0)
    assert images.shape == (8, 1, 8, 8)
    with torch.no_grad():
        x = dequantize(images)
        averaged, newest = state.ema(x).double().numpy(), state.model(x).double().numpy()
    np.testing.assert_allclose(evaluator.energies(images), averaged, rtol=1e-6)
    assert not np.allclose(averaged, newest)
    assert evaluator.digest == hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()
    assert evaluator.cfg == cfg
    assert evaluator.score(["fid_small"], 16)["fid_small"]["protocol"]["num_train"] == 1500


def test_a_damaged_checkpoint_and_other_data_are_refused(checkpoint, tmp_path):
    folder, _, cfg = checkpoint
    with pytest.raises(CheckpointError):
        Evaluator.from_checkpoint(tmp_path)
    for change in ({"name": "mnist"}, {"condition": "label"}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(change))} = .*trained with"):
            Evaluator.from_checkpoint(folder, replace(cfg.data, **change))
    with pytest.raises(ConfigError, match=r"images of \(1, 16, 16\), but the model takes \(1, 8, 8\)"):
        Evaluator.from_checkpoint(folder, replace(cfg.data, image_size=16))


def test_energies_that_are_not_finite_stop_the_score(make, quadratic):
    model = quadratic(torch.full((1, 1, 8, 8), 0.5), offset=float("nan"))
    with pytest.raises(CheckpointError, match="energies are not finite"):
        make(model).score(["energy_gap", "fid_small"], 16)


def test_everything_is_checked_before_the_first_image_is_drawn(make, digits):
    train, heldout = digits
    unlabelled = make(data=(replace(train, labels=None), heldout))
    for evaluator, names, count, error in (
        (make(), ["energy_gap", "inception"], 16, ConfigError),
        (make(), ["energy_gap"], 1, ConfigError),
        (make(), ["energy_gap"], 0, ConfigError),
        (unlabelled, ["energy_gap", "classifier"], 16, DataError),
    ):
        with pytest.raises(error) as caught:
            evaluator.score(names, count)
        assert "\n" not in str(caught.value)
        assert evaluator._drawn is None


def test_too_few_held_out_images_are_an_error(make, digits):
    train, heldout = digits
    with pytest.raises(EbmError, match="energies of real images: 1 given"):
        make(data=(train, replace(heldout, num_images=1, labels=heldout.labels[:1]))).score(["energy_gap"], 16)


def test_sizes_shapes_and_shards_that_do_not_fit_are_refused(make, make_settings):
    with pytest.raises(ConfigError, match="shard_size = 0"):
        make(shard_size=0)
    with pytest.raises(ConfigError, match=r"images of \(1, 8, 8\)"):
        make(cfg=make_settings(data={"image_size": 16}))
    with pytest.raises(ConfigError, match="shard 3 of 16 images lies outside 40"):
        make().score_shard(["energy_gap"], 3, 40)
    with pytest.raises(ConfigError, match="0 images asked for"):
        make().grid(0)
