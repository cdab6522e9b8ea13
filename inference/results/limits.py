"""Limits and defined terms of the objects: a table that encoders and gate share."""

from __future__ import annotations

# Each lesion costs a frame in the SEG: the smallest regions beyond this number are one lesion.
MAX_LESIONS = 20
# Points of one contour: GraphicData is FL, and an explicit VR FL holds 65534 bytes (PS3.5 7.1.2).
MAX_VERTICES = 65534 // 8
# Orange, as in the overlay; 16-bit scaled (PS3.3 C.10.7.1.1).
DISPLAY_COLOUR_CIELAB = (46273, 37131, 52089)
GRAPHIC_LAYER = "PNEUMOTHORAX"

# Defined terms of RescaleType (PS3.3 C.11.1.1.2); US: unspecified.
RESCALE_TYPES = ("OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
# The attributes of each shape of shutter (PS3.3 C.7.6.11).
SHUTTERS: dict[str, tuple[str, ...]] = {
    "RECTANGULAR": (
        "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge", "ShutterUpperHorizontalEdge",
        "ShutterLowerHorizontalEdge",
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}  # fmt: skip
