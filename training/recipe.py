"""A recipe: every knob of a training run, checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.augment import Augmentation

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RecipeError(Exception):
    """The recipe cannot be used; the message lists every error."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Part):
    """How one network is built and optimised."""

    architecture: str
    arguments: dict[str, int | float | bool | str | list[int]] = {}
    side: Annotated[int, Field(ge=32, le=2048)]
    normalisation: str
    epochs: Count
    batch: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    average: Annotated[float, Field(ge=0, lt=1)]  # decay of the running average of the weights that is kept
    phantoms: Annotated[int, Field(ge=0)]  # synthetic images among the real ones
    augmentation: Augmentation = Augmentation()


class Finish(_Part):
    """Last, a few epochs with many phantoms: among few, and at a high learning rate, they are not learned."""

    epochs: Count
    phantoms: Count
    learning_rate: Positive
    share: Annotated[float, Field(gt=0, le=1)]  # of the way from the weights before to those after


class ClassifierStage(Stage):
    """Trained on stage2/ with silver probabilities as soft targets."""

    held_out: Count  # images of stage2/ that only watch
    finish: Finish


class SegmenterStage(Stage):
    """Trained on the masks of siim/."""

    folds: list[int]
    repeats: Count  # times each real image is seen in an epoch
    threshold: Annotated[float, Field(gt=0, lt=1)]
    smallest: Annotated[float, Field(ge=0, lt=1)]  # quantile of annotated areas below which a region is dropped


class OperatingPoint(_Part):
    """Where "positive" begins."""

    sensitivity: Annotated[float, Field(gt=0, le=1)]
    folds: list[int]  # of siim/, on whose labels the threshold is chosen


class Recipe(_Part):
    """Both stages, and how their package is called."""

    id: str
    version: str
    seed: int
    classifier: ClassifierStage
    segmenter: SegmenterStage
    operating_point: OperatingPoint
    report_fold: int  # of siim/: trains nothing, chooses nothing


def load(path: Path) -> Recipe:
    """Read and check one recipe.

    Raises:
        RecipeError: unreadable, not YAML, or wrong keys; all of them.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({error})") from error
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise RecipeError("\n".join(faults)) from error
