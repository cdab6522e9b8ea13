"""The ledger's states and transitions: the tables, the diagram in the docs, and the ledger itself
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from daemon.ledger import (
    Arrival,
    CommitmentRequest,
    Completion,
    DeliveryJob,
    ImageJob,
    Ledger,
    LedgerLimits,
    StoredResult,
)
from daemon.ledger.schema import deliveries, instances
from daemon.ledger.states import (
    DELIVERY_TRANSITIONS,
    IMAGE_TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
    ImageEvent,
    ImageState,
    drawing,
)

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
UID = "1.2.1"
RESULT_UID = "9.1"


class Node:
    """A ledger with one image and, once it is analysed, one result for one destination."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000.0
        limits = LedgerLimits(lease_s=60.0)
        url = f"sqlite:///{folder}/ledger.db"
        self.ledger = Ledger(url, clock=lambda: self.now, limits=limits)
        self.engine = sa.create_engine(url)
        self.receive(UID)
        self.job = self.claim_image()
        self.parcel = DeliveryJob(1, 0, "pacs", 0, result("none"))
        self.request = CommitmentRequest("2.25.1", (("1.2", RESULT_UID),))

    def receive(self, uid: str) -> None:
        arrival = Arrival(f"file-of-{uid}", "1.2", uid, "1.2.1", "XRAY1", "dimse", 1, 9)
        self.ledger.receive([arrival])

    def claim_image(self) -> ImageJob:
        (job,) = self.ledger.claim_images("worker", 1)
        return job

    def complete(self, state: str, digest: str = "a") -> None:
        made = (result("first"),) if state == "analysed" else ()
        ending = Completion(state, digest, "1.3", reason="reason", results=made)
        self.ledger.complete(self.job, ending, {"pacs": ["SC"]})

    def claim_delivery(self) -> DeliveryJob:
        (self.parcel,) = self.ledger.claim_deliveries("pacs", "courier", 1)
        return self.parcel

    def ask(self) -> None:
        request = self.ledger.ask_commitment("pacs", 9, 10.0)
        self.request = request or self.request

    def report(self, committed: bool = False, lost: bool = False, refused: bool = False) -> None:
        self.ledger.record_commitment_report(
            "pacs",
            self.request.transaction_uid,
            [RESULT_UID] if committed else [],
            {RESULT_UID: "0x0112"} if lost else {},
            {RESULT_UID: "0x0119"} if refused else {},
        )

    def image_state(self) -> str:
        return self._scalar(sa.select(instances.c.state).order_by(instances.c.id.desc()))

    def delivery_state(self) -> str:
        return self._scalar(sa.select(deliveries.c.state))

    def _scalar(self, query: sa.Select[tuple[str]]) -> str:
        with self.engine.connect() as conn:
            return str(conn.execute(query).scalar())


def result(file: str) -> StoredResult:
    return StoredResult("SC", f"result-{file}", "1.2", RESULT_UID, "1.2.1", 9)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.ledger.close()
    node.engine.dispose()


# -- images -------------------------------------------------------------------------------------


def _make_duplicate(node: Node) -> None:
    node.complete("not_analysed")
    node.receive(UID)
    node.job = node.claim_image()
    node.complete("not_analysed")


_IMAGE_IN: dict[ImageState, Callable[[Node], None]] = {
    ImageState.RECEIVED: lambda node: None,
    ImageState.ANALYSED: lambda node: node.complete("analysed"),
    ImageState.NOT_ANALYSED: lambda node: node.complete("not_analysed"),
    ImageState.FAILED: lambda node: node.complete("failed"),
    ImageState.DUPLICATE: _make_duplicate,
}


def _recognise(node: Node) -> None:
    """Insert an older copy with the same content, then complete this image."""
    with node.engine.begin() as conn:
        conn.execute(
            sa.text(
                "INSERT INTO instances (spool_name, sop_class_uid, sop_instance_uid,"
                " transfer_syntax_uid, calling_ae_title, origin, priority, size_bytes,"
                " received_at, state, content_digest, lease_until, attempt, unfinished,"
                " unfinished_alone, id, completed_at) VALUES ('x', '1', :uid, '1', 'A', 'dimse', 1,"
                " 9, 1, 'analysed', 'z', 0, 0, 0, 0, -1, 1)"
            ),
            {"uid": UID},
        )
    node.complete("analysed", "z")


def _remake_image(node: Node) -> None:
    """Let a courier find that the result's file is lost. Without a result this does nothing."""
    if node.image_state() in ("analysed", "not_analysed"):
        _owe_result(node)
        node.ledger.remake(node.claim_delivery(), "the file is gone")
    elif node.image_state() == "received":
        node.complete("analysed")
        node.ledger.remake(node.claim_delivery(), "the file is gone")
        node.now += 100.0
        node.ledger.remake(node.claim_delivery(), "the file is gone")
    else:
        node.ledger.remake(node.parcel, "the file is gone")


def _owe_result(node: Node) -> None:
    with node.engine.begin() as conn:
        if conn.execute(sa.select(deliveries.c.id)).first() is None:
            conn.execute(
                sa.text(
                    "INSERT INTO results (id, instance_id, kind, spool_name, sop_class_uid,"
                    " sop_instance_uid, transfer_syntax_uid) VALUES (1, 1, 'SC', 'r', '1',"
                    f" '{RESULT_UID}', '1')"
                )
            )
            conn.execute(
                sa.text(
                    "INSERT INTO deliveries (result_id, destination, priority, state, due_at,"
                    " lease_until, attempt, failures) VALUES (1, 'pacs', 1, 'owed', 0, 0, 0, 0)"
                )
            )


def _give_up_bytes(node: Node) -> None:
    with node.engine.begin() as conn:
        conn.execute(deliveries.delete())
    node.ledger.give_up_bytes(0.0, 0.0, [], 99)


_IMAGE_EVENTS: dict[ImageEvent, Callable[[Node], object]] = {
    ImageEvent.CLAIM: lambda node: (
        node.ledger.release_leases("worker"),
        node.ledger.claim_images("another", 9),
    ),
    ImageEvent.RENEW: lambda node: node.ledger.renew([node.job]),
    ImageEvent.GIVE_BACK: lambda node: node.ledger.give_back(node.job),
    ImageEvent.ABANDON: lambda node: node.ledger.abandon(node.job),
    ImageEvent.RELEASE_LEASE: lambda node: node.ledger.release_leases("worker"),
    ImageEvent.ANALYSE: lambda node: node.complete("analysed", "new"),
    ImageEvent.EXCLUDE: lambda node: node.complete("not_analysed", "new"),
    ImageEvent.FAIL: lambda node: node.complete("failed", "new"),
    ImageEvent.RECOGNISE: _recognise,
    ImageEvent.REMAKE: _remake_image,
    ImageEvent.REARM: lambda node: node.ledger.rearm(["failed", "refused"], []),
    ImageEvent.GIVE_UP_BYTES: _give_up_bytes,
}


@pytest.mark.parametrize("event", ImageEvent)
@pytest.mark.parametrize("state", ImageState)
def test_each_image_event_leads_to_the_state_in_the_table(
    node: Node, state: ImageState, event: ImageEvent
) -> None:
    _IMAGE_IN[state](node)
    assert node.image_state() == state

    _IMAGE_EVENTS[event](node)

    assert node.image_state() == IMAGE_TRANSITIONS.get((state, event), state)


# -- deliveries ---------------------------------------------------------------------------------


def _store(node: Node) -> None:
    node.ledger.mark_stored(node.parcel, 0, commitment=True)


def _commit(node: Node) -> None:
    _store(node)
    node.ask()
    node.report(committed=True)


_DELIVERY_IN: dict[DeliveryState, Callable[[Node], None]] = {
    DeliveryState.OWED: lambda node: None,
    DeliveryState.STORED: _store,
    DeliveryState.COMMITTED: _commit,
    DeliveryState.REFUSED: lambda node: node.ledger.mark_refused(node.parcel, "0x0122"),
}

_DELIVERY_EVENTS: dict[DeliveryEvent, Callable[[Node], object]] = {
    DeliveryEvent.CLAIM: lambda node: (
        node.ledger.release_leases("courier"),
        node.ledger.claim_deliveries("pacs", "another", 9),
    ),
    DeliveryEvent.RENEW: lambda node: node.ledger.renew([node.parcel]),
    DeliveryEvent.GIVE_BACK: lambda node: node.ledger.give_back_delivery(node.parcel),
    DeliveryEvent.RETRY_LATER: lambda node: node.ledger.retry_later(node.parcel, "away", 9.0),
    DeliveryEvent.RELEASE_LEASE: lambda node: node.ledger.release_leases("courier"),
    DeliveryEvent.REMAKE: lambda node: node.ledger.remake(node.parcel, "the file is gone"),
    DeliveryEvent.STORE: lambda node: node.ledger.mark_stored(node.parcel, 0),
    DeliveryEvent.REFUSE: lambda node: node.ledger.mark_refused(node.parcel, "0x0122"),
    DeliveryEvent.FORGET_DESTINATION: lambda node: (
        node.ledger.release_leases("courier"),
        node.ledger.refuse_unknown_destinations([]),
    ),
    DeliveryEvent.ASK: lambda node: node.ask(),
    DeliveryEvent.POSTPONE: lambda node: node.ledger.postpone_commitment(
        "pacs", node.request, "rejected", 9.0
    ),
    DeliveryEvent.COMMIT: lambda node: (node.ask(), node.report(committed=True)),
    DeliveryEvent.LOSE: lambda node: (node.ask(), node.report(lost=True)),
    DeliveryEvent.DENY: lambda node: (node.ask(), node.report(refused=True)),
    DeliveryEvent.REARM: lambda node: node.ledger.rearm(["failed", "refused"], []),
    DeliveryEvent.RESEND: lambda node: node.ledger.resend("pacs", since=0.0),
}


@pytest.mark.parametrize("event", DeliveryEvent)
@pytest.mark.parametrize("state", DeliveryState)
def test_each_delivery_event_leads_to_the_state_in_the_table(
    node: Node, state: DeliveryState, event: DeliveryEvent
) -> None:
    node.complete("analysed")
    node.claim_delivery()
    _DELIVERY_IN[state](node)
    assert node.delivery_state() == state

    _DELIVERY_EVENTS[event](node)

    assert node.delivery_state() == DELIVERY_TRANSITIONS.get((state, event), state)


# -- descriptions -------------------------------------------------------------------------------


def test_the_docs_have_the_current_diagram() -> None:
    assert (DOCS / "states.md").read_text() == drawing(), "python -m daemon.ledger.states"


def test_each_state_and_each_event_has_a_sentence() -> None:
    for members in (ImageState, DeliveryState, ImageEvent, DeliveryEvent):
        assert all(member.sentence.endswith(".") for member in members)


def test_only_a_report_leads_into_committed_and_only_a_resend_out_of_it() -> None:
    into = [key for key, after in DELIVERY_TRANSITIONS.items() if after == "committed"]
    assert into == [(DeliveryState.STORED, DeliveryEvent.COMMIT)]
    out = [event for state, event in DELIVERY_TRANSITIONS if state == DeliveryState.COMMITTED]
    assert out == [DeliveryEvent.RESEND]
