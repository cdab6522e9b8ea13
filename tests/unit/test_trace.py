"""`pleura trace`: where the time of one image went, from the ledger's records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from daemon.commands import trace
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.schema import instances
from daemon.ledger.view import View

ARRIVAL = Arrival("ab" * 16, "1.2", "1.2.3", "1.2.1", "XRAY1", "dimse", 1, 9)
SEG = StoredResult("SEG", "cd" * 16, "1.2.4", "2.25.7", "1.2.1", 9)
STEPS = {
    "begun": 0.001,
    "read": 0.003,
    "decoded": 0.02,
    "gated": 0.05,
    "answered": 0.1,
    "encoded SEG": 0.13,
    "written": 0.15,
}


class Node:
    """A ledger whose clock the test sets, and the read-only view that the command opens."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self.ledger = Ledger(self.url, clock=lambda: self.now)
        self.ledger.receive([ARRIVAL])
        self.view = View.open(self.url)

    def analyse(self) -> None:
        self.now = 1000.05
        (job,) = self.ledger.claim_images("me", 1)
        self.now = 1000.2
        completion = Completion("analysed", "digest", results=(SEG,), steps=STEPS)
        self.ledger.complete(job, completion, {"pacs": ["SEG"]})

    def deliver(self) -> None:
        self.now = 1000.21
        (job,) = self.ledger.claim_deliveries("pacs", "me", 1)
        self.now = 1000.25
        self.ledger.mark_stored(
            job, 0, steps={"associated": 0.01, "begun": 0.011, "answered": 0.04}
        )

    def close(self) -> None:
        self.view.close()
        self.ledger.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


def events(node: Node, uid: str = "1.2.3") -> list[tuple[str, float | None]]:
    (image,) = trace.found(node.view, [uid])[uid]
    return [(event["event"], event["milliseconds"]) for event in image["events"]]


def test_each_step_has_its_time_since_the_receipt(node: Node) -> None:
    node.analyse()
    node.deliver()

    assert events(node) == [
        ("received_without_address", 0.0),
        ("analysis_claimed", 50.0),
        ("analysis_begun", 51.0),
        ("analysis_read", 53.0),
        ("analysis_decoded", 70.0),
        ("analysis_gated", 100.0),
        ("analysis_answered", 150.0),
        ("analysis_encoded", 180.0),
        ("analysis_written", 200.0),
        ("analysed", 200.0),
        ("delivery_claimed", 210.0),
        ("delivery_associated", 220.0),
        ("delivery_begun", 221.0),
        ("delivery_answered", 250.0),
        ("stored", 250.0),
    ]


def test_each_line_describes_a_step_with_the_time_since_the_previous_line(node: Node) -> None:
    node.analyse()
    node.deliver()

    lines = list(trace.lines(trace.found(node.view, ["1.2.3"])))

    assert lines[0].startswith("image 1 1.2.3: analysed, received 1970-01-01")
    assert f"{100.0:11.1f} ms {30.0:+8.1f}  the plausibility gate answered" in lines
    assert f"{180.0:11.1f} ms {30.0:+8.1f}  SEG encoded" in lines
    assert f"{250.0:11.1f} ms {29.0:+8.1f}  SEG: pacs answered" in lines


def test_the_uid_of_a_result_finds_its_image(node: Node) -> None:
    node.analyse()
    assert events(node, SEG.sop_instance_uid)[-1] == ("owed", None)
    assert any("still open" in line for line in trace.lines(trace.found(node.view, ["2.25.7"])))


def test_an_image_completed_by_an_earlier_version_has_only_its_end_states(node: Node) -> None:
    node.analyse()
    node.deliver()
    engine = sa.create_engine(node.url)
    with engine.begin() as conn:
        conn.execute(instances.update().values(steps=None))
        conn.exec_driver_sql("UPDATE deliveries SET steps = NULL")
    engine.dispose()

    assert [event for event, _ in events(node)] == [
        "received_without_address",
        "analysed",
        "stored",
    ]


def test_an_unknown_uid_is_reported(node: Node) -> None:
    assert list(trace.lines(trace.found(node.view, ["9.9"]))) == ["9.9: not in the ledger"]
