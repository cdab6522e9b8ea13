"""Look-up tables of a header: Modality LUT (PS3.3 C.11.1) and VOI LUT (C.11.2), as they are found.

Real tables contradict their descriptors: fewer bits than said, a signed first value over unsigned
pixels, data written as signed numbers. The table itself decides then.
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
    """Whether PALETTE COLOR shows greys alone: its three tables hold the same (PS3.3 C.7.6.3.1)."""
    red, green, blue = (header.get(keyword) for keyword in _PALETTES)
    return bool(red) and red == green == blue


@dataclass(frozen=True, eq=False)
class Table:
    """One table. `outputs` are its entries; input `first` and everything below give the first."""

    outputs: Array
    first: int
    # The largest output that the bits which the entries use can hold.
    largest: float

    def __call__(self, values: Array) -> tuple[Array, float]:
        """(output values, the largest possible output) for input values of any shape."""
        index = np.clip(np.round(values) - self.first, 0, len(self.outputs) - 1)
        return self.outputs[index.astype(np.intp)], self.largest

    def item(self, order: str) -> Dataset | None:
        """The table as a sequence item that keeps the standard; None where no item can hold it.

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
    """The table of a sequence's first item; None where there is none, or it cannot be applied.

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

    # The descriptor's VR does not always follow the input values. A table may begin below 0 over
    # unsigned values, but not end there.
    if signed and first > _LARGEST_SIGNED:
        first -= _WORDS
    elif not signed and first + entries <= 0:
        first += _WORDS

    # Descriptors say 8 or 10 bits of tables of 12, and 16 of tables of 14: the picture would be
    # white, or a quarter as bright. The entries tell how many bits they use.
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

    It is US or OW (PS3.3 C.11.1): numbers where the VR is written, and bytes in the file's own
    order elsewhere. Numbers written as SS are the same words.

    Args:
        data: the value as it was read.
        header: of the file that it was read from, for its byte order.

    Returns:
        None where the data are no such words.
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

    # A number outside would be another one, and the picture another picture.
    return (words & (_WORDS - 1)).astype("<u2").tobytes() if fits else None
