"""Cross-fitting of a segmenter: a decoder for each fold left out, and one of all images.

The encoder is frozen and has seen no mask, so the decoder that a fold's images are measured with
has learned nothing from them, as in k trainings apart; yet the encoder runs once for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inference.networks import build
from inference.networks.encoder_decoder import EncoderDecoder
from training.recipe import Stage

NO_FOLD = -1.0


class CrossFitted(nn.Module):
    """(n, 2, side, side) -> (n, 1, side, side) logits; while training a list, of each decoder.

    The first plane is the image, the second is everywhere the number of its fold, `NO_FOLD` where
    it trains all decoders. While training, decoder k gives 0 for the images of fold k, without a
    gradient. Else each image is answered by the decoder that left its fold out, an image without a
    fold by the decoder of all images.
    """

    def __init__(self, network: nn.Module, stage: Stage, folds: int) -> None:
        """`network` is built for `stage`; its encoder is shared, its decoder that of all images."""
        super().__init__()
        if not isinstance(network, EncoderDecoder):
            raise ValueError(f"cross_fit: {stage.architecture} has no encoder and decoder to part")

        self._folds = folds
        self.input, self.encoder = network.input, network.encoder

        self.decoders = nn.ModuleList()
        self.heads = nn.ModuleList()
        for _ in range(folds):
            other = build(stage.architecture, **stage.arguments)
            self.decoders.append(other.get_submodule("decoder"))
            self.heads.append(other.get_submodule("segmentation_head"))
        self.decoders.append(network.decoder)
        self.heads.append(network.segmentation_head)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        image, fold = x[:, :1], x[:, 1, 0, 0]
        shown = self.input(image).contiguous(memory_format=torch.channels_last)
        maps = self.encoder(shown)
        numbers = range(len(self.decoders))
        if self.training:
            return [self._answered(k, maps, fold != k, image) for k in numbers]

        of_all = self._folds
        known = (fold >= 0) & (fold < of_all)
        chosen = [known & (fold == k) if k < of_all else ~known for k in numbers]
        answers = [self._answered(k, maps, some, image) for k, some in enumerate(chosen)]
        return torch.stack(answers).sum(0)

    def weights_of(self, fold: int | None) -> Mapping[str, Tensor]:
        """State of the network whose decoder left this fold out; None: that left out none."""
        number = self._folds if fold is None else fold
        parts = {
            "encoder": self.encoder,
            "decoder": self.decoders[number],
            "segmentation_head": self.heads[number],
        }
        return {
            f"{part}.{name}": tensor
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }

    def network_of(self, stage: Stage, fold: int | None) -> nn.Module:
        """That network, built anew and in eval mode."""
        network = build(stage.architecture, **stage.arguments)
        network.load_state_dict(copy.deepcopy(dict(self.weights_of(fold))))
        return network.eval()

    def _answered(self, number: int, maps: list[Tensor], some: Tensor, image: Tensor) -> Tensor:
        """Logits of one decoder for `some` of the images, 0 for the others."""
        logits = torch.zeros_like(image)
        rows = torch.nonzero(some)[:, 0]
        if not len(rows):
            return logits
        features, *_ = self.decoders[number]([one[rows] for one in maps])
        return logits.index_copy(0, rows, self.heads[number](features).to(logits.dtype))
