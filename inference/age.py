"""A patient's age in years, also from spellings of PatientAge that DICOM does not allow."""

from __future__ import annotations

import re
import unicodedata

from pydicom import Dataset

_PLAUSIBLE_AGE_YEARS = 130
_UNITS_A_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}
_AGE = re.compile(
    r"(\d{1,3}(?:[.,]\d{1,2})?)\s*"
    r"(D|DAYS?|W|WKS?|WEEKS?|M|MOS?|MON|MTHS?|MONTHS?|Y|YRS?|YEARS?|)\.?"
)


def age_years(header: Dataset) -> float | None:
    """The patient's age in years, or None if the header does not tell it.

    PatientAge comes first (AS, PS3.5 6.2: nnnD, nnnW, nnnM, nnnY; also digits alone, as years, and
    English units). If it is absent or implausible (over 130), the age is the time from the birth
    date to the study's or the image's date. A number with an unknown unit gives None: "007J" is
    seven years in German and seven days in French.
    """
    if has_unreadable_age(header):
        return None

    stated = _stated_age(header)
    match = _AGE.fullmatch(stated)
    # Consoles write 000Y when no age was entered.
    if match and stated != "000Y":
        number = float(match[1].replace(",", "."))
        years = number / _UNITS_A_YEAR[match[2][:1]]
        if years <= _PLAUSIBLE_AGE_YEARS:
            return years

    return years_by_dates(header)


def years_by_dates(header: Dataset) -> float | None:
    """The time from the birth date to the study's or the image's date; None without plausible
    dates.
    """
    born = _year(header, "PatientBirthDate")
    for keyword in ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate"):
        taken = _year(header, keyword)
        if born is not None and taken is not None:
            years = taken - born
            return years if 0 <= years <= _PLAUSIBLE_AGE_YEARS else None
    return None


def _stated_age(header: Dataset) -> str:
    """PatientAge in capitals, with full-width digits and letters as ASCII."""
    return unicodedata.normalize("NFKC", str(header.get("PatientAge") or "")).strip().upper()


def has_unreadable_age(header: Dataset) -> bool:
    """Whether PatientAge is a number with an unknown unit: the patient may be a child."""
    stated = _stated_age(header)
    begins_with_number = re.match(r"[^A-Z]*\d", stated) is not None
    return begins_with_number and _AGE.fullmatch(stated) is None


def _year(header: Dataset, keyword: str) -> float | None:
    """A date as a fractional year; also in the yyyy.mm.dd form of old files (PS3.5 6.2)."""
    match = re.fullmatch(r"(\d{4})(\.?)(\d\d)\2(\d\d)", str(header.get(keyword) or "").strip())
    if match is None:
        return None

    return int(match[1]) + (int(match[3]) - 1) / 12 + (int(match[4]) - 1) / 365
