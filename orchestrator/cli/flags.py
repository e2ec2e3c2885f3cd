"""How the command line calls the arguments that an error names: libraries know an argument's name, flags stand here."""

import re

FLAGS = {
    "address": "--address",
    "constants": "--constants",
    "json": "--json",
    "max_concurrent": "--max-concurrent",
    "metric": "--metric",
    "metrics": "--metrics",
    "mode": "--mode",
    "name": "--name",
    "num_actors": "--actors",
    "num_images": "--num-images",
    "num_reference": "--num-reference",
    "operation": "--op",
    "out": "--out",
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


def of_section(section: str, text: str) -> str:
    """A message about a setting of a section in the words of a command that has flags for it: `evaluation.metrics = x`
    becomes --metrics x."""

    def flag(match: re.Match[str]) -> str:
        return f"{FLAGS[match[1]]} " if match[1] in FLAGS else match[0]

    return re.sub(rf"{section}\.(\w+) = ", flag, text)
