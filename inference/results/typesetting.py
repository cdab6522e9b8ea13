"""Typesetting of the banner: turns a message into a picture, and knows nothing of cases.

Sizes follow the picture's longer side, so that the answer is legible when the picture is shown as a
thumbnail. Pillow's built-in font knows ASCII only.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from inference.results.layout import Colour
from inference.results.wording import DISCLAIMER

Fact = tuple[str, str]  # label, value

BACKGROUND: Colour = (16, 18, 21)
STRIP: Colour = (34, 38, 43)
RULE: Colour = (70, 75, 82)
BRIGHT: Colour = (245, 246, 248)
TEXT: Colour = (222, 225, 229)
DIM: Colour = (158, 164, 172)

# Lines drawn as strokes within a square of -1..1 (x, y), one shape for each answer.
SHAPES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "triangle": (((0, -0.8), (0.9, 0.75), (-0.9, 0.75), (0, -0.8), (0.9, 0.75)),),
    "ring": (),  # an ellipse
    "bar": (((-0.85, 0), (0.85, 0)),),
    "cross": (((-0.7, -0.7), (0.7, 0.7)), ((-0.7, 0.7), (0.7, -0.7))),
}
# A longer text is cut off with dots, so that a long name does not push other words out.
MOST_VALUE_LINES = 2
MOST_NOTE_LINES = 4


@dataclass(frozen=True)
class Message:
    """The words of a banner, always in the same places, so that a reader finds them at once.

    Attributes:
        shape: a name of SHAPES.
        note: "" for no note.
    """

    colour: Colour
    shape: str
    headline: str
    second: str
    left: tuple[Fact, ...]
    right: tuple[Fact, ...]
    note: str


@dataclass(frozen=True)
class _Sizes:
    """Letters and margins in pixels, for a banner of this width below a radiograph of this height.

    The headline is 11 pixels high where the picture is shown at 256, unless the banner is too
    narrow for its longest word; the rest gives way so that two columns of facts fit.
    """

    unit: float
    title: float
    lead: float
    body: float

    @classmethod
    def of(cls, width: int, radiograph_height: int) -> _Sizes:
        # The banner adds about a quarter to the height.
        unit = max(width, 1.25 * radiograph_height) / 100
        return cls(
            unit=min(unit, width / 40),
            title=min(4.2 * unit, width / 9),
            lead=min(2.1 * unit, width / 36),
            body=min(1.6 * unit, width / 52),
        )


@dataclass(frozen=True)
class _Line:
    """A line of text with its upper left corner in the banner."""

    x: float
    y: float
    text: str
    font: ImageFont.FreeTypeFont
    colour: Colour


# The gate sets the same words again.
@lru_cache(maxsize=4)
def typeset(message: Message, width: int, radiograph_height: int) -> Image.Image:
    """The banner, RGB, `width` pixels wide and as high as its text needs.

    Not to be drawn upon: it is kept. `radiograph_height` is the height of the panel above it, for
    the size of the letters.
    """
    sizes = _Sizes.of(width, radiograph_height)
    title, lead, body = typeface(sizes.title), typeface(sizes.lead), typeface(sizes.body)
    left, right = 2.4 * sizes.unit, width - 2.0 * sizes.unit
    lines: list[_Line] = []

    # The headline, with its shape to the left of it.
    y = 1.7 * sizes.unit
    shape_at = (left + 0.42 * title.size, y + 0.62 * title.size)
    beside = left + 1.15 * title.size
    for text in _wrap(message.headline, title, right - beside):
        lines.append(_Line(beside, y, text, title, message.colour))
        y += title.size * 1.2

    y += 0.2 * lead.size
    for text in _wrap(message.second, lead, right - left):
        lines.append(_Line(left, y, text, lead, BRIGHT))
        y += lead.size * 1.35

    # Two columns of facts, then the note over both.
    top = y + 0.8 * sizes.unit
    labels = [label for label, _ in (*message.left, *message.right)]
    indent = max(map(body.getlength, labels)) + 1.2 * body.size
    middle = left + 0.56 * (right - left)

    def place_facts(facts: Iterable[Fact], x: float, y: float, end: float, most: int) -> float:
        """Place label and value lines; return where the next line would start."""
        for label, value in facts:
            lines.append(_Line(x, y, label, body, DIM))
            for text in _wrap(value, body, end - x - indent, most):
                lines.append(_Line(x + indent, y, text, body, TEXT))
                y += body.size * 1.42
        return y

    ends = (
        place_facts(message.left, left, top, middle - body.size, MOST_VALUE_LINES),
        place_facts(message.right, middle, top, right, MOST_VALUE_LINES),
    )
    y = max(ends)
    if message.note:
        y = place_facts([("Note", message.note)], left, y, right, MOST_NOTE_LINES)

    # The layout is known: draw.
    strip_top = round(y + 0.9 * sizes.unit)
    height = round(strip_top + 1.8 * lead.size)
    banner = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(banner)
    pen.rectangle((0, strip_top, width, height), fill=STRIP)
    pen.rectangle((0, 0, width, max(0, round(0.1 * sizes.unit) - 1)), fill=RULE)
    pen.rectangle((0, 0, round(0.9 * sizes.unit), strip_top - 1), fill=message.colour)
    _shape(banner, message.shape, message.colour, shape_at, 0.36 * title.size)
    for line in lines:
        bolder_px = 0.02 * line.font.size if line.font is title else 0
        _text(pen, (line.x, line.y), line.text, line.font, line.colour, bolder_px)
    pen.text((left, (strip_top + height) / 2), DISCLAIMER, font=lead, fill=BRIGHT, anchor="lm")
    return banner


def _shape(
    banner: Image.Image, shape: str, colour: Colour, centre: tuple[float, float], half: float
) -> None:
    """Draw a shape of SHAPES, anti-aliased: at four times the size, averaged down."""
    side = round(2.4 * half)
    width = round(4 * 0.3 * half)
    cover = Image.new("L", (4 * side, 4 * side), 0)
    pen = ImageDraw.Draw(cover)

    for stroke in SHAPES[shape]:
        points = [(2 * side + 4 * half * x, 2 * side + 4 * half * y) for x, y in stroke]
        pen.line(points, fill=255, width=width, joint="curve")
    if shape == "ring":
        low, high = 2 * side - 4 * half, 2 * side + 4 * half
        pen.ellipse((low, low, high, high), None, 255, width)

    corner = (round(centre[0] - side / 2), round(centre[1] - side / 2))
    banner.paste(colour, corner, cover.reduce(4))


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: Colour,
    bolder_px: float = 0,
) -> None:
    """Set a line from its top left; "^2" becomes a raised 2, which the built-in font lacks."""
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
    """Break a text into at most `most` lines of at most `width` pixels.

    A word longer than a line is broken too.
    """
    lines: list[str] = []
    line = ""

    for word in _ascii(text)[: 400 * most].split():
        while font.getlength(word) > width and len(word) > 1:
            if line:
                lines.append(line)
                line = ""
            fits = _letters_that_fit(word, font, width)
            lines.append(word[:fits])
            word = word[fits:]

        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer

    if line:
        lines.append(line)
    if len(lines) <= most:
        return lines

    last = lines[most - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}..."]


def _letters_that_fit(word: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """How many letters of the word fit the width, at least one."""
    longer = bisect_right(range(len(word)), width, key=lambda n: font.getlength(word[:n]))
    return max(1, longer - 1)


def _ascii(text: str) -> str:
    """The text in printable ASCII: letters without their accents, "?" for what has none."""
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(map(_ascii_character, plain))


def _ascii_character(character: str) -> str:
    if " " <= character <= "~":
        return character
    return " " if character.isspace() else "?"


def typeface(size_px: float) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font in one size."""
    return _typeface(max(9.0, round(size_px * 4) / 4))


# Each loading decodes the whole font.
@lru_cache(maxsize=64)
def _typeface(size_px: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font
