"""A package's answer for each labelled image: one row of answers.csv.

Every published figure can be recomputed from these rows.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A package's answer for one image, beside the ground truth.

    `true`, `found` and `common` are numbers of pixels.
    """

    image_id: str
    patient: str
    # 1 positive, 0 negative; between them: a soft label
    label: float
    # Part of the run's split: train, validate, train+validate or report; "" without a split
    part: str = ""
    fold: int | None = None
    as_published: bool = True
    view: str = ""
    sex: str = ""
    age_years: float | None = None
    # The classifier's answer
    probability: float
    # Pixels of the whole image
    pixels: int
    # Pixels of the true mask; None if the image has no annotated mask
    true: int | None = None
    # Pixels of the segmenter's mask, even if the classifier calls the image negative
    found: int = 0
    # Pixels in both masks
    common: int = 0

    @property
    def positive(self) -> bool:
        """Whether the label is positive."""
        return self.label > 0.5

    def of(self, part: str) -> bool:
        """Whether the image belongs to this part of the split."""
        return part in self.part.split("+")

    def dice(self, found: bool = True) -> float | None:
        """Dice coefficient of the segmenter's mask, or, unless `found`, of an empty mask.

        1 if both masks are empty; None without a true mask.
        """
        if self.true is None:
            return None

        total = self.true + self.found * found
        return 2 * self.common * found / total if total else 1.0

    @property
    def true_share(self) -> float | None:
        """The share of the image that the true mask covers."""
        return None if self.true is None else self.true / self.pixels


def read(path: Path) -> list[Answer]:
    """The rows of an answers.csv.

    Raises:
        ValueError: the file is not an answers.csv; the message names the line.
    """
    answers = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                answers.append(Answer(**{name: _KIND_OF[name](text) for name, text in row.items()}))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {reader.line_num}: {error}; a row of an answers.csv wanted"
                ) from error

    return answers


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with a header. Every row has the columns of the first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


_KINDS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: text == "True",
    "int | None": lambda text: int(text) if text else None,
    "float | None": lambda text: float(text) if text else None,
}
_KIND_OF = {field.name: _KINDS[str(field.type)] for field in fields(Answer)}
