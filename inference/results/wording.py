"""The phrases that our objects use: a table, which encoders and gate share.

Figures stand in braces. Encoder and gate each work them out and format them on their own.
"""

from __future__ import annotations

from inference.finding import Laterality

MANUFACTURER = "Pleura"
DISCLAIMER = "Research use only - not for diagnosis"
CONTRIBUTION = "Pneumothorax detection and segmentation"
CONTENT_DESCRIPTION = f"Pneumothorax, automatic. {DISCLAIMER}"
LAYER_DESCRIPTION = "Pneumothorax, automatic"
ONE_LESION = "Pneumothorax"
NUMBERED_LESION = "Pneumothorax region {number}"

# ---- the report

NOT_DETECTED = "Pneumothorax not detected by the algorithm; does not exclude pneumothorax."
SUSPECTED = "Pneumothorax suspected by the algorithm."
SUSPECTED_WITHOUT_REGION = "Pneumothorax suspected by the algorithm; no region could be outlined."
WITHOUT_FINDING = "{what}: {sentence}. No statement about pneumothorax is made."
FAILED = "Analysis failed"
NOT_ANALYSED = "Not analysed"
SCORE = "Score of the whole image {score} %, positive from {threshold} %; not calibrated."
PROBABILITY = "Probability of a pneumothorax {score} %, positive from {threshold} %; calibrated."
OPERATING_POINT = "positive from {threshold} %"
NOTE = "Note: {note}"
REGIONS = "{regions} region{plural}, {area_px} pixels"
CENTROID = "centroid at column {column:.1f}, row {row:.1f}"
EXTENT = "columns {left} to {right}, rows {top} to {bottom}"
SPREAD = "standard deviation {columns:.1f} columns, {rows:.1f} rows"
COUNTED_FROM = "Pixels are counted from 0."

# ---- the presentation state; lines end with CR LF (PS3.5 6.1.3)

GRAPHIC_TEXT = f"Pneumothorax suspected by {{model}} {{version}}\r\n{DISCLAIMER}"

# ---- the overlay's banner

BANNER_SUSPECTED = "Pneumothorax suspected"
BANNER_NOT_DETECTED = "Pneumothorax not detected"
BANNER_NO_EXCLUSION = "Not detected by the algorithm. This does not exclude pneumothorax."
BANNER_NO_REGION = "Positive, but no region could be outlined."
BANNER_NO_STATEMENT = "{sentence}. No statement about pneumothorax is made."
BANNER_REGIONS = "{side}. {regions} outlined."
BANNER_SCORE = "{score} (positive from {threshold})"
BANNER_NO_SPACING = "{area_px} px (pixel spacing not known)"
BANNER_AREA = "{area_px} px, {area_mm2} mm^2"
BANNER_ESTIMATED_AREA = "{area_px} px, {area_mm2} mm^2, estimated at detector plane"
BANNER_NO_DATE = "date not stated"
SIDES: dict[Laterality, str] = {
    "R": "Patient's right", "L": "Patient's left", "B": "Both sides",
}  # fmt: skip
# Where the patient's side is not known, a reader is still told where to look.
BANNER_UNSIDED = "{place} (patient's side not known)"
PICTURE_LEFT = "At the left of the picture"
PICTURE_RIGHT = "At the right of the picture"
PICTURE_BOTH = "On both sides of the picture"
# The part of the region that must lie in one half of the picture to be of that half.
PICTURE_SIDE_PART = 0.9

# ---- how the overlay was derived

BANNER_ADDED = "Banner added below the radiograph"
RESAMPLED = "radiograph resampled"
CONTOUR_DRAWN = "contour of the segmented region drawn"
QUALITY = "JPEG quality {quality}"
