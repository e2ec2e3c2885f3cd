"""The networks whose features scores use, built from a state dict. Their code is torch-fidelity's and torchvision's."""

import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebm_core.data.vision import torchvision
from ebm_core.errors import DataError

State = dict[str, Tensor]


def inception(state: State) -> nn.Module:
    """torch-fidelity's Inception-V3: uint8 images (b 3 h w) to features (b 2048) and logits without bias (b 1008).

    Resizes to 299 x 299 as TensorFlow 1 does. Raises DataError for a state dict of another network.
    """
    torchvision()  # torch-fidelity imports it
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    packed = io.BytesIO()  # the constructor takes what torch.load reads: in memory, written by this very line
    torch.save(state, packed)
    packed.seek(0)
    outputs: list[str] = ["2048", "logits_unbiased"]
    return _fitted(
        "Inception-V3",
        lambda: FeatureExtractorInceptionV3("inception-v3-compat", outputs, feature_extractor_weights_path=packed),
    )


def mobilenet(state: State) -> nn.Module:
    """torchvision's MobileNetV2, width 1: normalised images (b 3 h w) to 1,280 features after the mean over pixels.

    Raises DataError for a state dict of another network.
    """

    def build() -> nn.Module:
        with torch.device("meta"):
            net = torchvision().models.mobilenet_v2(weights=None)
        net.load_state_dict(state, assign=True)
        return nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).requires_grad_(False).eval()

    return _fitted("MobileNetV2", build)


def _fitted(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (RuntimeError, TypeError, AttributeError) as error:  # what load_state_dict says of keys and shapes
        lines = [line.strip() for line in str(error).splitlines()]
        why = lines[min(1, len(lines) - 1)] if lines else type(error).__name__
        raise DataError(f"no state dict of {name}: {why[:160]}") from None


NETWORKS: dict[str, Callable[[State], nn.Module]] = {"inception": inception, "mobilenet": mobilenet}
"""By the names under which `workers.features.weights` installs them."""
