"""A labelled image, from any layout."""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.data.pictures import Picture

# The key of patients' digests: they mean nothing outside this process.
_KEY = secrets.token_bytes(16)


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One image with its label.

    Pixels and mask are read when asked for: a data set need not fit into memory.
    """

    image_id: str
    # Images of one patient stay together in every split
    patient: str
    # The same for one patient in every layout that a process reads (`person_of`); empty if the data
    # name no patient
    person: str = field(default="", repr=False)
    # 1 positive, 0 negative; between them: a soft label
    label: float
    # As published with the data
    fold: int | None = None
    # False: re-wrapped from a copy; figures are given without these as well
    as_published: bool = True
    # PA, AP or ""
    view: str = ""
    # M, F or ""
    sex: str = ""
    age_years: float | None = None

    @property
    def positive(self) -> bool:
        """Whether the label is positive."""
        return self.label > 0.5

    @property
    def mask_known(self) -> bool:
        """Whether there is an annotated mask, without reading it."""
        return True

    @abstractmethod
    def pixels(self) -> NDArray[np.float32]:
        """(rows, columns), 0 black to 1 white, in display polarity, upright, square pixels.

        Raises:
            ValueError: the file cannot be read; with its path.
        """

    def picture(self) -> Picture:
        """The image with the way back to the matrix of its file.

        Raises:
            ValueError: the file cannot be read; with its path.
        """
        pixels = self.pixels()
        return Picture(pixels, pixels.shape)

    @abstractmethod
    def mask(self) -> NDArray[np.bool_] | None:
        """(rows, columns) of `pixels`; None if only the label is known."""

    def stored_mask(self) -> NDArray[np.bool_] | None:
        """The mask in the matrix of the image's file, in which a node draws; None as in `mask`."""
        return self.mask()

    @abstractmethod
    def identity(self) -> str:
        """A digest that changes with pixels, mask or label: it names a cache."""


def numbered(patients: Iterable[str]) -> dict[str, str]:
    """A number for each patient, in order of first appearance, so that patients' names enter no
    file of a run.
    """
    return {
        patient: f"patient-{number:04}" for number, patient in enumerate(dict.fromkeys(patients), 1)
    }


def person_of(patient: str) -> str:
    """A digest of the data's patient identifier, empty for none, because layouts number patients
    differently.
    """
    if not patient:
        return ""
    return hashlib.blake2b(patient.encode(), key=_KEY, digest_size=16).hexdigest()
