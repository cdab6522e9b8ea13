"""The allow-list of architectures that a model package may name. Each takes (n, 1, side, side) float32.

A builder's signature is also the bounds of its arguments: they come from a package, and are checked before anything
is built. A new network is a file in this folder and a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, ValidationError, validate_call
from torch import Tensor, nn

from inference.networks.densenet import DenseNet121
from inference.networks.plain import PLAIN_WIDTHS, PlainClassifier
from inference.networks.residual import BLOCKS, WIDTHS, ResidualClassifier
from inference.networks.unet import UP_WIDTHS, ResidualUNet
from inference.networks.unet_resnet34 import UNetResNet34

_FIRST_WIDTH = 128  # of the largest maps, a quarter of the input's pixels each; each further stage may double it
MAX_WEIGHTS = 1 << 29  # of one network; the largest of the usual encoders has 1.2e8


def _pyramid(widths: Sequence[int]) -> Sequence[int]:
    # Weights are counted before they are made (`shapes`); what an image costs on its way through is bounded here.
    for stage, width in enumerate(widths):
        if width > _FIRST_WIDTH << stage:
            raise ValueError(f"stage {stage} has {width} maps, at most {_FIRST_WIDTH << stage} allowed")
    return widths


def _reversed_pyramid(widths: Sequence[int]) -> Sequence[int]:
    _pyramid(widths[::-1])
    return widths


_Width = Annotated[int, Field(ge=8, le=2048)]  # squeeze-and-excitation wants an eighth of it
_Stages = Annotated[Sequence[_Width], Field(min_length=2, max_length=7)]
_Widths = Annotated[_Stages, AfterValidator(_pyramid)]
_UpWidths = Annotated[Sequence[_Width], Field(min_length=1, max_length=6), AfterValidator(_reversed_pyramid)]
_Blocks = Annotated[int, Field(ge=1, le=16)]
_Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
_Outputs = Annotated[int, Field(ge=1, le=1000)]
_Stem = Literal["grey", "imagenet"]


@validate_call
def _plain_classifier(widths: _Widths = PLAIN_WIDTHS) -> nn.Module:
    return PlainClassifier(widths)


@validate_call
def _residual_classifier(widths: _Widths = WIDTHS, blocks: _Blocks = BLOCKS, dropout: _Dropout = 0.3) -> nn.Module:
    return ResidualClassifier(widths, blocks, dropout)


@validate_call
def _residual_unet(widths: _Widths = WIDTHS, blocks: _Blocks = BLOCKS, up_widths: _UpWidths = UP_WIDTHS) -> nn.Module:
    return ResidualUNet(widths, blocks, up_widths)


@validate_call
def _densenet_121(outputs: _Outputs = 1, stem: _Stem = "grey") -> nn.Module:
    return DenseNet121(outputs, stem)


@validate_call
def _unet_resnet34(stem: _Stem = "grey") -> nn.Module:
    return UNetResNet34(stem)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "plain-classifier": _plain_classifier,
    "residual-classifier": _residual_classifier,
    "residual-unet": _residual_unet,
    "densenet-121": _densenet_121,
    "unet-resnet34": _unet_resnet34,
}


def build(architecture: str, **arguments: Any) -> nn.Module:
    """A network with random weights.

    Raises:
        ValueError: a name that is not on the list, or arguments its builder does not take.
    """
    if architecture not in BUILDERS:
        raise ValueError(f"architecture: {architecture[:60]!r} found, allowed: {', '.join(sorted(BUILDERS))}")
    try:
        return BUILDERS[architecture](**arguments)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, one['loc']))[:60]}: {one['msg']}" for one in error.errors()[:5])
        raise ValueError(f"arguments of {architecture}: {'; '.join(faults)}") from error
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"arguments of {architecture}: {error}") from error


def shapes(architecture: str, **arguments: Any) -> dict[str, Tensor]:
    """The tensors a network's weights must be, by name: shape and type without memory (torch's "meta" device).

    Raises:
        ValueError: as `build`; also more weights than any network here has a use for.
    """
    with torch.device("meta"):
        tensors: dict[str, Tensor] = build(architecture, **arguments).state_dict()
    count = sum(one.numel() for one in tensors.values())
    if count > MAX_WEIGHTS:
        raise ValueError(f"arguments of {architecture}: {count} weights, at most {MAX_WEIGHTS} allowed")
    return tensors
