"""Synthetic frontal chest radiographs with exact pneumothorax masks: for demos and tests, never a
patient.

A projection is drawn as densities that add up (air 0, soft tissue, bone) and turned into grey
values like a film. Coordinates: x across from -0.5 to 0.5 with the spine at 0 and the patient's
right at negative x, y down from 0 to 1.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

Array = NDArray[np.float64]
LABEL = "SYNTHETIC"
_NOT_A_PATIENT = "SYNTHETIC PHANTOM - not a patient"
_IMPLEMENTATION = "2.25.127838263402316406951206402110346212361"
# The side of the film; a pixel of the whole size, 1024, is 0.4 mm.
_SIDE_MM = 409.6

# 5 x 7 dots a letter, a row a number of five bits.
_LETTERS = {
    "S": (15, 16, 16, 14, 1, 1, 30), "Y": (17, 17, 10, 4, 4, 4, 4),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "T": (31, 4, 4, 4, 4, 4, 4), "H": (17, 17, 17, 31, 17, 17, 17),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "I": (14, 4, 4, 4, 4, 4, 14), "C": (14, 17, 16, 16, 16, 17, 14),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Phantom:
    """`pixels` (size, size) float32, 0 black to 1 white; `mask` (size, size) bool, the pneumothorax
    exactly.
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_]
    seed: int


@dataclass(frozen=True)
class _Lung:
    """One lung as bounds in x for each y, on one side of the spine."""

    # -1 the patient's right (image left), 1 the left
    sign: float
    apex_y: float
    apex_x: float
    wall_x: float
    hilum_x: float
    # How far the heart pushes in
    heart: float
    base_y: float


def draw(seed: int, pneumothorax: bool, size: int = 1024) -> Phantom:
    """Draw one phantom; equal arguments give equal pixels."""
    rng = np.random.default_rng((seed, 8051))
    y, x = np.mgrid[0:size, 0:size] / size
    x = x - 0.5 + rng.uniform(-0.02, 0.02)
    y = y + rng.uniform(-0.02, 0.02)
    lungs = [_lung(rng, sign) for sign in (-1.0, 1.0)]
    inside = [_within(lung, x, y, 0.0, 0.0) for lung in lungs]
    mask = np.zeros_like(inside[0])

    line = np.zeros_like(x)
    if pneumothorax:
        side = int(rng.integers(2))
        kept = _collapsed(rng, lungs[side], x, y)
        mask = inside[side] & ~kept
        # The visceral pleura: a line as thin as a hair's breadth of film, where the collapsed lung
        # ends.
        edge = (
            kept
            & ~ndimage.binary_erosion(kept, border_value=1)
            & ndimage.binary_dilation(mask, iterations=2)
        )
        line = ndimage.gaussian_filter(edge.astype(float), size / 700)

    density = _soft_tissue(rng, x, y)
    for lung, region in zip(lungs, inside, strict=True):
        air = ndimage.gaussian_filter(region.astype(float), size / 250)
        density -= air * rng.uniform(0.95, 1.1)
        markings = _vessels(rng, lung, size) * ndimage.gaussian_filter(
            (region & ~mask).astype(float), size / 300
        )
        density += markings * rng.uniform(0.4, 0.7)

    density -= 0.16 * ndimage.gaussian_filter(mask.astype(float), size / 400)
    density += _skeleton(rng, x, y, lungs) + 0.5 * line
    pixels = _exposed(rng, density, size)
    return Phantom(_labelled(pixels), mask, seed)


def _lung(rng: np.random.Generator, sign: float) -> _Lung:
    return _Lung(
        sign=sign,
        apex_y=rng.uniform(0.1, 0.15),
        apex_x=rng.uniform(0.14, 0.17),
        wall_x=rng.uniform(0.33, 0.38),
        hilum_x=rng.uniform(0.06, 0.08),
        heart=rng.uniform(0.10, 0.15) if sign > 0 else rng.uniform(0.02, 0.05),
        base_y=rng.uniform(0.72, 0.8) + (0.02 if sign > 0 else 0.0),
    )


def _within(lung: _Lung, x: Array, y: Array, wall: Array | float, apex: float) -> NDArray[np.bool_]:
    """Where the lung is, its wall drawn in by `wall` and its apex lowered by `apex`."""
    across = x * lung.sign
    t = np.clip((y - lung.apex_y - apex) / (lung.base_y - lung.apex_y - apex), 0.0, 1.4)
    outer = (
        lung.apex_x
        + (lung.wall_x - lung.apex_x) * np.sqrt(1 - (1 - np.clip(t / 0.75, 0, 1)) ** 2)
        - wall
    )

    inner = lung.apex_x - (lung.apex_x - lung.hilum_x) * np.sqrt(
        1 - (1 - np.clip(t / 0.3, 0, 1)) ** 2
    )
    inner = inner + lung.heart * np.exp(-(((t - 0.85) / 0.28) ** 2))
    dome = lung.base_y + 0.09 * ((across - 0.2) / 0.16) ** 2 - 0.03

    return np.asarray((y > lung.apex_y + apex) & (across > inner) & (across < outer) & (y < dome))


def _collapsed(rng: np.random.Generator, lung: _Lung, x: Array, y: Array) -> NDArray[np.bool_]:
    """The collapsed lung: withdrawn from the wall most at apex and side, less towards the base."""
    depth, reach = rng.uniform(0.035, 0.12), rng.uniform(0.45, 1.0)
    t = (y - lung.apex_y) / (lung.base_y - lung.apex_y)
    wall = (
        depth
        * np.clip(1 - (t / reach) ** 3, 0.0, 1.0)
        * (1 + 0.15 * np.sin(9 * t + rng.uniform(0, 6)))
    )
    return _within(lung, x, y, wall, depth * rng.uniform(0.8, 1.6))


def _soft_tissue(rng: np.random.Generator, x: Array, y: Array) -> Array:
    half = 0.43 + 0.05 * np.clip((y - 0.3) / 0.7, 0, 1) - 0.30 * np.exp(-(((y + 0.02) / 0.1) ** 2))
    shoulders = 0.55 * np.exp(-(((y - 0.17) / 0.1) ** 2)) * (y > 0.05)
    body = 1 / (1 + np.exp((np.abs(x) - half - 0.35 * shoulders) / 0.008))
    density = body * (
        1.15 + 0.35 * np.clip(1 - (x / 0.5) ** 2, 0, 1) + 0.3 * np.clip((y - 0.7) / 0.3, 0, 1)
    )

    middle = 0.055 + 0.03 * np.exp(-(((y - 0.62) / 0.2) ** 2))
    # mediastinum
    density += 0.7 * np.exp(-((x / middle) ** 4)) * body
    heart_x, heart_y = 0.06 + rng.uniform(-0.01, 0.02), 0.62 + rng.uniform(-0.02, 0.02)
    heart = ((x - heart_x) / rng.uniform(0.13, 0.16)) ** 2 + ((y - heart_y) / 0.15) ** 2
    density += 0.45 / (1 + np.exp((heart - 1) / 0.06))

    # trachea
    density -= 0.35 * np.exp(-(((x + 0.005) / 0.016) ** 2)) * (y < 0.36) * body
    return np.asarray(density)


def _skeleton(rng: np.random.Generator, x: Array, y: Array, lungs: Sequence[_Lung]) -> Array:
    bone = (
        0.22 * np.exp(-((x / 0.03) ** 6)) * (1 + 0.35 * np.cos(2 * np.pi * y / 0.055)) * (y > 0.02)
    )

    for lung in lungs:
        across = x * lung.sign
        u = np.clip(across / lung.wall_x, 0, 1.15)
        cage = 1 / (1 + np.exp((across - lung.wall_x - 0.02) / 0.006)) * (across > 0.02)
        pitch, first = rng.uniform(0.075, 0.085), rng.uniform(0.1, 0.12)
        for k in range(9):
            posterior = first + pitch * k + 0.11 * u**2 - 0.05 * u * (1 - u) * 4 * 0.5
            anterior = first + 0.2 + pitch * k - 0.10 * u
            for centre, width, strength in (
                (posterior, 0.013, 0.2),
                (anterior, 0.015, 0.09 * (across > 0.12)),
            ):
                distance = np.abs(y - centre) / width
                # A rib's rim is denser than its middle
                cortex = 0.7 + 0.5 * np.exp(-(((distance - 0.9) / 0.2) ** 2))
                bone += cage * strength * cortex / (1 + np.exp((distance - 1) / 0.12))

        clavicle = 0.155 - 0.10 * across + rng.uniform(-0.01, 0.01)
        bone += (
            0.3
            / (1 + np.exp((np.abs(y - clavicle) / 0.013 - 1) / 0.12))
            * (across > 0.04)
            * (across < 0.4)
        )

    return np.asarray(bone)


def _vessels(rng: np.random.Generator, lung: _Lung, size: int) -> Array:
    """Branching lines from the hilum outwards, thinning: the markings that a pneumothorax lacks."""
    fine, coarse = np.zeros((size, size)), np.zeros((size, size))
    hilum = np.array([lung.sign * (lung.hilum_x + 0.03), 0.45 + rng.uniform(-0.03, 0.03)])
    for _ in range(70):
        start = hilum + rng.normal(0, 0.035, 2)
        angle = rng.uniform(-1.25, 1.25) + (0 if lung.sign > 0 else np.pi)
        length = rng.uniform(0.06, 0.34)
        t = np.linspace(0, 1, max(8, int(2 * length * size)))
        bend = angle + rng.uniform(-0.7, 0.7) * t
        points = start + np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1), 0) * length / len(t)
        column, row = ((points[:, 0] + 0.5) * size).astype(int), (points[:, 1] * size).astype(int)
        on_film = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        weight = (1 - t) ** 0.7
        np.add.at(fine, (row[on_film], column[on_film]), weight[on_film])
        np.add.at(coarse, (row[on_film], column[on_film]), (weight * (t < 0.4))[on_film])

    blurred = 1.5 * ndimage.gaussian_filter(fine, size / 420) + 3 * ndimage.gaussian_filter(
        coarse, size / 110
    )
    return np.asarray(np.tanh(blurred))


def _exposed(rng: np.random.Generator, density: Array, size: int) -> Array:
    scatter = ndimage.gaussian_filter(density, size / 12)
    density = np.clip(0.85 * density + 0.15 * scatter, 0, None)
    pixels = 1 - np.exp(-rng.uniform(0.75, 1.0) * density)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, density.shape), 0.7)
    pixels = pixels + rng.uniform(0.008, 0.02) * grain
    low, high = np.percentile(pixels, (1, 99.7))
    return np.asarray(np.clip((pixels - low) / (high - low), 0, 1) * 0.92 + 0.02)


def _labelled(pixels: Array) -> NDArray[np.float32]:
    """Burn the word into a lower corner, as a technologist's marker would be."""
    dot = max(1, len(pixels) // 250)
    rows = [
        [int(bit) for letter in LABEL for bit in f"{_LETTERS[letter][row]:05b}0"]
        for row in range(7)
    ]
    word = np.kron(np.array(rows, dtype=bool), np.ones((dot, dot), dtype=bool))
    labelled = pixels.astype(np.float32)
    corner = labelled[-word.shape[0] - 4 * dot : -4 * dot, 4 * dot : 4 * dot + word.shape[1]]
    corner[word] = 1.0
    return labelled


def write(
    phantom: Phantom,
    path: Path,
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    bits: int = 12,
) -> Path:
    """Write a CR object (PS3.3 A.2) that says in the header and in the pixels that it is synthetic.

    Returns `path`.
    """
    digest = hashlib.sha256(phantom.pixels.tobytes() + f"{photometric}{bits}".encode()).hexdigest()
    uid = {
        kind: f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, kind + digest).int}"
        for kind in ("study", "series", "image")
    }
    rows, columns = phantom.pixels.shape

    values = np.round(phantom.pixels * (2**bits - 1)).astype("<u2" if bits > 8 else "u1")
    if photometric == "MONOCHROME1":
        values = (2**bits - 1 - values).astype(values.dtype)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid["image"])

    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_IMPLEMENTATION)
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))  # type: ignore[arg-type]
    attributes: dict[str, object] = {
        "ImageType": ["ORIGINAL", "PRIMARY"], "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": uid["image"], "StudyInstanceUID": uid["study"],
        "SeriesInstanceUID": uid["series"],
        "StudyDate": "20260101", "StudyTime": "120000", "AccessionNumber": "", "Modality": "CR",
        "Manufacturer": "Pleura phantom", "ReferringPhysicianName": "",
        "StudyDescription": _NOT_A_PATIENT,
        "SeriesDescription": f"CHEST PA {_NOT_A_PATIENT}", "PatientName": "Synthetic^Phantom",
        "PatientID": f"PHANTOM-{phantom.seed}", "PatientBirthDate": "", "PatientSex": "",
        "PatientAge": "040Y",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "StudyID": "1", "SeriesNumber": 1,
        "InstanceNumber": 1,
        "PatientOrientation": ["L", "F"], "ImageComments": _NOT_A_PATIENT, "SamplesPerPixel": 1,
        "PhotometricInterpretation": photometric, "Rows": rows, "Columns": columns,
        "ImagerPixelSpacing": [round(_SIDE_MM / side, 4) for side in (rows, columns)],
        "BitsAllocated": 16 if bits > 8 else 8, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "BurnedInAnnotation": "YES",
    }  # fmt: skip
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)

    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)

    return path


def demo_samples(folder: Path) -> list[Path]:
    """The two files of `pleura demo`: with a pneumothorax and without.

    Their seeds are in no training set, but other phantoms are: a right answer proves only that
    everything is connected.
    """
    return [
        write(draw(7, pneumothorax=True), folder / "phantom-with-pneumothorax.dcm"),
        write(draw(19, pneumothorax=False), folder / "phantom-without-pneumothorax.dcm"),
    ]
