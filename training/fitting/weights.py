"""An encoder's starting weights: published weights, or those of the classifier trained before it.

A file is read as data, never as a program: safetensors, or a pickle from which torch loads only
tensors. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inference import importing, package
from inference.container import PackageError
from inference.networks.encoders import from_timm
from training.recipe import Stage

# Tensors that an error names
_MOST = 5

# A published checkpoint's names for ours: substitutions in our name, applied in order. Those of
# EfficientNet's blocks begin with `features._blocks.<stage>.<block of the stage>.<block of all>.`
_Form = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
_SQUEEZE: _Form = (
    (r"\.(conv\d)\.conv\.", r".\1."),
    (r"\.conv(\d)\.adn\.N\.", r".bn\1."),
    (r"\.se_layer\.fc\.0\.", ".se_module.fc1."),
    (r"\.se_layer\.fc\.2\.", ".se_module.fc2."),
    (r"\.project\.conv\.", ".downsample.0."),
    (r"\.project\.adn\.N\.", ".downsample.1."),
)
# timm's networks since 0.4; before, and now as "legacy", it had Cadene's names
_SQUEEZE_TIMM: _Form = (
    (r"^layer0\.", ""),
    (r"\.(conv\d)\.conv\.", r".\1."),
    (r"\.conv(\d)\.adn\.N\.", r".bn\1."),
    (r"\.se_layer\.fc\.0\.", ".se.fc1."),
    (r"\.se_layer\.fc\.2\.", ".se.fc2."),
    (r"\.project\.conv\.", ".downsample.0."),
    (r"\.project\.adn\.N\.", ".downsample.1."),
)
_LUKEMELAS: _Form = ((r"^features\.", ""), (r"^_blocks\.\d+\.\d+\.", "_blocks."))
_MONAI: _Form = ((r"^features\.", ""), (r"^_blocks\.(\d+)\.\d+\.", r"_blocks.\1."))
_TIMM: _Form = (
    (r"^features\._conv_stem\.", "conv_stem."),
    (r"^features\._bn0\.", "bn1."),
    (r"^features\._blocks\.(\d+\.\d+)\.\d+\.", r"blocks.\1."),
    # The first stage does not expand
    (r"^(blocks\.0\.\d+\.)_bn(\d)\.", r"\1bn\2."),
    (r"^(blocks\.0\.\d+\.)_project_conv\.", r"\1conv_pw."),
    (r"\._expand_conv\.", ".conv_pw."),
    (r"\._depthwise_conv\.", ".conv_dw."),
    (r"\._project_conv\.", ".conv_pwl."),
    (r"\._bn(\d)\.", lambda found: f".bn{int(found[1]) + 1}."),
    (r"\._se_(reduce|expand)\.", r".se.conv_\1."),
)
_TORCHVISION: _Form = (
    (r"^features\._conv_stem\.", "features.0.0."),
    (r"^features\._bn0\.", "features.0.1."),
    (r"^features\._blocks\.0\.(\d+)\.\d+\._depthwise_conv\.", r"features.1.\1.block.0.0."),
    (r"^features\._blocks\.0\.(\d+)\.\d+\._bn1\.", r"features.1.\1.block.0.1."),
    (r"^features\._blocks\.0\.(\d+)\.\d+\._se_", r"features.1.\1.block.1._se_"),
    (r"^features\._blocks\.0\.(\d+)\.\d+\._project_conv\.", r"features.1.\1.block.2.0."),
    (r"^features\._blocks\.0\.(\d+)\.\d+\._bn2\.", r"features.1.\1.block.2.1."),
    (
        r"^features\._blocks\.(\d+)\.(\d+)\.\d+\.",
        lambda found: f"features.{int(found[1]) + 1}.{found[2]}.block.",
    ),
    (r"\.block\._expand_conv\.", ".block.0.0."),
    (r"\.block\._depthwise_conv\.", ".block.1.0."),
    (r"\.block\._project_conv\.", ".block.3.0."),
    (r"\.block\._bn0\.", ".block.0.1."),
    (r"\.block\._bn1\.", ".block.1.1."),
    (r"\.block\._bn2\.", ".block.3.1."),
    (r"\.block\._se_", ".block.2._se_"),
    (r"\._se_reduce\.", ".fc1."),
    (r"\._se_expand\.", ".fc2."),
)
# Most of our networks have the published names
_AS_HERE: _Form = ((r"^(features\._blocks\.\d+)\.\d+\.", r"\1."),)
# Its own networks (inference/networks/encoders/from_timm.py)
_OF_TIMM: _Form = ((r"^model\.", ""),)
_FORMS = (_AS_HERE, _SQUEEZE, _SQUEEZE_TIMM, _LUKEMELAS, _MONAI, _TIMM, _TORCHVISION, _OF_TIMM)

# Parts of a larger network that hold its encoder
_ENCODER_PREFIXES = ("encoder.", "backbone.")

# The prefix of timm's names of networks that pad like TensorFlow.
_TF = "tf_"
# Encoders that pad as TensorFlow does
_AS_TENSORFLOW = ("efficientnet-b3", "efficientnet-b4")

# By these a DenseNet of torchxrayvision is recognised.
_XRAYVISION_ONLY = "op_threshs"
_XRAYVISION_CLASSES = 18

# The layers after the encoder, as published: classes, and the layers that only serve these.
_HEAD = re.compile(
    r"(fc|_fc|classifier|classif|last_linear|head|pre_logits|AuxLogits|_conv_head|_bn1|conv_head"
    r"|bn2|features\.8)\.|op_threshs$"
)


class WeightsError(Exception):
    """The weights cannot be read, or do not fit the network; the message says what to give."""


def load_start(network: nn.Module, stage: Stage, path: Path) -> frozenset[str]:
    """Fill the encoder of `network`, built for `stage`, from a checkpoint; the rest stays.

    Returns the names of the tensors that it left out, such as those of the classes.

    Taken are state dicts (.pt, .pth, .tar or .safetensors) as torchvision, timm, Cadene's
    pretrained-models, lukemelas' EfficientNet-PyTorch, MONAI, torchxrayvision and CheXNet's
    reimplementations save them, and our own networks'; also inside "state_dict" or "model", with
    "module." or "model." before each name, and as the "encoder." or "backbone." of a larger
    network. The classes are left out, and so are layers of the encoder that the network does not
    use. Where the encoder reads one grey map and the checkpoint three colours, the kernels are
    summed, which is the same as repeating the map three times.

    Raises:
        WeightsError: a file that cannot be read or is more than tensors; tensors that are missing,
            unknown, of another shape or not finite; weights that would compute something else here;
            a network without an encoder.
    """
    named = " ".join(
        str(one) for one in (stage.architecture, stage.arguments.get("encoder")) if one
    )
    wanted = _encoder(network, f"{path}: {named}")
    top = getattr(network, "top", None)
    if isinstance(top, nn.Module):
        wanted |= top.state_dict()

    given = read(path)
    _require_scale(given, stage, path)
    forms = [_published(wanted, form) for form in _FORMS]

    # Ours -> theirs
    names = max(forms, key=lambda form: len(given.keys() & form.values()))
    _require_same_arithmetic(stage, _FORMS[forms.index(names)], path)
    found = {
        name: _fitted(given[theirs], wanted[name])
        for name, theirs in names.items()
        if theirs in given
    }
    faults = [
        f"{theirs} is missing"
        for name, theirs in names.items()
        if name not in found and not _counts(name)
    ]

    known = {
        *names.values(),
        *(one for part in network.modules() for one in getattr(part, "unused", ())),
    }
    faults += [f"{one} is unknown" for one in given if one not in known and not _HEAD.match(one)]
    faults += [
        f"{names[name]} is {tuple(value.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, value in found.items()
        if value.shape != wanted[name].shape
    ]
    faults += [
        f"{names[name]} holds NaN or infinity"
        for name, value in found.items()
        if not value.isfinite().all()
    ]

    if faults:
        more = f"; and {len(faults) - _MOST} more" if len(faults) > _MOST else ""
        raise WeightsError(
            f"{path}: not weights for the encoder of {named}: "
            f"{'; '.join(one[:150] for one in faults[:_MOST])}{more}; give the state dict of that "
            "very encoder, as torchvision, timm or Cadene publish it"
        )

    _fill(wanted, found)
    return frozenset(given.keys() - {names[name] for name in found})


def take_encoder(network: nn.Module, classifier: nn.Module) -> None:
    """Copy the encoder's weights of a trained classifier into `network`, whose encoder is the same.

    Raises:
        WeightsError: one of both has no encoder, or they differ.
    """
    wanted, found = _encoder(network, "the segmenter"), _encoder(classifier, "the classifier")
    shapes, others = (
        {name: one.shape for name, one in tensors.items()} for tensors in (wanted, found)
    )
    if shapes != others:
        differ = sorted(
            name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)
        )
        raise WeightsError(
            f"start: classifier: the encoders differ in {len(differ)} tensors "
            f"({', '.join(differ[:_MOST])}); give classifier and segmenter the same encoder and "
            "stem, or start: random"
        )

    _fill(wanted, found)


def require_package_of(path: Path, stage: Stage) -> None:
    """Raise unless the package at `path` has the network that `stage` builds.

    Raises:
        WeightsError: no package, or another network in this role, with what differs.
    """
    try:
        theirs = package.read_manifest(path).networks[stage.role]
    except PackageError as error:
        raise WeightsError(f"{path}: a package whose {stage.role} is used: {error}") from error

    for knob in ("architecture", "arguments", "side", "normalisation"):
        found, wanted = getattr(theirs, knob), getattr(stage, knob)
        if found != wanted:
            raise WeightsError(
                f"{path}: {stage.role}.{knob}: {found} found, {wanted} wanted; give the package of "
                "a run of this very network"
            )


def network_of_package(path: Path, stage: Stage) -> nn.Module:
    """The complete trained network of a package, for a recipe that uses it without training it.

    Raises:
        WeightsError: as `require_package_of`.
    """
    require_package_of(path, stage)
    try:
        return package.load(path, any_task=True).networks[stage.role]
    except PackageError as error:
        raise WeightsError(f"{path}: a package whose {stage.role} is used: {error}") from error


def package_in_words(number: int, path: Path) -> str:
    """A line for the provenance of what uses `network_of_package`."""
    manifest = package.read_manifest(path)
    return f"network {number} is from package {manifest.id} {manifest.version}, not trained further"


def _encoder(network: nn.Module, named: str) -> dict[str, Tensor]:
    """The tensors of the encoder, by name: `network.encoder`, or the features of a DenseNet that is
    a classifier.
    """
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nn.Module):
        return dict(encoder.state_dict())
    tensors = {
        name: one for name, one in network.state_dict().items() if name.startswith("features.")
    }
    if not tensors:
        raise WeightsError(f"{named} has no encoder to start from given weights; say start: random")
    return tensors


def _published(names: Iterable[str], form: _Form) -> dict[str, str]:
    """Our names -> those of a published form."""
    # Block of all blocks with which a stage begins
    first: dict[str, int] = {}
    published = {}
    for name in names:
        theirs = name
        if found := re.match(r"features\._blocks\.(\d+)\.(\d+)\.", name):
            stage, block = found[1], int(found[2])
            begins = first.setdefault(stage, block)
            theirs = f"features._blocks.{stage}.{block - begins}.{block}.{name[found.end() :]}"
        for pattern, replacement in form:
            theirs = re.sub(pattern, replacement, theirs)
        published[name] = theirs

    return published


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, under today's names; those of an encoder, where it is part.

    Raises:
        WeightsError: the file cannot be read, or is more than tensors.
    """
    try:
        given = load_file(path) if path.suffix == ".safetensors" else importing.state_dict(path)
    except PackageError as error:
        raise WeightsError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: cannot be read as safetensors ({str(error)[:300]}); give another file"
        ) from error

    given = importing.renamed(given)
    for prefix in _ENCODER_PREFIXES:
        inner = {
            name.removeprefix(prefix): tensor
            for name, tensor in given.items()
            if name.startswith(prefix)
        }
        if inner:
            return inner

    return given


def _require_scale(given: Mapping[str, Tensor], stage: Stage, path: Path) -> None:
    """Refuse torchxrayvision's weights if the images have another scale."""
    first = next((tensor for tensor in given.values() if tensor.dim() == 4), None)
    if first is None or first.shape[1] != 1:
        return

    classes = given.get("classifier.weight")
    named = _XRAYVISION_ONLY in given
    if not named and (classes is None or len(classes) != _XRAYVISION_CLASSES):
        return

    stem = stage.arguments.get("stem", "grey")
    if stem != "torchxrayvision" or stage.normalisation != "unit":
        raise WeightsError(
            f"{path}: weights of torchxrayvision, which expect -1024 to 1024; found stem {stem} "
            f"and normalisation {stage.normalisation}, wanted arguments.stem: torchxrayvision and "
            "normalisation: unit"
        )


def _require_same_arithmetic(stage: Stage, form: _Form, path: Path) -> None:
    """Refuse weights that fit, but were trained with another padding.

    torchvision's and timm's EfficientNets pad both sides alike, and their batch norms add 1e-5. Our
    encoder, lukemelas' and timm's `tf_` networks pad as TensorFlow does and add 1e-3. The tensors
    of both kinds of timm have the same names, so the file's name has to tell. timm's networks with
    squeeze and excitation pad where Cadene's, and ours, pool the last row and column in part.
    """
    encoder = str(stage.arguments.get("encoder", ""))
    named_tf = re.search(r"(^|[^a-z])tf_", path.name) is not None
    if encoder.startswith(from_timm.PREFIX):
        _require_twin(encoder.removeprefix(from_timm.PREFIX), named_tf, path)

    if form is _SQUEEZE_TIMM:
        raise WeightsError(
            f"{path}: weights of timm's own network, which pads otherwise and would compute "
            f"something else in {encoder}; give Cadene's, which timm has as legacy_, or set "
            f"arguments.encoder: {from_timm.PREFIX}<name of timm>"
        )

    if encoder not in _AS_TENSORFLOW:
        return
    if form is _TORCHVISION or (form is _TIMM and not named_tf):
        theirs = encoder.replace("-", "_")
        raise WeightsError(
            f"{path}: EfficientNet weights of torchvision or timm, which pad otherwise and would "
            f"compute something else in {encoder}; give weights of lukemelas or of timm's "
            f"tf_{theirs} (with tf_ in the file's name), or set arguments.encoder: timm-{theirs}"
        )


def _require_twin(model: str, named_tf: bool, path: Path) -> None:
    """Refuse the weights of timm's twin of a network: with `tf_` before its name or without.

    The twins' tensors have the same names and shapes, and one of them pads as TensorFlow does.
    """
    is_tf = model.startswith(_TF)
    twin = model.removeprefix(_TF) if is_tf else _TF + model
    if is_tf == named_tf or not from_timm.has(twin):
        return

    wanted = f"with {_TF} in" if is_tf else f"without {_TF} in"
    raise WeightsError(
        f"{path}: timm has {model} and {twin}, whose weights fit each other's networks and compute "
        f"something else there; wanted for {from_timm.PREFIX}{model}: a file {wanted} its name, or "
        f"set arguments.encoder: {from_timm.PREFIX}{twin}"
    )


def _fitted(given: Tensor, wanted: Tensor) -> Tensor:
    if given.dim() == 4 and given.shape[1] == 3 and wanted.shape[1:2] == (1,):
        return given.sum(1, keepdim=True)
    # A 1 x 1 convolution of one pixel is a linear layer
    if given.shape == (*wanted.shape, 1, 1):
        return given.flatten(1)
    return given


def _counts(name: str) -> bool:
    # training's bookkeeping; torch before 0.4.1 had none
    return name.endswith("num_batches_tracked")


def _fill(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in found.items():
            wanted[name].copy_(value)
