import pytest
import torch

from ebm_core.data import quantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.rng import stream
from workers.generate import BATCH_SIZE, SHARD_SIZE, generate_batch, generate_images, shard_condition


def test_a_batch_is_the_end_of_the_chains_that_its_seed_and_number_name(quadratic, make_settings):
    # Three noiseless steps of size 0.5 leave an eighth of the distance between the start, U(0, 1), and the center.
    center = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = generate_batch(quadratic(center), make_settings(), seed=5, batch=2, count=7)
    start = torch.rand(7, 1, 8, 8, generator=stream(5, 2, "generate"))
    expected = center + (start - center) / 8
    assert images.dtype == torch.uint8
    assert (images.int() - quantize(expected).int()).abs().max() <= 1  # rounding at the edge of a bin
    assert (images == quantize(expected)).float().mean() > 0.99


def test_a_batch_has_the_same_bits_whatever_was_drawn_before_it(quadratic, make_settings):
    model, cfg = quadratic(torch.full((1, 1, 8, 8), 0.5)), make_settings(sampler={"noise_std": 0.1})
    forward = {batch: generate_batch(model, cfg, seed=1, batch=batch, count=4) for batch in (0, 1, 2)}
    torch.manual_seed(99)
    torch.rand(1000)
    backward = {batch: generate_batch(model, cfg, seed=1, batch=batch, count=4) for batch in (2, 0, 1)}
    assert all(torch.equal(forward[batch], backward[batch]) for batch in forward)
    other_seed = generate_batch(model, cfg, seed=2, batch=0, count=4)
    distinct = [*forward.values(), other_seed]
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_noise_of_a_chain_has_the_stationary_spread_in_the_images(quadratic, make_settings):
    # x' = (1 - s) x + (1 - s) noise_std w has variance noise_std^2 (1 - s)^2 / (1 - (1 - s)^2): a third, for s = 1/2.
    cfg = make_settings(sampler={"noise_std": 0.06, "generate_steps": 30})
    images = generate_batch(quadratic(torch.full((1, 1, 8, 8), 0.5)), cfg, seed=0, batch=0)
    assert images.shape == (BATCH_SIZE, 1, 8, 8)
    levels = images.double() / 256
    n = levels.numel()
    expected = (0.06**2 / 3 + (1 / 256) ** 2 / 12) ** 0.5  # a third of a variance, and the bins' own
    assert float(levels.std()) == pytest.approx(expected, rel=4 / (2 * n) ** 0.5)
    assert float(levels.mean()) + 1 / 512 == pytest.approx(0.5, abs=4 * expected / n**0.5)


def test_augmentation_moves_the_chains_only_where_it_is_enabled(quadratic, make_settings):
    center = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    turns = {"transition_every": 1, "transition_free_steps": 1}
    flips = {"color_prob": 0.0, "grayscale_prob": 0.0, "blur_prob": 0.0, "crop_scale": (0.3, 0.4)}
    plain = generate_batch(quadratic(center), make_settings(), seed=0, batch=0, count=4)
    still = make_settings(sampler=turns, augment={"enabled": False} | flips)
    moved = make_settings(sampler=turns, augment={"enabled": True} | flips)
    assert torch.equal(generate_batch(quadratic(center), still, seed=0, batch=0, count=4), plain)
    assert not torch.equal(generate_batch(quadratic(center), moved, seed=0, batch=0, count=4), plain)


def test_conditional_chains_end_at_their_conditions_center(quadratic, make_settings):
    centers = torch.tensor([0.2, 0.5, 0.8]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).clone()
    cfg = make_settings(sampler={"step_size": 1.0, "generate_steps": 1})
    condition = shard_condition(torch.eye(3), 1, count=4)
    images = generate_batch(quadratic(centers), cfg, seed=0, batch=1, count=4, condition=condition)
    assert images[:, 0, 0, 0].tolist() == [int(256 * c) for c in (0.5, 0.8, 0.2, 0.5)]  # images 4 to 7 of all shards


def test_conditions_cycle_over_all_shards_without_a_gap():
    rows = torch.eye(5)
    together = torch.cat([shard_condition(rows, shard, 8) for shard in range(5)])
    assert torch.equal(together.argmax(1), torch.arange(40) % 5)
    assert shard_condition(None, 3) is None


def test_chains_that_leave_the_finite_numbers_are_an_error_not_a_picture(quadratic, make_settings):
    with pytest.raises(CheckpointError, match=r"3 of 3 generated images are not finite \(seed 4, batch 1\)"):
        generate_batch(quadratic(torch.full((1, 1, 8, 8), torch.nan)), make_settings(), seed=4, batch=1, count=3)


@pytest.mark.parametrize(("batch", "count"), [(-1, 4), (0, 0)])
def test_batches_that_cannot_exist_are_refused(quadratic, make_settings, batch, count):
    with pytest.raises(ConfigError, match=f"batch {batch} of {count} images"):
        generate_batch(quadratic(torch.zeros(1, 1, 8, 8)), make_settings(), seed=0, batch=batch, count=count)


def test_a_few_images_are_the_first_of_many_and_a_shard_starts_at_its_own_batch(quadratic, make_settings):
    model, cfg = quadratic(torch.full((1, 1, 8, 8), 0.5)), make_settings(sampler={"noise_std": 0.1})
    whole = generate_images(model, cfg, seed=1, count=12, batch_size=4)
    drawn = [generate_batch(model, cfg, seed=1, batch=i, count=4) for i in range(3)]
    assert torch.equal(whole, torch.cat(drawn))
    assert torch.equal(generate_images(model, cfg, seed=1, count=7, batch_size=4), whole[:7])
    assert torch.equal(generate_images(model, cfg, seed=1, count=5, first_batch=1, batch_size=4), whole[4:9])


def test_a_small_evaluation_draws_the_batches_that_it_needs(quadratic, make_settings):
    drawn = []

    class Counting(quadratic):
        def forward(self, x, condition=None):
            drawn.append(len(x))
            return super().forward(x, condition)

    generate_images(Counting(torch.full((1, 1, 8, 8), 0.5)), make_settings(), seed=1, count=120)
    assert set(drawn) == {BATCH_SIZE}
    assert len(drawn) == 2 * 3  # two batches of three Langevin steps
    assert SHARD_SIZE % BATCH_SIZE == 0


def test_conditions_of_a_shard_go_on_where_its_batches_end(quadratic, make_settings):
    centers = torch.tensor([0.2, 0.5, 0.8]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).clone()
    cfg = make_settings(sampler={"step_size": 1.0, "generate_steps": 1})
    images = generate_images(quadratic(centers), cfg, seed=0, count=9, batch_size=4, rows=torch.eye(3))
    assert images[:, 0, 0, 0].tolist() == [int(256 * c) for c in (0.2, 0.5, 0.8)] * 3
