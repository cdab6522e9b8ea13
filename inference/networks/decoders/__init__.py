"""Decoders: an encoder's five feature maps -> the features of the logits. One file each."""

from __future__ import annotations

from torch import Tensor, nn


class Decoder(nn.Module):
    """Five maps at 1/2 to 1/32 of the side -> features.

    They are (n, `width`, side / `stride`, side / `stride`).
    """

    width: int
    stride = 1
    # Of the convolution that makes logits.
    kernel = 1

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The features.

        While training, auxiliary logits may follow: maps of any size, or (n, 1) "not empty".
        """
        raise NotImplementedError

    def head(self) -> nn.Sequential:
        """Features -> (n, 1, side, side) logits."""
        head = nn.Sequential(nn.Conv2d(self.width, 1, self.kernel, padding=self.kernel // 2))
        if self.stride > 1:
            head.append(nn.Upsample(scale_factor=self.stride, mode="bilinear"))
        return head
