"""The banner below the radiograph: what it says, and how that is set.

No patient's identity is drawn. Sizes follow the picture's width, so that the text is as legible below a 169-pixel
source as below a 3000-pixel one. Pillow's built-in font knows ASCII only: so does this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from inference.finding import Finding, Laterality, State
from inference.results.identity import DISCLAIMER, PLEURA_VERSION, Case, copied

# Told apart by any colour vision: they differ in lightness and on the blue-yellow axis, and the words say it as well.
AMBER, STEEL, PALE = (255, 184, 28), (120, 170, 210), (205, 208, 212)
BACKGROUND, STRIP, RULE = (16, 18, 21), (34, 38, 43), (70, 75, 82)
BRIGHT, TEXT, DIM = (245, 246, 248), (222, 225, 229), (150, 156, 164)

SIDE_WORDS: dict[Laterality, str] = {"R": "patient's right", "L": "patient's left", "B": "both sides"}


@dataclass(frozen=True)
class Message:
    """What the banner says."""

    colour: tuple[int, int, int]
    headline: str
    second: str  # "" for none
    facts: tuple[tuple[str, str], ...]  # label, value


def draw(case: Case, width: int) -> Image.Image:
    """The banner of a case, RGB, `width` pixels wide and as high as its text needs."""
    return _set(_message(case), width)


def _message(case: Case) -> Message:
    finding = case.finding
    if finding is None:
        assert case.refusal is not None  # one of the two: Case says so
        failed = case.refusal.state is State.FAILED
        reason = case.refusal.sentence.rstrip(".") + ". No statement about pneumothorax is made."
        headline = "Not analysed: the analysis failed" if failed else "Not analysed"
        return Message(PALE, headline, reason, _facts(case))
    if not finding.positive:
        headline = "Pneumothorax not detected by the algorithm"
        return Message(STEEL, headline, "This does not exclude pneumothorax.", _facts(case))
    side = finding.measurement.laterality if finding.measurement else None
    headline = "Pneumothorax suspected" + (f", {SIDE_WORDS[side]}" if side else "")
    outlined = "" if case.segmented is not None else "Positive, but no region could be outlined."
    return Message(AMBER, headline, outlined, _facts(case))


def _facts(case: Case) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = []
    if case.finding is not None:
        facts.append(("Score", _score(case.finding)))
        if case.segmented is not None and case.finding.measurement is not None:
            facts.append(("Area", _area(case.finding)))
    facts += [
        _taken(case.header),
        ("Model", f"{case.model.id} {case.model.version}"),
        ("Software", f"Pleura {PLEURA_VERSION}"),
        ("Processed", f"{case.local_time:%Y-%m-%d %H:%M}"),
    ]
    if case.notes:
        facts.append(("Note", "; ".join(case.notes)))
    return tuple(facts)


def _score(finding: Finding) -> str:
    """Score and operating point, with as many digits as it takes to tell them apart."""
    digits = next(
        (n for n in (2, 3, 4) if round(finding.probability, n) != round(finding.threshold, n)),
        2 if finding.probability == finding.threshold else 6,
    )
    return f"{finding.probability:.{digits}f} (positive from {finding.threshold:.{digits}f})"


def _area(finding: Finding) -> str:
    measured = finding.measurement
    assert measured is not None
    text = f"{_grouped(measured.area_px)} px"
    if measured.area_mm2 is not None:
        caveat = ", estimated at detector plane" if measured.area_estimated else ""
        text += f", {_grouped(measured.area_mm2)} mm^2{caveat}"
    return text + (f", {measured.regions} regions" if measured.regions > 1 else "")


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
    unit = width / 100
    left, right = 2.6 * unit, width - 2.2 * unit
    title, lead, body = font(3.7 * unit), font(2.5 * unit), font(2.05 * unit)
    small = font(1.9 * unit)
    half = (right - left) / 2
    label_width = max(body.getlength(label) for label, _ in message.facts) + 1.4 * unit
    # First everything gets its place, then the banner its height, then all is drawn.
    placed: list[tuple[float, float, str, ImageFont.FreeTypeFont, tuple[int, int, int]]] = []
    y = 1.9 * unit
    for text, font, colour, leading in (
        (message.headline, title, message.colour if message.colour == AMBER else BRIGHT, 1.28),
        (message.second, lead, TEXT, 1.35),
    ):
        for line in _wrap(text, font, right - left):
            placed.append((left, y, line, font, colour))
            y += font.size * leading
    y += 0.8 * unit
    columns = [y, y]
    short = [fact for fact in message.facts if fact[0] != "Note"]
    for index, (label, value) in enumerate(short):
        column = 0 if index < (len(short) + 1) // 2 else 1
        x = left + column * (half + unit)
        placed.append((x, columns[column], label, body, DIM))
        for line in _wrap(value, body, half - label_width - unit):
            placed.append((x + label_width, columns[column], line, body, TEXT))
            columns[column] += body.size * 1.42
    y = max(columns)
    for label, value in message.facts:
        if label == "Note":
            placed.append((left, y, label, body, DIM))
            for line in _wrap(value, body, right - left - label_width):
                placed.append((left + label_width, y, line, body, TEXT))
                y += body.size * 1.42
    strip_top = round(y + 0.9 * unit)
    height = round(strip_top + 3.5 * unit)
    banner = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(banner)
    pen.rectangle((0, strip_top, width, height), fill=STRIP)
    pen.rectangle((0, 0, width, max(0, round(0.1 * unit) - 1)), fill=RULE)
    pen.rectangle((0, 0, round(0.9 * unit), strip_top - 1), fill=message.colour)
    for x, top, text, font, colour in placed:
        _text(pen, (x, top), text, font, colour)
    pen.text((left, (strip_top + height) / 2), DISCLAIMER, font=small, fill=BRIGHT, anchor="lm")
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
            raised = font(font.size * 0.62)
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


def font(size_px: float) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font in one size."""
    font = ImageFont.load_default(size=max(9.0, size_px))
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font
