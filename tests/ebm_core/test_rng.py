"""Streams depend on their key alone, and a sample's draws on its global index alone."""

import pytest
import torch

from ebm_core.errors import ConfigError
from ebm_core.rng import Shards, normal, stream, streams, uniform


def test_a_stream_is_a_function_of_every_part_of_its_key():
    keys = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)]
    draws = [tuple(torch.rand(4, generator=stream(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.rand(4, generator=stream(*key)).tolist()) for key in keys]


@pytest.mark.parametrize("batch", [1, 5, 8, 13, 64])
@pytest.mark.parametrize("total", [1, 4, 8])
def test_shards_cover_a_batch_once_and_in_order(batch, total):
    seen = [i for w in range(total) for i in range(batch)[Shards.of_rank(w, total, total).span(batch)]]
    assert seen == list(range(batch))
    assert sum(Shards(total, 0, total).sizes(batch)) == batch


@pytest.mark.parametrize("draw", [normal, uniform])
def test_draws_do_not_depend_on_the_number_of_workers(draw):
    whole = draw((16, 3), streams(7, 1, "x", Shards(4, 0, 4), 16))
    halves = [draw((8, 3), streams(7, 1, "x", Shards.of_rank(r, 2, 4), 16)) for r in range(2)]
    assert torch.equal(whole, torch.cat(halves))


def test_draws_have_the_named_distributions():
    rng = streams(0, 0, "x", Shards(4, 0, 4), 1000)
    w = normal((1000, 100), rng)
    assert abs(float(w.mean())) < 4 / 316
    assert abs(float(w.std()) - 1) < 4 / 447
    u = uniform((1000, 100), rng)
    assert 0 <= float(u.min()) < float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 4 * 0.2887 / 316


def test_a_number_of_workers_that_does_not_divide_the_shards_is_refused():
    with pytest.raises(ConfigError, match=r"cluster.num_workers = 3: must divide buffer.num_shards = 8; set .* of 3"):
        Shards.of_rank(0, 3, 8)
