"""Any encoder under any decoder: an image -> a map of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks import encoders
from inference.networks.decoders import Decoder

DILATIONS: dict[int, dict[str, int]] = {32: {}, 16: {"layer4": 2}, 8: {"layer3": 2, "layer4": 4}}


class EncoderDecoder(nn.Module):
    """(n, 1, side, side) float32 -> (n, 1, side, side) logits; the side is a multiple of 32.

    `stem` as in DenseNet121: "grey" or "imagenet". While training, decoders with auxiliary outputs
    make it a list: the map, then maps at the full side or (n, 1) logits of "not empty".
    """

    def __init__(
        self,
        encoder: str,
        stem: str,
        decoder: Callable[[Sequence[int]], Decoder],
        encoder_stride: int = 32,
    ) -> None:
        super().__init__()
        self.input, self.encoder = encoders.build(encoder, stem)
        dilate(self.encoder, encoder_stride)
        self.decoder = decoder(self.encoder.widths)
        self.segmentation_head = self.decoder.head()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        features, *auxiliary = self.decoder(self.encoder(self.input(x)))
        logits = torch.as_tensor(self.segmentation_head(features))
        return [logits, *(_at_full_side(one, x) for one in auxiliary)] if auxiliary else logits


def dilate(encoder: nn.Module, stride: int) -> None:
    """Stop halving at 1/`stride` of the side (8, 16 or 32), with holes in the kernels behind
    instead.

    The weights stay as they are. Yu and Koltun, "Multi-Scale Context Aggregation by Dilated
    Convolutions", ICLR 2016.

    Raises:
        ValueError: an encoder without ResNet's last two stages.
    """
    for name, rate in DILATIONS[stride].items():
        stage = getattr(encoder, name, None)
        if not isinstance(stage, nn.Module):
            raise ValueError(
                f"stride {stride}: {type(encoder).__name__} has no {name} to dilate; 32 wanted"
            )

        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
                layer.dilation = (rate, rate)
                layer.padding = tuple(rate * (size // 2) for size in layer.kernel_size)


def _at_full_side(logits: Tensor, image: Tensor) -> Tensor:
    return (
        functional.interpolate(logits, size=image.shape[2:], mode="bilinear")
        if logits.dim() == 4
        else logits
    )
