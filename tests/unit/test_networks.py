"""The allow-listed networks: their inputs and outputs, and that they equal the published networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from inference.networks import BUILDERS, build, outline, shapes
from inference.networks.encoders import ENCODERS
from inference.preprocess import fit, normalise

# Arguments of the networks that cannot be built without any.
_COMPOSED: dict[str, dict[str, Any]] = {
    "classifier": {"encoder": "resnet34"},
    "ensemble": {"members": [{"architecture": "plain-classifier"}]},
    "largest-of-map": {"of": {"architecture": "residual-unet"}, "pixels": 3},
}


def parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


# An ONNX graph is data, whose answers depend on the graph (test_foreign_networks.py).
@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - {"onnx"}))
def test_each_network_gives_one_logit_or_one_map(name: str) -> None:
    network = build(name, **_COMPOSED.get(name, {})).eval()
    with torch.inference_mode():
        for number in (1, 2):
            found = network(torch.rand(number, 1, 32, 32))
            assert found.shape in ((number, 1), (number, 1, 32, 32))
            assert found.dtype == torch.float32
            assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        # The count of torchvision and of the paper.
        ("densenet-121", {"outputs": 1000, "stem": "imagenet"}, 7_978_856),
        # The count of CheXNet.
        ("densenet-121", {"outputs": 14, "stem": "imagenet"}, 7_978_856 - 1025 * 986),
        # One output and one grey input channel.
        ("densenet-121", {}, 7_978_856 - 1025 * 999 - 2 * 64 * 49),
        # The count of segmentation_models.pytorch.
        ("unet-resnet34", {"stem": "imagenet"}, 24_436_369),
    ],
)
def test_each_network_has_the_published_number_of_parameters(
    name: str, arguments: dict[str, Any], count: int
) -> None:
    assert parameters(build(name, **arguments)) == count


def test_the_encoder_is_a_resnet34() -> None:
    encoder = build("unet-resnet34", stem="imagenet").get_submodule("encoder")
    # torchvision's count without the layer of 1,000 classes.
    assert parameters(encoder) == 21_797_672 - 1000 * 513


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("densenet-121", "features.conv0.weight", (64, 3, 7, 7)),
        ("densenet-121", "features.norm0.running_var", (64,)),
        ("densenet-121", "features.denseblock1.denselayer1.norm1.weight", (64,)),
        ("densenet-121", "features.denseblock4.denselayer16.conv2.weight", (32, 128, 3, 3)),
        ("densenet-121", "features.transition3.conv.weight", (512, 1024, 1, 1)),
        ("densenet-121", "features.norm5.bias", (1024,)),
        ("densenet-121", "classifier.weight", (1, 1024)),
        ("unet-resnet34", "encoder.conv1.weight", (64, 3, 7, 7)),
        ("unet-resnet34", "encoder.layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("unet-resnet34", "encoder.layer4.2.bn2.num_batches_tracked", ()),
        ("unet-resnet34", "decoder.blocks.0.conv1.0.weight", (256, 768, 3, 3)),
        ("unet-resnet34", "decoder.blocks.4.conv2.1.weight", (16,)),
        ("unet-resnet34", "segmentation_head.0.bias", (1,)),
    ],
)
def test_weights_have_the_names_that_published_checkpoints_have(
    name: str, key: str, shape: tuple[int, ...]
) -> None:
    assert tuple(shapes(name, stem="imagenet")[key].shape) == shape


def test_only_trained_weights_and_statistics_are_stored() -> None:
    assert (
        len(shapes("densenet-121", stem="imagenet")) == len(shapes("densenet-121")) == 121 * 6 + 1
    )
    assert not any(name.startswith("input") for name in shapes("unet-resnet34", stem="imagenet"))


def test_the_imagenet_stem_standardises_as_published() -> None:
    stem = build("densenet-121", stem="imagenet").get_submodule("input")
    black = stem(torch.zeros(1, 1, 1, 1)).flatten()
    white = stem(torch.ones(1, 1, 1, 1)).flatten()
    assert black.tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)
    assert white.tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("os.system", {}, "allowed"),
        ("residual-classifier", {"widths": [10**9] * 5}, r"widths\.0"),
        ("residual-classifier", {"widths": [1024, 1024]}, "stage 0"),
        ("residual-classifier", {"widths": [8] * 1000}, "at most 7"),
        ("residual-classifier", {"blocks": 10**6}, "blocks"),
        ("residual-classifier", {"dropout": 7.0}, "dropout"),
        ("residual-unet", {"up_widths": [8, 8, 8, 1024]}, "stage 0"),
        ("residual-unet", {"up_widths": [8]}, "arguments of residual-unet"),
        ("densenet-121", {"outputs": 10**9}, "outputs"),
        ("densenet-121", {"stem": "__import__"}, "stem"),
        ("unet-resnet34", {"$import": "os"}, r"\$import"),
        ("unet-resnet34", {"_target_": "os.system"}, "_target_"),
    ],
)
def test_arguments_out_of_bounds_are_refused_before_building(
    name: str, arguments: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        build(name, **arguments)
    with pytest.raises(ValueError, match=word):
        shapes(name, **arguments)


def test_shapes_use_no_memory_and_bound_the_weights() -> None:
    with pytest.raises(ValueError, match="weights, at most"):
        shapes("residual-classifier", widths=[128, 256, 512, 1024, 2048, 2048, 2048], blocks=16)
    assert all(one.device.type == "meta" for one in shapes("unet-resnet34").values())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, _COMPOSED.get(name, {})) for name in sorted(BUILDERS.keys() - {"onnx"})),
        *(("classifier", {"encoder": name, "stem": "imagenet"}) for name in sorted(ENCODERS)),
        ("densenet-121", {"stem": "imagenet"}),
        ("unet", {"stem": "imagenet"}),
        ("onnx", {"size": 8}),
    ],
)
def test_an_outline_lacks_only_what_a_package_stores(name: str, arguments: dict[str, Any]) -> None:
    """So no tensor of a network that is filled from a package is without values."""
    network = outline(name, **arguments)
    stored = {key: torch.empty_like(one, device="cpu") for key, one in network.state_dict().items()}
    network.load_state_dict(stored, assign=True)
    assert not [one for one in (*network.parameters(), *network.buffers()) if one.is_meta]


def test_the_unit_normalisation_gives_the_picture_unchanged() -> None:
    picture = np.linspace(0, 1, 32 * 16, dtype=np.float32).reshape(32, 16)
    fitted = fit(picture, 32)
    given = normalise(fitted.pixels, fitted.geometry, "unit")
    assert (given[:, 8:24] == picture).all()
    assert (given[:, :8] == 0).all()
    assert (given[:, 24:] == 0).all()
