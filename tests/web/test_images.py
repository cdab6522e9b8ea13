"""The rows of a search: the image, its state and its result."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from daemon.web.shown import Shown
from daemon.web.texts import Texts
from tests.web.site import Site, Visitor


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def _rows(text: str) -> list[str]:
    """The rows of the table as a person reads them, newest first."""
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", row)).strip() for row in rows]


def test_a_row_shows_the_images_state_and_result(site: Site) -> None:
    site.receive("1.2.1")
    site.end("analysed", positive=True, probability=0.9314)
    site.receive("1.2.2")
    site.end("analysed", positive=False, probability=0.0)
    site.receive("1.2.3", sender="<XRAY>")
    site.end("not_analysed", reason="view")
    site.receive("1.2.3333333333333333333333333333")

    text = Visitor(site).get("/images").text
    clock = r"\d\d:\d\d:\d\d"

    for row, wanted in zip(
        _rows(text),
        (
            f"{clock} XRAY1 ◔ Waiting – – 1.2.3333333333…3333333333",
            f"{clock} &lt;XRAY&gt; – Not analysed – not a frontal view 1.2.3",
            f"{clock} XRAY1 ○ Not detected 0.000 – 1.2.2",
            f"{clock} XRAY1 ▲ Suspected 0.931 – 1.2.1",
        ),
        strict=True,
    ):
        assert re.fullmatch(wanted, row), row


def test_a_time_of_another_day_has_its_date() -> None:
    shown = Shown(Texts("en"))
    now = time.time()

    assert shown.at(now) == datetime.fromtimestamp(now).isoformat()[11:19]
    assert shown.at(1e6) == datetime.fromtimestamp(1e6).isoformat(" ")
    assert shown.at(None) == "–"
