"""The training step as a whole: exact, resumable, and the paper's."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from ebm_core.config import AugmentConfig, BufferConfig, DataConfig, LoopConfig, LossConfig, OptimizerConfig
from ebm_core.data import labelled_batches
from ebm_core.errors import DataError, DivergenceError
from ebm_core.losses import improved_cd_loss
from ebm_core.rng import Shards
from ebm_core.sampler import generate, sample_negatives
from ebm_core.trainer import chain_starts, fingerprint, init_state, past_samples, step_streams, train_step
from tests.ebm_core.tiny import batch, step_together, tiny_config


def advance(state, cfg, num_steps):
    return [train_step(state, batch(state.step, cfg), cfg) for _ in range(num_steps)]


def trained(cfg, num_steps):
    state = init_state(cfg)
    return state, advance(state, cfg, num_steps)


def test_the_same_seed_gives_the_same_bits_and_another_gives_others():
    cfg = tiny_config()
    assert fingerprint(trained(cfg, 3)[0]) == fingerprint(trained(cfg, 3)[0])
    assert fingerprint(trained(cfg, 3)[0]) != fingerprint(trained(tiny_config(seed=1), 3)[0])


def test_the_global_generator_is_neither_read_nor_moved():
    cfg = tiny_config()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = fingerprint(trained(cfg, 2)[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert fingerprint(trained(cfg, 2)[0]) == first


def test_a_step_reports_every_term_and_they_add_up():
    _, rows = trained(tiny_config(), 2)
    row = rows[-1]
    assert row["loss"] == pytest.approx(
        row["loss/cd"] + row["loss/opt"] + row["loss/entropy"] + row["loss/l2"], rel=1e-5
    )
    assert row["loss/cd"] == pytest.approx(row["energy_gap"], abs=1e-6)
    assert row["energy_gap"] == pytest.approx(row["energy_data"] - row["energy_neg"], abs=1e-6)
    assert 0 <= row["clamped_fraction"] <= 1
    assert row["buffer_fill"] == 16 / 40
    assert row["buffer_age"] == 0.5  # half of the samples are of this step, half of the one before
    assert "loss/entropy" not in rows[0]  # no past samples before the first insertion


@pytest.mark.parametrize(("face", "tolerance"), [("trained", 0), ("model", 1e-6)])
def test_a_step_is_adam_on_the_gradient_of_the_loss(face: str, tolerance: float):
    # The same step by hand: same streams, torch's own Adam on a copy.
    cfg = tiny_config(optimizer=OptimizerConfig(lr=1e-2, betas=(0.0, 0.9)))
    state, _ = trained(cfg, 2)
    twin = copy.deepcopy(state)
    train_step(state, batch(2, cfg), cfg)

    twin.step += 1
    x_init, *_ = chain_starts(twin, batch(2, cfg), cfg, None)
    energy = getattr(twin.engine, face)
    x_neg = sample_negatives(energy, x_init, cfg.sampler, step_streams(twin, "chain", cfg))
    loss = improved_cd_loss(energy, batch(2, cfg), x_neg, past_samples(twin, cfg), cfg.loss)
    twin.optimizer.zero_grad()
    loss.total.backward()
    before = [p.detach().clone() for p in twin.model.parameters()]
    gradients = [p.grad for p in twin.model.parameters()]
    twin.optimizer.step()
    for ours, theirs in zip(state.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert any(float(g.abs().max()) > 0 for g in gradients)
    for average, old, new in zip(state.ema.parameters(), before, state.model.parameters(), strict=True):
        assert average.shape == old.shape == new.shape


def test_the_average_follows_its_recurrence():
    cfg = tiny_config(optimizer=OptimizerConfig(lr=1e-2, ema_decay=0.9))
    state = init_state(cfg)
    expected = [p.detach().clone() for p in state.model.parameters()]
    for step in range(4):
        train_step(state, batch(step, cfg), cfg)
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, state.model.parameters(), strict=True)]
    for average, e in zip(state.ema.parameters(), expected, strict=True):
        torch.testing.assert_close(average, e)


def test_clipping_bounds_the_gradient_that_adam_sees_and_the_norm_is_the_unclipped_one():
    free, clipped = tiny_config(), tiny_config(optimizer=OptimizerConfig(grad_clip=1e-3))
    (a, rows_a), (b, rows_b) = trained(free, 1), trained(clipped, 1)
    assert rows_a[0]["grad_norm"] == rows_b[0]["grad_norm"] > 1e-3
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in b.model.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in a.model.parameters())) == pytest.approx(
        rows_a[0]["grad_norm"], rel=1e-5
    )


def test_gradient_norms_per_term_are_those_of_the_terms_alone():
    cfg = tiny_config(train=LoopConfig(batch_size=8, grad_norms_every=2))
    _, rows = trained(cfg, 2)
    assert not [k for k in rows[0] if k.startswith("grad_norm/")]
    assert {k for k in rows[1] if k.startswith("grad_norm/")} == {
        f"grad_norm/{t}" for t in ("cd", "opt", "entropy", "l2")
    }
    only_cd = tiny_config(loss=LossConfig(kl_weight=0.0, entropy_weight=0.0, l2_weight=0.0), train=cfg.train)
    twin, _ = trained(cfg, 1)
    row = train_step(twin, batch(1, cfg), only_cd)  # same state and streams, L_CD alone: its norm is the whole norm
    assert row["grad_norm"] == pytest.approx(rows[1]["grad_norm/cd"], rel=1e-5)


def test_two_workers_average_to_the_one_worker_step():
    # Without L_ent (whose past samples are each worker's own) everything is a mean over samples.
    cfg = tiny_config(loss=LossConfig(entropy_weight=0.0))
    one = init_state(cfg)
    two = [init_state(cfg, shards=Shards.of_rank(rank, 2, 4)) for rank in range(2)]
    for step in range(3):
        x = batch(step, cfg)
        train_step(one, x, cfg)
        step_together(two, x, cfg)
        for ours, theirs in zip(one.model.parameters(), two[0].model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        for a, b in zip(two[0].model.parameters(), two[1].model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_restarts_come_at_their_rate_and_are_uniform_noise():
    cfg = tiny_config(
        buffer=BufferConfig(capacity=4000, num_shards=4, restart_fraction=0.25), train=LoopConfig(batch_size=4000)
    )
    state = init_state(cfg)
    state.buffer.add(torch.zeros(4000, 1, 8, 8), step_streams(state, "insert", cfg))
    state.step = 1
    x_init, *_ = chain_starts(state, torch.full((4000, 1, 8, 8), 1.0), cfg, None)
    noise = x_init.flatten(1).std(1) > 0.2  # a black past sample stays nearly black however it is augmented
    assert abs(float(noise.double().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert abs(float(x_init[noise].mean()) - 0.5) < 0.01


def test_a_diverging_run_stops_with_step_value_and_remedy():
    cfg = tiny_config(optimizer=OptimizerConfig(lr=1.0), train=LoopConfig(batch_size=8, energy_limit=0.5))
    state = init_state(cfg)
    with pytest.raises(DivergenceError, match=r"diverged at step \d+: .* limit .*; lower optimizer.lr"):
        advance(state, cfg, 200)
    assert 1 <= state.step < 200


def test_a_batch_of_the_wrong_shape_is_refused_before_anything_moves():
    cfg = tiny_config()
    state = init_state(cfg)
    before = fingerprint(state)
    with pytest.raises(DataError, match=r"x_data has shape \(7, 1, 8, 8\)"):
        train_step(state, torch.rand(7, 1, 8, 8), cfg)
    assert fingerprint(state) == before


def test_what_the_decisions_say_of_a_chains_condition_is_said_once_and_is_the_default():
    text = (Path(__file__).parents[2] / "docs" / "decisions.md").read_text()
    said = [part for part in text.split("\n\n") if "condition" in part and "chain" in part and part.startswith("**")]
    (one,) = said
    assert f"`buffer.conditions={BufferConfig().conditions}`, the default" in one


@pytest.mark.parametrize("kind", ["data", "kept"])
def test_chains_of_a_conditional_energy_follow_the_data_or_keep_what_their_sample_was_made_for(kind):
    cfg = tiny_config(
        data=DataConfig(name="digits", image_size=8, channels=1, condition="label"),
        buffer=BufferConfig(capacity=64, num_shards=2, restart_fraction=0.5, conditions=kind),
        augment=AugmentConfig(enabled=False),
    )
    state = init_state(cfg)
    x = torch.rand(8, 1, 8, 8)
    state.buffer.add(x, step_streams(state, "insert", cfg), condition=torch.eye(10)[[3] * 8], step=0)
    condition = torch.eye(10)[[7] * 8]
    x_init, told, _ = chain_starts(state, torch.ones(8, 1, 8, 8), cfg, condition)
    past = torch.tensor([bool(((start - x) ** 2).flatten(1).mean(1).min() < 0.01) for start in x_init])
    assert 0 < past.sum() < 8  # some chains go on, some restart
    assert told is not None
    assert told.argmax(1).tolist() == [3 if kind == "kept" and old else 7 for old in past]


def test_a_conditional_energy_trains_and_its_samples_are_stored_with_their_conditions():
    cfg = tiny_config(data=DataConfig(name="digits", image_size=8, channels=1, condition="label"))
    state = init_state(cfg)
    assert state.model.num_conditions == 10
    for x_data, condition in labelled_batches(cfg.data, 8, seed=0, stop=4, shards=state.shards):
        assert condition is not None
        terms = train_step(state, x_data, cfg, condition=condition)
        assert math.isfinite(terms["loss"])
    held = torch.cat([state.buffer.shard_state(shard)["conditions"] for shard in state.shards])
    assert held.shape == (32, 10)
    assert bool((held.sum(1) == 1).all())  # one-hot rows, moved whole
    assert len(held.argmax(1).unique()) > 3
    images = generate(
        state.ema, count=3, cfg=cfg.sampler, rng=torch.Generator().manual_seed(0), condition=torch.eye(10)[7]
    )
    assert images.shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("sampler", {"kind": "hmc", "temperature": 1e-4}),
        ("sampler", {"backprop": "all"}),
        ("model", {"kind": "figure11a", "norm": "layer", "standardize_weights": True}),
        ("model", {"kind": "figure11a", "norm": "instance", "scale_mode": "paper"}),
        ("model", {"kind": "figure11a", "norm": "none", "spectral_norm": True}),
        ("model", {"kind": "figure11b", "norm": "group"}),
        ("buffer", {"kind": "fifo"}),
        ("engine", {"channels_last": True}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_every_choice_trains_and_moves_every_parameter_with_the_kl_terms(section, values):
    cfg = tiny_config(data=DataConfig(name="digits", image_size=16, channels=1))
    if section == "model":  # four widths: three scales and attention
        values = {"widths": (4, 4, 8, 8), "attention": True, "multiscale": True, **values}
    cfg = dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **values)})
    state = init_state(cfg)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    rows = advance(state, cfg, 3)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    still = {name for name, p in state.model.named_parameters() if torch.equal(p, before[name])}
    # queries and keys start to move once attention's gain has left 0
    assert not {name for name in still if "query" not in name and "key" not in name}
