"""Ways to corrupt a result object: each changes one thing in a data set that was read from valid
bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydicom import Dataset, dcmread

from inference.finding import Result

Change = Callable[[Any], object]


def broken(good: Result, change: Change) -> Result:
    """The valid object after one change, rewritten so that everything else stays consistent."""
    dataset = dcmread(io.BytesIO(good.data))
    change(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return replace(good, data=file.getvalue(), sop_instance_uid=str(dataset.SOPInstanceUID))


def put(**values: object) -> Change:
    return lambda dataset: [setattr(dataset, keyword, value) for keyword, value in values.items()]


def drop(*keywords: str) -> Change:
    return lambda dataset: [delattr(dataset, keyword) for keyword in keywords]


def within(path: str, change: Change) -> Change:
    """Apply the change to the first item down a path of sequences."""

    def apply(dataset: Any) -> object:
        for keyword in path.split("."):
            dataset = dataset[keyword].value[0]
        return change(dataset)

    return apply


def item(meaning: str, change: Change) -> Change:
    """Apply the change to the first SR content item, depth first, whose concept name means this."""

    def apply(dataset: Any) -> object:
        return change(
            next(
                one
                for one in content(dataset)
                if one.ConceptNameCodeSequence[0].CodeMeaning == meaning
            )
        )

    return apply


def content(dataset: Any) -> list[Dataset]:
    """All named items of an SR's content tree, depth first."""
    found = []
    for one in dataset.get("ContentSequence") or []:
        found += [one] * ("ConceptNameCodeSequence" in one) + content(one)
    return found


def cut(meaning: str) -> Change:
    """Remove every SR content item whose concept name has this meaning."""

    def apply(dataset: Any) -> None:
        if "ContentSequence" not in dataset:
            return
        dataset.ContentSequence = [
            one
            for one in dataset.ContentSequence
            if "ConceptNameCodeSequence" not in one
            or one.ConceptNameCodeSequence[0].CodeMeaning != meaning
        ]
        for one in dataset.ContentSequence:
            apply(one)

    return apply
