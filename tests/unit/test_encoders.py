"""The encoders: maps of exact size, the published parameter counts and weight names, and no unused
weights.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inference.networks.densenet import DenseNet121
from inference.networks.encoders import ENCODERS, Encoder, build

pytestmark = pytest.mark.xdist_group("encoders")

INFERENCE = Path(__file__).resolve().parents[2] / "inference"
CLASSES = 1000


# Parameters after the encoder, and in total, as published with 1,000 classes.
PUBLISHED = {
    "alexnet": ((256 * 36 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * CLASSES, 61_100_840),
    "densenet121": ((1024 + 1) * CLASSES, 7_978_856),
    "efficientnet-b3": (384 * 1536 + 2 * 1536 + (1536 + 1) * CLASSES, 12_233_232),
    "efficientnet-b4": (448 * 1792 + 2 * 1792 + (1792 + 1) * CLASSES, 19_341_616),
    "efficientnet-lite0": (320 * 1280 + 2 * 1280 + (1280 + 1) * CLASSES, 4_652_008),
    "efficientnet-lite1": (320 * 1280 + 2 * 1280 + (1280 + 1) * CLASSES, 5_416_680),
    "efficientnet-lite2": (352 * 1280 + 2 * 1280 + (1280 + 1) * CLASSES, 6_092_072),
    "inception-resnet-v2": ((1536 + 1) * CLASSES, 55_843_464),
    "inception-v3": ((2048 + 1) * CLASSES, 23_834_568),
    "resnet34": ((512 + 1) * CLASSES, 21_797_672),
    "resnet50": ((2048 + 1) * CLASSES, 25_557_032),
    "se-resnext50": ((2048 + 1) * CLASSES, 27_559_896),
    "se-resnext101": ((2048 + 1) * CLASSES, 48_955_416),
    "senet154": ((2048 + 1) * CLASSES, 115_088_984),
    "vgg16": ((512 * 49 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * CLASSES, 138_357_544),
    "vgg19": ((512 * 49 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * CLASSES, 143_667_240),
    "xception": ((2048 + 1) * CLASSES, 22_855_952),
}
NAMES: dict[str, dict[str, tuple[int, ...]]] = {
    "densenet121": {"features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3)},
    "efficientnet-lite0": {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
        "_blocks.15._project_conv.weight": (320, 1152, 1, 1),
    },
    "inception-resnet-v2": {
        "mixed_5b.branch3.1.conv.weight": (64, 192, 1, 1),
        "repeat.9.branch2.2.conv.weight": (64, 48, 3, 3),
        "repeat_1.19.branch1.2.conv.weight": (192, 160, 7, 1),
        "mixed_7a.branch2.2.bn.weight": (320,),
        "block8.conv2d.bias": (2080,),
    },
    "inception-v3": {
        "Conv2d_2b_3x3.bn.running_mean": (64,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    },
    "senet154": {"layer0.conv1.weight": (64, 3, 3, 3), "layer0.conv3.weight": (128, 64, 3, 3)},
    "alexnet": {"features.0.weight": (64, 3, 11, 11), "features.10.bias": (256,)},
    "vgg16": {"features.28.weight": (512, 512, 3, 3)},
    "vgg19": {"features.0.weight": (64, 3, 3, 3), "features.34.bias": (512,)},
    "xception": {
        "block1.skip.weight": (128, 64, 1, 1),
        "block1.rep.0.pointwise.weight": (128, 64, 1, 1),
        "block1.rep.4.running_var": (128,),
        "block11.rep.7.conv1.weight": (728, 1, 3, 3),
        "block12.rep.4.pointwise.weight": (1024, 728, 1, 1),
        "bn4.bias": (2048,),
    },
}


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def made(request: pytest.FixtureRequest) -> tuple[str, Encoder]:
    """(name, encoder), on the meta device: shapes without memory."""
    with torch.device("meta"):
        return request.param, ENCODERS[request.param](3)


def test_each_encoder_with_its_head_has_the_published_number_of_parameters(
    made: tuple[str, Encoder],
) -> None:
    name, encoder = made
    head, published = PUBLISHED[name]
    assert sum(one.numel() for one in encoder.parameters()) + head == published


def test_weights_have_the_names_that_published_checkpoints_have(made: tuple[str, Encoder]) -> None:
    name, encoder = made
    found = {key: tuple(one.shape) for key, one in encoder.state_dict().items()}
    assert NAMES.get(name, {}).items() <= found.items()


def test_five_maps_at_exact_fractions_of_the_side_and_no_idle_weight(
    made: tuple[str, Encoder],
) -> None:
    encoder = made[1].to_empty(device="cpu").eval()
    for tensor in encoder.state_dict().values():
        tensor.zero_()
    maps = encoder(torch.zeros(1, 3, 32, 96))
    assert [tuple(one.shape) for one in maps] == [
        (1, width, size, 3 * size)
        for width, size in zip(encoder.widths, (16, 8, 4, 2, 1), strict=True)
    ]
    # Distributed training needs a gradient for every weight.
    maps[-1].sum().backward()
    assert [key for key, one in encoder.named_parameters() if one.grad is None] == []


@pytest.mark.parametrize("name", ["efficientnet-b3", "inception-v3", "se-resnext50"])
def test_the_memory_format_does_not_change_the_maps(name: str) -> None:
    torch.manual_seed(1)
    encoder = ENCODERS[name](1).double()
    # Switch off dropout, but let batch norms use the statistics of the batch: fresh running
    # statistics describe no image.
    for module in encoder.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    picture = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        plain = encoder(picture)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.testing.assert_close(
            encoder(picture.contiguous(memory_format=torch.channels_last)), plain
        )


def test_the_densenet_encoder_equals_the_classifiers() -> None:
    torch.manual_seed(1)
    classifier = DenseNet121().eval()
    encoder = ENCODERS["densenet121"](1).eval()
    encoder.load_state_dict(
        {k: v for k, v in classifier.state_dict().items() if k.startswith("features.")}
    )
    picture = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        pooled: Tensor = encoder(picture)[-1].mean((2, 3))
        torch.testing.assert_close(classifier.classifier(pooled), classifier(picture))


def test_a_fresh_vgg_keeps_the_differences_in_its_input() -> None:
    # Without batch normalisation, torch's default initialisation shrinks the signal by six orders
    # of magnitude.
    torch.manual_seed(1)
    with torch.no_grad():
        one, other = ENCODERS["vgg19"](3)(torch.randn(2, 3, 32, 32))[-1]
    assert float((one - other).std()) > 1e-3


@pytest.mark.parametrize(
    ("name", "stem", "black", "white"),
    [
        ("vgg19", "grey", [0], [1]),
        ("vgg19", "imagenet", [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.6400]),
        ("xception", "imagenet", [-1, -1, -1], [1, 1, 1]),
    ],
)
def test_each_encoder_standardises_its_input_as_its_checkpoint_expects(
    name: str, stem: str, black: list[float], white: list[float]
) -> None:
    first, encoder = build(name, stem)
    assert first(torch.zeros(1, 1, 1, 1)).flatten().tolist() == pytest.approx(black, abs=1e-4)
    assert first(torch.ones(1, 1, 1, 1)).flatten().tolist() == pytest.approx(white, abs=1e-4)
    assert next(encoder.parameters()).shape[1] == len(black)


def test_an_unknown_encoder_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"'os\.system' found, allowed: .*vgg19"):
        build("os.system", "grey")


def test_nothing_in_inference_imports_monai_or_timm_before_a_package_names_it() -> None:
    for path in INFERENCE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("monai", "timm") for name in names), path
