"""Synthetic pictures of anything but a frontal chest, drawn or made from real chests.

The plausibility network trains on them.

None is a real X-ray of another body part, so a figure about them is a figure about drawings. A
picture is (SIDE, SIDE) float64, 0 black to 1 white. Drawings add up densities like
training/phantom.py, coordinates x and y from -1 to 1. train.py learns from them, and
inference/plausibility.py asks the trained network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Array = NDArray[np.float64]
Point = tuple[float, float]
Draw = Callable[[np.random.Generator, NDArray[np.uint8]], Array]

SIDE = 96
_Y, _X = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
_FONT = ImageFont.load_default(size=9)


def draw(kind: str, count: int, chests: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """`count` pictures of a kind of KINDS, (count, SIDE, SIDE), some of them out of `chests` (n,
    SIDE, SIDE).
    """
    rng = np.random.default_rng((seed, *kind.encode()))
    return np.stack([_byte(KINDS[kind](rng, chests)) for _ in range(count)])


# Made out of real chests


def _chest(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    return np.asarray(chests[rng.integers(len(chests))] / 255.0)


def _turned(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    return np.rot90(_chest(rng, chests), int(rng.integers(1, 4)))


def _inverted(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    turned = np.rot90(_chest(rng, chests), int(rng.choice([0, 0, 1, 2, 3])))
    return np.asarray(1 - turned)


def _piece(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    """Less than a fifth of the area: a shoulder, an apex, half a lung, a bit of abdomen; any way
    up.
    """
    size = int(rng.uniform(0.2, 0.42) * SIDE)
    top, left = rng.integers(0, SIDE - size, 2)
    piece = _chest(rng, chests)[top : top + size, left : left + size]
    return _stretched(np.rot90(_resized(piece), int(rng.choice([0, 0, 1, 2, 3]))))


def _shuffled(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    n = int(rng.choice([2, 3, 4, 8]))
    tiles = (
        _chest(rng, chests)
        .reshape(n, SIDE // n, n, SIDE // n)
        .swapaxes(1, 2)
        .reshape(n * n, SIDE // n, SIDE // n)
    )
    order = rng.permutation(n * n)
    while n == 2 and (order == np.arange(4)).sum() > 1:
        order = rng.permutation(4)
    return np.asarray(
        tiles[order].reshape(n, n, SIDE // n, SIDE // n).swapaxes(1, 2).reshape(SIDE, SIDE)
    )


def _phase(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    """A chest's spectrum with the phases of noise: its greys and its smoothness without its
    anatomy.
    """
    noise = np.fft.fft2(rng.normal(size=(SIDE, SIDE)))
    scrambled = np.fft.ifft2(
        np.abs(np.fft.fft2(_chest(rng, chests))) * np.exp(1j * np.angle(noise))
    ).real
    return _stretched(scrambled)


def _mosaic(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    """Several pictures on one screen."""
    rows, columns = [(1, 2), (2, 1), (2, 2), (2, 3), (3, 3)][rng.integers(5)]
    picture = np.zeros((SIDE, SIDE))
    for row in range(rows):
        for column in range(columns):
            top, left = row * SIDE // rows, column * SIDE // columns
            height, width = SIDE // rows - 2, SIDE // columns - 2
            picture[top : top + height, left : left + width] = _resized(
                _chest(rng, chests), height, width
            )
    return picture


def _warped(rng: np.random.Generator, chests: NDArray[np.uint8]) -> Array:
    """Bent until no lung has its form."""
    far = rng.uniform(0.11, 0.19) * SIDE
    shift = [ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), SIDE / 9) for _ in range(2)]
    index = np.mgrid[0:SIDE, 0:SIDE] + far * np.stack([one / one.std() for one in shift])
    return np.asarray(ndimage.map_coordinates(_chest(rng, chests), index, order=1, mode="reflect"))


# Drawn


def _tube(a: Point, b: Point, radius: float, hollow: float = 0.6, flare: float = 0.0) -> Array:
    """The loss of a ray in a long bone from a to b, thick at its walls; `flare` widens the ends."""
    ax, ay, bx, by = *a, *b
    length2 = (bx - ax) ** 2 + (by - ay) ** 2 + 1e-9
    t = np.clip(((_X - ax) * (bx - ax) + (_Y - ay) * (by - ay)) / length2, 0, 1)
    distance = np.hypot(_X - ax - t * (bx - ax), _Y - ay - t * (by - ay))
    wide = radius * (1 + flare * np.abs(2 * t - 1) ** 3)
    solid = np.sqrt(np.clip(1 - (distance / wide) ** 2, 0, None))
    return np.asarray(
        solid - hollow * np.sqrt(np.clip(1 - (distance / (0.75 * wide)) ** 2, 0, None))
    )


def _ellipse(centre: Point, half: Point, angle: float = 0.0, shell: float = 0.0) -> Array:
    """The loss of a ray in an ellipsoid; with `shell` in its wall of that share."""
    x, y = _X - centre[0], _Y - centre[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    r2 = (u / half[0]) ** 2 + (v / half[1]) ** 2
    body = np.sqrt(np.clip(1 - r2, 0, None))
    return np.asarray(
        body - (1 - shell) * np.sqrt(np.clip(1 - r2 / (1 - shell) ** 2, 0, None)) if shell else body
    )


def _film(rng: np.random.Generator, density: Array, turn: bool = True) -> Array:
    """Expose: turned, grained, its empty part black or, where it was collimated, white."""
    if turn:
        angle = rng.normal(0, 12) + rng.choice([0, 0, 90, 180, 270])
        density = ndimage.rotate(density, angle, reshape=False, order=1, mode="nearest")

    density = ndimage.gaussian_filter(density, rng.uniform(0.4, 1.2))
    density = (
        density
        + rng.uniform(0, 0.15) * _smooth(rng, 6)
        + rng.uniform(0.01, 0.05) * rng.normal(size=density.shape)
    )
    picture = _stretched(1 - np.exp(-rng.uniform(0.7, 1.8) * np.clip(density, 0, None)))

    # shutters, whose outside a MONOCHROME1 film often shows white
    if rng.random() < 0.4:
        low, high = rng.uniform(-1, -0.3), rng.uniform(0.3, 1)
        across = _X if rng.random() < 0.5 else _Y
        picture = np.where((across > low) & (across < high), picture, float(rng.random() < 0.6))

    return np.asarray(picture)


def _limb(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A thigh, a leg or an arm: one or two long bones in flesh, perhaps with a joint."""
    lean, flesh = rng.uniform(-0.35, 0.35), rng.uniform(0.2, 0.6)
    top, bottom = (-lean, -1.3), (lean, 1.3)
    density = rng.uniform(0.3, 1.2) * _tube(top, bottom, flesh, 0, rng.uniform(-0.4, 0.6))
    radius = flesh * rng.uniform(0.2, 0.4)
    joint = rng.uniform(-0.9, 0.9) if rng.random() < 0.6 else 2.0

    for part in (-1, 1) if abs(joint) < 1 else (0,):
        start, end = (-1.3, joint - 0.05) if part <= 0 else (joint + 0.05, 1.3)
        end = 1.3 if part == 0 else end
        for offset in (0.0,) if rng.random() < 0.5 else (-0.35 * flesh, 0.4 * flesh):
            ends = [(y / 1.3 * lean + offset, y) for y in (start, end)]
            share = 1.0 if offset == 0 else 0.65
            density += rng.uniform(0.5, 1.1) * _tube(
                ends[0], ends[1], radius * share, 0.5, rng.uniform(0.2, 0.9)
            )

    return _film(rng, density)


def _hand(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A hand or a foot: rays of short bones from a heap of small bones."""
    density = 0.4 * _ellipse((0, 0.45), (0.55, 0.5))
    for angle in np.linspace(-0.6, 0.6, 5) + rng.normal(0, 0.05, 5):
        reach = rng.uniform(1.1, 1.45)
        tip = (np.sin(angle) * reach, 0.6 - np.cos(angle) * reach)
        density += 0.35 * _tube((0.2 * np.sin(angle), 0.4), tip, 0.11, 0)
        joints = np.cumsum([0.32, 0.38, 0.27, 0.2]) / 1.2 * reach
        for near, far in itertools.pairwise(joints):
            ends = [(np.sin(angle) * r, 0.6 - np.cos(angle) * r) for r in (near + 0.02, far - 0.02)]
            density += 0.6 * _tube(ends[0], ends[1], 0.055, 0.4, 0.5)
    for _n in range(8):
        density += 0.4 * _ellipse((rng.uniform(-0.3, 0.3), rng.uniform(0.4, 0.75)), (0.12, 0.1))
    return _film(rng, density + 0.5 * _tube((0.0, 0.8), (0.0, 1.4), 0.3, 0))


def _teeth(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """Two rows of teeth, a few of one film or all of a panorama, in a jaw."""
    density, bend, wide = (
        0.3 + 0.3 * _smooth(rng, 10),
        rng.uniform(-0.2, 0.5),
        rng.uniform(0.05, 0.2),
    )

    for row in (-1, 1):
        x = -0.8 + rng.uniform(0, wide)
        while x < 0.8:
            half, tall = wide * rng.uniform(0.35, 0.5), rng.uniform(0.18, 0.4)
            middle = (x, bend * (1 - x * x) * 0.6 - 0.1 + row * (tall + 0.04))
            density += rng.uniform(0.5, 1.0) * _ellipse(
                middle, (half, tall), rng.normal(0, 0.15) + 0.5 * row * x
            )
            density += rng.uniform(0.5, 1.5) * (rng.random() < 0.2) * _ellipse(middle, (half, 0.1))
            x += 2 * half + 0.02

    density += 0.5 * _ellipse((0, 0.1), (1.0, 0.75), 0, 0.15)
    return _film(
        rng,
        density * ((np.abs(_Y) < rng.uniform(0.45, 1)) | (rng.random() < 0.5)),
        turn=rng.random() < 0.5,
    )


def _skull(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A head from the front, with orbits, or from the side, with a face."""
    density = 1.2 * _ellipse((0, -0.2), (rng.uniform(0.5, 0.8), 0.7), 0, 0.08) + 0.3 * _ellipse(
        (0, 0), (0.7, 0.9)
    )

    if rng.random() < 0.5:
        density -= sum(0.35 * _ellipse((side * 0.25, 0.1), (0.17, 0.15)) for side in (-1, 1))
        density -= 0.3 * _ellipse((0, 0.3), (0.1, 0.2))
        density += 0.7 * _ellipse((0, 0.6), (0.35, 0.3), 0, 0.3)
    else:
        density += 0.8 * _ellipse((0.5, 0.45), (0.3, 0.35), 0.4, 0.3) - 0.3 * _ellipse(
            (0.45, 0.1), (0.15, 0.12)
        )
        density += sum(
            0.4 * _ellipse((-0.2 - 0.03 * n, 0.45 + 0.16 * n), (0.14, 0.06)) for n in range(5)
        )

    return _film(rng, density)


def _pelvis(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """Both hips, or one of them large and off the middle, a thigh going away from it."""
    density = 0.8 * _ellipse((0, 0), (1.1, 1.2)) + 0.3 * _tube((0, -1.3), (0, -0.3), 0.16, 0.3)
    for side in (-1, 1):
        hip = (side * 0.5, 0.25)
        density += 0.7 * _ellipse((side * 0.5, -0.35), (0.38, 0.45), side * 0.4, 0.2)
        density += 0.7 * _ellipse((side * 0.22, 0.5), (0.2, 0.22), 0, 0.35) + 0.5 * _ellipse(
            hip, (0.16, 0.16)
        )
        knee = (side * rng.uniform(0.6, 1.4), 1.4)
        density += 0.8 * _tube((side * 0.68, 0.35), knee, 0.13, 0.5) + 0.5 * _tube(
            hip, (side * 0.68, 0.35), 0.1, 0.2
        )
        density -= 0.3 * _ellipse((0, 1.1), (0.15, 0.7))

    density += _gas(rng, (0.0, -0.3))
    if rng.random() < 0.5:
        zoom, (dx, dy) = rng.uniform(0.5, 0.7), rng.uniform(-0.4, 0.4, 2)
        density = _sampled(density, zoom * _X + dx, zoom * _Y + dy)

    return _film(rng, density)


def _abdomen(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    density = 1.0 * _ellipse((0, 0), (rng.uniform(0.8, 1.2), 1.6)) + _gas(rng, (0.0, 0.1))
    density += sum(0.35 * _ellipse((0, y), (0.17, 0.09), 0, 0.4) for y in np.arange(-1, 1.1, 0.23))
    density += sum(0.3 * _ellipse((side * 0.6, 1.0), (0.4, 0.35), 0, 0.2) for side in (-1, 1))
    return _film(rng, density, turn=rng.random() < 0.3)


def _spine(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A bent column of vertebrae, wide on the film."""
    wide, tall, bend = rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.25), rng.uniform(-0.5, 0.5)
    density = rng.uniform(0.4, 1) * _ellipse((0, 0), (rng.uniform(0.5, 1.1), 1.8))
    for y in np.arange(-1.1, 1.2, 2.3 * tall):
        centre = (bend * y * y - bend / 2, y)
        density += 0.7 * _ellipse(centre, (wide, tall), bend * y, 0.5)
        density += 0.3 * _ellipse((centre[0] - 1.6 * wide, y + tall), (wide, tall / 2), 0.6)
    return _film(rng, density)


def _lateral(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A chest from the side: one lung field between breastbone and spine, ribs on the slant, the
    heart before it.
    """
    way = rng.choice([-1.0, 1.0])
    x = _X * way
    body = _ellipse((0.0, 0.2), (rng.uniform(0.6, 0.85), 1.3))
    field = _ellipse(
        (0.05, -0.1), (rng.uniform(0.4, 0.55), rng.uniform(0.65, 0.8)), rng.uniform(-0.2, 0.2)
    )
    field = field * (0.45 + 0.5 * x > _Y)
    density = (
        1.1 * body
        - rng.uniform(0.6, 0.9) * field**0.5
        + 0.5 * _ellipse((-0.2, 0.2), (0.25, 0.3), 0.4)
    )

    density += sum(
        0.3 * _ellipse((0.5 - 0.1 * np.cos(2 * y), y), (0.12, 0.08), 0, 0.4)
        for y in np.arange(-1, 1.1, 0.2)
    )
    ribs = np.clip(np.sin((_Y - 0.5 * _X + 0.3 * _X**2) * rng.uniform(15, 24)), 0.4, 1) - 0.4
    density += (
        0.25 * ribs * (field > 0) + 0.5 * _tube((-0.4, -1.2), (-0.2, -0.7), 0.3, 0) * rng.random()
    )

    return _film(rng, density[:, :: int(way)], turn=False)


def _animal(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A four-legged trunk from the side: the spine along the film, ribs hanging from it, the belly
    behind.
    """
    tall = rng.uniform(0.4, 0.75)
    density = 0.9 * _ellipse((0, 0), (1.5, tall))
    lung = _ellipse((rng.uniform(-0.3, 0), -0.1), (0.5, 0.75 * tall)) * (_X < 0.3 - 0.4 * _Y)
    density += -0.6 * lung**0.5 + 0.5 * _ellipse((-0.25, 0.1), (0.22, 0.3 * tall / 0.6), 0.4)
    back = -0.65 * tall
    density += sum(
        0.5 * _ellipse((x, back + 0.1 * x * x), (0.05, 0.06), 0, 0.5)
        for x in np.arange(-1.1, 1.2, 0.12)
    )

    ribs = np.clip(np.sin((_X + 0.4 * _Y) * rng.uniform(30, 45)), 0.5, 1) - 0.5
    density += 0.4 * ribs * (lung > 0) + _gas(rng, (0.7, 0.1)) * 0.5
    for foot in (rng.uniform(-1, -0.6), rng.uniform(-0.9, -0.4)):
        density += 0.6 * _tube((-0.5, 0.3), (foot, 1.1), 0.1, 0.4, 0.3)

    return _film(rng, density[:, :: int(rng.choice([-1, 1]))], turn=rng.random() < 0.5)


def _gas(rng: np.random.Generator, centre: Point) -> Array:
    """Bowel: bubbles of air, so negative."""
    bubbles = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(3, 14))):
        place = (centre[0] + rng.normal(0, 0.35), centre[1] + rng.normal(0, 0.3))
        bubbles -= rng.uniform(0.1, 0.4) * _ellipse(
            place, tuple(rng.uniform(0.05, 0.25, 2)), rng.uniform(0, 3)
        )
    return bubbles


def _noise(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    return _stretched(
        _smooth(rng, rng.choice([0.0, 0.7, 2, 6, 15])) + rng.choice([0, 0.3]) * _smooth(rng, 0)
    )


def _gradient(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    a, b, c = rng.normal(size=3)
    bent = (
        np.sin(rng.uniform(0.5, 6) * (a * _X + b * _Y))
        if rng.random() < 0.5
        else a * _X + b * _Y + c * _X * _Y
    )
    return _stretched(bent + rng.uniform(0, 0.1) * _smooth(rng, 0))


def _text(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """A page or a screen of words."""
    paper = int(rng.random() < 0.5) * 255
    image = Image.new("L", (SIDE, SIDE), paper)
    pen = ImageDraw.Draw(image)
    for y in range(int(rng.integers(2, 30)), SIDE - 10, int(rng.integers(9, 22))):
        letters = "".join(
            chr(rng.integers(97, 123)) if rng.random() > 0.2 else " "
            for _ in range(rng.integers(3, 26))
        )
        pen.text((int(rng.integers(2, 20)), y), letters, fill=255 - paper, font=_FONT)
    return np.asarray(image) / 255.0


def _shapes(rng: np.random.Generator, _: NDArray[np.uint8]) -> Array:
    """Test patterns: boxes, discs, bars, checks."""
    picture = np.full((SIDE, SIDE), rng.random())
    for _n in range(int(rng.integers(1, 9))):
        (cx, cy), (hx, hy), grey = (
            rng.uniform(-0.9, 0.9, 2),
            rng.uniform(0.05, 0.6, 2),
            rng.random(),
        )
        box = (np.abs(_X - cx) < hx) & (np.abs(_Y - cy) < hy)
        disc = ((_X - cx) / hx) ** 2 + ((_Y - cy) / hy) ** 2 < 1
        bars = np.sin(_X * 20 * hx + _Y * 20 * cy) > 0
        picture = np.where([box, disc, box & bars][rng.integers(3)], grey, picture)
    return np.asarray(picture + rng.choice([0.0, 0.03]) * rng.normal(size=picture.shape))


KINDS: dict[str, Draw] = {
    "turned": _turned, "inverted": _inverted, "piece": _piece, "shuffled": _shuffled,
    "phase": _phase,
    "mosaic": _mosaic, "warped": _warped, "limb": _limb, "hand": _hand, "teeth": _teeth,
    "skull": _skull, "pelvis": _pelvis, "abdomen": _abdomen, "spine": _spine, "lateral": _lateral,
    "animal": _animal,
    "noise": _noise, "gradient": _gradient, "text": _text, "shapes": _shapes,
}  # fmt: skip


def _smooth(rng: np.random.Generator, sigma: float) -> Array:
    blurred = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), sigma)
    return np.asarray(blurred / blurred.std())


def _sampled(picture: Array, x: Array, y: Array) -> Array:
    index = np.stack([y + 1, x + 1]) * (SIDE - 1) / 2
    return np.asarray(ndimage.map_coordinates(picture, index, order=1, mode="nearest"))


def _resized(picture: Array, rows: int = SIDE, columns: int = SIDE) -> Array:
    image = Image.fromarray(picture.astype(np.float32)).resize(
        (columns, rows), Image.Resampling.BILINEAR
    )
    return np.asarray(image, dtype=np.float64)


def _stretched(values: Array) -> Array:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0, 1))


def _byte(picture: Array) -> NDArray[np.uint8]:
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
