"""The warm start: closed forms of its loss, exact resume across the seam, what contrastive divergence is left with."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ebm_core.checkpoint import load, save
from ebm_core.config import BufferConfig, DataConfig, LossConfig, OptimizerConfig, SamplerConfig, WarmupConfig
from ebm_core.data import labelled_batches
from ebm_core.errors import ConfigError, DivergenceError
from ebm_core.rng import Shards
from ebm_core.sampler import chain
from ebm_core.trainer import chain_starts, fingerprint, init_state, insert, starts_at_data, train_step
from ebm_core.warmup import flow_matching_loss, optimizer_settings, paired_noise, pull, slower
from tests.ebm_core.tiny import batch, step_together, tiny_config

CHAINS = ("loss/cd", "loss/opt", "loss/entropy", "loss/l2", "energy_gap", "buffer_fill")


def warm_config(**sections):
    return tiny_config(warmup=WarmupConfig(num_steps=3), **sections)


def advance(state, cfg, num_steps):
    return [train_step(state, batch(state.step, cfg), cfg) for _ in range(num_steps)]


def uphill(target, travel):
    """E with slope (x - target) / travel: at noise x0 = 0 and t = 0, K eta dE/dx = -target."""
    return lambda x: (x - target).square().flatten(1).sum(1) / (2 * travel)


@pytest.mark.parametrize("travel", [1.0, 400.0])
def test_the_loss_is_zero_for_the_energy_whose_slope_leads_to_the_data(travel):
    # At t = 0 the wanted slope is -(x1 - x0) / travel, which is that of |x - x1|^2 / (2 travel) there.
    x_data, x_noise, t = torch.full((5, 1, 2, 2), 0.7), torch.rand(5, 1, 2, 2), torch.zeros(5)
    loss = flow_matching_loss(uphill(0.7, travel), x_noise, x_data, t, travel, WarmupConfig())
    assert loss.item() < 1e-12
    # half-way, that slope is half of the wanted one: what is left is (x1 - x0) / 2
    half = flow_matching_loss(uphill(0.7, travel), x_noise, x_data, t + 0.5, travel, WarmupConfig())
    torch.testing.assert_close(half, ((x_data - x_noise) / 2).square().mean())


def test_an_energy_without_slope_leaves_the_squared_way_times_the_speed():
    x_data, x_noise, t = torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2), torch.rand(5)
    loss = flow_matching_loss(lambda x: 0 * x.flatten(1).sum(1), x_noise, x_data, t, 7.0, WarmupConfig(speed=2.0))
    torch.testing.assert_close(loss, 4 * (x_data - x_noise).square().mean())


def test_its_gradient_in_theta_is_that_of_finite_differences():
    weight = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    draws = torch.Generator().manual_seed(0)
    x_data, x_noise = (torch.rand(4, 1, 2, 2, generator=draws, dtype=torch.float64) for _ in range(2))
    t = torch.rand(4, generator=draws, dtype=torch.float64)

    def loss(w):
        energy = lambda x: (w[0] * x.sin() + w[1] * x**3).flatten(1).sum(1)  # noqa: E731
        return flow_matching_loss(energy, x_noise, x_data, t, 5.0, WarmupConfig(well_from=0.5))

    assert torch.autograd.gradcheck(loss, weight)


def test_steps_along_a_straight_slope_lead_from_noise_to_data():
    # dE/dx = -(x1 - x0) / (K eta) everywhere: K steps of size eta add up to x1 - x0.
    cfg = SamplerConfig(step_size=2.0, noise_std=0.0, generate_steps=50, transition_every=0)
    way = torch.rand(3, 1, 4, 4)
    energy = lambda x: -(x * way).flatten(1).sum(1) / (cfg.generate_steps * cfg.step_size)  # noqa: E731
    x_noise = torch.zeros(3, 1, 4, 4)
    end, _ = chain(energy, x_noise, cfg, torch.Generator(), num_steps=cfg.generate_steps)
    torch.testing.assert_close(end, way, rtol=0, atol=1e-5)
    travel = cfg.generate_steps * cfg.step_size
    assert flow_matching_loss(energy, x_noise, way, torch.rand(3), travel, WarmupConfig()).item() < 1e-10


def test_the_pull_is_constant_then_falls_to_nothing_at_the_data():
    t = torch.tensor([0.0, 0.8, 0.9, 1.0])
    torch.testing.assert_close(pull(t, WarmupConfig(speed=1.5)), torch.full((4,), 1.5))
    torch.testing.assert_close(pull(t, WarmupConfig(well_from=0.8)), torch.tensor([1.0, 1.0, 0.5, 0.0]))
    torch.testing.assert_close(pull(t, WarmupConfig(well_from=0.0, speed=2.0)), 2 * (1 - t))


def test_optimal_pairing_is_the_best_of_all_permutations():
    x_data, x_noise = (torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def cost(noise):
        return float((noise - x_data).square().sum())

    paired = paired_noise(x_noise, x_data, WarmupConfig(pairing="optimal"))
    assert {tuple(x.flatten().tolist()) for x in paired} == {tuple(x.flatten().tolist()) for x in x_noise}
    best = min(cost(x_noise[list(order)]) for order in itertools.permutations(range(5)))
    assert cost(paired) == pytest.approx(best)
    assert torch.equal(paired_noise(x_noise, x_data, WarmupConfig(pairing="random")), x_noise)


def test_the_learning_rate_rises_falls_and_gives_way_to_the_optimizers_own():
    cfg = tiny_config(warmup=WarmupConfig(num_steps=100, lr=1e-2, lr_rise_steps=10))
    rates = [optimizer_settings(step, cfg).lr for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == rates[9] < 1e-2
    assert rates[50] == pytest.approx(1e-2 / 2)
    assert all(b < a for a, b in itertools.pairwise(rates[9:]))
    assert rates[-1] < 1e-4 * 1e-2 * 100
    assert optimizer_settings(100, cfg).betas == cfg.warmup.betas
    assert optimizer_settings(101, cfg) == cfg.optimizer
    own = OptimizerConfig(lr=1e-3, lr_rise_steps=4, lr_fall_steps=20)
    rates = [optimizer_settings(100 + step, replace(cfg, optimizer=own)).lr for step in range(1, 30)]
    assert rates[0] == pytest.approx(1e-3 / 4)
    assert rates[10] == pytest.approx(1e-3 / 2)
    assert rates[21:] == [1e-12] * 8
    assert (slower(cfg, 1e-4).optimizer.lr, slower(cfg, 1e-4).warmup.lr) == (1e-4, pytest.approx(1e-3))


def test_a_run_without_a_warm_start_never_meets_it():
    state = init_state(tiny_config())
    rows = advance(state, tiny_config(), 2)
    assert all("loss/flow" not in row for row in rows)


def test_both_phases_report_their_own_columns():
    cfg = warm_config()
    state = init_state(cfg)
    rows = advance(state, cfg, 5)
    for row in rows[:3]:
        assert row["loss"] == row["loss/flow"] > 0
        assert not set(CHAINS) & row.keys()
        assert math.isfinite(row["grad_norm"])
    assert len(state.buffer) == 40  # full: what was generated at the seam, and two steps of chains
    assert set(CHAINS) <= rows[4].keys()
    assert "loss/flow" not in rows[4]
    assert rows[2]["lr"] < cfg.warmup.lr
    assert rows[3]["lr"] == cfg.optimizer.lr


def test_the_flow_loss_falls_and_the_energy_then_leads_noise_towards_the_data():
    cfg = tiny_config(
        warmup=WarmupConfig(num_steps=300, lr=1e-2),
        sampler=SamplerConfig(num_steps=3, step_size=2.0, noise_std=0.0, generate_steps=50, transition_every=0),
    )
    state = init_state(cfg)
    data = list(labelled_batches("digits", 8, seed=0, stop=300))
    rows = [train_step(state, x, cfg) for x, _ in data]
    first, last = (sum(r["loss/flow"] for r in part) / 20 for part in (rows[:20], rows[-20:]))
    assert last < 0.7 * first
    noise = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn, _ = chain(state.ema, noise, cfg.sampler, torch.Generator().manual_seed(1), num_steps=50)
    mean = torch.cat([x for x, _ in data]).mean(0)
    assert float((drawn.mean(0) - mean).norm()) < 0.6 * float((noise.mean(0) - mean).norm())


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_a_run_resumed_before_at_or_after_the_seam_is_the_whole_run(tmp_path, cut):
    cfg = warm_config()
    whole = init_state(cfg)
    rows = advance(whole, cfg, 6)
    halves = init_state(cfg)
    advance(halves, cfg, cut)
    save(halves, cfg, tmp_path)
    resumed = init_state(cfg)
    load(resumed, tmp_path)
    assert advance(resumed, cfg, 6 - cut) == rows[cut:]
    assert fingerprint(resumed) == fingerprint(whole)


def test_two_workers_match_flows_as_one_does_up_to_rounding():
    # Random pairs: with optimal transport each worker pairs within its own part of the batch.
    cfg = tiny_config(warmup=WarmupConfig(num_steps=4, pairing="random"))
    one, two = init_state(cfg), [init_state(cfg, shards=Shards.of_rank(rank, 2, 4)) for rank in range(2)]
    for step in range(3):
        train_step(one, batch(step, cfg), cfg)
        step_together(two, batch(step, cfg), cfg)
    for ours, theirs in zip(one.model.parameters(), two[0].model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for a, b in zip(two[0].model.parameters(), two[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_contrastive_divergence_begins_with_a_buffer_of_what_the_warm_energy_generates():
    cfg = warm_config(
        sampler=SamplerConfig(num_steps=1, step_size=1.0, generate_steps=20, transition_every=0),
        buffer=BufferConfig(capacity=64, num_shards=4, restart_fraction=0.0),
    )
    state = init_state(cfg)
    state.step = 4
    x_data = torch.ones(8, 1, 8, 8)
    cold, *_ = chain_starts(state, x_data, replace(cfg, warmup=WarmupConfig()), None)
    assert len(state.buffer) == 0
    assert abs(float(cold.mean()) - 0.5) < 0.05  # U(0, 1)
    chain_starts(state, x_data, cfg, None)
    assert state.buffer.num_seen == [16] * 4
    held, _ = state.buffer.draw(500, torch.Generator().manual_seed(0))
    frozen = state.engine.chain_energies(None, "last")[1]
    assert float(frozen(held / 256).mean()) < float(frozen(cold).mean())  # 20 steps downhill
    assert len(held.flatten(1).unique(dim=0)) == 64


def test_a_restarted_chain_takes_its_own_steps_before_it_joins_the_others():
    # E = |x|^2 / 2 with step size 0.1 and no noise: n steps multiply an image by 0.9^n.
    cfg = tiny_config(
        sampler=SamplerConfig(num_steps=1, step_size=0.1, noise_std=0.0, generate_steps=5, transition_every=0),
        buffer=BufferConfig(capacity=64, num_shards=4, restart_fraction=0.5, restart_steps=7),
    )
    cfg = replace(cfg, augment=replace(cfg.augment, enabled=False), data=replace(cfg.data, dither=False))
    state = init_state(cfg)
    state.step = 1
    state.buffer.add(torch.zeros(64, 1, 8, 8), torch.Generator().manual_seed(0))
    half = lambda x: x.square().flatten(1).sum(1) / 2  # noqa: E731
    state.engine.chain_energies = lambda *_: (half, half)
    x_data = torch.ones(8, 1, 8, 8)
    joined, *_ = chain_starts(state, x_data, cfg, None)
    noise, *_ = chain_starts(state, x_data, replace(cfg, buffer=replace(cfg.buffer, restart_steps=0)), None)
    restarted = noise.flatten(1).amax(1) > 0.1
    assert 0 < int(restarted.sum()) < 8
    torch.testing.assert_close(joined[restarted], noise[restarted] * 0.9**7)
    assert torch.equal(joined[~restarted], noise[~restarted])


@pytest.mark.parametrize("filled", [False, True])
def test_chains_start_from_data_at_their_rate(filled):
    cfg = tiny_config(
        buffer=BufferConfig(capacity=4000, num_shards=4, restart_fraction=0.25, data_fraction=0.5),
    )
    cfg = replace(cfg, train=replace(cfg.train, batch_size=4000), augment=replace(cfg.augment, enabled=False))
    state = init_state(cfg)
    state.step = 1
    x_data = torch.full((4000, 1, 8, 8), 0.75)
    if filled:
        state.buffer.add(torch.zeros(4000, 1, 8, 8), torch.Generator().manual_seed(0))
    x_init, *_ = chain_starts(state, x_data, cfg, None)
    from_data = (x_init == 0.75).flatten(1).all(1)
    assert int(from_data.sum()) == 2000
    rest = x_init[~from_data]
    black = (rest.flatten(1).amax(1) < 0.01).double().mean()  # past samples
    assert abs(float(black) - 0.75 * filled) < 4 * math.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.9])
def test_what_started_at_data_never_enters_the_buffer(fraction):
    cfg = tiny_config(buffer=BufferConfig(capacity=400, num_shards=4, data_fraction=fraction))
    cfg = replace(cfg, train=replace(cfg.train, batch_size=40))
    state = init_state(cfg)
    at_data = torch.cat(starts_at_data(state, cfg))
    assert int(at_data.sum()) == round(40 * fraction)
    ends = torch.where(at_data.view(-1, 1, 1, 1), 1.0, 0.0).expand(-1, 1, 8, 8)
    insert(state, ends, None, cfg, None)
    assert len(state.buffer) == sum(state.buffer.num_seen) == 40 - round(40 * fraction)
    levels, _ = state.buffer.draw(200, torch.Generator().manual_seed(0))
    assert int(levels.max()) == 0


def test_the_flow_loss_can_stay_as_a_term_of_the_second_phase():
    cfg = warm_config(loss=LossConfig(num_past=20, flow_weight=0.5))
    state = init_state(cfg)
    row = advance(state, cfg, 5)[-1]
    assert row["loss/flow"] > 0
    assert row["loss"] == pytest.approx(
        row["loss/flow"] + row["loss/cd"] + row["loss/opt"] + row["loss/entropy"] + row["loss/l2"], rel=1e-5
    )


def test_conditional_energies_have_a_warm_start_too():
    cfg = warm_config(data=DataConfig(name="digits", image_size=8, channels=1, condition="label"))
    state = init_state(cfg)
    for x_data, condition in labelled_batches(cfg.data, 8, seed=0, stop=5, shards=state.shards):
        row = train_step(state, x_data, cfg, condition=condition)
    assert math.isfinite(row["loss"])
    assert len(state.buffer) == 40


def test_a_warm_start_that_leaves_the_finite_numbers_stops_with_the_step():
    cfg = tiny_config(warmup=WarmupConfig(num_steps=50, lr=1.0, lr_rise_steps=0))
    state = init_state(cfg)
    with torch.no_grad():
        next(state.model.parameters()).fill_(float("inf"))
    with pytest.raises(DivergenceError, match="diverged at step 1: loss"):
        advance(state, cfg, 1)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"num_steps": -1}, "warmup.num_steps"),
        ({"lr": 0.0}, "warmup.lr"),
        ({"well_from": 1.5}, "warmup.well_from"),
        ({"speed": 0.0}, "warmup.speed"),
        ({"ema_decay": 1.0}, "warmup.ema_decay"),
        ({"lr_rise_steps": -1}, "warmup.lr_rise_steps"),
        ({"lr": float("nan")}, "warmup.lr"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(settings, path):
    with pytest.raises(ConfigError, match=path):
        WarmupConfig(**settings)


def test_adam_begins_anew_at_the_seam():
    cfg = warm_config()
    state = init_state(cfg)
    advance(state, cfg, 4)
    assert {int(moments["step"]) for moments in state.optimizer.state.values()} == {1}


def test_with_chains_from_data_the_others_still_return_to_their_own_slots():
    cfg = tiny_config(buffer=BufferConfig(kind="persistent", capacity=64, num_shards=4, data_fraction=0.5))
    state = init_state(cfg)
    state.buffer.add(torch.zeros(64, 1, 8, 8), torch.Generator().manual_seed(0))
    slots = torch.arange(8) * 8 + 3  # two of each shard's sixteen
    insert(state, torch.full((8, 1, 8, 8), 0.5), slots, cfg, None)
    levels, _ = state.buffer.read(torch.arange(64))
    own = ~torch.cat(starts_at_data(state, cfg))
    assert levels[:, 0, 0, 0].nonzero().view(-1).tolist() == slots[own].tolist()
