"""The banner below the radiograph: what it says, and how that is set.

No patient's identity is drawn. Sizes follow the picture's longer side, so that the answer is legible when the picture
is shown as a thumbnail. Pillow's built-in font knows ASCII only: so does this module.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from inference.finding import Finding, Laterality, Measurement, State
from inference.results.identity import DISCLAIMER, PLEURA_VERSION, Case
from inference.results.source import copied

Colour = tuple[int, int, int]
Fact = tuple[str, str]  # label, value

# Okabe and Ito's orange and sky blue are told apart by any colour vision; the words and a shape say it as well.
ORANGE, SKY_BLUE, PALE = (230, 159, 0), (86, 180, 233), (205, 208, 212)
BACKGROUND, STRIP, RULE = (16, 18, 21), (34, 38, 43), (70, 75, 82)
BRIGHT, TEXT, DIM = (245, 246, 248), (222, 225, 229), (158, 164, 172)

SIDE_WORDS: dict[Laterality | None, str] = {
    "R": "Patient's right", "L": "Patient's left", "B": "Both sides", None: "Side not determined",
}  # fmt: skip
# Lines drawn as strokes within a square of -1..1 (x, y), one shape for each answer.
SHAPES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "triangle": (((0, -0.8), (0.9, 0.75), (-0.9, 0.75), (0, -0.8), (0.9, 0.75)),),
    "ring": (),  # an ellipse
    "bar": (((-0.85, 0), (0.85, 0)),),
    "cross": (((-0.7, -0.7), (0.7, 0.7)), ((-0.7, 0.7), (0.7, -0.7))),
}
MOST_VALUE_LINES, MOST_NOTE_LINES = (
    2,
    4,
)  # what is longer is cut, with dots to say so: a name must not push words out


@dataclass(frozen=True)
class Message:
    """What the banner says: always in the same places, so that a reader finds it without looking for it."""

    colour: Colour
    shape: str  # of SHAPES
    headline: str
    second: str
    left: tuple[Fact, ...]
    right: tuple[Fact, ...]
    note: str  # "" for none


def draw(case: Case, width: int, radiograph_height: int) -> Image.Image:
    """The banner of a case, RGB, `width` pixels wide and as high as its text needs. Not to be drawn upon: it is kept.

    `radiograph_height` is that of what stands above it, for the size of the letters.
    """
    return _set(_message(case), width, radiograph_height)


def _message(case: Case) -> Message:
    colour, shape, headline, second = _answer(case)
    left = [_taken(case.header)]
    if case.finding is not None:
        if case.segmented is not None and case.finding.measurement is not None:
            left.insert(0, ("Area", _area(case.finding.measurement)))
        left.insert(0, ("Score", _score(case.finding)))
    right = (
        ("Model", case.model.id),
        ("Version", case.model.version),
        ("Software", f"Pleura {PLEURA_VERSION}"),
        ("Processed", f"{case.local_time:%Y-%m-%d %H:%M}"),
    )
    return Message(colour, shape, headline, second, tuple(left), right, "; ".join(case.notes))


def _answer(case: Case) -> tuple[Colour, str, str, str]:
    """Colour, shape, headline and the line below it."""
    finding = case.finding
    if finding is None:
        assert case.refusal is not None  # one of the two: Case says so
        why = case.refusal.sentence.rstrip(".")
        second = f"{why[0].upper()}{why[1:]}. No statement about pneumothorax is made."
        if case.refusal.state is State.FAILED:
            return PALE, "cross", "Analysis failed", second
        return PALE, "bar", "Not analysed", second
    if not finding.positive:
        return (
            SKY_BLUE,
            "ring",
            "Pneumothorax not detected",
            "Not detected by the algorithm. This does not exclude pneumothorax.",
        )
    headline, measured = "Pneumothorax suspected", finding.measurement
    if case.segmented is None or measured is None:
        return ORANGE, "triangle", headline, "Positive, but no region could be outlined."
    regions = f"{_grouped(measured.regions)} regions" if measured.regions > 1 else "1 region"
    return ORANGE, "triangle", headline, f"{SIDE_WORDS[measured.laterality]}. {regions} outlined."


def _score(finding: Finding) -> str:
    """Score and operating point, with as many digits as it takes to tell them apart."""
    digits = next(
        (n for n in (2, 3, 4) if round(finding.probability, n) != round(finding.threshold, n)),
        2 if finding.probability == finding.threshold else 6,
    )
    return f"{finding.probability:.{digits}f} (positive from {finding.threshold:.{digits}f})"


def _area(measured: Measurement) -> str:
    text = f"{_grouped(measured.area_px)} px"
    if measured.area_mm2 is None:
        return f"{text} (pixel spacing not known)"
    caveat = ", estimated at detector plane" if measured.area_estimated else ""
    return f"{text}, {_grouped(measured.area_mm2)} mm^2{caveat}"


def _grouped(number: float) -> str:
    return f"{number:,.0f}".replace(
        ",", " "
    )  # ISO 80000-1: a space, which no language reads as a decimal sign


def _taken(header: Dataset) -> tuple[str, str]:
    """When the radiograph was taken, as far as its header says."""
    for prefix, label in (("Acquisition", "Acquired"), ("Study", "Study date")):
        date, time = copied(header, f"{prefix}Date"), copied(header, f"{prefix}Time")
        if date is not None and len(day := str(date.value)) == 8:
            clock = (
                f" {str(time.value)[:2]}:{str(time.value)[2:4]}"
                if time and len(str(time.value)) >= 4
                else ""
            )
            return label, f"{day[:4]}-{day[4:6]}-{day[6:]}{clock}"
    return "Acquired", "date not stated"


@dataclass(frozen=True)
class _Sizes:
    """Letters and margins in pixels, for a banner of this width below a radiograph of this height.

    The headline is 11 pixels high where the picture is shown at 256, unless the banner is too narrow for its longest
    word; the rest gives way so that two columns of facts fit.
    """

    unit: float
    title: float
    lead: float
    body: float

    @classmethod
    def of(cls, width: int, radiograph_height: int) -> _Sizes:
        unit = max(width, 1.25 * radiograph_height) / 100  # the banner adds about a quarter
        return cls(
            unit=min(unit, width / 40),
            title=min(4.2 * unit, width / 9),
            lead=min(2.1 * unit, width / 36),
            body=min(1.6 * unit, width / 52),
        )


@lru_cache(maxsize=4)  # the gate sets the same words again
def _set(message: Message, width: int, radiograph_height: int) -> Image.Image:
    """Give everything its place, then the banner its height, then draw."""
    sizes = _Sizes.of(width, radiograph_height)
    unit = sizes.unit
    title, lead, body = typeface(sizes.title), typeface(sizes.lead), typeface(sizes.body)
    left, right = 2.4 * unit, width - 2.0 * unit
    placed: list[tuple[float, float, str, ImageFont.FreeTypeFont, Colour]] = []
    y = 1.7 * unit
    shape_at = (left + 0.42 * title.size, y + 0.62 * title.size)
    beside = left + 1.15 * title.size
    for line in _wrap(message.headline, title, right - beside):
        placed.append((beside, y, line, title, message.colour))
        y += title.size * 1.2
    y += 0.2 * lead.size
    for line in _wrap(message.second, lead, right - left):
        placed.append((left, y, line, lead, BRIGHT))
        y += lead.size * 1.35
    top = y + 0.8 * unit

    def table(facts: Iterable[Fact], x: float, y: float, end: float, lines: int) -> float:
        """Place label and value lines; give where the next would come."""
        for label, value in facts:
            placed.append((x, y, label, body, DIM))
            for line in _wrap(value, body, end - x - indent, lines):
                placed.append((x + indent, y, line, body, TEXT))
                y += body.size * 1.42
        return y

    indent = (
        max(body.getlength(label) for label, _ in (*message.left, *message.right)) + 1.2 * body.size
    )
    middle = left + 0.56 * (right - left)
    y = max(
        table(message.left, left, top, middle - body.size, MOST_VALUE_LINES),
        table(message.right, middle, top, right, MOST_VALUE_LINES),
    )
    y = table([("Note", message.note)] if message.note else [], left, y, right, MOST_NOTE_LINES)

    strip_top = round(y + 0.9 * unit)
    height = round(strip_top + 1.8 * lead.size)
    banner = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(banner)
    pen.rectangle((0, strip_top, width, height), fill=STRIP)
    pen.rectangle((0, 0, width, max(0, round(0.1 * unit) - 1)), fill=RULE)
    pen.rectangle((0, 0, round(0.9 * unit), strip_top - 1), fill=message.colour)
    _shape(banner, message.shape, message.colour, shape_at, 0.36 * title.size)
    for x, line_top, text, face, colour in placed:
        _text(pen, (x, line_top), text, face, colour, 0.02 * face.size if face is title else 0)
    pen.text((left, (strip_top + height) / 2), DISCLAIMER, font=lead, fill=BRIGHT, anchor="lm")
    return banner


def _shape(
    banner: Image.Image, shape: str, colour: Colour, centre: tuple[float, float], half: float
) -> None:
    """Draw one of SHAPES, anti-aliased: at four times the size, averaged down."""
    side, width = round(2.4 * half), round(4 * 0.3 * half)
    cover = Image.new("L", (4 * side, 4 * side), 0)
    pen = ImageDraw.Draw(cover)
    for stroke in SHAPES[shape]:
        points = [(2 * side + 4 * half * x, 2 * side + 4 * half * y) for x, y in stroke]
        pen.line(points, fill=255, width=width, joint="curve")
    if shape == "ring":
        pen.ellipse(
            (2 * side - 4 * half, 2 * side - 4 * half, 2 * side + 4 * half, 2 * side + 4 * half),
            None,
            255,
            width,
        )
    banner.paste(
        colour, (round(centre[0] - side / 2), round(centre[1] - side / 2)), cover.reduce(4)
    )


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: Colour,
    bolder_px: float = 0,
) -> None:
    """Set one line from its top left; "^2" becomes a raised 2, which the built-in font has not got."""
    x, y = at
    for piece in re.split(r"(\^2)", text):
        if piece == "^2":
            raised = typeface(font.size * 0.62)
            pen.text((x, y - font.size * 0.02), "2", font=raised, fill=colour)
            x += raised.getlength("2")
        else:
            pen.text((x, y), piece, font=font, fill=colour, stroke_width=bolder_px)
            x += font.getlength(piece)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int = 99) -> list[str]:
    """Break a text into at most `most` lines of at most `width` pixels; a word longer than a line is broken too."""
    lines: list[str] = []
    line = ""
    for word in _ascii(text)[: 400 * most].split():
        while font.getlength(word) > width and len(word) > 1:
            fits = max(
                1, bisect_right(range(len(word)), width, key=lambda n: font.getlength(word[:n])) - 1
            )
            lines += [line] * bool(line) + [word[:fits]]
            line, word = "", word[fits:]
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    lines += [line] * bool(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last}..."]
    return lines


def _ascii(text: str) -> str:
    """The text in printable ASCII: letters without their accents, "?" for what has none."""
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else " " if c.isspace() else "?" for c in plain)


def typeface(size_px: float) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font in one size."""
    return _typeface(max(9.0, round(size_px * 4) / 4))


@lru_cache(maxsize=64)  # each loading decodes the whole font
def _typeface(size_px: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font
