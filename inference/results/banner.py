"""The banner below the radiograph: what it says, and how that is set.

No patient's identity is drawn. Sizes follow the picture's width, so that the text is as legible below a 169-pixel
source as below a 3000-pixel one. Pillow's built-in font knows ASCII only: so does this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from inference.finding import Finding, Laterality, Measurement, State
from inference.results.identity import DISCLAIMER, PLEURA_VERSION, Case, copied

# Told apart by any colour vision: they differ in lightness and on the blue-yellow axis, and the words say it as well.
AMBER, STEEL, PALE = (255, 184, 28), (120, 170, 210), (205, 208, 212)
BACKGROUND, STRIP, RULE = (16, 18, 21), (34, 38, 43), (70, 75, 82)
BRIGHT, TEXT, DIM = (245, 246, 248), (222, 225, 229), (150, 156, 164)

SIDE_WORDS: dict[Laterality, str] = {"R": "patient's right", "L": "patient's left", "B": "both sides"}


Fact = tuple[str, str]  # label, value


@dataclass(frozen=True)
class Message:
    """What the banner says: always in the same places, so that a reader finds it without looking for it."""

    colour: tuple[int, int, int]
    headline: str
    second: str  # "" for none
    left: tuple[Fact, ...]
    right: tuple[Fact, ...]
    note: str  # "" for none


def draw(case: Case, width: int) -> Image.Image:
    """The banner of a case, RGB, `width` pixels wide and as high as its text needs."""
    return _set(_message(case), width)


def _message(case: Case) -> Message:
    colour, headline, second = _answer(case)
    left = [_taken(case.header)]
    if case.finding is not None:
        if case.segmented is not None and case.finding.measurement is not None:
            left.insert(0, ("Area", _area(case.finding.measurement)))
        left.insert(0, ("Score", _score(case.finding)))
    right = (
        ("Model", f"{case.model.id} {case.model.version}"),
        ("Software", f"Pleura {PLEURA_VERSION}"),
        ("Processed", f"{case.local_time:%Y-%m-%d %H:%M}"),
    )
    return Message(colour, headline, second, tuple(left), right, "; ".join(case.notes))


def _answer(case: Case) -> tuple[tuple[int, int, int], str, str]:
    """Colour, headline and second line."""
    finding = case.finding
    if finding is None:
        assert case.refusal is not None  # one of the two: Case says so
        what = "Analysis failed" if case.refusal.state is State.FAILED else "Not analysed"
        return PALE, f"{what}: {case.refusal.sentence.rstrip('.')}", "No statement about pneumothorax is made."
    if not finding.positive:
        return STEEL, "Pneumothorax not detected by the algorithm", "This does not exclude pneumothorax."
    side = finding.measurement.laterality if finding.measurement else None
    headline = "Pneumothorax suspected" + (f", {SIDE_WORDS[side]}" if side else "")
    regions = finding.measurement.regions if finding.measurement else 0
    if case.segmented is None:
        return AMBER, headline, "Positive, but no region could be outlined."
    return AMBER, headline, f"{regions} regions outlined." if regions > 1 else "1 region outlined."


def _score(finding: Finding) -> str:
    """Score and operating point, with as many digits as it takes to tell them apart."""
    digits = next(
        (n for n in (2, 3, 4) if round(finding.probability, n) != round(finding.threshold, n)),
        2 if finding.probability == finding.threshold else 6,
    )
    return f"{finding.probability:.{digits}f} (positive from {finding.threshold:.{digits}f})"


def _area(measured: Measurement) -> str:
    text = f"{_grouped(measured.area_px)} px"
    if measured.area_mm2 is not None:
        caveat = ", estimated at detector plane" if measured.area_estimated else ""
        text += f", {_grouped(measured.area_mm2)} mm^2{caveat}"
    return text


def _grouped(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")  # ISO 80000-1: a space, which no language reads as a decimal sign


def _taken(header: Dataset) -> tuple[str, str]:
    """When the radiograph was taken, as far as its header says."""
    for prefix, label in (("Acquisition", "Acquired"), ("Study", "Study date")):
        date, time = copied(header, f"{prefix}Date"), copied(header, f"{prefix}Time")
        if date is not None and len(day := str(date.value)) == 8:
            clock = f" {str(time.value)[:2]}:{str(time.value)[2:4]}" if time and len(str(time.value)) >= 4 else ""
            return label, f"{day[:4]}-{day[4:6]}-{day[6:]}{clock}"
    return "Acquired", "date not stated"


def _set(message: Message, width: int) -> Image.Image:
    """Give everything its place, then the banner its height, then draw."""
    unit = width / 100
    left, right = 2.6 * unit, width - 2.2 * unit
    title, lead, body = typeface(3.5 * unit), typeface(2.5 * unit), typeface(2.05 * unit)
    placed: list[tuple[float, float, str, ImageFont.FreeTypeFont, tuple[int, int, int]]] = []
    y = 1.8 * unit
    for text, face, colour, leading in (
        (message.headline, title, AMBER if message.colour == AMBER else BRIGHT, 1.28),
        (message.second, lead, TEXT, 1.35),
    ):
        for line in _wrap(text, face, right - left):
            placed.append((left, y, line, face, colour))
            y += face.size * leading
    top = y + 0.8 * unit

    def table(facts: Iterable[Fact], x: float, y: float, end: float) -> float:
        """Place label and value lines; give where the next would come."""
        for label, value in facts:
            placed.append((x, y, label, body, DIM))
            for line in _wrap(value, body, end - x - indent):
                placed.append((x + indent, y, line, body, TEXT))
                y += body.size * 1.42
        return y

    indent = max(body.getlength(label) for label, _ in (*message.left, *message.right)) + 1.4 * unit
    middle = left + 0.56 * (right - left)
    y = max(table(message.left, left, top, middle - unit), table(message.right, middle, top, right))
    y = table([("Note", message.note)] if message.note else [], left, y, right)

    strip_top = round(y + 0.9 * unit)
    height = round(strip_top + 3.9 * unit)
    banner = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(banner)
    pen.rectangle((0, strip_top, width, height), fill=STRIP)
    pen.rectangle((0, 0, width, max(0, round(0.1 * unit) - 1)), fill=RULE)
    pen.rectangle((0, 0, round(0.9 * unit), strip_top - 1), fill=message.colour)
    for x, line_top, text, face, colour in placed:
        _text(pen, (x, line_top), text, face, colour)
    pen.text((left, (strip_top + height) / 2), DISCLAIMER, font=typeface(2.2 * unit), fill=BRIGHT, anchor="lm")
    return banner


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, int, int],
) -> None:
    """Set one line from its top left; "^2" becomes a raised 2, which the built-in font has not got."""
    x, y = at
    for piece in re.split(r"(\^2)", text):
        if piece == "^2":
            raised = typeface(font.size * 0.62)
            pen.text((x, y - font.size * 0.02), "2", font=raised, fill=colour)
            x += raised.getlength("2")
        else:
            pen.text((x, y), piece, font=font, fill=colour)
            x += font.getlength(piece)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word that is longer than a line is broken too."""
    lines: list[str] = []
    line = ""
    for word in _ascii(text).split():
        while font.getlength(word) > width and len(word) > 1:
            fits = next((n for n in range(len(word) - 1, 1, -1) if font.getlength(word[:n]) <= width), 1)
            lines += [line] * bool(line) + [word[:fits]]
            line, word = "", word[fits:]
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return lines + [line] * bool(line)


def _ascii(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def typeface(size_px: float) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font in one size."""
    font = ImageFont.load_default(size=max(9.0, size_px))
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font
