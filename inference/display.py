"""Stored values -> the grey that a viewer shows (PS3.3 C.11), as one table over all values a pixel
can have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.pixels import Unsuitable

Array = NDArray[np.float64]

# an image whose central 99 % of pixels span fewer stored grey levels shows nothing
_BLANK_LEVELS = 8
# a window that leaves the central 99 % fewer of the display's greys than this hides the picture,
_SEEN_SPAN = 1 / 16
# and so does one that makes all but this part of the pixels plain black or white
_SEEN_PART = 0.1
# PresentationLUTShape
_SHAPES = ("IDENTITY", "INVERSE")
# without a window: what lies in the outermost 0.5 % is collimator, marker or burnt-out air
_OUTER = 0.005
_SAMPLED_PIXELS = 300_000
# numpy turns indices into 8 bytes each: that many stay in the processor's cache
_BLOCK_PIXELS = 16_384


def displayed(
    header: Dataset, stored: NDArray[np.integer]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(rows, columns) float32, 0 black to 1 white in display polarity, and notes on what of the
    header was not usable.

    Modality LUT, then VOI LUT or window, then polarity; pixel padding is black. A window that hides
    the picture gives way to the data's central range: a lung that collapsed must not be black
    because a console wrote nonsense.

    Args:
        stored: (rows, columns), 8- or 16-bit integers.

    Raises:
        Unsuitable: "blank", or "undecodable" where the modality LUT cannot be applied.
    """
    notes: list[str] = []
    counts = _histogram(stored)
    levels = np.arange(len(counts), dtype=np.float64) + np.iinfo(stored.dtype).min
    padding = _padding(header, levels, np.iinfo(stored.dtype))
    if np.count_nonzero(counts[padding]) > np.count_nonzero(counts) / 2:
        notes.append(
            "PixelPaddingRangeLimit takes in most of the image's values, so that nothing is "
            "taken as padding"
        )
        padding[:] = False

    counts[padding] = 0

    if not counts.any():
        raise Unsuitable("blank", "every pixel is padding")

    low, high = _central(levels, counts)
    if high - low < _BLANK_LEVELS:
        raise Unsuitable(
            "blank", f"99 % of the pixels lie within {high - low:.0f} stored grey levels"
        )

    values = _modality(header, levels, notes)
    grey = _voi(header, values, notes)
    if grey is not None and not _shows(grey, counts):
        notes.append("the window hides the picture, so the central range of its values is shown")
        grey = None

    if grey is None:
        low, high = _central(values, counts)
        if high <= low:
            raise Unsuitable("undecodable", "the modality LUT leaves one value of all")
        grey = np.clip((values - low) / (high - low), 0.0, 1.0)

    if inverse(header):
        grey = 1.0 - grey
    if inverse(header) != _dark_is_high(header):
        notes.append("PresentationLUTShape contradicts PhotometricInterpretation")

    # PS3.3 C.7.5.1.1.2: padding is no image
    grey[padding] = 0.0

    return _looked_up(grey.astype(np.float32), stored), tuple(notes)


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale any grey image to 0..1 as an X-ray without a window is.

    For pictures that are no DICOM files.
    """
    low, high = (
        float(v) for v in np.percentile(values[:: max(1, values.shape[0] // 1024)], (0.5, 99.5))
    )
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0), dtype=np.float32)


def _histogram(stored: NDArray[np.integer]) -> NDArray[np.int64]:
    """How often each value occurs, from the lowest of the pixel's type to the image's highest, on a
    grid of pixels.
    """
    step = max(1, math.isqrt(stored.size // _SAMPLED_PIXELS))
    lowest = int(np.iinfo(stored.dtype).min)
    sample = stored[::step, ::step].ravel().astype(np.int32) - lowest
    # negative numbers' bits lie above
    highest = stored.max() if lowest == 0 else np.iinfo(stored.dtype).max
    return np.asarray(np.bincount(sample, minlength=int(highest) - lowest + 1))


def _central(values: Array, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Between which values the central 99 % of the pixels lie.

    All of them where those are one value.
    """
    seen = np.flatnonzero(counts)
    order = seen[np.argsort(values[seen], kind="stable")]
    reached = np.cumsum(counts[order])
    low, high = (
        values[order[np.searchsorted(reached, part * reached[-1])]] for part in (_OUTER, 1 - _OUTER)
    )

    return (
        (float(low), float(high))
        if high > low
        else (float(values[order[0]]), float(values[order[-1]]))
    )


def _shows(grey: Array, counts: NDArray[np.int64]) -> bool:
    low, high = _central(grey, counts)
    inside = counts[(grey > 0) & (grey < 1)].sum()
    return bool(high - low >= _SEEN_SPAN and inside >= _SEEN_PART * counts.sum())


def _looked_up(table: NDArray[np.float32], stored: NDArray[np.integer]) -> NDArray[np.float32]:
    kind = np.iinfo(stored.dtype)
    # a negative number's bits, read as unsigned, lie above the positive ones
    if kind.min < 0:
        table, stored = (
            np.roll(table, int(kind.min)),
            stored.view(stored.dtype.str.replace("i", "u")),
        )

    image = np.empty(stored.shape, dtype=np.float32)

    rows = max(1, _BLOCK_PIXELS // stored.shape[1])
    for top in range(0, stored.shape[0], rows):
        # "clip" skips a check of each index: the table has an entry for every one
        np.take(table, stored[top : top + rows], out=image[top : top + rows], mode="clip")

    return image


# ---- modality LUT (PS3.3 C.11.1)


def _modality(header: Dataset, levels: Array, notes: list[str]) -> Array:
    table = lut_of(header, "ModalityLUTSequence", signed=levels[0] < 0)
    if table is not None:
        return table(levels)[0]
    if header.get("ModalityLUTSequence"):
        raise Unsuitable("undecodable", "ModalityLUTSequence (0028,3000) cannot be applied")
    slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
    if not slope and header.get("RescaleSlope") not in (None, ""):
        notes.append("RescaleSlope is no usable number")
    # Each alone is against the standard (both are type 1C together), and its meaning is plain all
    # the same.
    return levels * (slope or 1.0) + (intercept or 0.0)


def lut_of(
    header: Dataset, keyword: str, signed: bool
) -> Callable[[Array], tuple[Array, float]] | None:
    """The first item's table as a function of input values.

    (output values, the largest that its bits allow).
    """
    try:
        item = header[keyword].value[0]
        entries, first, bits = (int(v) for v in item.LUTDescriptor)
        data = lut_words(item.LUTData, header) or item.LUTData
        # PS3.3 C.11.1.1: 0 stands for 2^16; SS may make large ones negative
        entries = entries % 65536 or 65536

        if isinstance(data, bytes):
            # 8-bit entries may be packed two to a word
            wide = len(data) >= 2 * entries
            table = np.frombuffer(data, dtype="<u2" if wide else "u1")[:entries].astype(np.float64)
        else:
            table = np.atleast_1d(np.asarray(data, dtype=np.float64))[:entries]

        # Some say 8 or 10 bits of a table of 12 or 16: the upper part of the picture would all be
        # white.
        largest = float(2 ** max(bits, int(table.max()).bit_length()) - 1)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError):
        return None

    if len(table) != entries or not 1 <= bits <= 16:
        return None

    if signed and first > 32767:
        # SS written as US
        first -= 65536

    def look_up(values: Array) -> tuple[Array, float]:
        # below the first entry, the first; so at the end
        index = np.clip(np.round(values) - first, 0, entries - 1)
        return table[index.astype(np.intp)], largest

    return look_up


def lut_words(data: object, header: Dataset) -> bytes | None:
    """LUTData as 16-bit little endian words, the same from every transfer syntax; None where it is
    no such words.

    It is US or OW (PS3.3 C.11.1): numbers where the VR is written, and bytes in the file's own
    order elsewhere.

    Args:
        data: the value as it was read.
        header: of the file that it was read from, for its byte order.
    """
    if isinstance(data, bytes):
        order = ">" if header.original_encoding[1] is False else "<"
        return (
            np.frombuffer(data, f"{order}u2").astype("<u2").tobytes()
            if len(data) % 2 == 0
            else None
        )

    try:
        words = np.asarray(data)
        fits = words.dtype.kind in "iu" and words.min() >= 0 and words.max() <= 65535
    except (TypeError, ValueError, OverflowError):
        return None

    # by other numbers it is another picture
    return words.astype("<u2").tobytes() if fits else None


# ---- VOI LUT (PS3.3 C.11.2)


def _voi(header: Dataset, values: Array, notes: list[str]) -> Array | None:
    """Grey 0..1 by the first VOI LUT, else the first window, else None.

    Several are alternatives (PS3.3 C.11.2.1).
    """
    if header.get("VOILUTSequence"):
        table = lut_of(header, "VOILUTSequence", signed=values.min() < 0)
        if table is not None:
            grey, largest = table(values)
            return np.clip(grey / largest, 0.0, 1.0)
        notes.append("VOILUTSequence cannot be applied")

    centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    if centre is None or width is None:
        return None

    name = str(header.get("VOILUTFunction") or "LINEAR").strip()
    window = WINDOWS.get(name)
    if window is None:
        notes.append("VOILUTFunction unknown, LINEAR taken")
        name, window = "LINEAR", linear

    if width < (1 if name == "LINEAR" else 1e-9):
        notes.append("WindowWidth is smaller than its function allows")
        return None

    return window(values, centre, width)


def linear(x: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.2.1, for an output range of 0..1; width at least 1."""
    edge = (width - 1) / 2
    inside = (x - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    return np.where(x <= centre - 0.5 - edge, 0.0, np.where(x > centre - 0.5 + edge, 1.0, inside))


def linear_exact(x: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.3.2, for an output range of 0..1; width above 0."""
    inside = (x - centre) / width + 0.5
    return np.where(x <= centre - width / 2, 0.0, np.where(x > centre + width / 2, 1.0, inside))


def sigmoid(x: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.3.1, for an output range of 0..1; width above 0."""
    return np.asarray(1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700))))


WINDOWS: dict[str, Callable[[Array, float, float], Array]] = {
    "LINEAR": linear,
    "LINEAR_EXACT": linear_exact,
    "SIGMOID": sigmoid,
}


# ---- polarity and padding


def inverse(header: Dataset) -> bool:
    """Whether low values are bright.

    PresentationLUTShape decides where it is present (PS3.3 C.11.6).
    """
    shape = header.get("PresentationLUTShape")
    return bool(shape == "INVERSE") if shape in _SHAPES else _dark_is_high(header)


def _dark_is_high(header: Dataset) -> bool:
    return str(header.get("PhotometricInterpretation")).strip().upper() == "MONOCHROME1"


def _padding(header: Dataset, levels: Array, kind: np.iinfo[Any]) -> NDArray[np.bool_]:
    """Which of the levels are no image.

    PixelPaddingValue, or from there to PixelPaddingRangeLimit.
    """
    value = _number(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(levels.shape, dtype=bool)
    limit = _number(header, "PixelPaddingRangeLimit")
    low, high = sorted(_wrapped(edge, kind) for edge in (value, value if limit is None else limit))
    return (levels >= low) & (levels <= high)


def _wrapped(value: float, kind: np.iinfo[Any]) -> float:
    """US written for SS, or the other way round: the pixel's own type says which number is meant.

    A limit beyond the image's own highest value is still itself: a detector's 4095 where 3990 was
    reached.
    """
    meant = (each for each in (value, value - 65536, value + 65536) if kind.min <= each <= kind.max)
    return next(meant, value)


def _number(header: Dataset, keyword: str) -> float | None:
    """The first value of a numeric attribute, or None where there is no number to reckon with."""
    value: Any = header.get(keyword)
    try:
        number = float(value if isinstance(value, (int, float, str, bytes)) else value[0])
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return number if abs(number) < 1e30 else None
