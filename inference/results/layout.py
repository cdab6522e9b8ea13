"""The layout of the overlay: sizes and colours, a table that drawing and gate share."""

from __future__ import annotations

Colour = tuple[int, int, int]

# The text is not legible in a narrower banner; a small radiograph stands in its middle.
NARROWEST_BANNER_PX = 760
# A smaller radiograph is enlarged by a whole factor: its pixels stay its pixels.
ENLARGE_BELOW_PX = 640
# The longer side of the panel that stands for a radiograph without pixels.
NO_IMAGE_SIDE_PX = 1024
# The banner begins on a new JPEG block: none of its colour bleeds into the anatomy.
JPEG_BLOCK_PX = 8

# A contour is fine, but visible when the picture is shown at a fifth of its size.
LINE_PART = 0.0018
LINE_PX = (2.2, 3.8)
# A dark halo goes beyond the line on either side by this part of its width, and fades there.
HALO_PART = 0.7

# Okabe and Ito's orange and sky blue are distinct for any colour vision; words and shape differ
# too.
ORANGE: Colour = (230, 159, 0)
SKY_BLUE: Colour = (86, 180, 233)
PALE: Colour = (205, 208, 212)
NO_IMAGE_GREY = 47
