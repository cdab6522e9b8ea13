"""The gate's rewriting of an object gives the same bytes as pydicom does from the decoded values."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import Dataset, FileDataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from inference.results.gate.rewriting import written_again

GRAPHIC_DATA = Tag(0x0070, 0x0022)


def read(dataset: Dataset) -> tuple[FileDataset, bytes]:
    """The data set as read from a file, and its bytes in the file."""
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "2.25.1"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)

    data = file.getvalue()
    # The group of the file meta information states its length (PS3.10 7.1).
    begin = 144 + int.from_bytes(data[140:144], "little")
    return dcmread(io.BytesIO(data)), data[begin:]


def made() -> Dataset:
    """Values of many kinds: texts, numbers, nothing, a code, and many numbers."""
    codes = [Dataset(), Dataset()]
    for code in codes:
        code.CodeValue = "1"
        code.CodingSchemeDesignator = "DCM"
        code.CodeMeaning = "One"
    graphic = Dataset()
    graphic.GraphicData = [float(number) for number in range(200)]
    graphic.RecommendedDisplayCIELabValue = [65535, 1, 0]

    dataset = Dataset()
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SeriesDescription = "a name"
    dataset.ContentDescription = None
    dataset.Rows = 300
    dataset.DerivationCodeSequence = codes
    dataset.GraphicObjectSequence = [graphic]
    return dataset


# On the second turn, known elements come from the cache.
@pytest.mark.parametrize("turn", ["first", "second"])
def test_rewriting_gives_the_bytes_of_the_file(turn: str) -> None:
    dataset, data = read(made())
    assert written_again(dataset) == data


def test_the_cache_of_one_object_does_not_hide_another_value() -> None:
    dataset, _ = read(made())
    written_again(dataset)
    changed = made()
    changed.SeriesDescription = "a nama"
    changed.DerivationCodeSequence[1].CodeMeaning = "Two"

    dataset, data = read(changed)
    assert written_again(dataset) == data
    assert dataset.SeriesDescription == "a nama"
    assert [item.CodeMeaning for item in dataset.DerivationCodeSequence] == ["One", "Two"]


def test_a_contour_keeps_its_bytes() -> None:
    dataset, _ = read(made())
    written_again(dataset)
    item = dataset.GraphicObjectSequence[0]
    assert isinstance(item.get_item(GRAPHIC_DATA), RawDataElement)
    assert np.array_equal(item.GraphicData, np.arange(200))


def test_elements_are_left_out_at_the_top_level_only() -> None:
    dataset, data = read(made())
    rest = written_again(dataset, without={Tag("ImageType")})
    assert len(rest) == len(data) - 8 - len(b"DERIVED\\PRIMARY ")
