"""The tables of the attributes read from a received image, and of the character sets that results
preserve.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from inference.admission import REASONS, Rules, judge
from inference.display import displayed
from inference.pixels import stored_values
from inference.radiograph import COPIED_KEYWORDS, parse
from inference.results import KINDS, build
from inference.results.uids import TAKEN_KEYWORDS
from inference.silence import silenced_warnings
from inference.spacing import spacing_of
from tools import cases
from tools.conformance import table
from tools.conformance.sources import sources

# Specific Character Set -> the bytes of a name that it can encode and ASCII cannot.
_NAMES = {
    "ISO_IR 100": "Grün^Ada".encode("latin_1"),
    "ISO_IR 101": "Dvořák^Eva".encode("iso8859_2"),
    "ISO_IR 109": "Ĝoja^Ana".encode("iso8859_3"),
    "ISO_IR 110": "Ķēniņš^Jānis".encode("iso8859_4"),
    "ISO_IR 144": "Иванов^Пётр".encode("iso8859_5"),
    "ISO_IR 127": "قباني^لنزار".encode("iso8859_6"),
    "ISO_IR 126": "Διονυσιος^Αννα".encode("iso8859_7"),
    "ISO_IR 138": "שרון^דבורה".encode("iso8859_8"),
    "ISO_IR 148": "Çelik^Şule".encode("iso8859_9"),
    "ISO_IR 203": "Bœuf^Zoé".encode("iso8859_15"),
    "ISO_IR 13": "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"),
    "ISO_IR 166": "สมชาย^ใจดี".encode("iso8859_11"),
    "ISO_IR 192": "山田^太郎".encode(),
    "GB18030": "王^小东".encode("gb18030"),
    "GBK": "王^小东".encode("gbk"),
    "\\ISO 2022 IR 87": b"Yamada^Tarou="
    + b"^".join(part.encode("iso2022_jp") for part in ("山田", "太郎")),
    "\\ISO 2022 IR 149": b"Hong^Gildong="
    + b"^".join(b"\x1b$)C" + part.encode("euc_kr") for part in ("洪", "吉洞")),
    "\\ISO 2022 IR 58": b"Zhang^XiaoDong="
    + b"^".join(b"\x1b$)A" + part.encode("gb2312") for part in ("张", "小东")),
}


class _Noted(FileDataset):
    """A data set that records which attributes are read, also those that it lacks."""

    asked: set[str]

    def get(self, key: Any, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def __contains__(self, key: Any) -> bool:
        self._note(key)
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        self._note(name)
        return super().__getattr__(name)

    def _note(self, key: Any) -> None:
        if isinstance(key, str) and tag_for_keyword(key) is not None and "asked" in self.__dict__:
            self.asked.add(key)


def _asked_by(read: Callable[[_Noted], object], header: Dataset) -> set[str]:
    """The keywords that `read` reads from a data set with these attributes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    noted = _Noted(io.BytesIO(), header, file_meta=meta)
    noted.set_original_encoding(False, True, header.get("SpecificCharacterSet"))
    noted.__dict__["asked"] = set()

    read(noted)
    return set(noted.__dict__["asked"])


def used() -> list[str]:
    """The attributes read from a received image, by purpose."""
    full = Dataset({**sources()["base"].header})
    values = _give_pixels(full)
    without_spacing = Dataset({**full})
    del without_spacing.PixelSpacing
    bare = Dataset({**sources()["bare"].header})
    bare.Modality = "CR"

    steps: dict[str, Callable[[_Noted], object]] = {
        "whether it is analysed": lambda header: judge(header, Rules(), lambda _: False),
        "its pixels": lambda header: stored_values(header) if "PixelData" in header else None,
        "how they are shown": lambda header: displayed(header, values),
        "millimetres": spacing_of,
    }
    headers = (full, without_spacing, bare)
    uses = {
        purpose: set().union(*(_asked_by(step, header) for header in headers))
        for purpose, step in steps.items()
    }
    uses |= {"copied into every result": {*COPIED_KEYWORDS}, "carried into some": {*TAKEN_KEYWORDS}}

    rows = (
        (purpose, ", ".join(sorted(map(dictionary_description, keywords))))
        for purpose, keywords in uses.items()
    )
    return table(("for", "attributes"), rows)


def _give_pixels(header: Dataset) -> NDArray[np.uint16]:
    """Add pixels of 16 bits to a header; returns their (rows, columns) stored values."""
    header.SamplesPerPixel = 1
    header.BitsAllocated = 16
    header.BitsStored = 16
    header.HighBit = 15
    header.PixelRepresentation = 0

    counted = np.arange(header.Rows * header.Columns) % 4096
    values = counted.astype("<u2").reshape(header.Rows, header.Columns)
    header.add_new(0x7FE00010, "OW", values.tobytes())
    # Pixel Padding Value.
    header.add_new(0x00280120, "US", 4095)
    return values


def reasons() -> list[str]:
    """The reasons why an image has no finding, and whether a result says so."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, reason in REASONS.items():
        key = (reason.state.value, "yes" if reason.sent else "no")
        alike.setdefault(key, []).append(f"`{name}`: {reason.text}")

    rows = ((*key, "; ".join(texts)) for key, texts in alike.items())
    return table(("state", "a result says so", "reasons"), rows)


def character_sets() -> list[str]:
    """The character sets, by whether every kind of object has the same bytes of a name as the
    source.
    """
    fates: dict[str, list[str]] = {}
    for terms, name in _NAMES.items():
        header, _ = parse(_written(terms, name))
        results = build(cases.positive(header), KINDS)
        is_same = all(_element(0x0010, "PN", name) in result.data for result in results)
        fates.setdefault("the same bytes" if is_same else "other bytes", []).append(f"`{terms}`")

    rows = ((fate, ", ".join(sets)) for fate, sets in fates.items())
    return table(("a name comes out as", "for"), rows)


def _written(terms: str, name: bytes) -> bytes:
    """A file with this Specific Character Set and exactly these bytes as Patient's Name."""
    stand_in = b"X" * (len(name) + len(name) % 2)
    header = cases.header(SpecificCharacterSet=terms.split("\\"), PatientName=stand_in.decode())
    header.ReferringPhysicianName = ""

    plain = io.BytesIO()
    # pydicom does not know all character sets.
    with silenced_warnings():
        header.save_as(plain, implicit_vr=False, little_endian=True)
    return plain.getvalue().replace(_element(0x0010, "PN", stand_in), _element(0x0010, "PN", name))


def _element(number: int, vr: str, value: bytes) -> bytes:
    """(0010,number) in Explicit VR Little Endian."""
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0010, number, vr.encode(), len(value)) + value
