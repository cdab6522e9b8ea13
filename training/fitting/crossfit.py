"""Cross-fitting of a segmenter: one decoder for each held-out fold, and one for all images.

The encoder is frozen and has seen no mask. A fold's images are measured with the decoder that never
saw them, as in k separate trainings; but the frozen encoder runs only once for all decoders.
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
    """(n, 2, side, side) -> (n, 1, side, side) logits; in training mode, a list by decoder.

    The first plane is the image. The second plane repeats the number of the image's fold, or
    `NO_FOLD` for an image that trains every decoder.

    In training mode, decoder k gives 0 for the images of fold k, without a gradient. In eval mode,
    each image goes to the decoder that held its fold out, or, without a fold, to the decoder of all
    images.
    """

    def __init__(self, network: nn.Module, stage: Stage, folds: int) -> None:
        """`network` is built for `stage`. Its encoder is shared; its decoder serves all images.

        Raises:
            ValueError: the architecture is no encoder and decoder.
        """
        super().__init__()
        if not isinstance(network, EncoderDecoder):
            raise ValueError(f"cross_fit: {stage.architecture} has no separate encoder and decoder")

        self._folds = folds
        self.input, self.encoder = network.input, network.encoder

        self.decoders = nn.ModuleList()
        self.heads = nn.ModuleList()
        for _ in range(folds):
            fresh = build(stage.architecture, **stage.arguments)
            self.decoders.append(fresh.get_submodule("decoder"))
            self.heads.append(fresh.get_submodule("segmentation_head"))

        self.decoders.append(network.decoder)
        self.heads.append(network.segmentation_head)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        image, fold = x[:, :1], x[:, 1, 0, 0]
        features = self.encoder(self.input(image).contiguous(memory_format=torch.channels_last))

        if self.training:
            return [
                self._logits(number, features, fold != number, image)
                for number in range(len(self.decoders))
            ]

        has_fold = (fold >= 0) & (fold < self._folds)
        chosen = [fold == number for number in range(self._folds)] + [~has_fold]
        logits = [self._logits(number, features, rows, image) for number, rows in enumerate(chosen)]
        return torch.stack(logits).sum(0)

    def weights_of(self, fold: int | None) -> Mapping[str, Tensor]:
        """State of the network whose decoder held this fold out; None: of all images."""
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
        """The network that `weights_of` describes, newly built and in eval mode."""
        network = build(stage.architecture, **stage.arguments)
        network.load_state_dict(copy.deepcopy(dict(self.weights_of(fold))))
        return network.eval()

    def _logits(self, number: int, features: list[Tensor], chosen: Tensor, image: Tensor) -> Tensor:
        """Logits of one decoder for the `chosen` images (n, bool), 0 for all others."""
        logits = torch.zeros_like(image)
        rows = torch.nonzero(chosen)[:, 0]
        if not len(rows):
            return logits

        decoded, *_ = self.decoders[number]([level[rows] for level in features])
        return logits.index_copy(0, rows, self.heads[number](decoded).to(logits.dtype))
