"""Masks that a network draws itself, to learn from besides the readers' masks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inference.networks.ensemble import Ensemble
from training.fitting.batches import inputs

# Images in one forward pass
_BATCH = 16


def drawn(
    network: nn.Module,
    images: NDArray[np.uint8],
    inside: NDArray[np.int32],
    scheme: str,
    bottom: float,
) -> NDArray[np.uint8]:
    """(n, side, side) masks, 255 inside, of (n, side, side) letterboxed images, 0 to 255.

    A pixel is inside where the mean probability of the image and its mirror image reaches `bottom`.
    `inside` is (n, 4), where each image lies in its letterbox; `scheme` the normalisation. The
    network answers in eval mode, on the device that it is on.
    """
    device = next(network.parameters()).device
    masks = np.zeros_like(images)
    both = Ensemble([network], [None], flip=True)

    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            some = slice(start, start + _BATCH)
            shown = inputs(images[some], scheme, inside[some]).to(device)
            mean = torch.sigmoid(both(shown))[:, 0]
            masks[some] = (mean >= bottom).to(torch.uint8).cpu().numpy() * np.uint8(255)

    return masks
