"""What is encoded without pydicom's writer is what that writer gives."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from inference.as_sent import as_bytes, encoded

PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "\\")
TEXTS = ("", "A", "AB", "a line\r\nand one more", PRINTABLE, "Grün", "Grün!", "\x1b(B")


def by_pydicom(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("character_set", sorted(python_encoding))
def test_texts_in_every_character_set(character_set: str) -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = character_set
    for text in TEXTS:
        item = Dataset()
        item.ContentDescription = item.TextValue = item.LabelText = item.TrackingID = text
        item.PatientName, item.SoftwareVersions = text, [text or "x", "y"]
        dataset.ContentSequence = [*(dataset.get("ContentSequence") or []), item]
    assert encoded(dataset) == by_pydicom(dataset)


def test_values_of_many_kinds() -> None:
    code = Dataset()
    code.CodeValue = "1"
    item = Dataset()
    item.ConceptCodeSequence = [code, Dataset()]
    dataset = Dataset()
    dataset.ImageType, dataset.Modality, dataset.ContentLabel = ["DERIVED", "PRIMARY"], "OT", None
    dataset.SOPInstanceUID, dataset.ContentDate, dataset.ContentTime = "1.2.3", "20260304", "010203"
    dataset.Rows, dataset.WindowCenter, dataset.GraphicData = 300, ["1.50", "2"], [0.5, 1.5]
    dataset.InstanceNumber, dataset.ContentSequence = 7, [item]
    dataset.ReferencedSeriesSequence = []
    dataset.add_new("PixelData", "OB", b"\0" * 70_000)
    raw = as_bytes("RecommendedDisplayCIELabValue", b"\1\0\2\0\3\0")
    dataset[raw.tag] = raw
    assert encoded(dataset) == by_pydicom(dataset)


# A short VR has no room for so many bytes: pydicom writes UN.
@pytest.mark.filterwarnings("ignore")
def test_a_text_longer_than_its_vr_holds() -> None:
    dataset = Dataset()
    dataset.add_new("ContentDescription", "LO", "x" * 70_001)
    assert encoded(dataset) == by_pydicom(dataset)


def test_an_ambiguous_vr_is_an_error() -> None:
    dataset = Dataset()
    raw = as_bytes("SmallestImagePixelValue", b"\0\0")
    dataset[raw.tag] = raw
    with pytest.raises(ValueError, match="US or SS"):
        encoded(dataset)
