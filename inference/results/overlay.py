"""The picture in the Secondary Capture: the radiograph as it is, a fine contour, and a banner below the anatomy.

No text lies on the anatomy and no patient's identity is drawn. Sizes follow the picture's width, so that the text is
as legible on a 169-pixel source as on a 3000-pixel one. Pillow's built-in font knows ASCII only: so does this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from inference.finding import Finding, Laterality, State
from inference.results.identity import DISCLAIMER, PLEURA_VERSION, Case, copied

NARROWEST_BANNER_PX = 760  # below this the text would not be legible; a small radiograph stands in its middle
ENLARGE_BELOW_PX = 640  # a smaller radiograph is enlarged by a whole factor: its pixels stay its pixels
NO_IMAGE_SIDE_PX = 1024
SUPERSAMPLING = 4  # lines are drawn this much larger and averaged down: Pillow's own lines are jagged

# Told apart by any colour vision: they differ in lightness and on the blue-yellow axis, and the words say it as well.
AMBER, STEEL, PALE = (255, 184, 28), (120, 170, 210), (205, 208, 212)
BACKGROUND, STRIP, RULE, NO_IMAGE = (16, 18, 21), (34, 38, 43), (70, 75, 82), (44, 47, 52)
BRIGHT, TEXT, DIM = (245, 246, 248), (222, 225, 229), (150, 156, 164)

SIDE_WORDS: dict[Laterality, str] = {"R": "patient's right", "L": "patient's left", "B": "both sides"}


@dataclass(frozen=True)
class Panel:
    """Where the radiograph stands in the picture, in its pixels, and how many of them one source pixel takes."""

    left: int
    width: int
    height: int
    scale: float
    canvas_width: int


@dataclass(frozen=True)
class Message:
    """What the banner says."""

    colour: tuple[int, int, int]
    headline: str
    second: str  # "" for none
    facts: tuple[tuple[str, str], ...]  # label, value


def place(case: Case) -> Panel:
    """Lay the radiograph out: at most `longest_side`, never enlarged but by a whole factor where it is tiny."""
    rows, columns = case.pixels.shape if case.pixels is not None else _no_image_shape(case.header)
    longest, limit = max(rows, columns), case.appearance.longest_side
    if longest > limit:
        scale = limit / longest
    else:
        scale = float(max(1, min(-(-ENLARGE_BELOW_PX // longest), limit // longest)))
    width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
    canvas = max(width, NARROWEST_BANNER_PX)
    return Panel(left=(canvas - width) // 2, width=width, height=height, scale=scale, canvas_width=canvas)


def draw(case: Case) -> Image.Image:
    """The whole picture, RGB: the radiograph on top, the banner below."""
    panel = place(case)
    banner = _banner(_message(case), panel.canvas_width)
    picture = Image.new("RGB", (panel.canvas_width, panel.height + banner.height), (0, 0, 0))
    picture.paste(_radiograph(case, panel), (panel.left, 0))
    picture.paste(banner, (0, panel.height))
    return picture


# The radiograph and its contour


def _radiograph(case: Case, panel: Panel) -> Image.Image:
    size = (panel.width, panel.height)
    if case.pixels is None:
        blank = Image.new("RGB", size, NO_IMAGE)
        font = _font(panel.canvas_width * 0.026)
        ImageDraw.Draw(blank).text(
            (size[0] / 2, size[1] / 2), "The image cannot be shown", font=font, fill=DIM, anchor="mm"
        )
        return blank
    grey = Image.fromarray((case.pixels * 255.0 + 0.5).clip(0, 255).astype(np.uint8))
    if panel.scale < 1:
        grey = grey.resize(size, Image.Resampling.LANCZOS)
    elif panel.scale > 1:
        grey = grey.resize(size, Image.Resampling.NEAREST)
    image = grey.convert("RGB")
    if case.segmented is not None:
        for line in contours(case.segmented):
            # Pixel centres at whole numbers, in the source as in the picture.
            _stroke(image, (line + 0.5) * panel.scale - 0.5)
    return image


def contours(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outlines of a (rows, columns) mask: closed lines of (column, row), pixel centres at whole numbers.

    Each runs half-way between the last pixel inside and the first outside, its stairs smoothed by a binomial mean over
    five vertices. Vertices lie at most a pixel apart, so that moves none by more than 0.75 pixel, and no region, however
    thin, is lost.
    """
    filled_rows, filled_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if filled_rows.size == 0:
        return []
    top, left = int(filled_rows[0]), int(filled_columns[0])
    part = np.pad(mask[top : filled_rows[-1] + 1, left : filled_columns[-1] + 1].astype(np.float64), 1)
    lines = contourpy.contour_generator(z=part, line_type=contourpy.LineType.Separate).lines(0.5)
    outlines = []
    for line in lines:
        vertices = np.asarray(line, dtype=np.float64)[:-1]
        if len(vertices) > 8:
            weights = zip((1, 4, 6, 4, 1), range(-2, 3), strict=True)
            vertices = sum(weight * np.roll(vertices, shift, axis=0) for weight, shift in weights) / 16
        outlines.append(np.vstack([vertices, vertices[:1]]) + (left - 1, top - 1))
    return outlines


def _stroke(image: Image.Image, line: NDArray[np.float64]) -> None:
    """Draw one closed line of (column, row) onto the image: a fine colour over a dark halo, both anti-aliased."""
    width = float(np.clip(max(image.size) * 0.00125, 1.6, 3.2))
    halo = width + float(np.clip(max(image.size) * 0.0012, 1.6, 3.0))
    margin = int(halo) + 2
    low = np.maximum(np.floor(line.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(line.max(axis=0)).astype(int) + margin + 1, image.size)
    box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    size = (box[2] - box[0], box[3] - box[1])
    points = [(float(x), float(y)) for x, y in (line - low + 0.5) * SUPERSAMPLING - 0.5]
    points += points[1:3]  # past the seam, so that it is joined as every other vertex
    for colour, stroke, opacity in (((0, 0, 0), halo, 0.6), (AMBER, width, 1.0)):
        cover = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), 0)
        ImageDraw.Draw(cover).line(
            points, fill=round(255 * opacity), width=round(stroke * SUPERSAMPLING), joint="curve"
        )
        image.paste(colour, box, cover.reduce(SUPERSAMPLING))


def _no_image_shape(header: Dataset) -> tuple[int, int]:
    """(rows, columns) of the panel that stands for a radiograph which cannot be shown: its shape if plausible."""
    rows, columns = header.get("Rows"), header.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or not 0 < columns <= 2 * rows <= 4 * columns:
        rows = columns = 1
    factor = NO_IMAGE_SIDE_PX / max(rows, columns)
    return round(rows * factor), round(columns * factor)


# The banner: what it says


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


# The banner: how it is set


def _banner(message: Message, width: int) -> Image.Image:
    unit = width / 100
    left, right = 2.6 * unit, width - 2.2 * unit
    title, lead, body = _font(3.7 * unit), _font(2.5 * unit), _font(2.05 * unit)
    small = _font(1.9 * unit)
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
            raised = _font(font.size * 0.62)
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


def _font(size_px: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=max(9.0, size_px))
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font
