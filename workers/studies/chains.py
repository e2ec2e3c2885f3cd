"""Long-run chains (Fig. 5 to 8): what becomes of samples when Langevin dynamics runs on, and what keeps it moving.

A fixed pool of chains starts from the same noise in every variant. A variant is run in NUM_TIMES segments, each a pure
function of the one before: whoever has a segment can go on from it, and the bits are those of a run without a break.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ebm_core.compose import conditional
from ebm_core.config import SamplerConfig, TrainConfig, require
from ebm_core.data.pixels import quantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.models import EnergyModel
from ebm_core.rng import stream, uniform
from ebm_core.sampler import chain
from ebm_core.types import Energy, Pixels, Samples
from workers.metrics.formulas import total_variation
from workers.studies.autocorrelation import Memory, autocorrelation_time

NUM_TIMES = 20
"""States of a chain that are looked at, and segments that it is run in."""

MOST_DRAWS = 10
"""Draws of a segment, at most, that the autocorrelation time is computed from."""

LOOKS = (
    "energy",
    "gradient_norm",
    "clamped_fraction",
    "total_variation",
    "pairwise_distance",
    "nearest_distance",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """What keeps chains moving: augmentation transitions (Section 2.3), noise."""

    transitions: bool
    noise: bool


VARIANTS = {
    "test_time": Variant(transitions=True, noise=True),
    "no_noise": Variant(transitions=True, noise=False),
    "no_transitions": Variant(transitions=False, noise=True),
    "descent": Variant(transitions=False, noise=False),
}
"""test_time: as samples are drawn. no_transitions: Langevin steps alone (Fig. 7). descent: these without noise, which
end in the nearest minimum of the energy (Fig. 8: 1,000 steps)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainsOptions:
    """A pool of long chains (Fig. 5 to 8), and how far each variant of them runs; numbers of steps are rounded down to
    multiples of 20, the times that are looked at."""

    num_chains: int = 64
    """Chains in the pool; each variant starts them from the same noise."""
    num_steps: int = 1000
    """Langevin steps of each chain; the paper goes up to 3,000."""
    descent_steps: int = 1000
    """Langevin steps of the variant without noise and transitions (Fig. 8)."""
    transition_every: int | None = None
    """Steps between two augmentations of a chain, in the variants that have them; null: sampler.transition_every."""

    def __post_init__(self) -> None:
        require(2 <= self.num_chains <= 100_000, "chains.num_chains", self.num_chains, "must lie in 2 to 100000")
        for name in ("num_steps", "descent_steps"):
            steps = getattr(self, name)
            allowed = f"must lie in {NUM_TIMES} to 1000000; a chain is looked at {NUM_TIMES} times"
            require(NUM_TIMES <= steps <= 10**6, f"chains.{name}", steps, allowed)
        every = self.transition_every
        require(every is None or every >= 1, "chains.transition_every", every, "must be at least 1, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(ChainsOptions):
    """What was asked of a pool of chains, and the seed of their noise."""

    seed: int = 0

    def every(self, variant: str) -> int:
        """Steps of one segment."""
        return (self.descent_steps if variant == "descent" else self.num_steps) // NUM_TIMES

    def stride(self, variant: str) -> int:
        """Steps between two draws of `Segment.energies`: the least that divides a segment into few enough."""
        every = self.every(variant)
        return next(d for d in range(1, every + 1) if every % d == 0 and every // d <= MOST_DRAWS)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a pool of n chains: all that the next stretch and the study need."""

    state: Samples
    """(n c h w) Where the next stretch starts."""
    seen: Pixels
    """(n c h w) The last state before a transition."""
    looks: Float[Tensor, "looks"]
    """Quantities LOOKS of that state, float64."""
    energies: Float[Tensor, "draws n"]
    """float64, every `Plan.stride` steps."""
    pixels: UInt8[Tensor, "draws n c h w"]
    """The same states; none in the first half of a chain, which the autocorrelation leaves out."""


@dataclass(frozen=True, slots=True)
class Study:
    """One variant's course: `times` (t) in steps, the pool's states (t n c h w) and quantities of each (t)."""

    times: tuple[int, ...]
    states: Pixels
    curves: Mapping[str, Float[np.ndarray, "t"]]
    memory: Mapping[str, Memory | None]
    """Integrated autocorrelation time of the second half, in steps, of `energy` and of `pixels`."""


def variants(cfg: TrainConfig, plan: Plan) -> tuple[str, ...]:
    """The variants that differ under these settings: without an augmentation there are no transitions to leave out.

    Raises ConfigError where the plan wants transitions and the run was trained without augmentation.
    """
    if plan.transition_every is not None and not cfg.augment.enabled:
        raise ConfigError("transitions are asked for, but the run has augment.enabled=false: there is nothing to apply")
    moved = cfg.augment.enabled and (plan.transition_every or cfg.sampler.transition_every) > 0
    return tuple(VARIANTS) if moved else ("no_transitions", "descent")


def advance(
    model: EnergyModel,
    cfg: TrainConfig,
    plan: Plan,
    variant: str,
    number: int,
    before: Segment | None,
    condition: Float[Tensor, "n k"] | None = None,
) -> Segment:
    """Segment `number` of a variant, 0 (the initial U(0, 1) noise) to NUM_TIMES, after segment `number` - 1.

    Its noise is a function of (plan.seed, number) alone. Raises ConfigError for an unknown variant or a segment that
    does not follow, CheckpointError when a chain leaves the finite numbers.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown kind of chain {variant!r}; known: {', '.join(VARIANTS)}")
    if not 0 <= number <= NUM_TIMES or (number == 0) != (before is None):
        raise ConfigError(f"segment {number} of {variant}: it follows segment {number - 1}, of 0 to {NUM_TIMES}")
    first = next(model.parameters())
    energy = model if condition is None else conditional(model, condition.to(first))
    rng = stream(plan.seed, number, "chains", device=first.device)
    every = plan.every(variant)
    if before is None:
        end = uniform((plan.num_chains, *model.image_shape), rng, first.device, first.dtype)
        drawn = [end]
    else:
        end, drawn = chain(
            energy,
            before.state.to(first),
            sampler_of(cfg, plan, variant),
            rng,
            num_steps=every * NUM_TIMES,
            transitions=cfg.augment if VARIANTS[variant].transitions and cfg.augment.enabled else None,
            record_every=plan.stride(variant),
            start=every * (number - 1),
            stop=every * number,
        )
    segment = _seen(energy, end, drawn, keep_pixels=2 * number > NUM_TIMES)
    if not all(bool(torch.isfinite(values).all()) for values in (segment.looks, segment.energies, segment.state)):
        raise CheckpointError(f"chains of kind {variant} leave the finite numbers: use an earlier checkpoint")
    return segment


def sampler_of(cfg: TrainConfig, plan: Plan, variant: str) -> SamplerConfig:
    """The run's sampler with the plan's transitions; without noise, and then without HMC, where a variant has none."""
    sampler = cfg.sampler
    if plan.transition_every is not None:
        sampler = replace(sampler, transition_every=plan.transition_every)
    return sampler if VARIANTS[variant].noise else replace(sampler, kind="langevin", noise_std=0.0, temperature=None)


def _seen(energy: Energy, end: Samples, drawn: Sequence[Samples], *, keep_pixels: bool) -> Segment:
    with torch.no_grad():
        energies = torch.stack([energy(x).double() for x in drawn])
    kept = torch.stack([quantize(x) for x in (drawn if keep_pixels else drawn[:0])] or [quantize(end)])
    looked = look_at(energy, drawn[-1])
    return Segment(
        state=end.cpu(),
        seen=quantize(drawn[-1]).cpu(),
        looks=torch.tensor([looked[name] for name in LOOKS], dtype=torch.float64),
        energies=energies.cpu(),
        pixels=kept[: len(drawn) if keep_pixels else 0].cpu(),
    )


def look_at(energy: Callable[[Samples], Tensor], x: Samples) -> dict[str, float]:
    """LOOKS of one state of the pool: mean energy; mean |dE/dx|; pixels at 0 or 1; total variation per image; mean L2
    distance between chains and to the nearest one, in pixels."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        values = energy(at)
        (slope,) = torch.autograd.grad(values.sum(), at)
    values = values.detach()
    flat = x.detach().flatten(1).double()
    between = torch.cdist(flat, flat)
    count = len(x)
    apart = between + torch.diag(torch.full((count,), torch.inf, dtype=torch.float64, device=x.device))
    return {
        "energy": float(values.double().mean()),
        "gradient_norm": float(slope.flatten(1).double().norm(dim=1).mean()),
        "clamped_fraction": float(((x <= 0) | (x >= 1)).double().mean()),
        "total_variation": float(total_variation(quantize(x.detach()).cpu()).mean()),
        "pairwise_distance": float(between.sum() / (count * (count - 1))),
        "nearest_distance": float(apart.min(dim=1).values.mean()),
    }


def study(plan: Plan, variant: str, segments: Sequence[Segment]) -> Study:
    """What all segments of a variant, 0 to NUM_TIMES, show together."""
    every, stride = plan.every(variant), plan.stride(variant)
    second_half = segments[NUM_TIMES // 2 + 1 :]
    energies = torch.cat([segment.energies for segment in second_half]).unsqueeze(2)
    pixels = torch.cat([segment.pixels for segment in second_half]).flatten(2)
    looks = torch.stack([segment.looks for segment in segments]).numpy()
    return Study(
        times=tuple(range(0, every * len(segments), every)),
        states=torch.stack([segment.seen for segment in segments]),
        curves={name: looks[:, i] for i, name in enumerate(LOOKS)},
        memory={
            name: _in_steps(autocorrelation_time(series.numpy()), stride)
            for name, series in {"energy": energies, "pixels": pixels}.items()
        },
    )


def _in_steps(memory: Memory | None, stride: int) -> Memory | None:
    return None if memory is None else replace(memory, time=memory.time * stride)


def run_variant(
    model: EnergyModel,
    cfg: TrainConfig,
    variant: str,
    plan: Plan,
    condition: Float[Tensor, "n k"] | None = None,
) -> Study:
    """Every segment of a variant in this process. Errors as in `advance`."""
    segments: list[Segment] = []
    for number in range(NUM_TIMES + 1):
        segments.append(advance(model, cfg, plan, variant, number, segments[-1] if segments else None, condition))
    return study(plan, variant, segments)


def class_score(probabilities: Float[np.ndarray, "n k"]) -> float:
    """exp of the mean KL divergence from the mean prediction, 1 to k: the Inception score's formula in one split, for
    whatever classifier made `probabilities`."""
    p = np.asarray(probabilities, dtype=np.float64).clip(min=1e-300)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def report(
    found: Mapping[str, Study],
    distances: Mapping[str, Callable[[Pixels], float]],
    classify: Callable[[Pixels], Float[np.ndarray, "n k"]] | None = None,
) -> dict[str, Any]:
    """Curves of every variant, and of its distances to the training images, ready for JSON.

    distances: by name, such as fid_judge; the first is the one that `value` and tables show.
    classify: class probabilities of images, for `class_score` of each state; None: there is no judge.
    `value`: that distance of test_time (else of the first variant) at the end, over the smallest on its way: 1 if it
    never gets worse. The few chains bias every distance upward alike.
    """
    described, headline = {}, next(iter(distances))
    for name, one in found.items():
        scored = {name: [distance(state) for state in one.states] for name, distance in distances.items()}
        if classify is not None:
            scored["class_score"] = [class_score(classify(state)) for state in one.states]
        memory = {key: _as_tree(value) for key, value in one.memory.items()}
        curves = {key: values.tolist() for key, values in one.curves.items()}
        kind = {"transitions": VARIANTS[name].transitions, "noise": VARIANTS[name].noise}
        described[name] = {**kind, "steps": list(one.times), **scored, **curves, "autocorrelation_steps": memory}
    main = described.get("test_time") or next(iter(described.values()))
    return {
        "value": main[headline][-1] / min(main[headline]),
        "distance": headline,
        "num_chains": len(next(iter(found.values())).states[0]),
        "num_steps": main["steps"][-1],
        "variants": described,
    }


def _as_tree(memory: Memory | None) -> dict[str, Any] | None:
    return None if memory is None else {"time": memory.time, "resolved": memory.resolved}
