"""How the command line calls the arguments that an error names: libraries know an argument's name, flags stand here."""

import re

FLAGS = {
    "address": "--address",
    "chain_steps": "--chain-steps",
    "cifar100_fault": "--cifar100-fault",
    "constants": "--constants",
    "descent_steps": "--descent-steps",
    "json": "--json",
    "max_concurrent": "--max-concurrent",
    "metric": "--metric",
    "metrics": "--metrics",
    "mode": "--mode",
    "name": "--name",
    "num_actors": "--actors",
    "num_chains": "--chains",
    "num_images": "--num-images",
    "num_reference": "--num-reference",
    "ood_images": "--ood-images",
    "ood_sets": "--ood",
    "operation": "--op",
    "out": "--out",
    "protocol": "--protocol",
    "scheduler": "--scheduler",
    "search": "--search",
    "seed": "--seed",
    "seeds": "--seeds",
    "sharpness": "--sharpness",
    "sort": "--sort",
    "step": "--checkpoint",
    "tensorboard": "--tensorboard",
    "to": "--to",
    "trials": "--trials",
    "weights": "--weight",
}
"""Flag of each argument that a message names between backticks."""


def in_flags(text: str) -> str:
    """A message of a library in the words of the command line: `num_actors` becomes --actors."""
    return re.sub(r"`(\w+)`", lambda match: FLAGS.get(match[1], match[0]), text)
