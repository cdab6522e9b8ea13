"""Look-up tables of a header: Modality LUT (PS3.3 C.11.1) and VOI LUT (C.11.2), as they occur in
practice.

Real tables contradict their descriptors: fewer bits than stated, a signed first value for unsigned
pixels, data written as signed numbers. Then the table itself decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

Array = NDArray[np.float64]

_WORDS = 1 << 16
_PALETTES = tuple(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))
_LARGEST_SIGNED = (1 << 15) - 1


def has_grey_palette(header: Dataset) -> bool:
    """Whether a PALETTE COLOR image is grey: its three tables are equal (PS3.3 C.7.6.3.1)."""
    red, green, blue = (header.get(keyword) for keyword in _PALETTES)
    return bool(red) and red == green == blue


@dataclass(frozen=True, eq=False)
class Table:
    """One table. `outputs` are its entries; inputs up to `first` give the first entry."""

    outputs: Array
    first: int
    # The largest output that fits the bits that the entries use.
    largest: float

    def __call__(self, values: Array) -> tuple[Array, float]:
        """(output values, the largest possible output) for input values of any shape."""
        index = np.clip(np.round(values) - self.first, 0, len(self.outputs) - 1)
        return self.outputs[index.astype(np.intp)], self.largest

    def item(self, order: str) -> Dataset | None:
        """The table as a valid sequence item; None if no item can hold it.

        `order` is the byte order of the file that the item stands in for, "<" or ">".
        """
        entries = len(self.outputs)
        # The descriptor is US or SS as a whole (PS3.3 C.11.1.1).
        fits_unsigned = 0 <= self.first < _WORDS
        fits_signed = -_WORDS // 2 <= self.first < 0 and entries <= _LARGEST_SIGNED
        if not (fits_unsigned or fits_signed):
            return None

        item = Dataset()
        bits = int(self.largest).bit_length()
        descriptor = [entries % _WORDS, self.first, max(8, bits)]
        item.add_new("LUTDescriptor", "US" if fits_unsigned else "SS", descriptor)
        item.add_new("LUTData", "OW", self.outputs.astype(f"{order}u2").tobytes())
        return item


def lut_of(header: Dataset, keyword: str, signed: bool) -> Table | None:
    """The table of a sequence's first item; None if it is absent or cannot be applied.

    Args:
        header: the source's data set.
        keyword: "ModalityLUTSequence" or "VOILUTSequence".
        signed: whether input values can be negative.
    """
    try:
        item = header[keyword].value[0]
        entries, first, bits = (int(value) for value in item.LUTDescriptor)
        # PS3.3 C.11.1.1: 0 stands for 2^16; SS may make large numbers negative.
        entries = entries % _WORDS or _WORDS
        outputs = _outputs(item.LUTData, header, entries)
        largest = int(outputs.max())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError):
        return None

    if len(outputs) != entries or not 1 <= bits <= 16 or largest < 1:
        return None

    # The descriptor's VR does not always follow the input values. A table for unsigned values may
    # begin below 0, but not end there.
    if signed and first > _LARGEST_SIGNED:
        first -= _WORDS
    elif not signed and first + entries <= 0:
        first += _WORDS

    # Descriptors state 8 or 10 bits for 12-bit tables, and 16 for 14-bit tables: the picture would
    # be white, or a quarter as bright. The entries show how many bits they use.
    return Table(outputs, first, float(2 ** largest.bit_length() - 1))


def byte_order(header: Dataset) -> str:
    """The byte order of the file that the header was read from, "<" or ">"."""
    return ">" if header.original_encoding[1] is False else "<"


def _outputs(data: Any, header: Dataset, entries: int) -> Array:
    words = lut_words(data, header)
    if words is None and not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, dtype=np.float64))[:entries]

    # 8-bit entries may be packed two to a word.
    packed = words if words is not None else data
    is_wide = len(packed) >= 2 * entries
    return np.frombuffer(packed, dtype="<u2" if is_wide else "u1")[:entries].astype(np.float64)


def lut_words(data: object, header: Dataset) -> bytes | None:
    """LUTData as 16-bit little endian words, the same from every transfer syntax.

    It is US or OW (PS3.3 C.11.1): numbers in explicit VR, and otherwise bytes in the file's own
    order. Numbers written as SS are the same words.

    Args:
        data: the value as it was read.
        header: of the file that it was read from, for its byte order.

    Returns:
        None if the data are not such words.
    """
    if isinstance(data, bytes):
        if len(data) % 2:
            return None
        return np.frombuffer(data, f"{byte_order(header)}u2").astype("<u2").tobytes()

    try:
        words = np.asarray(data)
        fits = words.dtype.kind in "iu" and words.min() >= -_WORDS // 2 and words.max() < _WORDS
    except (TypeError, ValueError, OverflowError):
        return None

    # A number outside the range would wrap around, and change the picture.
    return (words & (_WORDS - 1)).astype("<u2").tobytes() if fits else None
