"""The tables of docs/conformance.md and docs/air.md match the code.

After an intended change, run: python -m tools.conformance
"""

from __future__ import annotations

from types import ModuleType

import pytest
from pydicom import Dataset

from daemon.backoff import Backoff
from daemon.deliver import verdict
from daemon.deliver.limits import DeliverLimits
from daemon.dicom import commitment, link, tables
from daemon.dicom.acceptor import Limits as ReceiveLimits
from daemon.dicom.requestor import Limits
from inference.results.kinds import KINDS
from tools.conformance import DOCS, Table, content, filled, network, objects
from tools.conformance.pages import PAGES, current
from tools.conformance.sources import built


@pytest.mark.parametrize("name", PAGES)
def test_the_page_matches_the_code(name: str) -> None:
    page = (DOCS / name).read_text()
    assert current(name) == page, f"docs/{name} is out of date; run: python -m tools.conformance"


def test_a_block_without_a_table_and_a_table_without_a_block_are_errors() -> None:
    page = "<!-- one -->\nold\n<!-- end -->\n"
    assert filled(page, {"one": lambda: ["new"]}) == "<!-- one -->\nnew\n<!-- end -->\n"
    with pytest.raises(KeyError):
        filled(page, {})
    with pytest.raises(ValueError):
        filled(page, {"one": lambda: [], "two": lambda: []})


@pytest.mark.parametrize(
    ("table", "module", "name", "value"),
    [
        (network.services, tables, "_OTHER_CLASSES", ()),
        (network.accepted, tables, "_OTHER_SYNTAXES", tables._IMAGE_SYNTAXES[:2]),
        (network.proposed, link, "UNCOMPRESSED", tables.UNCOMPRESSED[:1]),
        (network.implementation, tables, "MAXIMUM_PDU_BYTES", 16384),
        (network.rejections, network, "RECEIVE_LIMITS", ReceiveLimits(associations=3)),
        (network.verdicts, verdict, "MAXIMUM_FAILURES", 3),
        (network.verdicts, verdict, "MEANINGS", verdict.MEANINGS[:4]),
        (network.failures, commitment, "FATES", {0x0112: commitment.Fate.REFUSED}),
        (network.times, network, "LIMITS", DeliverLimits(backoff=Backoff(1.0, 2.0))),
        (network.times, network, "LIMITS", DeliverLimits(association=Limits(connect_s=99.0))),
        (network.times, network, "RECEIVE_LIMITS", ReceiveLimits(request_s=99.0)),
    ],
)
def test_a_changed_table_in_the_code_changes_the_page(
    table: Table, module: ModuleType, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [*table()]
    monkeypatch.setattr(module, name, value)
    assert [*table()] != before


def test_a_new_attribute_in_an_object_adds_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    before = objects.own("SC")()
    changed = Dataset({**built("base")["SC"]})
    changed.LossyImageCompression = "00"
    changed.ImageComments = "new"
    monkeypatch.setitem(built("base"), "SC", changed)
    objects.attributes.cache_clear()
    try:
        rows = {*objects.own("SC")()} - {*before}
    finally:
        monkeypatch.undo()
        objects.attributes.cache_clear()
    assert any("Image Comments (0020,4000)" in row for row in rows)
    assert any("Lossy Image Compression (0028,2110)" in row for row in rows)


def test_a_lesion_has_the_same_tracking_uid_in_every_object() -> None:
    base = built("base")
    (segment,) = base["SEG"].SegmentSequence
    drawn = {
        item.TrackingUID for item in base["PR"].GraphicAnnotationSequence[0].GraphicObjectSequence
    }
    tracked = {
        value
        for path, _, value in content.tree(base["SR"])
        if "Tracking Unique Identifier" in path[-1]
    }
    assert {segment.TrackingUID} == drawn == tracked


def test_every_object_names_its_device() -> None:
    devices = {
        item.DeviceUID
        for each in built("base").values()
        for item in each.ContributingEquipmentSequence
    }
    assert len(built("base")) == len(KINDS)
    assert len(devices) == 1
