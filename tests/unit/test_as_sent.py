"""Our own encoder writes the same bytes as pydicom's writer."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom.charset import python_encoding
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from daemon.dicom.part10 import write_file_meta
from inference.as_sent import as_bytes, bytes_of, encoded, keep_bytes

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
def test_texts_in_every_character_set_are_encoded_as_by_pydicom(character_set: str) -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = character_set
    for text in TEXTS:
        item = Dataset()
        item.ContentDescription = item.TextValue = item.LabelText = item.TrackingID = text
        item.PatientName = text
        item.SoftwareVersions = [text or "x", "y"]
        dataset.ContentSequence = [*(dataset.get("ContentSequence") or []), item]
    assert encoded(dataset) == by_pydicom(dataset)


def test_values_of_many_kinds_are_encoded_as_by_pydicom() -> None:
    code = Dataset()
    code.CodeValue = "1"
    item = Dataset()
    item.ConceptCodeSequence = [code, Dataset()]

    dataset = Dataset()
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.Modality = "OT"
    dataset.ContentLabel = None
    dataset.SOPInstanceUID = "1.2.3"
    dataset.ContentDate = "20260304"
    dataset.ContentTime = "010203"
    dataset.Rows = 300
    dataset.WindowCenter = ["1.50", "2"]
    dataset.GraphicData = [0.5, 1.5]
    dataset.InstanceNumber = 7
    dataset.ContentSequence = [item]
    dataset.ReferencedSeriesSequence = []
    dataset.add_new("PixelData", "OB", b"\0" * 70_000)

    raw = as_bytes("RecommendedDisplayCIELabValue", b"\1\0\2\0\3\0")
    dataset[raw.tag] = raw

    assert encoded(dataset) == by_pydicom(dataset)


def test_numbers_of_every_kind_are_encoded_as_by_pydicom() -> None:
    dataset = Dataset()
    dataset.Rows, dataset.SimpleFrameList, dataset.RealWorldValueSlope = 65535, [1, 2**32 - 1], 0.1
    dataset.DisplayedAreaTopLeftHandCorner, dataset.GraphicData = [-1, 2**31 - 1], [1e-3, 3]
    dataset.SmallestImagePixelValue, dataset["SmallestImagePixelValue"].VR = -5, "SS"
    dataset.PixelSpacing, dataset.WindowCenter = ["0.10", 0.25], 2048
    dataset.SliceThickness, dataset.RescaleSlope = "01.0", None
    dataset.InstanceNumber, dataset.PixelAspectRatio = " 7", ["1", 2]
    dataset.PatientOrientation, dataset.ReferencedFrameNumber = [], None
    dataset.ContributionDateTime = "20260304050607.000000+0100"
    dataset.add_new("EncapsulatedDocument", "OB", b"\1\2\3")
    assert encoded(dataset) == by_pydicom(dataset)


# A VR with a 16-bit length cannot hold this many bytes, so pydicom writes UN.
@pytest.mark.filterwarnings("ignore")
def test_a_text_longer_than_its_vr_holds_is_encoded_as_by_pydicom() -> None:
    dataset = Dataset()
    dataset.add_new("ContentDescription", "LO", "x" * 70_001)
    assert encoded(dataset) == by_pydicom(dataset)


def test_an_ambiguous_vr_is_an_error() -> None:
    dataset = Dataset()
    raw = as_bytes("SmallestImagePixelValue", b"\0\0")
    dataset[raw.tag] = raw
    with pytest.raises(ValueError, match="US or SS"):
        encoded(dataset)


@pytest.mark.filterwarnings("ignore:Expected")
@pytest.mark.parametrize("is_stated_implicit", [True, False])
@pytest.mark.parametrize("is_implicit", [True, False])
def test_bytes_are_kept_whatever_encoding_the_transfer_syntax_states(
    is_stated_implicit: bool, is_implicit: bool
) -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "M\xfcller"
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = is_implicit
    write_dataset(buffer, dataset)
    syntax = "1.2.840.10008.1.2" if is_stated_implicit else "1.2.840.10008.1.2.1"
    data = write_file_meta(("1.2.3", "1.2.4", syntax), ("1.2.5", "TEST"), "A") + buffer.getvalue()

    read = dcmread(BytesIO(data))
    keep_bytes(read, ("SpecificCharacterSet", "PatientName"), data)
    assert bytes_of(read, "SpecificCharacterSet") == b"ISO_IR 100"
    assert bytes_of(read, "PatientName") == b"M\xfcller"
