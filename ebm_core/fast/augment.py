"""Augmentation by this package's C++, where it gives the same bits."""

import torch

from ebm_core.augment import Apply, AugmentParams, Images, apply_params, blur_weights
from ebm_core.fast import native

EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
"""Compiler's options for `augment.cpp`: no fused multiply-adds; the others change no bit, and loops are vectorised."""


def load_native() -> Apply:
    """`apply_params` in C++, with the same bits: `apply_natively`, or `apply_params` itself where no C++ compiles."""
    try:
        native.load("augment", *EXACT)
    except native.BuildError:
        return apply_params
    return apply_natively


def apply_natively(x: Images, params: AugmentParams, blur_kernel: int) -> Images:
    """What `apply_params` gives, from `augment.cpp` (after `load_native`); float32 on a CPU, all else goes there."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return apply_params(x, params, blur_kernel)
    factors, weights = params.factors.to(x.dtype), blur_weights(blur_kernel, params.sigma).to(x.dtype)
    return torch.ops.confab.augment(
        x.contiguous(),
        params.boxes,
        params.flip,
        params.jitter,
        factors,
        params.order,
        params.gray,
        params.blur,
        weights,
    )
