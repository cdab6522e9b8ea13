"""From stored values to grey as a viewer shows them, of source and presentation state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference import display
from inference.results.gate.header import element_of, values_of

Levels = NDArray[np.float64]

# 16-bit greys and single-precision tables on the way: less than a tenth of an 8-bit display's step.
TOLERANCE = 4e-4


def levels_of(header: Dataset) -> Levels:
    """Every value that a stored pixel of the source can have."""
    bits = header.get("BitsStored")
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        bits = 16
    lowest = -(2 ** (bits - 1)) if header.get("PixelRepresentation") == 1 else 0
    return np.arange(2**bits, dtype=np.float64) + lowest


def of_source(header: Dataset, levels: Levels) -> tuple[Levels, Levels | None]:
    """(modality values, grey 0..1 before polarity) of the levels; no grey without VOI LUT or
    window.
    """
    values = levels
    look_up = display.lut_of(header, "ModalityLUTSequence", signed=bool(levels.min() < 0))
    if look_up is not None:
        values = look_up(levels)[0]
    else:
        slope, intercept = _first(header, "RescaleSlope"), _first(header, "RescaleIntercept")
        values = levels * (slope or 1.0) + (intercept or 0.0)

    look_up = display.lut_of(header, "VOILUTSequence", signed=bool(values.min() < 0))
    if look_up is not None:
        grey, largest = look_up(values)
        return values, np.clip(grey / largest, 0, 1)
    return values, _windowed(header, values)


def of_state(state: Dataset, levels: Levels) -> tuple[Levels, Levels | None]:
    """The same through the LUTs and windows of a presentation state (PS3.3 C.11.6, C.11.8)."""
    values = levels
    if "ModalityLUTSequence" in state:
        values = _through(state.ModalityLUTSequence[0], levels)
    elif "RescaleSlope" in state:
        values = levels * float(state.RescaleSlope) + float(state.RescaleIntercept)

    items = state.get("SoftcopyVOILUTSequence") or []
    if not items:
        return values, None
    if "VOILUTSequence" in items[0]:
        table = items[0].VOILUTSequence[0]
        return values, _through(table, values) / (2 ** int(table.LUTDescriptor[2]) - 1)
    return values, _windowed(items[0], values)


def _through(table: Dataset, values: Levels) -> Levels:
    """A LUT as the standard has it: words, or bytes packed two to a word (PS3.3 C.11.1.1)."""
    entries, first, bits = (int(value) for value in table.LUTDescriptor)
    entries = entries % 65536 or 65536
    data = table.LUTData
    if not isinstance(data, bytes):
        data = np.asarray(data, dtype="<u2").tobytes()
    outputs = np.frombuffer(data, "u1" if bits == 8 else "<u2")[:entries].astype(np.float64)
    index = np.clip(np.round(values) - first, 0, entries - 1).astype(int)
    return np.asarray(outputs[index])


def _windowed(item: Dataset, values: Levels) -> Levels | None:
    """Grey by the first window (PS3.3 C.11.2.1); None where it cannot be used."""
    centre, width = _first(item, "WindowCenter"), _first(item, "WindowWidth")
    if centre is None or width is None:
        return None

    functions: dict[str, Callable[[Levels, float, float], Levels]] = display.WINDOWS
    name = str(item.get("VOILUTFunction") or "LINEAR").strip()
    function = functions.get(name, display.linear)
    if (width < 1 and function is display.linear) or width <= 0:
        return None
    return function(values, centre, width)


def _first(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a numeric attribute; None where it is no number."""
    for value in values_of(element_of(dataset, keyword))[:1]:
        try:
            number = float(str(value))
        except ValueError:
            return None
        return number if abs(number) < 1e30 else None
    return None
