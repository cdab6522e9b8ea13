"""Overlays of every kind, drawn from phantoms. `python -m tests.gallery FOLDER` writes them as PNG
for review by eye.

`python -m tests.gallery docs --docs` makes the picture in docs/overlays.md that shows no model's
answer; `python -m tools.answers docs` makes the others. No image here shows a patient.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from scipy import ndimage

from inference.finding import ModelIdentity, Result, State
from inference.results import Case, NoFinding, RenderSettings, build
from inference.results.layout import ORANGE, SKY_BLUE
from tools.cases import header, negative, positive, refused
from training import phantom

# The longest name and version that a package may have.
LONG_NAME = ModelIdentity("w" * 31, "999999999.999999999.999999999", "ef" * 32, "2.25.7")
DETECTOR = {"PixelSpacing": None, "ImagerPixelSpacing": [0.143, 0.143]}


@cache
def _phantom(size: int, ill: bool = True) -> phantom.Phantom:
    """A square phantom of `size` pixels. Drawing is slow, so it is drawn at 1024 at most and
    enlarged.
    """
    drawn = phantom.draw(7 if ill else 19, pneumothorax=ill, size=min(size, 1024))
    if size <= 1024:
        return drawn
    pixels = np.asarray(
        Image.fromarray(drawn.pixels).resize((size, size), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    share = Image.fromarray(drawn.mask.astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return phantom.Phantom(pixels, np.asarray(share) > 0.5, drawn.seed)


def _case(
    make: Callable[..., Case], rows: int, columns: int, *, ill: bool = True, **changes: Any
) -> Case:
    """A case with a phantom's middle part of (rows, columns).

    `changes`: capitalised names are header attributes, others are arguments of `make`.
    """
    source = header(
        Rows=rows, Columns=columns, **{k: v for k, v in changes.items() if k[0].isupper()}
    )
    given: dict[str, Any] = {}
    if "pixels" not in changes:
        given["pixels"] = _cut(_phantom(max(rows, columns), ill).pixels, rows, columns)
    if make is positive and "mask" not in changes:
        given["mask"] = _cut(_phantom(max(rows, columns), ill).mask, rows, columns)
    return make(source, **(given | {k: v for k, v in changes.items() if k[0].islower()}))


def _cut(array: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    top, left = (array.shape[0] - rows) // 2, (array.shape[1] - columns) // 2
    return np.ascontiguousarray(array[top : top + rows, left : left + columns])


def _shapes(source: Dataset, *ellipses: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """A mask of ellipses (row, column, half height, half width), as fractions of the matrix."""
    row, column = np.mgrid[0 : source.Rows, 0 : source.Columns]
    row, column = row / source.Rows, column / source.Columns
    mask = np.zeros(row.shape, dtype=bool)
    for at_row, at_column, height, width in ellipses:
        mask |= ((row - at_row) / height) ** 2 + ((column - at_column) / width) ** 2 < 1
    return mask


def _masked(
    rows: int, columns: int, *ellipses: tuple[float, float, float, float], **changes: Any
) -> Case:
    source = header(Rows=rows, Columns=columns)
    return _case(positive, rows, columns, mask=_shapes(source, *ellipses), **changes)


def _hole() -> Case:
    source = header(Rows=1024, Columns=1024)
    mask = _shapes(source, (0.4, 0.25, 0.25, 0.12)) & ~_shapes(source, (0.42, 0.26, 0.1, 0.05))
    return _case(positive, 1024, 1024, mask=mask)


def _ragged() -> Case:
    field = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(1024, 1024)), 9)
    inside = _shapes(header(Rows=1024, Columns=1024), (0.4, 0.25, 0.25, 0.12))
    return _case(positive, 1024, 1024, mask=inside & (field > np.quantile(field, 0.4)))


def _plain(grey: float) -> Case:
    """A uniform grey image, to check that the contour stands out from it."""
    pixels = np.full((1024, 1024), grey, dtype=np.float32)
    return _case(positive, 1024, 1024, pixels=pixels)


UNDECODABLE = NoFinding(State.NOT_ANALYSED, "undecodable", "the pixels cannot be decoded")
BROKEN = NoFinding(State.FAILED, "analysis_error", "the analysis broke repeatedly")
NOTES = ("PatientAge implausible", "ViewPosition absent", "(0018,1151) unreadable")

KINDS: dict[str, Callable[[], Case]] = {
    "positive": lambda: _case(positive, 1024, 1024),
    "positive-portrait-2500x2048": lambda: _case(positive, 2500, 2048, **DETECTOR),
    "positive-landscape-2048x2500": lambda: _case(positive, 2048, 2500, **DETECTOR),
    "positive-huge-4280x3520": lambda: _case(positive, 4280, 3520, **DETECTOR),
    "positive-tiny-64": lambda: _case(positive, 64, 64),
    "positive-tiny-192-at-512": lambda: _case(
        positive, 192, 192, appearance=RenderSettings(longest_side=512)
    ),
    "positive-narrow-2000x500": lambda: _case(
        positive, 2000, 500, pixels=_wide(2000, 500), mask=_stripe(2000, 500)
    ),
    "positive-wide-500x1900": lambda: _case(
        positive, 500, 1900, pixels=_wide(500, 1900), mask=_stripe(500, 1900)
    ),
    "positive-small-region": lambda: _masked(1024, 1024, (0.17, 0.3, 0.012, 0.02)),
    "positive-one-pixel": lambda: _masked(2500, 2048, (0.2, 0.3, 0.0002, 0.0003)),
    "positive-large-region": lambda: _masked(1024, 1024, (0.45, 0.25, 0.36, 0.16)),
    "positive-both-sides": lambda: _masked(
        1024, 1024, (0.25, 0.25, 0.14, 0.06), (0.2, 0.75, 0.08, 0.05)
    ),
    "positive-hole": _hole,
    "positive-ragged": _ragged,
    "positive-at-the-border": lambda: _masked(
        1024, 1024, (0.3, 0.0, 0.25, 0.15), (1.0, 0.8, 0.06, 0.2)
    ),
    "positive-no-region": lambda: _case(
        positive, 1024, 1024, mask=np.zeros((1024, 1024), dtype=bool)
    ),
    "positive-no-orientation": lambda: _case(positive, 1024, 1024, PatientOrientation=None),
    "positive-mirrored": lambda: _case(positive, 1024, 1024, PatientOrientation=["R", "F"]),
    "positive-no-spacing": lambda: _case(positive, 1024, 1024, PixelSpacing=None),
    "positive-on-black": lambda: _plain(0.0),
    "positive-on-white": lambda: _plain(1.0),
    "positive-monochrome1": lambda: _case(
        positive, 1024, 1024, PhotometricInterpretation="MONOCHROME1"
    ),
    "positive-long-model-name": lambda: _case(
        positive, 1024, 1024, model=LONG_NAME, notes=NOTES * 9
    ),
    "positive-near-the-threshold": lambda: _near(),
    "positive-quality-50": lambda: _case(positive, 1024, 1024, appearance=RenderSettings(512, 50)),
    "not-detected": lambda: _case(negative, 1024, 1024, ill=False),
    "not-detected-portrait-2500x2048": lambda: _case(negative, 2500, 2048, ill=False, notes=NOTES),
    "not-analysed-under-age": lambda: _case(refused, 1024, 820, ill=False),
    "not-analysed-undecodable": lambda: refused(
        header(Rows=2500, Columns=2048), pixels=None, no_finding=UNDECODABLE
    ),
    "failed": lambda: _case(refused, 1024, 1024, ill=False, no_finding=BROKEN),
    "failed-no-date": lambda: _case(
        refused, 1024, 1024, ill=False, no_finding=BROKEN, StudyDate=None
    ),
}
IN_DOCS = {"overlay-not-analysed.png": ("not-analysed-under-age", 640)}


def _wide(rows: int, columns: int) -> NDArray[np.float32]:
    drawn = Image.fromarray(_phantom(1024).pixels)
    return np.asarray(drawn.resize((columns, rows)), dtype=np.float32).clip(0, 1)


def _stripe(rows: int, columns: int) -> NDArray[np.bool_]:
    return _shapes(header(Rows=rows, Columns=columns), (0.3, 0.25, 0.15, 0.1))


def _near() -> Case:
    case = _case(positive, 1024, 1024)
    assert case.finding is not None
    return replace(case, finding=replace(case.finding, probability=0.420004))


def picture(result: Result) -> Image.Image:
    """The overlay as a viewer gets it: the decoded JPEG."""
    jpeg = next(generate_frames(dcmread(io.BytesIO(result.data)).PixelData, number_of_frames=1))
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def _palette() -> Image.Image:
    """Greys, and the two overlay colours mixed with them. Keeps files small and colours exact."""
    greys = np.linspace(0, 255, 86)[:, None].repeat(3, axis=1)
    shares = np.linspace(0.1, 1, 16)[:, None]
    mixed = [
        np.array(colour) * shares + ground * (1 - shares)
        for colour in (ORANGE, SKY_BLUE)
        for ground in (20, 150)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, *mixed]).astype(np.uint8).tobytes())
    return palette


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--docs", action="store_true", help="only the pictures of docs/overlays.md, made smaller"
    )
    parser.add_argument("--only", nargs="*", default=None)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.docs:
        for file, (kind, side) in IN_DOCS.items():
            shown = picture(build(KINDS[kind](), ["SC"])[0])
            shown.thumbnail((side, side), Image.Resampling.LANCZOS)

            shown.quantize(palette=_palette(), dither=Image.Dither.NONE).save(
                given.folder / file, optimize=True
            )
        return
    for kind, make in KINDS.items():
        if given.only and kind not in given.only:
            continue
        result = build(make(), ["SC"])[0]
        (given.folder / f"{kind}.dcm").write_bytes(result.data)
        picture(result).save(given.folder / f"{kind}.png")


if __name__ == "__main__":
    main()
