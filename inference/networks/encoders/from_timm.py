"""Any timm encoder that halves the side five times, such as `timm-resnet34`, if timm is installed.

Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models. An optional
extra: a package without such an encoder never imports it. The weights have the names of timm's
checkpoints, behind `model.`.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.networks.encoders.base import Encoder

PREFIX = "timm-"
# Neither a colon nor a slash, which in timm introduce a hub or a folder. The tag only selects the
# checkpoint for which the input is standardised; nothing is downloaded.
_NAME = re.compile(r"[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})?")
_STRIDES = (2, 4, 8, 16, 32)
# An odd multiple of 32 is the hardest to divide: a network that accepts it accepts the others.
_SIDE = 96


class TimmEncoder(Encoder):
    """The last map of each size.

    If the network begins by quartering the side, the first map is the image itself.

    `mean` and `deviation` are what the image is standardised with for its checkpoint.
    """

    def __init__(self, model: Any, channels: int) -> None:
        super().__init__()

        if not hasattr(model, "forward_intermediates"):
            raise ValueError("timm does not give its maps (forward_intermediates)")

        places = {one["reduction"]: place for place, one in enumerate(model.feature_info)}
        if not set(_STRIDES[1:]) <= set(places):
            found = ", ".join(f"1/{stride}" for stride in sorted(places))
            raise ValueError(f"its maps are at {found} of the side; 1/4, 1/8, 1/16 and 1/32 wanted")

        self.model = model
        self.places = [places[stride] for stride in _STRIDES if stride in places]
        widths = [model.feature_info[place]["num_chs"] for place in self.places]
        self.quarters = 2 not in places
        self.widths = [4 * channels, *widths] if self.quarters else widths
        self.mean, self.deviation = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        # Names of checkpoint tensors that no map depends on.
        self.unused: frozenset[str] = frozenset()

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            x, indices=self.places, intermediates_only=True
        )
        # The image at half the side without loss: each block of four pixels becomes four channels.
        return [functional.pixel_unshuffle(x, 2), *maps] if self.quarters else maps

    def drop(self, names: tuple[str, ...]) -> None:
        """Replace these parts of the model by the identity."""
        before = self.model.state_dict().keys()
        for name in names:
            setattr(self.model, name, nn.Identity())
        self.unused = frozenset(before - self.model.state_dict().keys())


def build(name: str, channels: int) -> TimmEncoder:
    """The encoder of that name (with its prefix), with random weights.

    Raises:
        ValueError: a name of another form, one that timm does not have, a network without the maps
            that decoders need, or timm is not installed.
    """
    model = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(model):
        raise ValueError(
            f"encoder: {name[:60]!r} found; {PREFIX} and a name of timm wanted (letters, digits "
            "and _, then perhaps "
            f". and a tag), such as {PREFIX}resnet34"
        )

    timm = _library(name)
    if not timm.is_model(model):
        raise ValueError(f"encoder: {name}: timm {timm.__version__} has no such network")

    try:
        idle = _idle(model, channels)
        encoder = _made(model, channels)
        encoder.drop(idle)
    except Exception as error:
        # timm's thousand networks fail in many ways, and a package may name any of them.
        raise ValueError(
            f"encoder: {name}: no encoder can be made of it here: {_first_line(error)}"
        ) from error

    return encoder


def has(model: str) -> bool:
    """Whether timm (which must be installed) has a network of this name, with or without a tag."""
    import timm

    return bool(timm.is_model(model))


def original(name: str, classes: int) -> nn.Module:
    """timm's whole classifier of this name (with its prefix) as timm computes it, in eval mode.

    (n, 3, side, side), standardised -> (n, classes).
    """
    import timm

    model = timm.create_model(
        name.removeprefix(PREFIX), pretrained=False, num_classes=classes, in_chans=3
    )
    assert isinstance(model, nn.Module)
    return model.eval()


def _library(name: str) -> Any:
    try:
        # The caller may be on "meta", where an import would leave its constants empty.
        with torch.device("cpu"):
            import timm
    except (
        Exception
        # A torchvision built for another torch may raise other errors than ImportError.
    ) as error:
        raise ValueError(
            f"encoder: {name}: timm cannot be imported ({_first_line(error)}); "
            "install Pleura's extra timm (docs/install.md), which needs "
            f"the torchvision that was built for this torch ({torch.__version__})"
        ) from error

    return timm


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _made(model: str, channels: int) -> TimmEncoder:
    import timm

    return TimmEncoder(
        timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels), channels
    )


@functools.cache
def _idle(model: str, channels: int) -> tuple[str, ...]:
    """The parts on which no map depends, such as a head; also checks the maps that timm states.

    It uses a model without memory, because the size of a named network is not yet bounded.
    """
    with torch.device("meta"), torch.enable_grad():
        sketch = _made(model, channels).eval()
        maps = sketch(torch.zeros(1, channels, _SIDE, _SIDE))
        found = [tuple(one.shape[1:]) for one in maps]
        wanted = [
            (width, _SIDE // s, _SIDE // s)
            for width, s in zip(sketch.widths, _STRIDES, strict=True)
        ]
        if found != wanted:
            raise ValueError(f"its maps are {found} at a side of {_SIDE}, {wanted} wanted")

        torch.autograd.backward([one.sum() for one in maps if one.requires_grad])

    idle = {key.split(".")[0] for key, one in sketch.model.named_parameters() if one.grad is None}
    busy = {
        key.split(".")[0] for key, one in sketch.model.named_parameters() if one.grad is not None
    }
    if both := sorted(idle & busy):
        raise ValueError(f"no map depends on some weights in {', '.join(both)}")

    return tuple(sorted(idle))
