"""The gate's rules for a Secondary Capture: each yields what is wrong with what was read back."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames

from inference.results import overlay
from inference.results.identity import Case

# How far the radiograph in the overlay may be from the case's, as a mean over 64 x 64 cells of 0..1.
PICTURE_TOLERANCE = 0.02


def _picture(dataset: Dataset, case: Case) -> Iterator[str]:
    described = (dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit)
    if described != (3, 8, 8, 7) or dataset.PixelRepresentation or dataset.PlanarConfiguration:
        yield "the pixels are not described as three interleaved samples of 8 bits"
    if dataset.PhotometricInterpretation != "YBR_FULL_422":
        yield f"PhotometricInterpretation {dataset.PhotometricInterpretation}, wanted YBR_FULL_422"
    if "PixelSpacing" in dataset or "ImagerPixelSpacing" in dataset:
        yield "a spacing invites measuring on a picture"
    if dataset.BurnedInAnnotation != ("NO" if case.header.get("BurnedInAnnotation") == "NO" else "YES"):
        yield "BurnedInAnnotation is not the source's"
    fragments = list(generate_frames(dataset.PixelData, number_of_frames=1))
    panel = overlay.place(case)
    with Image.open(io.BytesIO(fragments[0]), formats=("JPEG",)) as jpeg:
        if len(fragments) != 1 or jpeg.size != (dataset.Columns, dataset.Rows) or jpeg.mode != "RGB":
            yield f"a JPEG of {jpeg.size}, wanted one of {(dataset.Columns, dataset.Rows)} in colour"
            return
        if "progressive" in jpeg.info:
            yield "the JPEG is progressive, wanted baseline"
        if jpeg.width != panel.canvas_width or jpeg.height < panel.height + panel.canvas_width // 12:
            yield f"a picture of {jpeg.size} has no banner below {panel.height} rows of radiograph"
            return
        full = jpeg.size
        jpeg.draft("RGB", (full[0] // 8, full[1] // 8))  # the decoder reads it all and gives every 8th pixel
        grey = jpeg.convert("L")
    across, down = grey.width / full[0], grey.height / full[1]
    box = (panel.left * across, 0.0, (panel.left + panel.width) * across, panel.height * down)
    shown = np.asarray(grey.resize((64, 64), Image.Resampling.BOX, box), dtype=np.float64) / 255
    if case.pixels is None:
        wanted = np.full((64, 64), np.mean(overlay.NO_IMAGE) / 255)
    else:
        source = Image.fromarray((case.pixels * 255).astype(np.uint8))
        wanted = np.asarray(source.resize((64, 64), Image.Resampling.BOX, reducing_gap=2), dtype=np.float64) / 255
    if float(np.abs(shown - wanted).mean()) > PICTURE_TOLERANCE:
        yield "the picture does not show the source's pixels"
    banner = np.asarray(grey.crop((0, round(panel.height * down) + 1, grey.width, grey.height)), dtype=np.float32)
    if float(banner.max()) < 60 or float(banner.std()) < 4:
        yield "the banner holds no text"


RULES = (_picture,)
