"""A recipe: every knob of a training run, checked before anything is computed.

A recipe of config/recipes reads like a row of a table of published systems: what was built, of
what, how it was optimised, and what was published for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from inference.manifest import Scheme, Side, Task, Version
from training.fitting.augment import Augmentation
from training.measures.metrics import FIGURES, LABEL_FIGURES, MASK_FIGURES

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Role = Literal["classifier", "segmenter"]
ROLES: tuple[Role, ...] = ("classifier", "segmenter")
Layout = Literal["siim", "silver", "lgg", "table", "phantom"]


Form = TypeVar("Form", bound=BaseModel)


class RecipeError(Exception):
    """The recipe cannot be used; the message lists every error."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Part):
    """Which images train, choose and report (training/data/split.py).

    Folds are patient-grouped and stratified.

    A fold that is in none of the lists trains. What reports neither trains nor chooses.
    """

    # "published": the folds that come with the data
    folds: Count | Literal["published"] = 10
    # None: every fold that neither validates nor reports
    train: list[Whole] | None = None
    # These choose the best weights, the thresholds and the early stop.
    validate_: Annotated[list[Whole], Field(alias="validate", min_length=1)]
    # Empty: figures are of the validation folds, and say so.
    report: list[Whole] = []
    seed: int = 0


class Optimiser(_Part):
    """torch.optim's, by name."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # Largest norm of the gradient; 0: not clipped
    clip: Annotated[float, Field(ge=0)] = 0.0


class Schedule(_Part):
    """How the learning rate moves.

    `warm_up` epochs rise to it from a hundredth, whatever follows.
    """

    name: Literal["constant", "plateau", "cosine", "cyclic", "one-cycle"] = "constant"
    warm_up: Whole = 0
    # plateau: epochs without a better `best_by` before the rate falls
    patience: Whole = 3
    # plateau: the rate falls to this share
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    # plateau: epochs after a fall before it counts again
    cooldown: Whole = 0
    # cyclic: epochs from peak to peak, along a cosine
    cycle: Count = 5
    # cosine, cyclic: the lowest rate, as a share of the highest
    floor: Share = 0.01
    # one-cycle: share of the steps that go up
    rise: Share = 0.15


class Average(_Part):
    """Which weights are kept.

    A running mean of the steps' weights (ema), or the mean of the last epochs' (swa).

    After the last epoch their batch-norm statistics are recomputed, if `redo`.
    """

    # Decay; 0: no running mean
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Izmailov et al., UAI 2018
    swa_last_epochs: Whole = 0
    # Of these, every epoch or only the last epoch of each cycle of a cyclic schedule
    swa_each: Literal["epoch", "cycle"] = "epoch"
    # False: ema keeps a running mean of them, as of its weights, which needs no pass over the
    # images
    redo: bool = True


class Freeze(_Part):
    """The first part of the encoder is not trained for the first epochs."""

    # 0: for all epochs
    epochs: Whole
    # Of the encoder's modules that hold weights, from the input on
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


# The terms of a loss
_TERMS = (
    "cross_entropy", "focal", "dice", "tanimoto", "jaccard", "tversky", "focal_tversky", "lovasz",
)  # fmt: skip


class Loss(_Part):
    """Weights of the terms of training/fitting/losses.py; 0 leaves one out."""

    cross_entropy: Annotated[float, Field(ge=0)] = 0.0
    focal: Annotated[float, Field(ge=0)] = 0.0
    dice: Annotated[float, Field(ge=0)] = 0.0
    tanimoto: Annotated[float, Field(ge=0)] = 0.0
    jaccard: Annotated[float, Field(ge=0)] = 0.0
    tversky: Annotated[float, Field(ge=0)] = 0.0
    focal_tversky: Annotated[float, Field(ge=0)] = 0.0
    lovasz: Annotated[float, Field(ge=0)] = 0.0
    # Tversky: weight of a missed pixel; a false pixel has the rest to 1
    misses: Annotated[float, Field(gt=0, lt=1)] = 0.7
    # Hard-negative mining: the share of a batch's negatives, those with the highest losses, that
    # counts
    hard_negatives: Annotated[float, Field(gt=0, le=1)] = 1.0
    # Weight of the auxiliary outputs beside the answer; None: the mean of all outputs
    auxiliary: Annotated[float, Field(ge=0)] | None = None
    # Labels only: classes weigh inverse to their frequency
    balance: bool = False
    # Dice also of images whose mask is empty: it then punishes every false pixel.
    empty: bool = False

    @model_validator(mode="after")
    def _some(self) -> Loss:
        if not any(getattr(self, name) for name in _TERMS):
            raise ValueError("every weight is 0; at least one term wanted")
        return self


class Finish(_Part):
    """A few last epochs: with many phantoms, or with the encoder no longer frozen.

    Among few phantoms, and at a high learning rate, a network does not learn them.
    """

    epochs: Count
    phantoms: Count
    learning_rate: Positive
    # How far to go from the weights before to the weights after
    share: Annotated[float, Field(gt=0, le=1)]
    # None: as the stage
    freeze: Freeze | None = None
    # Share of the negatives that an epoch shows; None: as the stage
    negatives: Annotated[float, Field(gt=0, le=1)] | None = None


class PseudoMasks(Finish):
    """Epochs after those, with pseudo masks.

    The network outlines images that have a label but no mask, and learns from these outlines
    besides the readers' masks.

    Each network of cross-fitting outlines them for itself, so that the network without a fold
    learns nothing of that fold, not even by way of another network's pseudo masks. Lee,
    "Pseudo-Label", ICML workshops 2013; Xie et al., "Self-training with Noisy Student improves
    ImageNet classification", CVPR 2020.
    """

    # Where the images are that have only labels
    layout: Layout = "silver"
    # Images with at least this label are outlined; images without an outline are left out.
    label: Annotated[float, Field(gt=0, le=1)] = 0.5
    # The probability from which the pseudo mask is drawn
    bottom: Annotated[float, Field(gt=0, lt=1)] = 0.5
    # Share of the outlined images that an epoch shows, drawn again for each epoch
    shown: Annotated[float, Field(gt=0, le=1)] = 1.0


class Phase(_Part):
    """Epochs at another side before the stage's own epochs, which continue from their weights."""

    side: Side
    epochs: Count
    batch: Count
    learning_rate: Positive
    # Epochs that the schedule is laid out for, of which these are the first; None: these alone
    schedule_epochs: Count | None = None

    @model_validator(mode="after")
    def _begins(self) -> Phase:
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(
                f"schedule_epochs: {self.schedule_epochs} found; at least the phase's "
                f"{self.epochs} epochs wanted"
            )
        return self


class Stage(_Part):
    """How one network is built and optimised. Several of one role are an ensemble."""

    role: Role
    # False: it trains for another network to start from, and is left out of the package
    ships: bool = True
    # A name from the list of inference/networks
    architecture: str
    arguments: dict[str, Any] = {}
    # Images are letterboxed into side x side
    side: Side
    normalisation: Scheme = "unit"
    start: Literal["random", "imagenet", "chexnet", "classifier"] = "random"
    # None: the recipe's layout
    layout: Layout | None = None
    # None: a classifier learns labels, a segmenter masks
    learns: Literal["labels", "masks"] | None = None
    # "positives": only images with something to find
    images: Literal["all", "positives"] = "all"
    # Share of the negatives that an epoch shows, drawn again for each epoch
    negatives: Annotated[float, Field(gt=0, le=1)] = 1.0
    # Share of positive images in an epoch of as many images as there are: one share for every
    # epoch, or [first, last], which slides from one to the other as SIIM-ACR's winner let it.
    # Positives are shown several times where there are too few. None: as they come
    positives: Share | Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    # Times each real image is seen in an epoch
    repeats: Count = 1
    # Synthetic images among the real images
    phantoms: Whole = 0
    # Validation images of a network's own layout, which has no folds
    held_out: Whole = 0
    augmentation: Augmentation = Augmentation()
    loss: Loss
    # Earlier epochs, at smaller sides: most is learned there, for a fraction of the time.
    first: list[Phase] = []
    epochs: Count
    # Epochs that the schedule is laid out for, where a phase ends before it; None: `epochs`
    schedule_epochs: Count | None = None
    batch: Count
    # Batches per step
    accumulate: Count = 1
    optimiser: Optimiser
    schedule: Schedule = Schedule()
    average: Average = Average()
    freeze: Freeze | None = None
    # A segmenter: beside the network that is kept, each published fold gets one that is trained
    # without it. Where the encoder is frozen for all epochs, they share it and train at once
    # (training/fitting/crossfit.py); else each trains in turn.
    cross_fit: bool = False
    # Arithmetic of the forward pass; weights stay fp32. "auto" is bf16 on a GPU (fp16 on GPUs that
    # only emulate it), fp32 on a CPU.
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    # LABEL_FIGURES or MASK_FIGURES, of the validation images; None: the last weights. For masks
    # rather one of those `_positives`: over all images, finding nothing scores the share without a
    # finding (0.78 of SIIM-ACR), and wins.
    best_by: str | None = None
    # Epochs without a better `best_by`; 0: never
    early_stop: Whole = 0
    finish: Finish | None = None
    # A segmenter: epochs after all others
    pseudo_masks: PseudoMasks | None = None

    def earlier(self, phase: Phase) -> Stage:
        """The stage as it is in one of its earlier phases."""
        optimiser = self.optimiser.model_copy(update={"learning_rate": phase.learning_rate})
        changes: dict[str, Any] = {
            "side": phase.side,
            "epochs": phase.epochs,
            "schedule_epochs": phase.schedule_epochs,
            "batch": phase.batch,
            "optimiser": optimiser,
            "best_by": None,
            "early_stop": 0,
            "first": [],
        }
        return self.model_copy(update=changes)

    def finishing(self, finish: Finish) -> Stage:
        """The stage as it is in its last epochs."""
        optimiser = self.optimiser.model_copy(update={"learning_rate": finish.learning_rate})
        changes: dict[str, Any] = {
            "epochs": finish.epochs,
            "schedule_epochs": None,
            "phantoms": finish.phantoms,
            "optimiser": optimiser,
            "freeze": finish.freeze or self.freeze,
            "negatives": finish.negatives or self.negatives,
        }
        return self.model_copy(update=changes)

    @property
    def shares_encoder(self) -> bool:
        """Whether the networks of cross-fitting share one encoder: it rests in every epoch.

        Not where a phase comes before: its decoder learns from every fold.
        """
        rests = self.freeze is not None and (self.freeze.epochs, self.freeze.share) == (0, 1.0)
        return rests and not self.first

    def positive_share_of(self, epoch: int) -> float | None:
        """The share of positive images in an epoch, from 0 on; None: as they come."""
        if not isinstance(self.positives, list):
            return self.positives
        first, last = self.positives
        return first + (last - first) * min(1.0, epoch / max(1, self.epochs - 1))

    @property
    def on_masks(self) -> bool:
        """Whether masks are what it learns from; else labels."""
        return (self.learns or ("masks" if self.role == "segmenter" else "labels")) == "masks"

    @model_validator(mode="after")
    def _watched(self) -> Stage:
        if (self.early_stop or self.schedule.name == "plateau") and self.best_by is None:
            raise ValueError("early_stop and plateau want best_by: the figure they watch")
        if self.positives is not None and (self.negatives != 1 or self.images == "positives"):
            raise ValueError(
                f"positives: {self.positives} found beside negatives or images: positives; one of "
                "them decides what an epoch shows"
            )
        figures = LABEL_FIGURES if self.role == "classifier" else MASK_FIGURES
        if self.best_by not in (None, *figures):
            raise ValueError(
                f"best_by: {self.best_by} found, allowed for a {self.role}: {', '.join(figures)}"
            )
        if self.average.ema and self.average.swa_last_epochs:
            raise ValueError("average: ema or swa_last_epochs, not both")
        if self.average.swa_each == "cycle":
            if self.schedule.name != "cyclic":
                raise ValueError("average.swa_each: cycle found; it wants schedule: cyclic")
            if self.average.swa_last_epochs < self.schedule.cycle:
                raise ValueError(
                    f"average.swa_last_epochs: {self.average.swa_last_epochs} found; at least a "
                    f"cycle, {self.schedule.cycle}, wanted for swa_each: cycle"
                )

        if self.pseudo_masks is not None and not self.on_masks:
            raise ValueError(
                "pseudo_masks: found for a network that learns labels; a network that learns masks "
                "wanted"
            )
        by_fold = self.cross_fit and self.shares_encoder
        if self.augmentation.halves and (by_fold or not self.on_masks):
            raise ValueError(
                f"augmentation.halves: {self.augmentation.halves} found; a network that learns "
                "masks, and whose folds do not share one encoder, wanted: a picture of two halves "
                "has neither one label nor one fold"
            )
        if self.cross_fit and (not self.on_masks or self.best_by):
            raise ValueError(
                "cross_fit: true found; a network that learns masks and no best_by wanted: "
                "best_by would choose weights by the images that measure them"
            )

        if self.loss.balance and self.on_masks:
            raise ValueError(
                "loss.balance: true found; it weighs labels, and this network learns masks: "
                "leave it out"
            )

        return self


class Rule(_Part):
    """How a map becomes a mask (inference/postprocess.py)."""

    # The best of a grid on the validation images (training/measures/thresholds.py)
    search: bool = False
    bottom: Annotated[float, Field(gt=0, lt=1)] = 0.5
    # None: as bottom
    top: Annotated[float, Field(gt=0, lt=1)] | None = None
    min_area_at_1024_px: Annotated[float, Field(ge=0)] = 0.0
    # Or: a quantile of the annotated areas of the training images
    smallest: Share = 0.0
    min_sure_area_at_1024_px: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _in_order(self) -> Rule:
        if self.top is not None and self.bottom > self.top:
            raise ValueError(f"bottom {self.bottom} is above top {self.top}; wanted bottom <= top")
        return self


class OperatingPoint(_Part):
    """The score from which an image is positive, chosen on the validation images."""

    # The highest threshold that keeps this sensitivity
    sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    # Or: the threshold at which this figure is highest
    best: Literal["mcc", "f1", "accuracy"] | None = None

    @model_validator(mode="after")
    def _one(self) -> OperatingPoint:
        if (self.sensitivity is None) == (self.best is None):
            raise ValueError("sensitivity or best, one of them")
        return self


class Recipe(_Part):
    """The networks of a system, the data that train them, and what was published for it."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    version: Version
    # Row of docs/training.md
    case_study: str | None = None
    about: str
    # Figure (training/measures/metrics.py) -> value, on data that are not ours
    published: dict[str, float] = {}
    task: Task = "pneumothorax"
    layout: Layout = "siim"
    split: Split
    seed: int = 1
    networks: Annotated[list[Stage], Field(min_length=1)]
    # Roles that also see the mirrored image; both answers are averaged
    flip: list[Role] = []
    rule: Rule = Rule()
    # Of the classifier; a segmenter alone answers by `rule`
    operating_point: OperatingPoint | None = None
    # Share of the picture. The highest probability that this share of a segmenter's map reaches
    # counts as one more classifier's. None: the classifiers answer alone
    map_vote: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _has_votes(self) -> Recipe:
        if self.map_vote is not None and len({stage.role for stage in self.networks}) < len(ROLES):
            raise ValueError(
                f"map_vote: {self.map_vote} found; a classifier and a segmenter wanted"
            )

        # The classifiers and the map look at the same pixels, normalised once.
        normalisations = {stage.normalisation: stage.role for stage in self.networks}
        if self.map_vote is not None and len(normalisations) > 1:
            found = ", ".join(f"{name} ({role})" for name, role in normalisations.items())
            raise ValueError(
                f"map_vote: {self.map_vote} found beside the normalisations {found}; one for "
                "classifiers and segmenters wanted"
            )
        return self

    def of(self, role: Role) -> list[Stage]:
        """The members of one role, in their order."""
        return [stage for stage in self.networks if stage.role == role]

    def layout_of(self, stage: Stage) -> Layout:
        """The layout of a network's images: its own, or the recipe's."""
        return stage.layout or self.layout

    @property
    def layouts(self) -> list[Layout]:
        """The layouts of all images that the networks learn from, the recipe's first."""
        named = [self.layout, *map(self.layout_of, self.networks)]
        named += [one.pseudo_masks.layout for one in self.networks if one.pseudo_masks]
        return list(dict.fromkeys(named))

    def with_fold(self, fold: int) -> Recipe:
        """The recipe that validates on this fold (k-fold).

        If the recipe reports on a fold, the next fold reports.

        Raises:
            RecipeError: no such fold, the data have their own folds, whose number is not known
                here, or the split names the training folds.
        """
        count = self.split.folds
        if count == "published":
            raise RecipeError("split.folds: published found; a number wanted for --fold")
        if not 0 <= fold < count:
            raise RecipeError(f"fold {fold} found; 0 to {count - 1} wanted")
        if self.split.train is not None:
            raise RecipeError(
                f"split.train: {self.split.train} found beside --fold {fold}, which validates on "
                "one fold and trains on the others; leave split.train out"
            )

        report = [(fold + 1) % count] if self.split.report else []
        return self.model_copy(
            update={"split": self.split.model_copy(update={"validate_": [fold], "report": report})}
        )

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        unknown = [name for name in self.published if name not in FIGURES]
        if unknown:
            raise ValueError(
                f"published: {', '.join(unknown)} found; these are not figures, allowed: "
                f"{', '.join(FIGURES)}"
            )

        if bool(self.of("classifier")) != (self.operating_point is not None):
            raise ValueError("operating_point belongs to a classifier: both or neither")
        for role in ROLES:
            if len({stage.normalisation for stage in self.of(role)}) > 1:
                raise ValueError(f"the {role}s of an ensemble share one normalisation")

        for stage in self.networks:
            if stage.start == "classifier" and (
                stage.role != "segmenter" or self.networks[0].role != "classifier"
            ):
                raise ValueError(
                    "start: classifier is for a segmenter that comes after a classifier"
                )
            if stage.cross_fit and self.layout_of(stage) != self.layout:
                raise ValueError(
                    f"cross_fit: true found in a network of layout {stage.layout}; the recipe's "
                    f"own, {self.layout}, wanted: only its images have folds to leave out"
                )

        return self


def load(path: Path, changes: Mapping[str, str] | None = None) -> Recipe:
    """Read and check one recipe.

    `changes` maps dotted keys to YAML values: {"networks.0.side": "128"}.

    Raises:
        RecipeError: unreadable, not YAML, a change of a key that does not exist, or wrong keys; all
            are listed.
    """
    document = read(path)
    for key, text in (changes or {}).items():
        _change(document, key, text)
    return checked(Recipe, document, path)


def read(path: Path) -> dict[str, Any]:
    """The document of a recipe's file, not checked yet.

    Raises:
        RecipeError: unreadable, or no YAML mapping.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a YAML mapping wanted")
    return document


def checked(form: type[Form], document: dict[str, Any], path: Path) -> Form:
    """The document as a `form`.

    Raises:
        RecipeError: every wrong key.
    """
    try:
        return form.model_validate(document)
    except ValidationError as error:
        faults = [f"{path}: {_in_words(form, fault)}" for fault in error.errors()]
        raise RecipeError("\n".join(faults)) from error


def _in_words(form: type[BaseModel], fault: ErrorDetails) -> str:
    """A wrong key or value; of an unknown key with the nearest key that is known there."""
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] != "extra_forbidden":
        return f"{place}: {fault['msg']}"

    *before, unknown = fault["loc"]
    known = _keys(form, before)
    nearest = difflib.get_close_matches(str(unknown), known, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"allowed: {', '.join(known)}"
    return f"{place}: unknown key; {hint}"


def _keys(form: type[BaseModel] | None, place: Sequence[int | str]) -> list[str]:
    """The keys that are known at a place of a document; none where it has no form."""
    for step in place:
        # A list's members have the form that its key was found to have.
        if form is None or isinstance(step, int):
            continue
        annotations = [
            field.annotation
            for name, field in form.model_fields.items()
            if step in (name, field.alias)
        ]
        form = _form_in(annotations[0]) if annotations else None

    fields = form.model_fields.items() if form else ()
    return [field.alias or name for name, field in fields]


def _form_in(annotation: Any) -> type[BaseModel] | None:
    """The form that a key's type names, such as Stage in `list[Stage]`; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    forms = (_form_in(part) for part in get_args(annotation))
    return next((form for form in forms if form), None)


def _change(document: Any, key: str, text: str) -> None:
    *places, last = key.split(".")
    try:
        value = yaml.safe_load(text)

        for place in places:
            if isinstance(document, list):
                document = document[int(place)]
            else:
                document = document.setdefault(place, {})

        document[int(last) if isinstance(document, list) else last] = value
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"--set {key}={text}: no such place in the recipe, or not a YAML value"
        ) from error
