"""Is a picture a frontal chest, and if so, which way up and in which polarity?

A package's plausibility network knows only upright chests in display polarity. Some real X-rays are
upside down or inverted although their header does not say so (five of the 3,453 in the data), and
the classifier is weak on them. So if a picture is refused as shown, the network is also asked about
the seven other poses, and the plausible pose is analysed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# (rows, columns), 0 black to 1 white
Pixels = NDArray[np.float32]
# A higher threshold, because seven more questions are seven more chances of a false chest.
_SURE = 0.9
# Pixels a side, several times the input of such a network.
_SMALL = 256


@dataclass(frozen=True)
class Pose:
    """How a picture must be changed to show an upright chest in display polarity."""

    # Counter-clockwise, 0 to 3.
    quarter_turns: int = 0
    inverted: bool = False

    def righted(self, pixels: Pixels) -> Pixels:
        """The picture as the networks expect it."""
        turned = np.rot90(pixels, self.quarter_turns)
        return np.ascontiguousarray(1 - turned if self.inverted else turned, dtype=np.float32)

    def as_given(self, probability_map: Pixels) -> Pixels:
        """A map of the righted picture, turned back to (rows, columns) of the given picture."""
        return np.ascontiguousarray(np.rot90(probability_map, -self.quarter_turns))

    @property
    def note(self) -> str:
        """A phrase for the result; "" where the picture needed no change."""
        turned = f"turned by {90 * self.quarter_turns} degrees" if self.quarter_turns else ""
        changes = " and ".join(
            word for word in (turned, "inverted" if self.inverted else "") if word
        )
        return f"not shown as a chest is: analysed {changes}" if changes else ""


UPRIGHT = Pose()
OTHERS = tuple(
    Pose(turns, inverted) for inverted in (False, True) for turns in range(4) if turns or inverted
)


@dataclass(frozen=True)
class Judgement:
    """The gate's answer: `pose` is None if the picture is not a frontal chest in any pose."""

    # 0 to 1, of the picture in `pose`; without a pose, as shown.
    plausibility: float
    pose: Pose | None


def judge(
    ask: Callable[[Sequence[Pixels]], list[float]], images: Sequence[Pixels], threshold: float
) -> list[Judgement]:
    """One Judgement per image, in order; a NaN answer means "no frontal chest".

    Args:
        ask: Engine.plausible, from pictures to probabilities.
        images: each (rows, columns) float32, 0 black to 1 white.
        threshold: the least probability of a frontal chest.
    """
    judgements = []

    for image, plausibility in zip(images, ask(images), strict=True):
        judgement = Judgement(plausibility, UPRIGHT if plausibility >= threshold else None)
        if judgement.pose is None:
            small = _small(image)
            answers = zip(ask([pose.righted(small) for pose in OTHERS]), OTHERS, strict=True)
            best, pose = max(answers, key=lambda answer: answer[0])
            if best >= max(threshold, _SURE):
                judgement = Judgement(best, pose)

        judgements.append(judgement)

    return judgements


def _small(pixels: Pixels) -> Pixels:
    # Seven copies of the largest radiographs would be a gigabyte.
    rows, columns = pixels.shape
    scale = min(1.0, _SMALL / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)
