"""Preview of one stored radiograph: its picture as JPEG, or its patient's name and ID.

    python -P -m inference.preview picture SIDE_PX < FILE > PICTURE.jpg
    python -P -m inference.preview patient < FILE > PATIENT.json

The operator's page runs it as a separate process, because the file is untrusted.
"""

from __future__ import annotations

import io
import json
import sys

import numpy as np
from PIL import Image

from inference import radiograph
from inference.radiograph import Unsuitable

_QUALITY = 85
_MOST_SIDE_PX = 2048
_SHOWN = {"name": "PatientName", "id": "PatientID"}
_MOST_CHARACTERS = 64


def picture(data: bytes, side_px: int) -> bytes:
    """The radiograph in display polarity, its longer side at most `side_px`, as JPEG.

    Raises:
        Unsuitable: the pixels cannot be decoded.
    """
    dataset, _ = radiograph.parse(data)
    image = radiograph.decode(dataset)
    grey = np.clip(image.pixels * 255.0 + 0.5, 0, 255).astype(np.uint8)

    drawn = Image.fromarray(grey)
    rows, columns = grey.shape
    # Square pixels: a viewer shows them so.
    height = rows * image.aspect
    scale = min(1.0, side_px / max(height, columns))
    size = (max(1, round(columns * scale)), max(1, round(height * scale)))
    drawn = drawn.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC)

    written = io.BytesIO()
    drawn.save(written, "JPEG", quality=_QUALITY)
    return written.getvalue()


def patient(data: bytes) -> dict[str, str]:
    """The patient's name and ID, bounded; "" if the file does not say.

    Raises:
        Unsuitable: the bytes are not a DICOM object.
    """
    dataset, _ = radiograph.parse(data)
    found = {key: str(dataset.get(keyword) or "") for key, keyword in _SHOWN.items()}
    return {key: value[:_MOST_CHARACTERS] for key, value in found.items()}


def main() -> int:
    """Returns 0, or 1 if there is nothing to show."""
    what, *rest = sys.argv[1:]
    data = sys.stdin.buffer.read()

    try:
        if what == "picture":
            written = picture(data, min(int(rest[0]), _MOST_SIDE_PX))
        else:
            written = json.dumps(patient(data)).encode()
    except Unsuitable:
        return 1

    sys.stdout.buffer.write(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
