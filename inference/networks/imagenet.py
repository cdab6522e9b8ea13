"""Input conversions for pretrained networks.

On photographs (Deng et al., "ImageNet", CVPR 2009), or by torchxrayvision on X-rays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Mean and deviation of the training photographs' red, green and blue, which every published
# checkpoint expects.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class XRayVisionInput(nn.Module):
    """(n, 1, h, w), 0 black to 1 white -> -1024 to 1024, as torchxrayvision's networks expect.

    Cohen et al., "TorchXRayVision", MIDL 2022: `normalize` scales to that range.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 2048 * x - 1024


class ImageNetInput(nn.Module):
    """(n, 1, h, w), 0 black to 1 white -> (n, 3, h, w), standardised.

    It has no trained or stored tensors.

    `mean` and `deviation` of red, green and blue: some checkpoints use other values.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, mean: Sequence[float] = _MEAN, deviation: Sequence[float] = _DEVIATION
    ) -> None:
        super().__init__()
        self.register_buffer("mean", _constants(mean), persistent=False)
        self.register_buffer("deviation", _constants(deviation), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Broadcasts one map against three.
        return (x - self.mean) / self.deviation


def _constants(colours: Sequence[float]) -> Tensor:
    # No package stores them, so they have values even in a network's outline on the meta device.
    return torch.tensor(colours, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
