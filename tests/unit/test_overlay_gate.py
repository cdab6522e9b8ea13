"""The overlay's gate accepts every overlay that we draw, at any size and setting, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from scipy import ndimage

from inference.finding import Finding, Result
from inference.results import Case, GateError, RenderSettings, build, gate, overlay
from tests.gallery import KINDS
from tools.cases import header, negative, positive, refused

# These tests share the phantoms that tests/gallery.py draws once per process.
pytestmark = pytest.mark.xdist_group("overlays")


def smooth(rng: np.random.Generator, rows: int, columns: int, grain: float) -> np.ndarray:
    """A grey image of the given grain; the smallest grain is noise from pixel to pixel."""
    field = ndimage.zoom(rng.random((-(-rows // 8) + 1, -(-columns // 8) + 1)), 8, order=1)[
        :rows, :columns
    ]
    return np.asarray((1 - grain) * field + grain * rng.random((rows, columns)), dtype=np.float32)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = draw(st.integers(1, 600))
    columns = draw(st.integers(1, 600))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source = header(Rows=rows, Columns=columns)
    given_values = {
        "pixels": smooth(rng, rows, columns, draw(st.floats(0, 0.3))),
        "appearance": RenderSettings(draw(st.integers(256, 1100)), draw(st.integers(50, 100))),
    }
    make = draw(st.sampled_from([positive, positive, negative, refused]))
    if make is positive:
        field = ndimage.gaussian_filter(rng.random((rows, columns)), draw(st.floats(0.5, 40)))
        given_values["mask"] = field >= np.quantile(field, draw(st.floats(0.3, 1)))
    return make(source, **given_values)


@settings(deadline=None, max_examples=20)
@given(cases())
def test_every_drawn_overlay_passes(case: Case) -> None:
    build(case, ["SC"])


@pytest.mark.parametrize("side", [256, 300, 512, 768, 1024, 2048])
@pytest.mark.parametrize("quality", [50, 90, 100])
def test_a_small_source_passes_at_every_setting(side: int, quality: int) -> None:
    for size in (64, 192, 700):
        build(
            positive(header(Rows=size, Columns=size), appearance=RenderSettings(side, quality)),
            ["SC"],
        )


# Draw this only when a test first uses it: a chest takes seconds.
@cache
def chest() -> Case:
    return KINDS["positive"]()


@cache
def good_object() -> Result:
    return build(chest(), ["SC"])[0]


@cache
def panel() -> overlay.Panel:
    return overlay.place(chest())


def repainted(
    change: Callable[[Image.Image], Image.Image | None], good: Result | None = None
) -> Result:
    """The valid object with a changed picture; if `change` edits in place, the size stays."""
    good = good or good_object()
    dataset = dcmread(io.BytesIO(good.data))
    image = Image.open(io.BytesIO(next(generate_frames(dataset.PixelData, number_of_frames=1))))
    image.load()
    file = io.BytesIO()
    (change(image) or image).save(file, "JPEG", quality=90, subsampling=0)
    dataset.PixelData = encapsulate([file.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return replace(good, data=file.getvalue())


def drawn(make: Callable[[], Case]) -> Callable[[Image.Image], Image.Image]:
    return lambda image: overlay.draw(make())


def with_mask(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image], Image.Image]:
    def changed() -> Case:
        finding = chest().finding
        assert finding is not None
        assert finding.mask is not None
        return replace(chest(), finding=replace(finding, mask=change(finding.mask)))

    return drawn(changed)


def with_pixels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image], Image.Image]:
    def changed() -> Case:
        pixels = chest().pixels
        assert pixels is not None
        return replace(chest(), pixels=np.ascontiguousarray(change(pixels), dtype=np.float32))

    return drawn(changed)


def upper_third(mask: np.ndarray) -> np.ndarray:
    upper = mask.copy()
    upper[mask.shape[0] // 3 :] = False
    return upper


def text_on_the_anatomy(image: Image.Image) -> None:
    ImageDraw.Draw(image).text((60, 60), "DOE JOHN", fill=(255, 255, 255), font_size=20)


def tinted(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", [red, green, blue.point(lambda value: value * 0.9)])


def without_contour(image: Image.Image) -> None:
    bare = overlay.draw(replace(chest(), finding=Finding(0.87, 0.42, False)))
    image.paste(bare.crop((0, 0, image.width, panel().height)), (0, 0))


def over_the_banner(box: tuple[float, float, float, float]) -> Callable[[Image.Image], None]:
    """Paint over a box of the banner, given in fractions of its width and height."""

    def change(image: Image.Image) -> None:
        top = panel().banner_top
        height = image.height - panel().banner_top
        left, upper, right, lower = box
        corners = (
            left * image.width,
            top + upper * height,
            right * image.width,
            top + lower * height,
        )
        ImageDraw.Draw(image).rectangle(corners, fill=(16, 18, 21))

    return change


BROKEN: dict[str, Callable[[Image.Image], Image.Image | None]] = {
    "another chest": with_pixels(lambda pixels: KINDS["not-detected"]().pixels),  # type: ignore[arg-type,return-value]
    "mirrored": with_pixels(np.fliplr),
    "upside down": with_pixels(np.flipud),
    "the other polarity": with_pixels(lambda pixels: 1 - pixels),
    "another window": with_pixels(lambda pixels: pixels**1.2),
    "shifted by ten pixels": with_pixels(lambda pixels: np.roll(pixels, 10, axis=1)),
    "text on the anatomy": text_on_the_anatomy,
    "a coloured spot on the anatomy": lambda image: image.paste((230, 159, 0), (60, 800, 72, 812)),
    "a tinted radiograph": tinted,
    "no contour": without_contour,
    "half the contour": with_mask(upper_third),
    "a contour twenty pixels off": with_mask(lambda mask: np.roll(mask, -20, axis=1)),
    "a grey contour": lambda image: image.paste(
        image.crop((0, 0, image.width, panel().height)).convert("L").convert("RGB"), (0, 0)
    ),
    "no disclaimer": over_the_banner((0, 0.85, 1, 1)),
    "no headline": over_the_banner((0, 0, 1, 0.3)),
    "no score": over_the_banner((0.1, 0.4, 0.5, 0.6)),
    "no banner at all": over_the_banner((0, 0, 1, 1)),
    "the banner of a negative": lambda image: image.paste(
        overlay.draw(replace(chest(), finding=Finding(0.1, 0.42, False))).crop(
            (0, panel().banner_top, image.width, image.height)
        ),
        (0, panel().banner_top),
    ),
    "cropped": lambda image: image.crop((0, 0, image.width, image.height - 8)),
}  # fmt: skip


def test_the_same_picture_encoded_again_passes() -> None:
    gate.check(repainted(lambda image: None), chest())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_refused(name: str) -> None:
    with pytest.raises(GateError) as refusal:
        gate.check(repainted(BROKEN[name]), chest())
    assert refusal.value.kind == "SC"


def test_a_contour_on_a_negative_is_refused() -> None:
    case = replace(chest(), finding=Finding(0.1, 0.42, False))
    good = build(case, ["SC"])[0]

    def with_contour(image: Image.Image) -> None:
        image.paste(
            overlay.draw(chest()).crop((0, 0, panel().width, panel().height)), (panel().left, 0)
        )

    gate.check(good, case)
    with pytest.raises(GateError, match="coloured"):
        gate.check(repainted(with_contour, good), case)


def test_a_picture_for_an_image_without_pixels_is_refused() -> None:
    case = refused(header(Rows=1024, Columns=1024), pixels=None)
    good = build(case, ["SC"])[0]
    assert chest().pixels is not None
    grey = Image.fromarray((chest().pixels * 255).astype(np.uint8)).convert("RGB")
    with pytest.raises(GateError, match="no image"):
        gate.check(repainted(lambda image: image.paste(grey, (0, 0)), good), case)
