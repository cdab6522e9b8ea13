"""Networks trained elsewhere are imported as packages that give the same answers; files that
contain programs are refused.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor

from daemon import cli
from inference import keras_weights, package
from inference.container import PackageError
from inference.foreign import from_onnx, write
from inference.importing import Choices, state_dict
from inference.monai_bundle import Head, from_bundle
from inference.networks import build
from inference.networks.onnx_graph import OnnxError, checked
from tests import models
from training import phantom, timm_checkpoint
from training.fitting.weights import WeightsError

pytestmark = pytest.mark.xdist_group("foreign networks")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
CHOSEN = ["--threshold", "0.4", "--operating-point", "chosen on nothing, for a test"]


def imported(arguments: list[str | Path], tiny: Path, out: Path) -> package.Package:
    words = ["model", "import", *map(str, arguments), "--segmenter", str(tiny), "--out", str(out)]
    assert cli.main(words) == 0
    return package.load(out)


def blocks(heading: str) -> list[str]:
    """The indented blocks of a section of docs/models.md."""
    section = DOCS.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = []
    lines = list[str]()
    for line in [*section.splitlines(), "end"]:
        if line.startswith("    ") or (lines and not line):
            lines.append(line)
        elif lines:
            found.append(textwrap.dedent("\n".join(lines)).strip())
            lines = []
    return found


def test_the_tutorials_network_gives_the_same_answers_after_its_import(
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    program, commands = blocks("From ONNX")[:2]
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        # torch's exporter emits warnings.
        warnings.simplefilter("ignore")
        exec(program, names)

    arguments = shlex.split(commands.replace("\\\n", " ").splitlines()[0])
    assert arguments[:2] == ["pleura", "model"]
    assert cli.main([*arguments[1:], "--segmenter", str(tiny_package)]) == 0
    loaded = package.load(Path("mine"))
    image = torch.rand(3, 1, 224, 224)
    with torch.inference_mode():
        wanted = names["network"](image)[:, 1:]
        assert torch.allclose(torch.sigmoid(loaded.classifier(image)), wanted, atol=1e-5)
        again = copy.deepcopy(loaded.classifier)
        assert torch.equal(again(image), loaded.classifier(image))

    phantom.write(phantom.draw(0, True, size=256), Path("one.dcm"))
    capsys.readouterr()
    assert cli.main(["predict", "--model", "mine", "one.dcm"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "mine"
    assert answer["state"] == "analysed"


def test_a_quantised_graph_is_imported_and_answers_nearly_the_same(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw, _, quantise = blocks("From ONNX")[:3]
    images = torch.rand(16, 1, 1, 224, 224)
    names: dict[str, Any] = {"images": images.numpy()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(draw, names)
        exec(quantise, names)

    stored = {node.op_type for node in onnx.load("int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= stored

    words: list[str | Path] = ["int8.onnx", "--kind", "onnx", "--gives", "probabilities"]
    words += ["--output", "1", "--side", "224", "--id", "small", *CHOSEN]
    loaded = imported(words, tiny_package, tmp_path / "small")
    with torch.inference_mode():
        wanted = names["network"](images[0])[:, 1:]
        assert torch.allclose(torch.sigmoid(loaded.classifier(images[0])), wanted, atol=0.02)


def graph_of(
    *nodes: onnx.NodeProto, inputs: tuple[str, ...] = ("x",), domain: str = ""
) -> onnx.ModelProto:
    """A model of these nodes, from x (n, 1, 32, 32) to y."""
    taken = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 32, 32]) for name in inputs
    ]
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("far.away", 1)]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", taken, given), opset_imports=opsets, ir_version=8
    )


def test_an_imported_segmenter_classifies_by_its_own_map(
    tiny_package: Path, tmp_path: Path
) -> None:
    onnx.save(graph_of(helper.make_node("Neg", ["x"], ["y"])), tmp_path / "net.onnx")
    wanted = [tmp_path / "net.onnx", "--kind", "onnx", "--role", "segmenter", "--side", "32"]
    loaded = imported([*wanted, "--range", "-2", "2", *CHOSEN], tiny_package, tmp_path / "out")
    assert loaded.one_map
    image = torch.rand(2, 1, 32, 32)
    assert torch.allclose(loaded.segmenter(image), 2 - 4 * image, atol=1e-5)
    largest = (2 - 4 * image).flatten(1).max(1, keepdim=True).values
    assert torch.allclose(loaded.classifier(image), largest, atol=1e-5)


def of_another_domain() -> onnx.ModelProto:
    return graph_of(helper.make_node("Run", ["x"], ["y"], domain="far.away"))


def with_control_flow() -> onnx.ModelProto:
    inner = helper.make_graph([], "inner", [], [])
    return graph_of(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def with_weights_elsewhere() -> onnx.ModelProto:
    model = graph_of(helper.make_node("Add", ["x", "w"], ["y"]))
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")
    return model


def with_a_file_in_a_constant() -> onnx.ModelProto:
    outside = TensorProto(data_type=TensorProto.FLOAT, dims=[1])
    outside.data_location = TensorProto.EXTERNAL
    return graph_of(
        helper.make_node("Constant", [], ["w"], value=outside),
        helper.make_node("Add", ["x", "w"], ["y"]),
    )


def with_two_inputs() -> onnx.ModelProto:
    return graph_of(helper.make_node("Add", ["x", "z"], ["y"]), inputs=("x", "z"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (of_another_domain, r"operator far\.away\.Run found"),
        (with_control_flow, "operator If found"),
        (with_weights_elsewhere, "the weights of w lie in another file"),
        (with_a_file_in_a_constant, "Constant with a graph or a file inside it"),
        (with_two_inputs, "2 inputs found"),
    ],
)
def test_a_graph_with_more_than_arithmetic_is_refused(
    model: Callable[[], onnx.ModelProto], message: str
) -> None:
    with pytest.raises(OnnxError, match=message):
        checked(model().SerializeToString())


def test_a_file_that_is_not_a_graph_is_refused(tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\xffnothing")
    words = ["model", "import", str(tmp_path / "net.onnx"), "--kind", "onnx", *CHOSEN]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2


def test_a_state_dict_needs_its_architecture_by_name(tiny_package: Path, tmp_path: Path) -> None:
    network = models.tiny_networks()["classifier"]
    state = {f"module.{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.pt")
    wanted = [tmp_path / "net.pt", "--kind", "state-dict", "--side", "32", *CHOSEN]
    wanted += ["--architecture", "residual-classifier", "--normalisation", "image-standard"]
    loaded = imported(
        [*wanted, "--arguments", json.dumps(models.TINY)], tiny_package, tmp_path / "out"
    )
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded.classifier(image), network.eval()(image))
    assert loaded.manifest.classifier.normalisation == "image-standard"


def test_torchxrayvisions_fourth_output_keeps_its_scale(tiny_package: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = build("densenet-121", outputs=18)
    state = theirs.state_dict() | {"op_threshs": torch.full((18,), 0.5)}
    torch.save(state, tmp_path / "xrv.pt")
    wanted = [tmp_path / "xrv.pt", "--kind", "torchxrayvision", "--side", "64", *CHOSEN]
    loaded = imported(wanted, tiny_package, tmp_path / "out")
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        found = theirs.eval()(2048 * image - 1024)[:, 3:4]
        assert torch.allclose(loaded.classifier(image), found, rtol=1e-4, atol=1e-4)


def test_a_classifier_of_timm_keeps_its_head(tiny_package: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("classifier", encoder="efficientnet-lite0", stem="imagenet").eval()
    encoder, top = network.get_submodule("encoder"), network.get_submodule("top")
    state = dict(encoder.state_dict()) | top.state_dict()
    state |= {"_fc.weight": torch.randn(2, 1280) / 9, "_fc.bias": torch.randn(2)}
    save_file(state, tmp_path / "lite0.safetensors")
    wanted = [tmp_path / "lite0.safetensors", "--kind", "timm"]
    wanted += ["--architecture", "efficientnet-lite0"]
    wanted += ["--output", "1", "--gives", "softmax-logits", "--side", "64", *CHOSEN]
    loaded = imported(wanted, tiny_package, tmp_path / "out")

    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        features = top(encoder(network.get_submodule("input")(image))[-1]).mean((2, 3))
        classes = features @ state["_fc.weight"].T + state["_fc.bias"]
        found = torch.sigmoid(loaded.classifier(image))
        assert torch.allclose(found, classes.softmax(1)[:, 1:], atol=1e-5)


def drawn_from(steps: list[tuple[str, dict[str, Any]]]) -> bytes:
    """A graph that applies these operators in turn to a grey image of 32 px."""
    names = ["x", *map(str, range(len(steps)))]
    nodes = [
        helper.make_node(kind, [before], [after], **how)
        for (kind, how), before, after in zip(steps, names, names[1:], strict=False)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 32, 32])
    y = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "net", [x], [y]))
    model.opset_import[0].version = 17
    model.ir_version = 8
    return bytes(model.SerializeToString())


CHANNELS_LAST = ("Transpose", {"perm": [0, 2, 3, 1]})
HALVED = ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]})
CROPPED = ("MaxPool", {"kernel_shape": [5, 5]})
FLATTENED_A_LITTLE = ("MaxPool", {"kernel_shape": [1, 2], "strides": [1, 2]})


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([CHANNELS_LAST], r"channels last.*--outputs-as-nchw"),
        ([HALVED, CHANNELS_LAST], r"channels last.*--outputs-as-nchw"),
        ([CROPPED], r"28 x 28 of 32 x 32.*the same part"),
        ([FLATTENED_A_LITTLE], r"32 x 16 of 32 x 32.*the same part"),
    ],
)
def test_a_map_of_only_part_of_the_picture_is_refused_at_import(
    steps: list[tuple[str, dict[str, Any]]], message: str, tiny_package: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_bytes(drawn_from(steps))
    foreign = from_onnx(tmp_path / "net.onnx", "segmenter", 32)
    choices = Choices(0.5, "chosen on nothing", side=32, id="net")
    with pytest.raises(PackageError, match=message):
        write(foreign, tiny_package, tmp_path / "out", choices)


def test_a_map_of_half_the_side_is_enlarged(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(drawn_from([HALVED]))
    module = from_onnx(tmp_path / "net.onnx", "segmenter", 32).module
    image = torch.zeros(1, 1, 32, 32)
    image[:, :, 20:28, 4:12] = 1
    found = module(image)
    assert found.shape == image.shape
    assert found[0, 0, 23:25, 7:9].min() == 1
    assert found[0, 0, :16].max() == 0


def test_a_classifier_with_layers_that_a_package_lacks_is_refused(tmp_path: Path) -> None:
    network = build("classifier", encoder="efficientnet-lite0", stem="imagenet")
    state = dict(network.get_submodule("encoder").state_dict())
    state |= network.get_submodule("top").state_dict()
    state |= {"_fc.weight": torch.zeros(2, 1280), "_fc.bias": torch.zeros(2)}
    save_file(state | {"pre_logits.weight": torch.ones(1280)}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"pre_logits\.weight: layers that .* does not have"):
        timm_checkpoint.classifier(
            tmp_path / "net.safetensors", "efficientnet-lite0", 64, timm_checkpoint.Head()
        )


def test_a_classifier_whose_encoder_is_not_as_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"xception: computes something else .*densenet121"):
        timm_checkpoint.classifier(
            tmp_path / "net.safetensors", "xception", 64, timm_checkpoint.Head()
        )


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("net/code/__torch__.py", "TorchScript archive.*torch.onnx.export"),
        ("net/archive_format", r"torch\.export archive.*torch\.onnx\.export"),
        ("bundle/configs/metadata.json", "MONAI bundle.*--kind monai"),
    ],
)
def test_a_program_is_refused_with_advice(inside: str, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr(inside, "")
    with pytest.raises(PackageError, match=message):
        state_dict(tmp_path / "net.pt")


def bundle(folder: Path, network: dict[str, object], state: dict[str, Tensor]) -> Path:
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    document = {"network_def": network, "classes": 2}
    (folder / "configs" / "inference.json").write_text(json.dumps(document))
    torch.save(state, folder / "models" / "model.pt")
    return folder


def test_a_monai_classifier_answers_as_the_network_does_for_the_transposed_image(
    tiny_package: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = build("densenet-121", outputs=2)
    state = {
        re.sub(r"(denselayer\d+)", r"\1.layers", name).replace(
            "classifier", "class_layers.out"
        ): one
        for name, one in theirs.state_dict().items()
    }
    network = {"_target_": "DenseNet121", "spatial_dims": 2, "out_channels": "@classes"}
    folder = bundle(tmp_path / "bundle", network | {"in_channels": 1}, state)

    wanted = [folder, "--kind", "monai", "--output", "1", "--gives", "softmax-logits"]
    loaded = imported([*wanted, "--side", "64", *CHOSEN], tiny_package, tmp_path / "out")
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        found = theirs.eval()(image.transpose(2, 3)).softmax(1)[:, 1:]
        assert torch.allclose(torch.sigmoid(loaded.classifier(image)), found, atol=1e-4)


def test_a_monai_segmenters_map_has_our_orientation(tmp_path: Path) -> None:
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    torch.manual_seed(0)
    features = [8, 8, 8, 8, 8, 8]
    theirs = BasicUNetPlusPlus(2, 1, 1, tuple(features)).eval()
    network = {"_target_": "monai.networks.nets.BasicUNetPlusPlus", "spatial_dims": 2}
    described = network | {"in_channels": 1, "out_channels": 1, "features": features}
    folder = bundle(tmp_path / "bundle", described, theirs.state_dict())

    found = from_bundle(folder, 32, Head(), "unit")
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        turned = theirs(image.transpose(2, 3))[0].transpose(2, 3)
        assert torch.allclose(found.module(image), turned, atol=1e-5)
        rows_first = from_bundle(folder, 32, Head(axes="yx"), "unit").module(image)
        assert torch.allclose(rows_first, theirs(image)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"_target_": "os.system"}, "network os.system found; DenseNet121, BasicUNetPlusPlus"),
        ({"_target_": "mine.DenseNet121"}, "network mine.DenseNet121 found"),
        ({"_target_": "DenseNet121", "spatial_dims": 3}, "spatial_dims: 3 found, 2 wanted"),
        ({"_target_": "DenseNet121", "in_channels": "$print(1)"}, "expressions are not run"),
        ({"_target_": "DenseNet121", "in_channels": "@nowhere"}, "expressions are not run"),
        ({"_target_": "DenseNet121", "blocks": 3}, "blocks found, which our network does not have"),
        ({"_target_": "DenseNet121"}, "no last layer classifier.weight found"),
        ({"target": "DenseNet121"}, "no network_def with a _target_"),
    ],
)
def test_a_bundle_that_cannot_be_built_is_refused(
    network: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = bundle(tmp_path / "bundle", network, {"x": torch.zeros(1)})
    with pytest.raises(PackageError, match=re.escape(message)):
        from_bundle(folder, 64, Head(), "unit")


class Hdf5:
    """The part of h5py's interface that the import uses, over a mapping of paths to arrays."""

    class Dataset:
        external = None
        is_virtual = False

        def __init__(self, values: NDArray[np.float32]) -> None:
            self.values = values

        def __getitem__(self, _: object) -> NDArray[np.float32]:
            return self.values

    held: ClassVar[dict[str, NDArray[np.float32]]] = {}

    class File:
        def __init__(self, path: Path, mode: str) -> None:
            assert mode == "r"

        def __enter__(self) -> Hdf5.File:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def visititems(self, visit: Callable[[str, object], None]) -> None:
            for place, values in Hdf5.held.items():
                visit(place, Hdf5.Dataset(values))


def as_keras(state: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """A DenseNet-121 under the names of keras.applications, written out here independently."""
    held = {}
    for name, value in state.items():
        layer, _, weight = name.removeprefix("features.").rpartition(".")
        if weight == "num_batches_tracked":
            continue
        if found := re.match(r"denseblock(\d)\.denselayer(\d+)\.(norm|conv)(\d)", layer):
            block, number, kind, order = found.groups()
            kept = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}
            layer = f"conv{int(block) + 1}_block{number}_{kept[kind + order]}"
        elif found := re.match(r"transition(\d)\.(norm|conv)", layer):
            layer = f"pool{int(found[1]) + 1}_{'bn' if found[2] == 'norm' else 'conv'}"
        else:
            names = {"conv0": "conv1/conv", "norm0": "conv1/bn", "norm5": "bn"}
            layer = names.get(layer, "predictions")

        is_norm = layer.endswith("bn")
        ours = {"running_mean": "moving_mean", "running_var": "moving_variance"}
        ours |= {"weight": "gamma" if is_norm else "kernel", "bias": "beta" if is_norm else "bias"}
        array = value.numpy()
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        held[f"{layer}/{layer}/{ours[weight]}:0"] = array
    return held


def test_the_weights_of_a_keras_densenet_are_renamed_to_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = build("densenet-121", outputs=14, stem="imagenet").state_dict()
    monkeypatch.setitem(sys.modules, "h5py", Hdf5)
    monkeypatch.setattr(keras_weights.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(Hdf5, "held", as_keras(state))
    (tmp_path / "chexnet.h5").touch()

    found = state_dict(tmp_path / "chexnet.h5")

    wanted = {name: value for name, value in state.items() if "num_batches" not in name}
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], value, atol=1e-7) for name, value in wanted.items())
