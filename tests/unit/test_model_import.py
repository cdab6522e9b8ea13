"""Import of a CheXNet checkpoint, generated here in the published form: the package gives the
checkpoint's answers.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inference import importing, package
from inference.importing import Choices, import_chexnet
from inference.networks import build
from inference.package import PackageError
from tests.commands import pleura

pytestmark = pytest.mark.xdist_group("chexnet")

CHOICES = Choices(threshold=0.3, operating_point="chosen on nothing, for a test", side=64)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A DenseNet-121 with 14 outputs, random weights, and statistics unlike those of a new network."""
    torch.manual_seed(1)
    made = build("densenet-121", outputs=14, stem="imagenet")
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return made.eval()


def as_published(network: nn.Module) -> dict[str, Tensor]:
    """The state under the public checkpoint's names: DataParallel, a wrapper, dots in names, and a
    Linear inside a Sequential.
    """
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        for kind in ("norm", "conv"):
            for number in "12":
                if ".denselayer" in name:
                    name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
        state["module.densenet121." + name.replace("classifier.", "classifier.0.")] = value
    return state


@pytest.fixture
def checkpoint(network: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "model.pth.tar"
    document = {
        "epoch": 5,
        "arch": "DenseNet121",
        "best_loss": 0.5,
        "state_dict": as_published(network),
    }
    # The file format of torch before 1.6.
    torch.save(document, path, _use_new_zipfile_serialization=False)
    return path


def test_the_made_checkpoint_has_the_published_names(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, shape in (
        ("module.densenet121.features.conv0.weight", (64, 3, 7, 7)),
        ("module.densenet121.features.denseblock1.denselayer1.norm.1.weight", (64,)),
        ("module.densenet121.features.denseblock1.denselayer1.conv.2.weight", (32, 128, 3, 3)),
        ("module.densenet121.features.transition1.norm.weight", (256,)),
        ("module.densenet121.classifier.0.weight", (14, 1024)),
    ):
        assert tuple(state[name].shape) == shape
    assert importing.CHEXNET_LABELS[7] == "Pneumothorax"
    assert len(importing.CHEXNET_LABELS) == 14


def test_the_package_answers_as_the_checkpoints_eighth_output(
    checkpoint: Path, network: nn.Module, tiny_package: Path, tmp_path: Path
) -> None:
    import_chexnet(checkpoint, tiny_package, tmp_path / "out", CHOICES)
    loaded, tiny = package.load(tmp_path / "out"), package.load(tiny_package)

    picture = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        # The answers are equal, because the weights stay in float32.
        assert torch.allclose(
            loaded.classifier(picture), network(picture)[:, 7:8], atol=1e-6, rtol=1e-5
        )
        small = torch.rand(1, 1, 32, 32)
        assert torch.equal(loaded.segmenter(small), tiny.segmenter(small))

    assert loaded.manifest.classifier.threshold == 0.3
    assert loaded.manifest.classifier.operating_point == "chosen on nothing, for a test"
    assert loaded.manifest.metrics == {}
    assert "not stated" in loaded.manifest.licence

    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("not validated", "threshold 0.3", "chosen on nothing", "No figure is known"):
        assert part in card
    assert "README.md" in loaded.manifest.sha256


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "densenet121.",
        "module.",
        "model.densenet121.",
        "module.model.",
        "model.module.densenet121.",
    ],
)
def test_current_names_and_a_bare_state_dict_are_accepted(
    network: nn.Module, tmp_path: Path, prefix: str
) -> None:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({"model": state} if prefix.startswith("model.") else state, tmp_path / "new.pt")
    picture = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        found = importing.chexnet(tmp_path / "new.pt")(picture)
        assert torch.allclose(found, network(picture)[:, 7:8], atol=1e-6, rtol=1e-5)


def missing(state: dict[str, Tensor]) -> None:
    del state["module.densenet121.features.denseblock2.denselayer3.conv.1.weight"]


def unexpected(state: dict[str, Tensor]) -> None:
    state["module.densenet121.features.denseblock5.denselayer1.conv.1.weight"] = torch.zeros(1)


def reshaped(state: dict[str, Tensor]) -> None:
    state["module.densenet121.classifier.0.weight"] = torch.zeros(15, 1024)


def not_a_number(state: dict[str, Tensor]) -> None:
    name = "module.densenet121.features.norm5.bias"
    state[name] = torch.full_like(state[name], float("nan"))


def nothing(state: dict[str, Tensor]) -> None:
    state.clear()


def no_tensor(state: dict[str, Any]) -> None:
    state["module.densenet121.classifier.0.weight"] = [1.0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (missing, "features.denseblock2.denselayer3.conv1.weight is missing"),
        (unexpected, "features.denseblock5.denselayer1.conv1.weight is unknown"),
        (reshaped, r"classifier.weight is \(15, 1024\), wanted \(14, 1024\)"),
        (not_a_number, "features.norm5.bias holds NaN or infinity"),
        (nothing, "no state_dict found"),
        (no_tensor, "no state_dict found"),
    ],
)
def test_a_mismatch_is_named(
    network: nn.Module, tmp_path: Path, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    state = as_published(network)
    change(state)
    torch.save({"state_dict": state}, tmp_path / "wrong.pt")
    with pytest.raises(PackageError, match=word):
        importing.chexnet(tmp_path / "wrong.pt")


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    document = {"state_dict": {"a": torch.zeros(1)}, "extra": _Bomb(tmp_path / "ran")}
    torch.save(document, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        PackageError, match=r"nothing in it was run: it wants to call posix\.mkdir"
    ) as caught:
        importing.chexnet(tmp_path / "evil.pt")
    # The error must not suggest that the user switch the protection off.
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"PK\x03\x04" * 10, pickle.dumps([1, 2]), pickle.dumps({"a": 1})]
)
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "no.pt").write_bytes(data)
    with pytest.raises(PackageError, match=r"no\.pt: "):
        importing.chexnet(tmp_path / "no.pt")
    with pytest.raises(PackageError, match="cannot be read"):
        importing.chexnet(tmp_path / "none.pt")


def test_an_import_overwrites_nothing_and_leaves_no_partial_package(
    checkpoint: Path, tiny_package: Path, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match="overwrites nothing"):
        import_chexnet(checkpoint, tiny_package, tiny_package, CHOICES)
    with pytest.raises(PackageError, match=r"classifier\.threshold"):
        import_chexnet(
            checkpoint, tiny_package, tmp_path / "out", Choices(threshold=1.5, operating_point="x")
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(PackageError, match="No such file"):
        import_chexnet(checkpoint, tmp_path / "none", tmp_path / "out", CHOICES)


def pleura_model(*calls: list[str]) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each call of `pleura model`."""
    answers = [pleura("model", *call) for call in calls]
    return [(answer.returncode, answer.stdout, answer.stderr) for answer in answers]


def test_the_model_commands_import_check_and_show(
    checkpoint: Path, tiny_package: Path, tmp_path: Path
) -> None:
    out, spoiled = str(tmp_path / "out"), str(tiny_package)
    (tiny_package / "extra.pkl").write_bytes(b"x")
    call = [
        "import",
        "--kind",
        "chexnet",
        str(checkpoint),
        "--out",
        out,
        "--side",
        "64",
        "--threshold",
        "0.25",
    ]
    call += ["--operating-point", "none", "--id", "chexnet-test", "--licence", "made up"]

    made, checked, shown, *wrong = pleura_model(
        call,
        ["check", out],
        ["show", out],
        call,
        ["check", spoiled],
        ["show", spoiled],
        ["check", "/nowhere"],
    )

    assert made[0] == 0, made[2]
    assert made[1].startswith(f"{out}: ok, ")
    assert "chexnet-test 1.0.0" in made[1]
    assert checked == made

    manifest = json.loads(shown[1])
    assert manifest["classifier"]["architecture"] == "densenet-121"
    assert "classifier: made up; segmenter (pleura-default" in manifest["licence"]

    for status, output, error in wrong:
        assert status == 2
        assert output == ""
        assert len(error.splitlines()) == 1
