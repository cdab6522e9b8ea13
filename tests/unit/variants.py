"""One synthetic picture in every pixel format and every transfer syntax that an available encoder
can write.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset, uid
from pydicom.encaps import encapsulate

from tools.images import image, written

ROWS, COLUMNS = 48, 64
# Made with OpenJPH 0.26 from picture(), because no available encoder writes HTJ2K.
HTJ2K_STREAMS = Path(__file__).parent / "htj2k"


@dataclass(frozen=True)
class Kind:
    """A pixel format: how a pixel is stored."""

    allocated: int
    stored: int
    signed: bool = False

    @property
    def name(self) -> str:
        return f"{self.stored} in {self.allocated}{' signed' if self.signed else ''}"

    @property
    def key(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.stored}"

    @property
    def span(self) -> tuple[int, int]:
        half = 1 << self.stored - 1
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


KINDS = (
    Kind(8, 8), Kind(16, 8), Kind(16, 10), Kind(16, 12), Kind(16, 14), Kind(16, 16),
    Kind(16, 12, True), Kind(16, 16, True),
)  # fmt: skip


def shades() -> NDArray[np.float64]:
    """(48, 64), from exactly 0 to exactly 1: a dark and a light blob on a ramp, smooth enough for
    lossy codecs.
    """
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    ramp = 0.15 + 0.6 * (row + column) / (ROWS + COLUMNS)
    for sign, at in ((1.0, (14, 18)), (-1.0, (32, 46))):
        ramp = ramp + sign * 0.55 * np.exp(-((row - at[0]) ** 2 + (column - at[1]) ** 2) / 110)
    return np.asarray((ramp - ramp.min()) / np.ptp(ramp))


def picture(kind: Kind) -> NDArray[np.integer]:
    """(48, 64), stored values over the whole range of the kind."""
    low, high = kind.span
    return np.round(low + shades() * (high - low)).astype(
        f"<{'i' if kind.signed else 'u'}{kind.allocated // 8}"
    )


def of_kind(kind: Kind, **changes: Any) -> FileDataset:
    """The picture, uncompressed, Explicit VR Little Endian."""
    return image(picture(kind), kind.stored, **changes)


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax as written by one encoder: `encode` gives the file's bytes, or None if it
    cannot.
    """

    name: str
    uid: str
    encode: Callable[[Kind, Program, Path], bytes | None]
    lossless: bool = True


# The type of the fixture `peer`, which gives a program's path.
Program = Callable[[str], str]


def _dcmtk(program: str, *arguments: str) -> Callable[[Kind, Program, Path], bytes | None]:
    def encode(kind: Kind, peer: Program, folder: Path) -> bytes | None:
        source, target = folder / "source.dcm", folder / "target.dcm"
        source.write_bytes(written(of_kind(kind)))
        command = [peer(program), *arguments, str(source), str(target)]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        return target.read_bytes()

    return encode


def _lossy_12(kind: Kind, peer: Program, folder: Path) -> bytes | None:
    # JPEG Extended holds up to 12 bits. DCMTK would scale more bits down, and does not support
    # signed samples.
    return (
        _dcmtk("dcmcjpeg", "+ee")(kind, peer, folder)
        if kind.stored <= 12 and not kind.signed
        else None
    )


def _lossy_8(kind: Kind, peer: Program, folder: Path) -> bytes | None:
    return _dcmtk("dcmcjpeg", "+eb")(kind, peer, folder) if kind == Kind(8, 8) else None


def _near(kind: Kind, peer: Program, folder: Path) -> bytes | None:
    return None if kind.signed else _dcmtk("dcmcjpls", "+en", "+md", "2")(kind, peer, folder)


def _pydicom(syntax: uid.UID, **options: Any) -> Callable[[Kind, Program, Path], bytes | None]:
    def encode(kind: Kind, _: Program, __: Path) -> bytes | None:
        dataset = of_kind(kind)
        try:
            dataset.compress(syntax, generate_instance_uid=False, **options)
        except (RuntimeError, ValueError, NotImplementedError):
            return None
        return written(dataset)

    return encode


def _uncompressed(syntax: uid.UID) -> Callable[[Kind, Program, Path], bytes | None]:
    def encode(kind: Kind, _: Program, __: Path) -> bytes | None:
        dataset = of_kind(kind)
        dataset.file_meta.TransferSyntaxUID = syntax
        return written(dataset)

    return encode


def _implicit(kind: Kind, _: Program, __: Path) -> bytes | None:
    dataset = of_kind(kind)
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    dataset["PixelData"].VR = "OW"
    return written(dataset, implicit_vr=True)


def _no_meta(kind: Kind, _: Program, __: Path) -> bytes | None:
    dataset = of_kind(kind)
    dataset.preamble = None
    del dataset.file_meta
    return written(dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)


def _kept(syntax: uid.UID, suffix: str = "") -> Callable[[Kind, Program, Path], bytes | None]:
    def encode(kind: Kind, _: Program, __: Path) -> bytes | None:
        stream = HTJ2K_STREAMS / f"{kind.key}{suffix}.j2c"
        if not stream.exists() or (kind.allocated, kind.stored) == (16, 8):
            return None
        dataset = of_kind(kind)
        dataset.PixelData = encapsulate([stream.read_bytes()])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        return written(dataset)

    return encode


SYNTAXES = (
    Syntax("Explicit VR Little Endian", uid.ExplicitVRLittleEndian, _uncompressed(uid.ExplicitVRLittleEndian)),
    Syntax("the same, no file meta information", uid.ExplicitVRLittleEndian, _no_meta),
    Syntax("Implicit VR Little Endian", uid.ImplicitVRLittleEndian, _implicit),
    Syntax("Explicit VR Big Endian", uid.ExplicitVRBigEndian, _dcmtk("dcmconv", "+tb")),
    Syntax("Deflated Explicit VR Little Endian", uid.DeflatedExplicitVRLittleEndian, _dcmtk("dcmconv", "+td")),
    Syntax("RLE Lossless", uid.RLELossless, _dcmtk("dcmcrle")),
    Syntax("JPEG Baseline (Process 1)", uid.JPEGBaseline8Bit, _lossy_8, lossless=False),
    Syntax("JPEG Extended (Process 2 and 4)", uid.JPEGExtended12Bit, _lossy_12, lossless=False),
    *(
        Syntax(f"JPEG Lossless, selection value {n}", uid.JPEGLossless, _dcmtk("dcmcjpeg", "+el", "+sv", str(n)))
        for n in range(1, 8)
    ),
    Syntax("JPEG Lossless SV1", uid.JPEGLosslessSV1, _dcmtk("dcmcjpeg", "+e1")),
    Syntax("JPEG-LS Lossless", uid.JPEGLSLossless, _dcmtk("dcmcjpls", "+el")),
    Syntax("JPEG-LS Near-lossless", uid.JPEGLSNearLossless, _near, lossless=False),
    Syntax("JPEG 2000 Lossless", uid.JPEG2000Lossless, _pydicom(uid.JPEG2000Lossless)),
    Syntax("JPEG 2000", uid.JPEG2000, _pydicom(uid.JPEG2000, j2k_cr=[4]), lossless=False),
    Syntax("HTJ2K Lossless", uid.HTJ2KLossless, _kept(uid.HTJ2KLossless)),
    Syntax("HTJ2K Lossless RPCL", uid.HTJ2KLosslessRPCL, _kept(uid.HTJ2KLosslessRPCL)),
    Syntax("HTJ2K", uid.HTJ2K, _kept(uid.HTJ2K, "-lossy"), lossless=False),
)  # fmt: skip
