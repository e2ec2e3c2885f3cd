"""Composition of energies (Fig. 10, Section 3.3): drawing from several at once, and reading off what came out.

A concept is one energy under one condition; a recipe composes concepts. Shards are seeded by their number, as in
`generate.py`. Forms: and, the sum of energies; or, minus the logarithm of the sum of exp(-E); not, E_1 - alpha E_2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ebm_core.compose import conditional, mixture, product
from ebm_core.config import DataConfig, SamplerConfig, TrainConfig
from ebm_core.data import chosen_attributes, num_conditions, quantize
from ebm_core.errors import CheckpointError, ConfigError
from ebm_core.models import EnergyModel
from ebm_core.rng import stream, uniform
from ebm_core.sampler import chain
from ebm_core.types import Energy, Pixels
from workers.features.judge import LABEL, Judge

Operation = Literal["and", "or", "not"]
OPERATIONS: tuple[Operation, ...] = ("and", "or", "not")

SHARD_SIZE = 64
"""Images that are drawn together."""

MOST_CONDITIONS = 16
"""Energies in a mixture over what a concept leaves open."""


@dataclass(frozen=True, slots=True)
class Constants:
    """What the forms leave open."""

    divide_step: bool
    """and: divide the step size by the number of energies, whose sum is as many times as steep."""
    sharpness: float
    """or: -log(sum exp(-sharpness E)) / sharpness."""
    not_weight: float | None
    """not: alpha; None: it must be given."""


CONSTANTS = {
    "code": Constants(divide_step=True, sharpness=100.0, not_weight=0.001),
    "paper": Constants(divide_step=False, sharpness=1.0, not_weight=None),
}
"""code: as published. paper: the forms as they are written, which give no constants."""


@dataclass(frozen=True, slots=True)
class Concept:
    """One energy and what it is told."""

    member: int
    """Which of the models."""
    conditions: tuple[tuple[float, ...], ...]
    """c of E(x | c); several: the mixture over them, which leaves open what they differ in; none: unconditional."""
    factors: Mapping[str, int]
    """The factors that the condition fixes, by name, and their values: what a judge should read."""
    odds: tuple[float, ...] = ()
    """Weights of several conditions in their mixture."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Concepts and how their energies are joined; one concept alone is itself, whatever the operation."""

    operation: Operation
    concepts: tuple[Concept, ...]
    weights: tuple[float, ...]
    """One per concept; not: the first is 1, the others are subtracted."""
    sharpness: float
    step_fraction: float
    """The sampler's step size is multiplied by it."""

    def energy(self, models: Sequence[EnergyModel]) -> Energy:
        """The composed energy."""
        energies = [_told(models[concept.member], concept, self.sharpness) for concept in self.concepts]
        if len(energies) == 1:
            return energies[0]
        if self.operation == "or":
            return mixture(energies, self.weights, self.sharpness)
        signs = [-1.0 if self.operation == "not" and i else 1.0 for i in range(len(energies))]
        return product(energies, [sign * weight for sign, weight in zip(signs, self.weights, strict=True)])

    def alone(self, index: int) -> "Recipe":
        """One concept of it, sampled with the sampler's own step size."""
        return Recipe(self.operation, (self.concepts[index],), (1.0,), self.sharpness, 1.0)

    def holds(self, read: Mapping[str, Int64[np.ndarray, "n"]]) -> Bool[np.ndarray, "n"]:
        """Which images are as asked, by the values that a judge read. Concepts that fix no factor count as met."""
        met = []
        for concept in self.concepts:
            rows = [read[name] == value for name, value in concept.factors.items()]
            met.append(np.all(rows, axis=0) if rows else None)
        if self.operation == "or":
            return np.any([row for row in met if row is not None], axis=0)
        wanted = [
            ~row if self.operation == "not" and i else row for i, row in enumerate(met) if row is not None
        ]  # fmt: skip
        return np.all(wanted, axis=0)


def recipe(
    operation: str,
    concepts: Sequence[Concept],
    constants: str = "code",
    weights: Sequence[float] | None = None,
    sharpness: float | None = None,
) -> Recipe:
    """Join concepts, with the constants of CONSTANTS where none are given.

    weights: and, or: one per concept, 1 each unless given; not: alpha of each concept after the first. Raises
    ConfigError for fewer than two concepts, a wrong number of weights, or weights and a sharpness out of range.
    """
    if operation not in OPERATIONS:
        raise ConfigError(f"`operation` {operation}: must be one of {', '.join(OPERATIONS)}")
    if constants not in CONSTANTS:
        raise ConfigError(f"`constants` {constants}: must be one of {', '.join(CONSTANTS)}")
    if len(concepts) < 2:
        raise ConfigError(f"{len(concepts)} energy given: a composition needs at least two")
    fixed = CONSTANTS[constants]
    given = None if weights is None else [float(weight) for weight in weights]
    if operation == "not":
        expected = len(concepts) - 1
        if given is None and fixed.not_weight is None:
            raise ConfigError(
                "`operation` not: the paper gives no weight; add `weights` ALPHA or `constants` code (0.001)"
            )
        given = [float(fixed.not_weight or 0)] * expected if given is None else given
    else:
        expected = len(concepts)
        given = [1.0] * expected if given is None else given
    if len(given) != expected:
        what = "each energy after the first" if operation == "not" else "each energy"
        raise ConfigError(f"{len(given)} `weights` given: {operation} takes one for {what}, {expected} here")
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise ConfigError(f"`weights` {' '.join(f'{weight:g}' for weight in given)}: must be positive numbers")
    sharp = fixed.sharpness if sharpness is None else sharpness
    if not (math.isfinite(sharp) and sharp > 0):
        raise ConfigError(f"`sharpness` {sharp:g}: must be a positive number")
    fraction = 1 / len(concepts) if operation == "and" and fixed.divide_step else 1.0
    full = (1.0, *given) if operation == "not" else tuple(given)
    return Recipe(operation, tuple(concepts), full, sharp, fraction)  # pyright: ignore[reportArgumentType]


def parse_concept(member: int, data: DataConfig, text: str, class_names: Sequence[str] = ()) -> Concept:
    """The concept that a person wrote: `left=1,top=0` for an energy of attributes, a class by name or number (also
    `label=cube`) for one of labels, nothing for an unconditional one.

    Raises ConfigError for a name or value that the energy does not know, or attributes that are left out.
    """
    if data.condition == "none":
        if text:
            raise ConfigError(f"{text!r}: this energy is unconditional; leave it out, or train with data.condition")
        return Concept(member, (), {})
    if data.condition == "label":
        value = _class_number(text.removeprefix(f"{LABEL}="), num_conditions(data), class_names)
        return Concept(member, (tuple(float(k == value) for k in range(num_conditions(data))),), {LABEL: value})
    names, values = chosen_attributes(data), {}
    for part in text.split(",") if text else ():
        name, sign, value = part.strip().rpartition("=")
        if name not in names or not sign:
            raise ConfigError(f"{part.strip()!r}: this energy knows {', '.join(f'{one}=0 or 1' for one in names)}")
        if value not in ("0", "1") or name in values:
            raise ConfigError(f"{part.strip()!r}: an attribute is 0 or 1, and named once")
        values[name] = int(value)
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"{text!r}: this energy needs {', '.join(f'{name}=0 or 1' for name in missing)} too")
    return Concept(member, (tuple(float(values[name]) for name in names),), values)


def _class_number(text: str, count: int, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < count:
        return int(text)
    known = ", ".join(names[:12]) if names else f"0 to {count - 1}"
    raise ConfigError(f"{text!r}: this energy needs one of the classes {known}")


def check_together(configs: Sequence[TrainConfig], names: Sequence[str]) -> None:
    """ConfigError unless all energies are of one data set at one image shape."""
    first = configs[0]
    for cfg, name in zip(configs, names, strict=True):
        if cfg.image_shape != first.image_shape:
            raise ConfigError(f"{name} is of images {cfg.image_shape}, {names[0]} of {first.image_shape}: must agree")
        if cfg.data.name != first.data.name:
            raise ConfigError(f"{name} is of {cfg.data.name}, {names[0]} of {first.data.name}: no judge reads both")


def draw_shard(
    models: Sequence[EnergyModel], how: Recipe, sampler: SamplerConfig, *, seed: int, shard: int, count: int
) -> Pixels:
    """Images (count c h w) of an image shard: chains of sampler.generate_steps steps from U(0, 1) on a composition.

    Its noise is the same for every recipe. Raises CheckpointError when a chain or an energy leaves the
    finite numbers.
    """
    energy = how.energy(models)
    first = next(models[0].parameters())
    rng = stream(seed, shard, "compose", device=first.device)
    cfg = replace(sampler, step_size=sampler.step_size * how.step_fraction)
    x = uniform((count, *models[0].image_shape), rng, first.device, first.dtype)
    x, _ = chain(energy, x, cfg, rng, num_steps=cfg.generate_steps)
    with torch.no_grad():
        finite = torch.isfinite(energy(x)) & torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise CheckpointError(
            f"{int((~finite).sum())} of {count} composed images or their energies are not finite: use earlier "
            "checkpoints, or smaller weights"
        )
    return quantize(x).cpu()


def score(images: Mapping[str, Pixels], how: Recipe, judge: Judge) -> dict[str, Any]:
    """What the judge reads off sets of images by name, one row each, beside real held-out images; ready for JSON.

    A row: share of images that have each value asked for, and `as_asked` for the recipe as a whole. `judge`: how often
    it reads real held-out images rightly, and the share of them that have each value.
    """
    asked = asked_values(how)
    rows = {}
    for name, pixels in images.items():
        read = judge.read(pixels)
        holds = {f"{factor}={value}": float((read[factor] == value).mean()) for factor, value in asked}
        rows[name] = {"num_images": len(pixels), "factors": holds, "as_asked": float(how.holds(read).mean())}
    return {
        "judge": {
            "accuracy": {f"{name}={value}": judge.accuracy[name] for name, value in asked},
            "real_share": {f"{name}={value}": judge.share[name][value] for name, value in asked},
        },
        "rows": rows,
    }


def asked_values(how: Recipe) -> list[tuple[str, int]]:
    """(factor, value) of all concepts, each pair once: an `or` may ask for two values of one factor."""
    return list(dict.fromkeys(pair for concept in how.concepts for pair in concept.factors.items()))


def own_concepts(rows: Float[Tensor, "n k"], names: Sequence[str]) -> tuple[list[Concept], Concept]:
    """Each attribute of one energy as a concept of its own, and all of them at once.

    rows: the attributes (0 or 1) of the training images. A concept asks for 1 of its attribute and leaves the others
    open: the mixture over the combinations that occur with it, as often as they do. Raises ConfigError for fewer than
    two attributes, more than MOST_CONDITIONS combinations, or attributes that never occur together.
    """
    if len(names) < 2:
        raise ConfigError("metric composition: the run is conditional on one attribute; it needs two or more")
    kinds, counts = torch.unique(rows, dim=0, return_counts=True)
    if len(kinds) > MOST_CONDITIONS:
        raise ConfigError(
            f"metric composition: {len(kinds)} combinations of attributes occur, at most {MOST_CONDITIONS} are "
            "composed; train with fewer data.attributes"
        )
    if not bool((kinds == 1).all(dim=1).any()):
        raise ConfigError(f"metric composition: no image has all of {', '.join(names)}; train with others")
    concepts = []
    for i, name in enumerate(names):
        chosen = kinds[:, i] == 1
        odds = counts[chosen] / counts[chosen].sum()
        conditions = tuple(tuple(row) for row in kinds[chosen].tolist())
        concepts.append(Concept(0, conditions, {name: 1}, tuple(odds.tolist())))
    return concepts, Concept(0, ((1.0,) * len(names),), dict.fromkeys(names, 1))


def _told(model: EnergyModel, concept: Concept, sharpness: float) -> Energy:
    if not concept.conditions:
        return model
    energies = [conditional(model, torch.tensor(condition)) for condition in concept.conditions]
    return energies[0] if len(energies) == 1 else mixture(energies, concept.odds, sharpness)
