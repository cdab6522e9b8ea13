"""The allow-list of architectures that a model package may name.

Each takes (n, 1, side, side) float32. A builder's signature also bounds its arguments: they come
from a package, and are checked before anything is built.

A new network is a file in this folder and, here, a builder function with its row of `BUILDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    validate_call,
)
from torch import Tensor, nn

from inference.networks.conv_stack import CONV_STACK_WIDTHS, ConvStack
from inference.networks.dc_unet import DCUNet
from inference.networks.decoders.deeplab_v3 import DeepLabV3Decoder
from inference.networks.decoders.encnet import EncNetDecoder
from inference.networks.decoders.fcn import FCNDecoder
from inference.networks.decoders.fcn_transposed import TransposedDecoder
from inference.networks.decoders.fpn import FPNDecoder
from inference.networks.decoders.linknet import LinkNetDecoder
from inference.networks.decoders.unet import UP_WIDTHS as UNET_UP_WIDTHS
from inference.networks.decoders.unet import UNetDecoder
from inference.networks.decoders.unet_plus_plus import UNetPlusPlusDecoder
from inference.networks.densenet import DenseNet121
from inference.networks.double_unet import DoubleUNet
from inference.networks.encoder_classifier import EncoderClassifier
from inference.networks.encoder_decoder import EncoderDecoder
from inference.networks.ensemble import Ensemble
from inference.networks.largest_of_map import LargestOfMap
from inference.networks.monai_unet_plus_plus import FEATURES, MonaiUNetPlusPlus
from inference.networks.onnx_graph import Gives, OnnxGraph, is_installed
from inference.networks.plain import PLAIN_WIDTHS, PlainClassifier
from inference.networks.plain_unet import PLAIN_UNET_UP_WIDTHS, PLAIN_UNET_WIDTHS, PlainUNet
from inference.networks.residual import BLOCKS, WIDTHS, ResidualClassifier
from inference.networks.unet import UP_WIDTHS, ResidualUNet

# The most parameters of one network; the largest of the usual encoders has 1.2e8.
MAX_WEIGHTS = 1 << 29
# How deeply networks may be nested: an ensemble of largest-of-map, or the reverse.
_MAX_DEPTH = 2
_MAX_MEMBERS = 8


def _pyramid(first: int) -> Callable[[Sequence[int]], Sequence[int]]:
    """Limits of a network's widths.

    At most `first` maps of the largest size; each further stage, with a quarter of the pixels, may
    double that.
    """

    # `shapes` bounds the weights before they are made; this bounds the maps of one image.
    def checked(widths: Sequence[int]) -> Sequence[int]:
        for stage, width in enumerate(widths):
            if width > first << stage:
                raise ValueError(
                    f"stage {stage} has {width} maps, at most {first << stage} allowed"
                )

        return widths

    return checked


def _upwards(
    check: Callable[[Sequence[int]], Sequence[int]],
) -> Callable[[Sequence[int]], Sequence[int]]:
    return lambda widths: check(widths[::-1])[::-1]


def _features(widths: Sequence[int]) -> Sequence[int]:
    # The last one is at full resolution again.
    return [*_FULL(widths[:-1]), *_FULL(widths[-1:])]


# For networks that begin at the full side, and at half of it.
_FULL, _HALF = (
    _pyramid(64),
    _pyramid(128),
)
# Squeeze-and-excitation needs an eighth of it.
_Width = Annotated[int, Field(ge=8, le=2048)]
_Stages = Annotated[Sequence[_Width], Field(min_length=2, max_length=7)]
_Widths = Annotated[_Stages, AfterValidator(_HALF)]
_UpWidths = Annotated[
    Sequence[_Width], Field(min_length=1, max_length=6), AfterValidator(_upwards(_HALF))
]
_FullWidths = Annotated[_Stages, AfterValidator(_FULL)]
_FullUpWidths = Annotated[
    Sequence[_Width], Field(min_length=1, max_length=6), AfterValidator(_upwards(_FULL))
]
_Features = Annotated[
    Sequence[_Width], Field(min_length=6, max_length=6), AfterValidator(_features)
]
# Every map has the full side.
_StackWidths = Annotated[
    Sequence[Annotated[int, Field(ge=4, le=64)]], Field(min_length=1, max_length=12)
]
_Blocks = Annotated[int, Field(ge=1, le=16)]
_Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
_Outputs = Annotated[int, Field(ge=1, le=1000)]
_Hidden = Annotated[int, Field(ge=0, le=4096)]
_Pixels = Annotated[int, Field(ge=1, le=2048 * 2048)]
_Stem = Literal["grey", "imagenet"]
_EncoderStem = Literal["grey", "imagenet", "torchxrayvision"]
_Stride = Literal[8, 16, 32]
_Kernels = Annotated[Sequence[Literal[4, 8, 16, 32, 64]], Field(min_length=1, max_length=5)]
_Strides = Annotated[Sequence[Literal[2, 4, 8, 16, 32]], Field(min_length=1, max_length=5)]
# The most bytes of a graph with its weights
_Bytes = Annotated[int, Field(ge=1, le=MAX_WEIGHTS)]
# Of one grey map, or of red, green and blue
_Colours = Annotated[Sequence[FiniteFloat], Field(min_length=1, max_length=3)]
# encoders/ has the list of names.
_Encoder = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    """A network inside another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    arguments: dict[str, JsonValue] = {}

    def build(self) -> nn.Module:
        return build(self.architecture, **self.arguments)


class _Member(_Part):
    # None: the side of the ensemble's input.
    side: Annotated[int, Field(ge=32, le=2048)] | None = None


_Members = Annotated[list[_Member], Field(min_length=1, max_length=_MAX_MEMBERS)]


@validate_call
def _plain_classifier(widths: _Widths = PLAIN_WIDTHS) -> nn.Module:
    return PlainClassifier(widths)


@validate_call
def _residual_classifier(
    widths: _Widths = WIDTHS, blocks: _Blocks = BLOCKS, dropout: _Dropout = 0.3
) -> nn.Module:
    return ResidualClassifier(widths, blocks, dropout)


@validate_call
def _residual_unet(
    widths: _Widths = WIDTHS, blocks: _Blocks = BLOCKS, up_widths: _UpWidths = UP_WIDTHS
) -> nn.Module:
    return ResidualUNet(widths, blocks, up_widths)


@validate_call
def _densenet_121(outputs: _Outputs = 1, stem: _EncoderStem = "grey") -> nn.Module:
    return DenseNet121(outputs, stem)


@validate_call
def _unet(
    encoder: _Encoder = "resnet34",
    stem: _EncoderStem = "grey",
    up_widths: _FullUpWidths = UNET_UP_WIDTHS,
) -> nn.Module:
    return EncoderDecoder(encoder, stem, partial(UNetDecoder, up_widths=up_widths))


@validate_call
def _unet_resnet34(stem: _EncoderStem = "grey") -> nn.Module:
    return EncoderDecoder("resnet34", stem, UNetDecoder)


@validate_call
def _unet_plus_plus(
    encoder: _Encoder = "resnet34",
    stem: _EncoderStem = "grey",
    up_widths: _FullUpWidths = UNET_UP_WIDTHS,
    residual: bool = False,
    deep_supervision: bool = False,
) -> nn.Module:
    decoder = partial(
        UNetPlusPlusDecoder,
        up_widths=up_widths,
        residual=residual,
        deep_supervision=deep_supervision,
    )
    return EncoderDecoder(encoder, stem, decoder)


@validate_call
def _linknet(encoder: _Encoder = "resnet34", stem: _EncoderStem = "grey") -> nn.Module:
    return EncoderDecoder(encoder, stem, LinkNetDecoder)


@validate_call
def _fpn(encoder: _Encoder = "resnet34", stem: _EncoderStem = "grey") -> nn.Module:
    return EncoderDecoder(encoder, stem, FPNDecoder)


@validate_call
def _deeplab_v3(
    encoder: _Encoder = "resnet34", stem: _EncoderStem = "grey", stride: _Stride = 16
) -> nn.Module:
    return EncoderDecoder(encoder, stem, partial(DeepLabV3Decoder, stride=stride), stride)


@validate_call
def _encnet(
    encoder: _Encoder = "resnet34", stem: _EncoderStem = "grey", stride: _Stride = 8
) -> nn.Module:
    return EncoderDecoder(encoder, stem, partial(EncNetDecoder, stride=stride), stride)


@validate_call
def _fcn(
    encoder: _Encoder = "resnet34",
    stem: _EncoderStem = "grey",
    hidden: Annotated[int, Field(ge=1, le=4096)] = 512,
    kernel: Literal[1, 3, 5, 6, 7] = 3,
    dropout: _Dropout = 0.5,
    skips: Literal[0, 1, 2] = 2,
) -> nn.Module:
    decoder = partial(FCNDecoder, hidden=hidden, kernel=kernel, dropout=dropout, skips=skips)
    return EncoderDecoder(encoder, stem, decoder)


@validate_call
def _fcn_transposed(
    encoder: _Encoder = "resnet34",
    stem: _EncoderStem = "grey",
    kernels: _Kernels = (16, 32, 64),
    strides: _Strides = (2, 2, 8),
    dropout: _Dropout = 0.5,
) -> nn.Module:
    decoder = partial(TransposedDecoder, kernels=kernels, strides=strides, dropout=dropout)
    return EncoderDecoder(encoder, stem, decoder)


@validate_call
def _conv_stack(widths: _StackWidths = CONV_STACK_WIDTHS) -> nn.Module:
    return ConvStack(widths)


@validate_call
def _plain_unet(
    widths: _FullWidths = PLAIN_UNET_WIDTHS, up_widths: _FullUpWidths = PLAIN_UNET_UP_WIDTHS
) -> nn.Module:
    return PlainUNet(widths, up_widths)


@validate_call
def _double_unet(blocks: Literal[2, 3, 4] = 4, stem: _Stem = "grey") -> nn.Module:
    return DoubleUNet(blocks, stem)


@validate_call
def _dc_unet() -> nn.Module:
    return DCUNet()


@validate_call
def _monai_unet_plus_plus(
    features: _Features = FEATURES, deep_supervision: bool = False
) -> nn.Module:
    return MonaiUNetPlusPlus(features, deep_supervision)


@validate_call
def _classifier(
    encoder: _Encoder, stem: _EncoderStem = "grey", hidden: _Hidden = 0, dropout: _Dropout = 0.0
) -> nn.Module:
    return EncoderClassifier(encoder, stem, hidden, dropout)


@validate_call
def _ensemble(members: _Members, flip: bool = False) -> nn.Module:
    return Ensemble([one.build() for one in members], [one.side for one in members], flip)


@validate_call
def _largest_of_map(of: _Part, pixels: _Pixels) -> nn.Module:
    return LargestOfMap(of.build(), pixels)


@validate_call
def _onnx(
    size: _Bytes,
    low: FiniteFloat = 0.0,
    high: FiniteFloat = 1.0,
    mean: _Colours = (0.0,),
    deviation: _Colours = (1.0,),
    index: Annotated[int, Field(ge=0, le=999)] = 0,
    gives: Gives = "logits",
) -> nn.Module:
    if not is_installed():
        raise ValueError(
            "onnx: the extra is not installed; install Pleura's extra onnxruntime (docs/install.md)"
        )
    return OnnxGraph(size, low, high, mean, deviation, index, gives)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "plain-classifier": _plain_classifier,
    "residual-classifier": _residual_classifier,
    "residual-unet": _residual_unet,
    "densenet-121": _densenet_121,
    "unet": _unet,
    "unet-resnet34": _unet_resnet34,
    "unet-plus-plus": _unet_plus_plus,
    "linknet": _linknet,
    "fpn": _fpn,
    "deeplab-v3": _deeplab_v3,
    "encnet": _encnet,
    "fcn": _fcn,
    "fcn-transposed": _fcn_transposed,
    "conv-stack": _conv_stack,
    "plain-unet": _plain_unet,
    "double-unet": _double_unet,
    "dc-unet": _dc_unet,
    "monai-unet-plus-plus": _monai_unet_plus_plus,
    "classifier": _classifier,
    "ensemble": _ensemble,
    "largest-of-map": _largest_of_map,
    "onnx": _onnx,
}


def build(architecture: str, **arguments: Any) -> nn.Module:
    """A network with random weights.

    Raises:
        ValueError: a name that is not on the list, or arguments that its builder does not accept.
    """
    if architecture not in BUILDERS:
        raise ValueError(
            f"architecture: {architecture[:60]!r} found, allowed: {', '.join(sorted(BUILDERS))}"
        )

    depth = _depth(arguments)
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"arguments of {architecture}: networks nested {depth} deep, at most {_MAX_DEPTH} "
            "allowed"
        )

    try:
        return BUILDERS[architecture](**arguments)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, one['loc']))[:60]}: {one['msg']}" for one in error.errors()[:5]
        )
        raise ValueError(f"arguments of {architecture}: {'; '.join(faults)}") from error
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"arguments of {architecture}: {error}") from error


def outline(architecture: str, **arguments: Any) -> nn.Module:
    """A network whose stored tensors have shapes and types, but no memory and no values (torch's
    "meta" device).

    Raises:
        ValueError: as `build`; also more weights than the limit.
    """
    with torch.device("meta"):
        network = build(architecture, **arguments)

    count = sum(one.numel() for one in network.state_dict().values())
    if count > MAX_WEIGHTS:
        raise ValueError(
            f"arguments of {architecture}: {count} weights, at most {MAX_WEIGHTS} allowed"
        )

    return network


def shapes(architecture: str, **arguments: Any) -> dict[str, Tensor]:
    """The tensors that a network needs, by name, as in its `outline`.

    Raises:
        ValueError: as `outline`.
    """
    tensors: dict[str, Tensor] = outline(architecture, **arguments).state_dict()
    return tensors


def _depth(arguments: Any) -> int:
    """How deeply networks are nested in arguments."""
    if isinstance(arguments, dict):
        return ("architecture" in arguments) + max(map(_depth, arguments.values()), default=0)
    return max(map(_depth, arguments), default=0) if isinstance(arguments, list) else 0
