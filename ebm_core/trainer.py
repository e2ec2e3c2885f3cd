"""One training step of improved contrastive divergence, and the state that it moves."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ebm_core.augment import augment
from ebm_core.buffer import SampleBuffer, build_buffer
from ebm_core.config import TrainConfig
from ebm_core.data import num_conditions
from ebm_core.data.pixels import dequantize
from ebm_core.ema import ema_update
from ebm_core.errors import DataError
from ebm_core.fast.engine import Engine, prepare, resolve_device
from ebm_core.losses import Loss, improved_cd_loss
from ebm_core.models import EnergyModel, build_energy
from ebm_core.monitor import StabilityMonitor
from ebm_core.parts import part
from ebm_core.rng import Shards, ShardStreams, stream, streams, uniform
from ebm_core.sampler import chain, sample_negatives
from ebm_core.types import Samples, Scalar
from ebm_core.warmup import flow_matching_loss, optimizer_settings, paired_noise

FIRST_SAMPLES = 1024
"""Samples over all workers with which contrastive divergence begins after a warm start."""

SyncGradients = Callable[[list[Tensor]], None]
"""Averages each tensor over the workers, in place. One call a step: the gradients, and the step's numbers."""


@dataclass
class TrainState:
    """Everything that changes from step to step; all of it but the engine, which has no state, is in a checkpoint."""

    step: int
    seed: int
    shards: Shards
    model: EnergyModel
    ema: EnergyModel
    optimizer: torch.optim.Adam
    buffer: SampleBuffer
    monitor: StabilityMonitor
    engine: Engine

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def init_state(cfg: TrainConfig, seed: int | None = None, shards: Shards | None = None) -> TrainState:
    """The state before the first step. `seed` overrides `cfg.seed`; `shards` are those of this worker (all of them)."""
    seed = cfg.seed if seed is None else seed
    shards = shards or Shards.of_rank(0, 1, cfg.buffer.num_shards)
    conditions = num_conditions(cfg.data) if cfg.data.condition != "none" else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, 0, "init").initial_seed())
        model = prepare(build_energy(cfg.model, cfg.image_shape, conditions), cfg.engine)
    buffer = build_buffer(cfg.buffer, cfg.image_shape, shards, conditions, resolve_device(cfg.engine))
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.optimizer.lr, betas=cfg.optimizer.betas)
    ema = copy.deepcopy(model).requires_grad_(False)
    monitor = StabilityMonitor(cfg.train, cfg.loss)
    engine = Engine(model, cfg.engine, keeps_graphs=cfg.train.grad_norms_every > 0)
    return TrainState(0, seed, shards, model, ema, optimizer, buffer, monitor, engine)


def train_step(
    state: TrainState,
    x_data: Samples,
    cfg: TrainConfig,
    sync_gradients: SyncGradients | None = None,
    condition: Tensor | None = None,
) -> dict[str, float]:
    """Draw, augment, sample, loss, backward, sync, step, average, insert; moves `state` in place.

    Its parts have names (`profile.PARTS`) for whoever runs it under torch.profiler.

    x_data: this worker's part (b c h w) of the global batch, in [0, 1]; condition: (b k) for a conditional energy.
    Returns the step's numbers, averaged over workers, with each weighted term of the loss as `loss/<term>`. Raises
    DivergenceError, with the state as it then is.
    The first `warmup.num_steps` steps match flows instead (`warmup.py`): they have neither chains nor a buffer.
    """
    _check_batch(state, x_data, cfg)
    state.step += 1
    state.model.refresh()
    state.engine.refresh()
    if state.step <= cfg.warmup.num_steps:
        with part("forwards"):
            flow = flow_term(state, x_data, cfg, condition)
        metrics = _descend(state, flow, {"flow": flow}, {}, cfg, sync_gradients)
        state.monitor.require_finite(state.step, {"loss": metrics["loss"], "gradient norm": metrics["grad_norm"]})
        return metrics
    if state.step == cfg.warmup.num_steps + 1:
        state.optimizer.state.clear()  # moments of another loss, of gradients of another size
    with part("buffer"):
        x_init, condition_neg, slots = chain_starts(state, x_data, cfg, condition)
    energy, frozen = state.engine.chain_energies(condition_neg, cfg.sampler.backprop)
    rng = step_streams(state, "chain", cfg)
    needs_graph = bool(cfg.loss.kl_weight or cfg.loss.entropy_weight)
    with part("sampling"):
        x_neg = sample_negatives(energy, x_init, cfg.sampler, rng, differentiable=needs_graph, frozen=frozen)
    if x_neg.requires_grad:
        x_neg.register_hook(_mark_kl)
    with part("L_ent"):
        past = past_samples(state, cfg)
    with part("forwards"):
        loss = improved_cd_loss(state.engine.energy, x_data, x_neg, past, cfg.loss, condition, condition_neg)
        if cfg.loss.flow_weight:
            loss = loss.plus("flow", cfg.loss.flow_weight * flow_term(state, x_data, cfg, condition))

    metrics = _descend(state, loss.total, loss.terms, _chain_metrics(loss, x_neg), cfg, sync_gradients)
    insert(state, x_neg, slots, cfg, condition_neg)
    state.monitor.update(
        state.step, metrics["energy_data"], metrics["energy_neg"], metrics["loss"], metrics["grad_norm"]
    )
    return metrics | {
        "running_gap": state.monitor.running_gap,
        "buffer_fill": len(state.buffer) / state.buffer.num_slots,
        "buffer_age": state.buffer.mean_age(state.step),
    }


def _descend(
    state: TrainState,
    total: Scalar,
    terms: dict[str, Scalar],
    watched: dict[str, Scalar],
    cfg: TrainConfig,
    sync: SyncGradients | None,
) -> dict[str, float]:
    """One step of Adam down `total`, averaged over workers, and of the EMA. Returns all that was given as floats."""
    parameters, settings = list(state.model.parameters()), optimizer_settings(state.step, cfg)
    norms = _term_norms(terms, parameters) if _every(cfg.train.grad_norms_every, state.step) else {}
    state.optimizer.zero_grad()
    with part("backward"):
        total.backward(inputs=parameters)
    weighted = {f"loss/{name}": term for name, term in terms.items()}
    metrics = _floats({"loss": total, **weighted, **watched}) | norms
    with part("communication"):
        _sync(sync, parameters, metrics)
    with part("optimizer"):
        metrics["grad_norm"] = _clip(parameters, settings.grad_clip)
        state.optimizer.param_groups[0].update(lr=settings.lr, betas=settings.betas)
        state.optimizer.step()
    with part("EMA"):
        ema_update(state.ema, state.model, settings.ema_decay)
    return metrics | {"lr": settings.lr}


def _mark_kl(_: Tensor | None) -> None:
    """Tells a profiler when the samples have their gradient: the rest of the backward pass is L_KL's way to theta."""
    with part("KL"):
        pass


def flow_term(state: TrainState, x_data: Samples, cfg: TrainConfig, condition: Tensor | None) -> Scalar:
    """The warm start's loss of this step: `x_data` paired with U(0, 1) noise, at one random place on each line."""
    noise = uniform(x_data.shape, step_streams(state, "flow-noise", cfg), state.device)
    t = uniform((len(x_data),), step_streams(state, "flow-time", cfg), state.device)
    energy, _ = state.engine.chain_energies(condition, "last")
    travel = cfg.sampler.generate_steps * cfg.sampler.step_size
    return flow_matching_loss(energy, paired_noise(noise, x_data, cfg.warmup), x_data, t, travel, cfg.warmup)


def step_streams(state: TrainState, purpose: str, cfg: TrainConfig) -> ShardStreams:
    """This step's randomness for one purpose: a function of (seed, step, shard, purpose) alone."""
    return streams(state.seed, state.step, purpose, state.shards, cfg.train.batch_size, state.device)


def chain_starts(
    state: TrainState, x_data: Samples, cfg: TrainConfig, condition: Tensor | None
) -> tuple[Samples, Tensor | None, Tensor | None]:
    """Where the chains begin: augmented past samples (2.3), fractions of them replaced by U(0, 1) noise (3.1) and data.

    A chain follows the data's condition, or keeps the one that its sample was made for (`buffer.conditions`); one that
    starts anew takes the data's. While there are no past samples, noise takes their place. Returned third: the slots of
    the buffer that the chains were drawn from, also of those that start anew instead.
    """
    if cfg.warmup.num_steps and len(state.buffer) == 0:
        fill_buffer(state, cfg, condition)
    count = sum(state.shards.sizes(cfg.train.batch_size))
    noise = uniform((count, *cfg.image_shape), step_streams(state, "noise", cfg), state.device)
    restart = uniform((count,), step_streams(state, "restart", cfg), state.device) < cfg.buffer.restart_fraction
    at_data = torch.cat(starts_at_data(state, cfg)).to(state.device)
    anew = (restart | at_data).view(-1, 1)
    if cfg.buffer.restart_steps:
        noise = burnt_in(state, noise, restart & ~at_data, cfg, condition)
    fresh = torch.where(at_data.view(-1, 1, 1, 1), x_data, noise)
    if len(state.buffer) == 0:
        return fresh, condition, None
    slots = state.buffer.draw_slots(count, step_streams(state, "draw", cfg))
    levels, condition_past = state.buffer.read(slots)
    x_past = dequantize(levels, step_streams(state, "dither-past", cfg) if cfg.data.dither else None)
    with part("augmentation"):
        x_past = augment(x_past, cfg.augment, step_streams(state, "augment", cfg), state.engine.transition)
    x_init = torch.where(anew.view(-1, 1, 1, 1), fresh, x_past)
    if condition is None or cfg.buffer.conditions == "data":
        return x_init, condition, slots
    return x_init, torch.where(anew, condition, condition_past), slots


def starts_at_data(state: TrainState, cfg: TrainConfig) -> list[Tensor]:
    """For each owned shard, which of its chains start at data: evenly spread places of the global batch, no draw."""
    edges = state.shards.bounds(cfg.train.batch_size)
    before = (torch.arange(edges[0], edges[-1] + 1, dtype=torch.float64) * cfg.buffer.data_fraction).floor()
    return list(before.diff().bool().split([b - a for a, b in pairwise(edges)]))


def insert(state: TrainState, x_neg: Samples, slots: Tensor | None, cfg: TrainConfig, condition: Tensor | None) -> None:
    """Offer the ends of the chains to the buffer, without those that started at data."""
    rng, own = step_streams(state, "insert", cfg), [~at_data for at_data in starts_at_data(state, cfg)]
    if cfg.buffer.data_fraction:
        rng, rows = (
            ShardStreams(rng.generators, tuple(int(kept.sum()) for kept in own)),
            torch.cat(own).nonzero().view(-1),
        )
        x_neg, condition = x_neg[rows], None if condition is None else condition[rows]
        slots = None if slots is None else slots[rows]
    with part("buffer"):
        state.buffer.add(x_neg.detach(), rng, condition=condition, step=state.step, slots=slots)


def burnt_in(state: TrainState, noise: Samples, restart: Tensor, cfg: TrainConfig, condition: Tensor | None) -> Samples:
    """`noise`, of which the chosen rows have taken `buffer.restart_steps` steps of the chain."""
    rows = restart.nonzero().view(-1)
    if not len(rows):
        return noise
    rng = step_streams(state, "burn-in", cfg)
    sizes = tuple(int(part.sum()) for part in restart.cpu().split(rng.sizes))
    _, frozen = state.engine.chain_energies(None if condition is None else condition[rows], "last")
    some = ShardStreams(rng.generators, sizes)
    ends, _ = chain(frozen, noise[rows], cfg.sampler, some, num_steps=cfg.buffer.restart_steps)
    return noise.index_copy(0, rows, ends)


def fill_buffer(state: TrainState, cfg: TrainConfig, condition: Tensor | None) -> None:
    """Give a buffer that is still empty up to FIRST_SAMPLES of what the warm start's energy generates from noise.

    All later chains descend from these and from restarts: a batch of them alone would leave few lines of descent.
    """
    _, frozen = state.engine.chain_energies(condition, "last")
    batch_size = cfg.train.batch_size
    for i in range(-(-min(FIRST_SAMPLES, cfg.buffer.capacity) // batch_size)):
        rng = step_streams(state, f"first-samples-{i}", cfg)
        noise = uniform((sum(rng.sizes), *cfg.image_shape), rng, state.device)
        ends, _ = chain(frozen, noise, cfg.sampler, rng, num_steps=cfg.sampler.generate_steps)
        state.buffer.add(ends, rng, condition=condition, step=state.step)


def past_samples(state: TrainState, cfg: TrainConfig) -> Samples | None:
    """B of Eq. 7: up to `loss.num_past` draws from this worker's buffer before the new samples enter; None if empty."""
    if not cfg.loss.entropy_weight or len(state.buffer) == 0:
        return None
    rng = stream(state.seed, state.step, "past", state.shards.first, state.device)
    levels, _ = state.buffer.draw(min(cfg.loss.num_past, len(state.buffer)), rng)
    return dequantize(levels)


def _check_batch(state: TrainState, x_data: Samples, cfg: TrainConfig) -> None:
    expected = (sum(state.shards.sizes(cfg.train.batch_size)), *cfg.image_shape)
    if tuple(x_data.shape) != expected:
        raise DataError(
            f"x_data has shape {tuple(x_data.shape)}, this worker's part of train.batch_size = "
            f"{cfg.train.batch_size} is {expected}; take batches from ebm_core.batches with these settings"
        )


def _chain_metrics(loss: Loss, x_neg: Samples) -> dict[str, Scalar]:
    """What is watched beside the terms."""
    x_neg = x_neg.detach()
    return {
        "energy_data": loss.energy_data.mean(),
        "energy_neg": loss.energy_neg.mean(),
        "energy_gap": loss.energy_data.mean() - loss.energy_neg.mean(),
        "clamped_fraction": ((x_neg <= 0) | (x_neg >= 1)).to(x_neg.dtype).mean(),
    }


def _floats(values: dict[str, Scalar]) -> dict[str, float]:
    """The step's numbers as floats: one transfer from the device."""
    return dict(zip(values, torch.stack([v.detach() for v in values.values()]).tolist(), strict=True))


def _term_norms(terms: dict[str, Scalar], parameters: list[torch.nn.Parameter]) -> dict[str, float]:
    """L2 norm of each term's own gradient (Fig. 12)."""
    norms = {}
    for name, term in terms.items():
        slopes = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        norms[f"grad_norm/{name}"] = float(torch.nn.utils.get_total_norm([g for g in slopes if g is not None]))
    return norms


def _sync(
    sync_gradients: SyncGradients | None, parameters: list[torch.nn.Parameter], metrics: dict[str, float]
) -> None:
    """Average gradients and the step's numbers over workers, in place: every rank sees, and stops at, the same ones."""
    if sync_gradients is None:
        return
    numbers = torch.tensor(list(metrics.values()), dtype=torch.float64, device=parameters[0].device)
    sync_gradients([*(p.grad for p in parameters if p.grad is not None), numbers])
    metrics.update(zip(metrics, numbers.tolist(), strict=True))


def _clip(parameters: list[torch.nn.Parameter], limit: float | None) -> float:
    """Norm of the whole gradient, before it is scaled down to `limit`."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0


def fingerprint(state: TrainState) -> str:
    """SHA-256 over every tensor and counter of the state: equal states, and only those, have equal ones."""
    digest = hashlib.sha256(f"{state.step}/{state.seed}/{state.monitor.state()}".encode())
    moments = [m[kind] for m in state.optimizer.state_dict()["state"].values() for kind in sorted(m)]
    held = [t for shard in state.shards for t in state.buffer.shard_state(shard).values()]
    for tensor in (*state.model.state_dict().values(), *state.ema.state_dict().values(), *moments, *held):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
