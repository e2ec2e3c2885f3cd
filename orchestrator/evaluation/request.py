"""What a person asks of `ebm evaluate`, checked before anything starts."""

from dataclasses import dataclass

from ebm_core.errors import ConfigError
from workers.metrics.feature_metrics import FIELD_IMAGES
from workers.studies.chains import NUM_TIMES
from workers.studies.ood_sets import PROTOCOLS


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to score. `evaluate` checks the names of the metrics."""

    metrics: tuple[str, ...]
    num_images: int = 1000
    """Generated images."""
    seed: int = 0
    num_reference: int = FIELD_IMAGES
    """Largest number of training images behind scores in Inception features."""
    protocol: str = "strict"
    """Of metric ood: `strict`, or `paper_code` as the published code has it."""
    ood_sets: tuple[str, ...] = ()
    """NAME or NAME=FOLDER each; empty: those of Table 3 for CIFAR-10, else interpolation and noise. The held-out split
    is always there."""
    ood_images: int | None = None
    """Largest number of images of a set; a larger one is thinned evenly. None: all."""
    cifar100_fault: bool = False
    """Beside cifar100, the published code's reader, which returns the first image always."""
    num_chains: int = 64
    """Chains of the study of long chains."""
    chain_steps: int = 1000
    """Their steps; the paper goes up to 3,000."""
    descent_steps: int = 1000
    """Steps of the variant without noise and transitions (Fig. 8)."""
    transition_every: int | None = None
    """Steps between transitions of these chains; None: the run's own."""
    num_actors: int | None = None
    """None: one per CPU of the cluster, or per GPU."""
    use_gpu: bool = False
    """A GPU for each actor."""

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ConfigError(f"`num_images` {self.num_images}: a score needs at least 2")
        if self.num_reference < 2:
            raise ConfigError(f"`num_reference` {self.num_reference}: at least 2 training images to compare with")
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"`protocol` {self.protocol}: unknown; known: {', '.join(PROTOCOLS)}")
        if self.cifar100_fault and self.protocol != "paper_code":
            raise ConfigError("`cifar100_fault`: a fault of the published code; it needs `protocol` paper_code")
        if self.ood_images is not None and self.ood_images < 2:
            raise ConfigError(f"`ood_images` {self.ood_images}: at least 2")
        if self.num_chains < 2:
            raise ConfigError(f"`num_chains` {self.num_chains}: distances between chains need at least 2")
        if self.chain_steps < NUM_TIMES:
            raise ConfigError(f"`chain_steps` {self.chain_steps}: at least {NUM_TIMES}, the times that are looked at")
        if self.descent_steps < NUM_TIMES:
            raise ConfigError(
                f"`descent_steps` {self.descent_steps}: at least {NUM_TIMES}, the times that are looked at"
            )
        if self.num_actors is not None and self.num_actors < 1:
            raise ConfigError(f"`num_actors` {self.num_actors}: at least 1")
