"""Names for the shapes that the paper's quantities have; verified whenever the tests run."""

from collections.abc import Callable

from jaxtyping import Float, UInt8
from torch import Tensor

Samples = Float[Tensor, "b *shape"]
"""A batch of points; images are (b c h w) in [0, 1]."""

Energies = Float[Tensor, "b"]
"""E(x), one number per sample, no unit."""

Scalar = Float[Tensor, ""]

Energy = Callable[[Samples], Energies]
"""E_theta as a function of x alone (a conditional model is closed over its condition first)."""

Pixels = UInt8[Tensor, "b c h w"]
"""Images as they are stored."""

ImageShape = tuple[int, int, int]
"""(channels, height, width)."""
