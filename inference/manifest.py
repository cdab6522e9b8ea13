"""model.yaml.

What a model package states about itself, and how that is read without trusting it (docs/models.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)
from yaml.composer import Composer

from inference.container import checked_name
from inference.preprocess import SCHEMES

Role = Literal["classifier", "segmenter", "plausibility"]
# "lower-grade-glioma" is for training and measuring; no node serves it.
Task = Literal["pneumothorax", "lower-grade-glioma"]


def _known(name: str) -> str:
    if name not in SCHEMES:
        raise ValueError(f"allowed: {', '.join(SCHEMES)}")
    return name


# A normalisation scheme of preprocess.py.
Scheme = Annotated[str, AfterValidator(_known)]

# The largest model.yaml; real files hold a few kilobytes of metrics.
MAX_BYTES = 256 * 1024
_MAX_DEPTH = 32
# A validation with a larger loss than this does not allow bf16.
_BF16_LOSS = 0.01

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}$")]
Side = Annotated[int, Field(ge=32, le=2048)]
FileName = Annotated[str, AfterValidator(checked_name)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
Area = Annotated[FiniteFloat, Field(ge=0.0, le=1024 * 1024)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
# SH and LO of PS3.5 Table 6.2-1: no backslash, no control character. \x20-\x5b and \x5d-\x7e are
# the rest of ASCII.
ShortString = Annotated[str, StringConstraints(pattern=r"^[\x20-\x5b\x5d-\x7e]{1,16}$")]
LongString = Annotated[str, StringConstraints(pattern=r"^[^\\\x00-\x1f\x7f]{1,64}$")]


class ManifestError(Exception):
    """model.yaml is not a manifest.

    The message says which key, what was found and what is wanted, but not in which file.
    """


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Part):
    """One network: an allow-listed builder, its plain arguments, and the image it wants."""

    architecture: str
    # Plain values; each builder checks its own.
    arguments: dict[str, JsonValue] = {}
    # The input is (n, 1, side, side), letterboxed by inference/preprocess.py.
    side: Side
    normalisation: Scheme


class Calibration(_Part):
    """The line that turns a classifier's score into a probability: logit -> `scale` x logit +
    `offset`.

    Platt, "Probabilistic outputs for support vector machines", 1999. Such a probability is valid
    where the share of positive images is `prevalence`.
    """

    scale: Annotated[FiniteFloat, Field(gt=0.0, le=100.0)]
    offset: Annotated[FiniteFloat, Field(ge=-100.0, le=100.0)]
    prevalence: Probability
    # In words: how it was fitted, and on which images.
    method: Text


class Classifier(Network):
    """Image -> one logit of pneumothorax; after the sigmoid it is compared with `threshold`."""

    threshold: Probability
    # How the threshold was chosen, in words.
    operating_point: Text
    # Absent: the sigmoid is a score, not a probability. The threshold applies after the
    # calibration.
    calibration: Calibration | None = None


class Segmenter(Network):
    """Image -> (side, side) logits of pneumothorax.

    postprocess.segment explains its four figures.
    """

    bottom: Probability
    top: Probability
    min_area_at_1024_px: Area
    min_sure_area_at_1024_px: Area = 0.0

    @property
    def rule(self) -> tuple[float, float, float, float]:
        """The four figures that postprocess.segment takes after the map."""
        return self.bottom, self.top, self.min_area_at_1024_px, self.min_sure_area_at_1024_px

    @model_validator(mode="after")
    def _in_order(self) -> Segmenter:
        if self.bottom > self.top:
            raise ValueError(f"bottom {self.bottom} is above top {self.top}; wanted bottom <= top")
        return self


class Plausibility(Network):
    """Image -> one logit of "this is a frontal chest X-ray".

    If it is below `threshold` after the sigmoid, the image is not analysed (`not_a_frontal_chest`).
    """

    threshold: Probability
    operating_point: Text


class Comparison(_Part):
    """One figure of one network, measured on the same images in both arithmetics.

    Larger is better.
    """

    # The name of the figure, and the images it was measured on.
    metric: Text
    fp32: FiniteFloat
    bf16: FiniteFloat
    images: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _no_worse(self) -> Comparison:
        if self.bf16 < self.fp32 - _BF16_LOSS:
            raise ValueError(
                f"bf16 is worse by more than {_BF16_LOSS}: it cannot allow bf16; leave the entry "
                "out"
            )
        return self


class Precision(_Part):
    """Which networks may run in less than float32, each with the validation that allows it."""

    bf16: dict[Role, Comparison] = {}


class Code(_Part):
    """A coded concept (PS3.3 section 8)."""

    value: ShortString
    scheme: ShortString
    meaning: LongString


class Training(_Part):
    """The origin of the weights."""

    recipe: Text
    data: list[Text]
    date: Text
    command: Text
    # sha256 of the split.csv of the run, or of each run whose networks answer together
    splits: list[Text] = []


class Manifest(_Part):
    """model.yaml."""

    # Written into SH and LO attributes.
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    version: Version
    task: Task
    classifier: Classifier
    segmenter: Segmenter
    # Absent: every admitted image counts as a frontal chest.
    plausibility: Plausibility | None = None
    # Absent: every network runs in float32.
    precision: Precision | None = None
    label: Code
    training: Training
    metrics: dict[str, JsonValue]
    licence: Text
    intended_use: Text
    # SHA-256 of every other file of the package.
    sha256: Annotated[dict[FileName, Sha256], Field(max_length=30)]

    @property
    def networks(self) -> dict[Role, Network]:
        """The networks that the package has, in the order of its file."""
        networks: dict[Role, Network] = {"classifier": self.classifier, "segmenter": self.segmenter}
        return networks | ({"plausibility": self.plausibility} if self.plausibility else {})

    @property
    def one_map(self) -> bool:
        """Whether the classifier is the segmenter's map: how much of it reaches a threshold."""
        classifier, segmenter = self.classifier, self.segmenter
        of = {"architecture": segmenter.architecture, "arguments": segmenter.arguments}
        return (
            classifier.architecture == "largest-of-map"
            and classifier.arguments.get("of") == of
            and classifier.side == segmenter.side
            and classifier.normalisation == segmenter.normalisation
            and classifier.calibration is None
        )

    def allows_bf16(self, role: Role) -> bool:
        """Whether the package carries the validation without which this network runs in float32
        only.
        """
        return self.precision is not None and role in self.precision.bf16


def parse(data: bytes) -> Manifest:
    """The manifest that the bytes of a model.yaml hold.

    Raises:
        ManifestError: not plain YAML (tags, aliases and repeated keys are refused too), or wrong
            keys, all listed.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError(f"more than {MAX_BYTES} bytes found; long texts belong in README.md")

    try:
        # _PlainLoader is a stricter SafeLoader.
        document = yaml.load(data.decode("utf-8"), _PlainLoader)  # noqa: S506
    except (
        yaml.YAMLError,
        ValueError,
        # ValueError: not UTF-8, a number of 5,000 digits, a 13th month.
    ) as error:
        raise ManifestError(
            f"cannot be read as plain YAML ({' '.join(str(error).split())[:300]})"
        ) from error

    return validate(document)


def validate(document: Any) -> Manifest:
    """The manifest of a mapping.

    Raises:
        ManifestError: every wrong key.
    """
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        faults = [
            _fault(one["type"], one["loc"], one["input"], one["msg"]) for one in error.errors()
        ]
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ManifestError("; ".join(faults[:10]) + more) from error


def dump(manifest: Manifest) -> str:
    """The text of a model.yaml."""
    # Absent parts are left out: a package without a plausibility network does not mention one.
    document = {
        key: value for key, value in manifest.model_dump(mode="json").items() if value is not None
    }
    return yaml.dump(document, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=110)


def as_json(manifest: Manifest) -> str:
    """The manifest for `pleura model show`."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)


def describe(
    manifest: Manifest, weights: Mapping[Role, int], replay_error: Mapping[Role, float]
) -> str:
    """The package in words, for a person.

    One line each for its networks and what they may be used for.
    """
    lines = [("model", f"{manifest.id} {manifest.version}, {manifest.task}")]

    for role, network in manifest.networks.items():
        about = f"{network.architecture}, {network.side} px, {network.normalisation}"
        about += f", {weights[role]:,} weights"

        if isinstance(network, Segmenter):
            about += (
                f"; drawn from {network.bottom}, sure from {network.top}; smallest region "
                f"{network.min_area_at_1024_px:g}, sure area "
                f"{network.min_sure_area_at_1024_px:g} px of 1024 x 1024"
            )
        elif isinstance(network, Classifier | Plausibility):
            about += f"; threshold {network.threshold} ({network.operating_point})"

        bf16 = "allowed" if manifest.allows_bf16(role) else "never"
        lines.append((role, f"{about}; bf16 {bf16}; replay {replay_error[role]:.1e} off"))

    if manifest.plausibility is None:
        lines.append(("plausibility", "none: whatever the header lets pass is analysed"))

    lines += [("licence", manifest.licence), ("intended use", manifest.intended_use)]

    return "\n".join(f"  {name:<13}{' '.join(text.split())}" for name, text in lines)


def _fault(kind: str, place: tuple[int | str, ...], found: Any, message: str) -> str:
    key = ".".join(str(part)[:60] for part in place) or "the document"
    if kind == "extra_forbidden":
        return f"{key}: unknown key"
    if kind == "missing":
        return f"{key}: absent"
    if kind in ("model_type", "dict_type"):
        message = "keys with their values wanted"
    shown = (
        repr(found) if isinstance(found, str | int | float | None) else f"a {type(found).__name__}"
    )
    return f"{key}: {shown[:80]} found; {message.removeprefix('Value error, ')}"


if yaml.__with_libyaml__:

    class _SafeLoader(Composer, yaml.CSafeLoader):
        """A SafeLoader with libyaml's parser, which takes a fifth of the time.

        It composes in Python: libyaml's composer could not be told what to refuse.
        """

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

else:
    _SafeLoader = yaml.SafeLoader  # type: ignore[assignment, misc]


class _PlainLoader(_SafeLoader):
    """A SafeLoader without what only an attacker needs.

    It refuses aliases, deep nesting and repeated keys.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) was found; write the value out")
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH}")
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else True:
                raise yaml.YAMLError(
                    f"{str(key.value)[:60]!r} is given twice in one mapping, or is not a plain key"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    """A SafeDumper without aliases, because _PlainLoader refuses them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True
