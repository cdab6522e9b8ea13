"""Stored values -> the picture that a viewer shows (PS3.3 C.11), in one place.

Networks, overlay and presentation state must show the same picture. So `show` returns the picture
together with a header whose display attributes are exactly those that were applied: unusable values
are removed, and a missing window is written out. Results copy from that header. The picture is a
look-up in one table of at most 65,536 entries, one for each possible stored value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference import shutter
from inference.header_numbers import first_number, numbers_of, set_number
from inference.luts import Table, byte_order
from inference.luts import lut_of as lut_of
from inference.luts import lut_words as lut_words
from inference.pixels import Unsuitable
from inference.spacing import SQUARE_WITHIN, aspect_ratio, pixel_aspect

Array = NDArray[np.float64]

# An image whose central 99 % of pixels span fewer grey levels than this is blank.
_BLANK_LEVELS = 8
# A window hides the picture if the central 99 % of the pixels span fewer display greys than this,
# or if all but this part of the pixels become plain black or white.
_SEEN_SPAN = 1 / 16
_SEEN_PART = 0.1
# The values of PresentationLUTShape.
_SHAPES = ("IDENTITY", "INVERSE")
# Without a window, the outermost 0.5 % is collimator, marker or burnt-out air.
_OUTER = 0.005
_SAMPLED_PIXELS = 300_000
# numpy converts indices to 8 bytes each: this many stay in the processor's cache.
_BLOCK_PIXELS = 16_384
_ONE_GREY = 1 / 256


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture and the display attributes that make it.

    `pixels` is (rows, columns), float32, 0 black to 1 white, in display polarity. `header` is the
    source's with the display attributes that were applied. `aspect` is a pixel's height divided by
    its width. `opening` is (rows, columns), True inside the display shutter, None without one.
    """

    pixels: NDArray[np.float32]
    header: Dataset
    aspect: float
    opening: NDArray[np.bool_] | None
    # Display attributes that could not be used, without patients' values.
    notes: tuple[str, ...]


def displayed(
    header: Dataset, stored: NDArray[np.integer]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The picture and the notes of `show`."""
    shown = show(header, stored)
    return shown.pixels, shown.notes


def show(header: Dataset, stored: NDArray[np.integer], bits: int | None = None) -> Shown:
    """The picture that a viewer shows.

    Modality LUT, then VOI LUT or window, then polarity; pixel padding is black, and so is
    everything outside the display shutter. A window that hides the picture is replaced by the
    data's central range: a collapsed lung must not be black because a console wrote nonsense.

    Args:
        header: the source's data set.
        stored: (rows, columns), 8- or 16-bit integers.
        bits: the bits that the pixels use, if more than Bits Stored.

    Raises:
        Unsuitable: "blank", or "undecodable" where the modality LUT cannot be applied.
    """
    notes: list[str] = []
    settled = _copy_of(header)
    aspect = _settle_aspect(settled, header, notes)
    opening = _settle_shutter(settled, header, stored.shape, aspect, notes)

    counts = _histogram(stored, opening)
    levels = np.arange(len(counts), dtype=np.float64) + np.iinfo(stored.dtype).min
    padding = _usable_padding(header, levels, counts, np.iinfo(stored.dtype), notes)
    counts[padding] = 0
    _refuse_blank(levels, counts)

    values = _modality(settled, header, levels, notes)
    grey = _voi(settled, header, values, counts, notes)
    if grey is not None and _is_for_fewer_bits(header, grey, levels, bits):
        what = "VOI LUT" if settled.get("VOILUTSequence") else "window"
        notes.append(f"the {what} is for the bits of BitsStored, so the central range is shown")
        grey = None
    if grey is None:
        grey = _central_range(settled, values, counts)

    if inverse(header):
        grey = 1.0 - grey
    if inverse(header) != _dark_is_high(header):
        notes.append("PresentationLUTShape contradicts PhotometricInterpretation")
    # PS3.3 C.7.5.1.1.2: padding does not belong to the image.
    grey[padding] = 0.0

    pixels = _looked_up(grey.astype(np.float32), stored)
    if opening is not None:
        pixels[~opening] = 0.0
    return Shown(pixels, settled, aspect, opening, tuple(notes))


def _copy_of(header: Dataset) -> Dataset:
    """A header whose elements can be replaced; it shares those that are not."""
    copy = Dataset(dict(header.items()))
    implicit, little_endian = header.original_encoding
    copy.set_original_encoding(implicit, little_endian, header.original_character_set)
    return copy


# ---- geometry


def _settle_aspect(settled: Dataset, header: Dataset, notes: list[str]) -> float:
    """The pixels' aspect; PixelAspectRatio is made to agree with it (PS3.3 C.7.6.3.1.7)."""
    aspect = pixel_aspect(header)
    stated = aspect_ratio(header)
    if stated is None and header.get("PixelAspectRatio") not in (None, ""):
        notes.append("PixelAspectRatio is not a usable ratio and is ignored")
    elif stated is not None and abs(stated / aspect - 1) > SQUARE_WITHIN:
        notes.append("PixelAspectRatio contradicts the spacing and is ignored")

    if abs(aspect - 1) <= SQUARE_WITHIN:
        _drop(settled, "PixelAspectRatio")
    elif stated is None or abs(stated / aspect - 1) > SQUARE_WITHIN:
        ratio = Fraction(aspect).limit_denominator(1000)
        settled.add_new("PixelAspectRatio", "IS", [ratio.numerator, ratio.denominator])
    return aspect


def _settle_shutter(
    settled: Dataset,
    header: Dataset,
    shape: tuple[int, ...],
    aspect: float,
    notes: list[str],
) -> NDArray[np.bool_] | None:
    """The display shutter's opening; shapes that are not usable are removed."""
    opening, usable, note = shutter.opening_of(header, (shape[0], shape[1]), aspect)
    if note is None:
        return opening

    notes.append(note)
    kept = {keyword for name in usable for keyword in shutter.SHAPES[name]}
    for keyword in shutter.KEYWORDS:
        if keyword in settled and keyword not in kept:
            del settled[keyword]
    if usable:
        settled.add_new("ShutterShape", "CS", list(usable))
    return opening


# ---- from values to greys


def _refuse_blank(levels: Array, counts: NDArray[np.int64]) -> None:
    if not counts.any():
        raise Unsuitable("blank", "every pixel is padding")
    low, high = _central(levels, counts)
    if high - low < _BLANK_LEVELS:
        detail = f"99 % of the pixels lie within {high - low:.0f} stored grey levels"
        raise Unsuitable("blank", detail)


def _central_range(settled: Dataset, values: Array, counts: NDArray[np.int64]) -> Array:
    """Grey 0..1 over the central range of the values, written out as the header's window."""
    low, high = _central(values, counts)
    if high <= low:
        raise Unsuitable("undecodable", "the modality LUT leaves one value of all")

    _drop(settled, "VOILUTSequence", "VOILUTFunction", "WindowCenterWidthExplanation")
    # The LINEAR window (C.11.2.1.2.1) that begins and ends at these values.
    set_number(settled, "WindowCenter", (low + high) / 2 + 0.5)
    set_number(settled, "WindowWidth", high - low + 1)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _is_for_fewer_bits(header: Dataset, grey: Array, levels: Array, bits: int | None) -> bool:
    """Whether the window or VOI LUT is made for Bits Stored although the pixels use more bits."""
    try:
        stated = int(header.get("BitsStored") or 16)
    except (TypeError, ValueError, OverflowError):
        return False
    beyond = grey[levels >= 1 << stated]
    if bits is None or bits <= stated or not len(beyond):
        return False
    return bool(np.ptp(beyond) < _ONE_GREY)


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a picture that is not DICOM to 0..1, like an X-ray without a window.

    `values` is (rows, columns) float32 in any range.
    """
    sample = values[:: max(1, values.shape[0] // 1024)]
    low, high = (float(edge) for edge in np.percentile(sample, (0.5, 99.5)))
    if high <= low:
        low = float(values.min())
        high = float(values.max())
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0), dtype=np.float32)


def _histogram(stored: NDArray[np.integer], opening: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """How often each value occurs, on a grid of pixels inside the shutter's opening.

    From the lowest value of the pixel's type to the image's highest.
    """
    step = max(1, math.isqrt(stored.size // _SAMPLED_PIXELS))
    lowest = int(np.iinfo(stored.dtype).min)
    grid = stored[::step, ::step]
    sample = grid.ravel() if opening is None else grid[opening[::step, ::step]]
    sample = sample.astype(np.int32) - lowest

    # The table of signed values is as long as their type allows (see _looked_up).
    highest = stored.max() if lowest == 0 else np.iinfo(stored.dtype).max
    return np.asarray(np.bincount(sample, minlength=int(highest) - lowest + 1))


def _central(values: Array, counts: NDArray[np.int64]) -> tuple[float, float]:
    """The least and the largest value of the central 99 % of the pixels.

    If the central pixels all have one value: the range of all pixels.
    """
    seen = np.flatnonzero(counts)
    order = seen[np.argsort(values[seen], kind="stable")]
    reached = np.cumsum(counts[order])

    low = values[order[np.searchsorted(reached, _OUTER * reached[-1])]]
    high = values[order[np.searchsorted(reached, (1 - _OUTER) * reached[-1])]]
    if high <= low:
        low = values[order[0]]
        high = values[order[-1]]
    return float(low), float(high)


def _shows(grey: Array, counts: NDArray[np.int64]) -> bool:
    low, high = _central(grey, counts)
    inside = counts[(grey > 0) & (grey < 1)].sum()
    return bool(high - low >= _SEEN_SPAN and inside >= _SEEN_PART * counts.sum())


def _looked_up(table: NDArray[np.float32], stored: NDArray[np.integer]) -> NDArray[np.float32]:
    kind = np.iinfo(stored.dtype)
    # A negative number's bits, read as unsigned, lie above the positive numbers.
    if kind.min < 0:
        table = np.roll(table, int(kind.min))
        stored = stored.view(stored.dtype.str.replace("i", "u"))

    image = np.empty(stored.shape, dtype=np.float32)
    rows = max(1, _BLOCK_PIXELS // stored.shape[1])
    for top in range(0, stored.shape[0], rows):
        # "clip" skips a check of each index: the table has an entry for each of them.
        np.take(table, stored[top : top + rows], out=image[top : top + rows], mode="clip")

    return image


# ---- modality LUT (PS3.3 C.11.1)


def _modality(settled: Dataset, header: Dataset, levels: Array, notes: list[str]) -> Array:
    table = lut_of(header, "ModalityLUTSequence", signed=levels[0] < 0)
    if table is not None:
        _settle_table(settled, "ModalityLUTSequence", table)
        return table(levels)[0]
    if header.get("ModalityLUTSequence"):
        raise Unsuitable("undecodable", "ModalityLUTSequence (0028,3000) cannot be applied")

    slope = first_number(header, "RescaleSlope")
    intercept = first_number(header, "RescaleIntercept")
    if not slope and header.get("RescaleSlope") not in (None, ""):
        notes.append("RescaleSlope is not a usable number")

    # Either alone violates the standard (both are type 1C together), but its meaning is clear.
    slope = slope or 1.0
    intercept = intercept or 0.0
    if "RescaleSlope" in header or "RescaleIntercept" in header:
        set_number(settled, "RescaleSlope", slope)
        set_number(settled, "RescaleIntercept", intercept)
    return levels * slope + intercept


def _settle_table(settled: Dataset, keyword: str, table: Table) -> None:
    item = table.item(byte_order(settled))
    if item is not None:
        settled.add_new(keyword, "SQ", [item])


# ---- VOI LUT (PS3.3 C.11.2)


def _voi(
    settled: Dataset,
    header: Dataset,
    values: Array,
    counts: NDArray[np.int64],
    notes: list[str],
) -> Array | None:
    """Grey 0..1 by the first VOI LUT, else the first usable window, else None.

    Several are alternatives (PS3.3 C.11.2.1). A window that hides the picture is skipped.
    """
    hides = "the {} hides the picture, so the central range of its values is shown"
    if header.get("VOILUTSequence"):
        table = lut_of(header, "VOILUTSequence", signed=values.min() < 0)
        if table is not None:
            _settle_table(settled, "VOILUTSequence", table)
            greys, largest = table(values)
            grey = np.clip(greys / largest, 0.0, 1.0)
            if _shows(grey, counts):
                return grey
            notes.append(hides.format("VOI LUT"))
            return None
        notes.append("VOILUTSequence cannot be applied")
        _drop(settled, "VOILUTSequence")

    window = _settle_window(settled, header, notes)
    if window is None:
        return None
    name, centre, width = window
    grey = WINDOWS[name](values, centre, width)
    if _shows(grey, counts):
        return grey
    notes.append(hides.format("window"))
    return None


def _settle_window(
    settled: Dataset, header: Dataset, notes: list[str]
) -> tuple[str, float, float] | None:
    """(function, centre, width) of the first usable window; other windows are kept if usable."""
    centres = numbers_of(header, "WindowCenter")
    widths = numbers_of(header, "WindowWidth")

    name = str(header.get("VOILUTFunction") or "LINEAR").strip()
    pairs = list(zip(centres, widths, strict=False))
    if pairs and name not in WINDOWS:
        notes.append("VOILUTFunction unknown, LINEAR taken")
        _drop(settled, "VOILUTFunction")
        name = "LINEAR"

    least = 1.0 if name == "LINEAR" else 1e-9
    usable = [
        (centre, width)
        for centre, width in pairs
        if centre is not None and width is not None and width >= least
    ]
    if not usable:
        if any(centre is not None and width is not None for centre, width in pairs):
            notes.append("WindowWidth is smaller than its function allows")
        _drop(settled, "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation")
        return None

    if len(usable) < max(len(centres), len(widths)):
        notes.append("a window without a usable centre and width is ignored")
        _drop(settled, "WindowCenterWidthExplanation")
    set_number(settled, "WindowCenter", *(centre for centre, _ in usable))
    set_number(settled, "WindowWidth", *(width for _, width in usable))
    return name, *usable[0]


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
    """Whether low values are bright: PresentationLUTShape decides if present (PS3.3 C.11.6)."""
    shape = header.get("PresentationLUTShape")
    return bool(shape == "INVERSE") if shape in _SHAPES else _dark_is_high(header)


def _dark_is_high(header: Dataset) -> bool:
    return str(header.get("PhotometricInterpretation")).strip().upper() == "MONOCHROME1"


def _usable_padding(
    header: Dataset,
    levels: Array,
    counts: NDArray[np.int64],
    kind: np.iinfo[Any],
    notes: list[str],
) -> NDArray[np.bool_]:
    """The levels that are padding; none if the range would black out the anatomy."""
    padding = _padding(header, levels, kind)

    if np.count_nonzero(counts[padding]) > np.count_nonzero(counts) / 2:
        notes.append(
            "PixelPaddingRangeLimit takes in most of the image's values, so that nothing is taken "
            "as padding"
        )
        padding[:] = False

    return padding


def _padding(header: Dataset, levels: Array, kind: np.iinfo[Any]) -> NDArray[np.bool_]:
    """The levels that are padding: PixelPaddingValue, or from there to PixelPaddingRangeLimit."""
    value = first_number(header, "PixelPaddingValue")
    if value is None:
        return np.zeros(levels.shape, dtype=bool)
    limit = first_number(header, "PixelPaddingRangeLimit")
    low, high = sorted(_wrapped(edge, kind) for edge in (value, value if limit is None else limit))
    return (levels >= low) & (levels <= high)


def _wrapped(value: float, kind: np.iinfo[Any]) -> float:
    """The number with the pixel's signedness: US may have been written for SS, or SS for US.

    A limit beyond the image's own highest value is still itself: a detector's 4095 where 3990 was
    reached.
    """
    meant = (each for each in (value, value - 65536, value + 65536) if kind.min <= each <= kind.max)
    return next(meant, value)


def _drop(settled: Dataset, *keywords: str) -> None:
    for keyword in keywords:
        if keyword in settled:
            del settled[keyword]
