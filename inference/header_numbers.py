"""A header's numbers, read leniently and written as DS (PS3.5 6.2)."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

_LARGEST_NUMBER = 1e30
# PS3.5 Table 6.2-1.
_DS_CHARACTERS = 16


def first_number(header: Dataset, keyword: str) -> float | None:
    """The first value of a numeric attribute; None if it is absent or not a usable number."""
    numbers = numbers_of(header, keyword)
    return numbers[0] if numbers else None


def numbers_of(header: Dataset, keyword: str) -> list[float | None]:
    """The values of a numeric attribute, None for each that is not a usable number."""
    value: Any = header.get(keyword)
    if value is None:
        return []
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return [usable_number(each) for each in values]


def usable_number(value: Any) -> float | None:
    """A value as a number; None if it is not a number, not finite or absurdly large."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST_NUMBER else None


def set_number(settled: Dataset, keyword: str, *numbers: float) -> None:
    """Write numbers as DS, unless the attribute already holds exactly these.

    A DS has at most 16 characters (PS3.5 6.2); results leave longer ones out.
    """
    texts = [_decimal(number) for number in numbers]
    if keyword in settled and settled[keyword].VR == "DS":
        found = settled[keyword].value
        values = list(found) if isinstance(found, MultiValue) else [found]
        is_short = all(len(str(value).strip()) <= _DS_CHARACTERS for value in values)
        if is_short and [usable_number(value) for value in values] == list(numbers):
            return
    settled.add_new(keyword, "DS", texts if len(texts) > 1 else texts[0])


def _decimal(number: float) -> str:
    """A number in at most 16 characters, with as many digits as fit."""
    for digits in range(_DS_CHARACTERS, 0, -1):
        text = f"{number:.{digits}g}"
        if len(text) <= _DS_CHARACTERS:
            return text
    raise ValueError(f"{number} does not fit a DS of {_DS_CHARACTERS} characters")
