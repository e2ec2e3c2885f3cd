"""Reservoir inclusion against its law; shards; what is saved is what is live."""

import pytest
import torch
from scipy.stats import chi2

from ebm_core.buffer import BUFFERS, FifoBuffer, PersistentBuffer, ReservoirBuffer
from ebm_core.data.pixels import dequantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.rng import Shards, ShardStreams, stream, streams


def numbered(first, count):
    """Samples whose four pixels spell their number, so that it can be read back from uint8."""
    digits = torch.arange(first, first + count).view(-1, 1) // torch.tensor([1, 256, 65536, 16777216]) % 256
    return dequantize(digits.to(torch.uint8).view(count, 1, 2, 2))


def numbers(levels):
    return (levels.flatten(1).long() * torch.tensor([1, 256, 65536, 16777216])).sum(1)


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_every_past_sample_is_held_with_probability_capacity_over_seen(batch):
    # 600 streams of 50 samples into 10 slots: each sample is held Binomial(600, 1/5) times; chi-square over samples,
    # whose counts sum to a constant and so have covariance p (1 - p) (I - 1/n) n / (n - 1).
    num_streams, seen, capacity = 600, 50, 10
    counts = torch.zeros(seen)
    for s in range(num_streams):
        buffer = ReservoirBuffer(capacity, (1, 2, 2))
        rng = stream(s, batch, "test")
        for start in range(0, seen, batch):
            buffer.add(numbered(start, min(batch, seen - start)), rng)
        held = numbers(buffer.shard_state(0)["levels"])
        assert len(held.unique()) == capacity  # a sample is held once
        counts[held] += 1
    p = capacity / seen
    statistic = float(((counts - num_streams * p) ** 2 / (num_streams * p * (1 - p))).sum()) * (seen - 1) / seen
    assert chi2.ppf(1e-4, seen - 1) < statistic < chi2.ppf(1 - 1e-4, seen - 1)


def test_a_batch_gives_the_same_slots_as_its_samples_one_by_one():
    # Duplicate writes in a batch: the later sample must win, as in the sequential algorithm with the same luck.
    def filled(batches):
        buffer, rng = ReservoirBuffer(4, (1, 2, 2)), stream(3, 0, "test")
        for first, count in batches:
            buffer.add(numbered(first, count), rng)
        return buffer.shard_state(0)["levels"]

    assert torch.equal(filled([(0, 64)]), filled([(i, 1) for i in range(64)]))


def test_fifo_holds_the_latest_samples():
    buffer = FifoBuffer(5, (1, 2, 2))
    for first, count in [(0, 3), (3, 4), (7, 12)]:
        buffer.add(numbered(first, count), stream(0, first, "test"))
    assert sorted(numbers(buffer.shard_state(0)["levels"]).tolist()) == [14, 15, 16, 17, 18]


@pytest.mark.parametrize("kind", ["reservoir", "fifo", "persistent"])
def test_a_drawn_sample_is_the_inserted_one_quantised_once(kind):
    buffer = BUFFERS[kind](4, (3, 4, 4))
    x = torch.rand((4, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.0, 1.0  # the ends neither wrap around nor lose light
    for step in range(5):
        rng = stream(0, step, "test")
        buffer = BUFFERS[kind](4, (3, 4, 4))
        buffer.add(x, rng)
        x_again = dequantize(buffer.shard_state(0)["levels"])
        assert float((x_again - x).abs().max()) <= 0.5 / 256 + 1e-6 or step
        if step:
            assert torch.equal(x_again, x)  # a second round trip changes nothing
        x = x_again


def test_draws_are_uniform_over_the_filled_slots_of_all_shards():
    shards = Shards(4, 0, 4)
    buffer = ReservoirBuffer(40, (1, 2, 2), shards)
    buffer.add(numbered(0, 12), streams(0, 0, "insert", shards, 12))
    levels, _ = buffer.draw(24_000, stream(0, 0, "draw"))
    counts = torch.bincount(numbers(levels), minlength=12).double()
    assert float(((counts - 2000) ** 2 / 2000).sum()) < chi2.ppf(1 - 1e-4, 11)


def test_drawing_from_an_empty_buffer_says_what_to_do():
    with pytest.raises(ConfigError, match=r"the buffer is empty: add\(\) a batch before the first draw\(\)"):
        ReservoirBuffer(4, (1, 2, 2)).draw(1, stream(0, 0, "draw"))


def test_two_workers_hold_exactly_what_one_worker_holds():
    whole = Shards(4, 0, 4)
    parts = [Shards.of_rank(rank, 2, 4) for rank in range(2)]
    one, two = ReservoirBuffer(10, (1, 2, 2), whole), [ReservoirBuffer(10, (1, 2, 2), p) for p in parts]
    for step in range(20):
        x = numbered(100 * step, 8)
        one.add(x, streams(0, step, "insert", whole, 8), step=step)
        for part, buffer in zip(parts, two, strict=True):
            buffer.add(x[part.span(8)], streams(0, step, "insert", part, 8), step=step)
    for part, buffer in zip(parts, two, strict=True):
        for shard in part:
            for name, tensor in buffer.shard_state(shard).items():
                assert torch.equal(tensor, one.shard_state(shard)[name])
    drawn, _ = one.draw(8, streams(0, 20, "draw", whole, 8))
    halves = [b.draw(4, streams(0, 20, "draw", p, 8))[0] for p, b in zip(parts, two, strict=True)]
    assert torch.equal(drawn, torch.cat(halves))


def test_a_shard_survives_saving_and_loading():
    shards = Shards(2, 0, 2)
    buffer, again = (ReservoirBuffer(6, (1, 2, 2), shards, num_conditions=2) for _ in range(2))
    for step in range(4):
        condition = torch.full((4, 2), float(step))
        buffer.add(numbered(4 * step, 4), streams(0, step, "insert", shards, 4), condition=condition, step=step)
    for shard in shards:
        again.load_shard_state(shard, buffer.shard_state(shard))
    assert again.num_seen == buffer.num_seen
    assert again.mean_age(9) == buffer.mean_age(9)
    for ours, theirs in zip(buffer.draw(50, stream(0, 0, "d")), again.draw(50, stream(0, 0, "d")), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match="this run needs"):
        ReservoirBuffer(6, (1, 3, 3), shards, num_conditions=2).load_shard_state(0, buffer.shard_state(0))


def test_conditions_stay_with_their_samples():
    buffer = ReservoirBuffer(8, (1, 2, 2), num_conditions=1)
    for first in range(0, 64, 16):
        buffer.add(numbered(first, 16), stream(0, first, "i"), condition=torch.arange(first, first + 16.0).view(-1, 1))
    levels, conditions = buffer.draw(100, stream(0, 0, "draw"))
    assert torch.equal(numbers(levels).float(), conditions[:, 0])


def test_mean_age_counts_steps_since_insertion():
    buffer = FifoBuffer(4, (1, 2, 2))
    for step in (1, 2, 3):
        buffer.add(numbered(step, 2), stream(0, step, "i"), step=step)
    assert buffer.mean_age(3) == 0.5  # two samples of step 2, two of step 3


def test_streams_of_another_batch_size_are_refused():
    buffer = ReservoirBuffer(4, (1, 2, 2))
    with pytest.raises(ConfigError, match="use one batch size"):
        buffer.add(numbered(0, 3), ShardStreams((stream(0, 0, "i"),), (2,)))


@pytest.mark.parametrize("order", [11, 12, 50, 1000])
def test_the_ith_sample_lands_on_each_of_i_places_with_equal_odds(order):
    # i equal strata of luck must go to the i places 0 .. i - 1, one each: those below the capacity replace a slot.
    luck = (torch.arange(order, dtype=torch.float64) + 0.5) / order
    places = ReservoirBuffer(10, (1, 2, 2))._slots_for(torch.full((order,), order), 10, luck)
    assert places.tolist() == list(range(order))


def test_a_persistent_chain_returns_to_the_slot_it_came_from():
    buffer = PersistentBuffer(4, (1, 2, 2))
    rng = stream(0, 0, "x")
    for value in (0.1, 0.2, 0.3):
        buffer.add(torch.full((1, 1, 2, 2), value), rng)
    buffer.add(torch.full((2, 1, 2, 2), 0.9), rng, slots=torch.tensor([1, 1]))  # one fills the last slot, one returns
    levels, _ = buffer.read(torch.arange(4))
    assert levels[:, 0, 0, 0].tolist() == [25, 230, 76, 230]
    buffer.add(torch.full((1, 1, 2, 2), 0.5), rng)  # no slot to return to, none free
    assert torch.equal(buffer.read(torch.arange(4))[0], levels)


def test_lines_of_descent_survive_in_a_persistent_buffer_and_die_out_in_a_fifo():
    # Each image carries the number of its founder; no chain moves. After n generations a critical branching process
    # has about 2 / n of its lines left.
    def founders(kind):
        buffer = BUFFERS[kind](200, (1, 1, 1))
        buffer.add(torch.arange(200).view(-1, 1, 1, 1) / 256, stream(0, 0, "first"))
        for step in range(200):  # ten draws a step: ten generations of twenty steps
            slots = buffer.draw_slots(10, stream(0, step, "draw"))
            buffer.add(dequantize(buffer.read(slots)[0]), stream(0, step, "add"), slots=slots)
        return len(buffer.read(torch.arange(200))[0].unique())

    assert founders("persistent") == 200
    assert founders("fifo") < 100
