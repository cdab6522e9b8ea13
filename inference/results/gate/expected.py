"""What the gate expects of an object, derived from finding and header by its own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydicom import DataElement, Dataset
from pydicom.dataelem import RawDataElement

from inference.results.case import Case
from inference.results.gate.regions import Measured, Region, measured_of, regions_of
from inference.results.kinds import KINDS, Kind
from inference.results.uids import derived_uid, series_uid

# A rule yields what is wrong with the object that was read back.
Rule = Callable[[Dataset, "Expected"], Iterator[str]]


@dataclass(frozen=True, eq=False)
class Expected:
    """The case that an object of this kind must report.

    Attributes:
        elements: of the object that was read back, and of its items at any depth; each once,
            however many items share it.
        items: the object itself and its items at any depth.
    """

    case: Case
    kind: Kind
    elements: tuple[DataElement | RawDataElement, ...]
    items: tuple[Dataset, ...]

    @property
    def regions(self) -> tuple[Region, ...]:
        """The lesions in the finding's mask, the largest first."""
        return regions_of(self.case)

    @property
    def measured(self) -> Measured | None:
        """The figures of the whole mask; None where nothing is segmented."""
        return measured_of(self.case)

    @property
    def source(self) -> tuple[str, str]:
        """(SOP Class UID, SOP Instance UID) of the source."""
        return str(self.case.header.SOPClassUID), str(self.case.header.SOPInstanceUID)

    @property
    def segmentation(self) -> tuple[str, str]:
        """(SOP Class UID, SOP Instance UID) of the case's SEG."""
        return str(KINDS["SEG"].sop_class_uid), derived_uid(self.case, "SEG")

    @property
    def segmentation_series_uid(self) -> str:
        """The Series Instance UID of the case's SEG."""
        return series_uid(self.case, "SEG")
