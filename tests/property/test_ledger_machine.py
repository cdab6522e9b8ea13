"""Random sequences of ledger steps, with late owners and moved clocks: every row of the ledger is
as the model says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
from daemon.ledger.schema import deliveries, instances, metadata, results, schema_version
from tests.property.model import LEASE_S, LONGEST_WAIT_S, Delivery, Image, Model

OWED = {"pacs": ("SEG", "SC"), "outbox": ("SC",)}
KINDS = {"analysed": ("SEG", "SC"), "not_analysed": ("SC",), "failed": ("SC",)}

uids = st.sampled_from(["1.1", "1.2", "1.3", "1.4"])
owners = st.sampled_from(["anna", "bert"])
destinations = st.sampled_from(sorted(OWED))
limits = st.integers(1, 4)
image_ends = st.sampled_from(
    [
        "analysed a",
        "analysed b",
        "not_analysed a",
        "failed a",
        "failed b",
        "give back",
        "abandon",
        "renew",
        "none",
    ]
)
delivery_ends = st.sampled_from(
    [
        "stored",
        "stored, to be committed",
        "stored, to be committed",
        "refused",
        "unreachable",
        "failure status",
        "give back",
        "file lost",
        "renew",
        "none",
    ]
)
reports = st.lists(
    st.sampled_from(
        ["committed", "lost", "lost", "refused", "not mentioned", "unknown transaction"]
    ),
    min_size=4,
    max_size=4,
)


@pytest.fixture
def tables(ledger_url: str) -> Iterator[tuple[str, sa.Engine]]:
    """An empty ledger's URL, and a view into its tables."""
    Ledger(ledger_url).close()
    engine = sa.create_engine(ledger_url)
    yield ledger_url, engine
    engine.dispose()


def test_the_ledger_does_what_the_model_says(tables: tuple[str, sa.Engine]) -> None:
    url, engine = tables

    class Machine(Lives):
        ledger_url, view = url, engine

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            report_multiple_bugs=False,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Lives(RuleBasedStateMachine):
    """The state machine. It keeps all jobs and requests, so an owner may act on one hours late."""

    ledger_url: str
    view: sa.Engine
    jobs = Bundle("jobs")
    parcels = Bundle("parcels")
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.files = (f"file-{n}" for n in itertools.count())
        self.committed: set[int] = set()
        self._empty()
        self.ledger = Ledger(
            self.ledger_url,
            clock=lambda: self.model.now,
            limits=LedgerLimits(lease_s=LEASE_S, longest_wait_s=LONGEST_WAIT_S),
        )

    def teardown(self) -> None:
        kept = [file.spool_name for file in self.ledger.inspect.kept_files()]
        assert len(kept) == len(set(kept))
        assert set(kept) == self.model.kept_files()
        assert self.ledger.inspect.contradictions() == []
        self.ledger.close()

    @initialize(copies=st.integers(1, 2), to=destinations, end=delivery_ends)
    def begin(self, copies: int, to: str, end: str) -> None:
        """Start with images and deliveries in several states, so that few steps reach many more."""
        for uid in ("1.1", "1.2", "1.3"):
            self.receive(uid, 1, copies)
        self.analyse("anna", 3, ["analysed a", "analysed b", "analysed a"])
        self.deliver(to, "anna", 2, ["stored, to be committed", end])

    # -- rules
    # ---------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 31.0, 61.0, 900.0, 4000.0, -2.0, -100.0, -100_000.0]))
    def time_passes_or_the_clock_is_set_back(self, seconds: float) -> None:
        self.model.now += seconds

    @rule(uid=uids, priority=st.integers(0, 2), copies=st.integers(1, 3))
    def receive(self, uid: str, priority: int, copies: int) -> None:
        arrivals = [
            Arrival(next(self.files), "1.2.840", uid, "1.2.1", "XRAY1", "dimse", priority, 9)
            for _ in range(copies)
        ]
        self.ledger.receive(arrivals)
        for arrival in arrivals:
            self.model.receive(arrival)

    @rule(
        target=jobs, owner=owners, limit=limits, ends=st.lists(image_ends, min_size=4, max_size=4)
    )
    def analyse(self, owner: str, limit: int, ends: list[str]) -> Any:
        claimed = self.ledger.claim_images(owner, limit)
        assert [
            (job.id, job.attempt, job.unfinished_alone) for job in claimed
        ] == self.model.claim_images(owner, limit)

        for job in claimed:
            image = self.model.images[job.id]
            assert job.spool_name == image.arrival.spool_name
            assert job.result_time == (
                self.model.now if image.result_time is None else image.result_time
            )

        for job, end in zip(claimed, ends, strict=False):
            self.end_of_an_image(job, end)
        return multiple(*claimed)

    @rule(job=jobs, end=image_ends)
    def end_of_an_image(self, job: ImageJob, end: str) -> None:
        if end == "renew":
            self.ledger.renew([job])
            self.model.renew(job)
        elif end == "give back":
            self.ledger.give_back(job)
            self.model.give_back(job)
        elif end == "abandon":
            self.ledger.abandon(job)
            self.model.abandon(job)
        elif end != "none":
            state, digest = end.split()
            # Result UIDs are derived: the same content with the same outcome has the same results
            # (docs/rules.md, "Identity").
            made = tuple(
                StoredResult(
                    kind,
                    next(self.files),
                    "1.2",
                    f"{job.sop_instance_uid}.{digest}.{state}.{kind}",
                    "1.2.1",
                )
                for kind in KINDS[state]
            )
            completion = Completion(state, digest, "1.2", results=made)
            assert self.ledger.complete(job, completion, OWED) == self.model.complete(
                job, completion, OWED
            )

    @rule(
        target=parcels,
        destination=destinations,
        owner=owners,
        limit=limits,
        ends=st.lists(delivery_ends, min_size=4, max_size=4),
    )
    def deliver(self, destination: str, owner: str, limit: int, ends: list[str]) -> Any:
        claimed = self.ledger.claim_deliveries(destination, owner, limit)
        wanted = self.model.claim_deliveries(destination, owner, limit)
        assert [(job.id, job.attempt, job.failures) for job in claimed] == wanted

        for job in claimed:
            uid = self.model.deliveries[job.id].result_uid
            assert job.destination == destination
            assert job.result.sop_instance_uid == uid
            assert job.result.spool_name == self.model.results[uid].spool_name

        for job, end in zip(claimed, ends, strict=False):
            self.end_of_a_delivery(job, end)
        return multiple(*claimed)

    @rule(job=parcels, end=delivery_ends)
    def end_of_a_delivery(self, job: DeliveryJob, end: str) -> None:
        if end == "renew":
            self.ledger.renew([job])
            self.model.renew(job)
        elif end in ("stored", "stored, to be committed"):
            self.ledger.mark_stored(job, 0, end != "stored")
            self.model.stored(job, end != "stored")
        elif end == "refused":
            self.ledger.mark_refused(job, "0x0122", 0x0122)
            self.model.refused(job)
        elif end in ("unreachable", "failure status"):
            status = 0xC000 if end == "failure status" else None
            self.ledger.retry_later(job, end, 10.0, status)
            self.model.retry_later(job, 10.0, status)
        elif end == "give back":
            self.ledger.give_back_delivery(job)
            self.model.give_back_delivery(job)
        elif end == "file lost":
            assert self.ledger.remake(job, end) == self.model.remake(job)

    @rule(target=requests, destination=destinations, limit=limits, answers=reports)
    def ask_commitment(self, destination: str, limit: int, answers: list[str]) -> Any:
        due = self.model.awaiting(destination)
        request = self.ledger.ask_commitment(destination, limit, 40.0)
        if request is None:
            assert due == []
            return multiple()

        asked = [uid for _, uid in request.references]
        assert len(asked) == len(set(asked)) == min(limit, len(due))
        assert set(asked) <= {self.model.deliveries[number].result_uid for number in due}
        assert request.transaction_uid not in self.model.asked

        self.model.ask(destination, request.transaction_uid, asked, 40.0)
        self.commitment_reported((destination, request), destination, answers)
        return (destination, request)

    @rule(asked=requests)
    def commitment_not_asked(self, asked: tuple[str, CommitmentRequest]) -> None:
        destination, request = asked
        self.ledger.postpone_commitment(destination, request, "rejected", 20.0)
        self.model.not_asked(destination, [uid for _, uid in request.references], 20.0)

    @rule(asked=requests, destination=destinations, answers=reports)
    def commitment_reported(
        self, asked: tuple[str, CommitmentRequest], destination: str, answers: list[str]
    ) -> None:
        request = asked[1]
        uid = "2.25.1" if answers[0] == "unknown transaction" else request.transaction_uid
        named = [uid for _, uid in request.references]
        good, lost, no = (
            [uid for uid, said in zip(named, answers, strict=False) if said == what]
            for what in ("committed", "lost", "refused")
        )
        known = self.ledger.record_commitment_report(
            destination, uid, good, dict.fromkeys(lost, "0x0112"), dict.fromkeys(no, "0x0119")
        )
        assert known == self.model.reported(destination, uid, good, lost, no)

    @precondition(
        lambda self: any(image.state != "received" for image in self.model.images.values())
    )
    @rule(
        kept_s=st.sampled_from([0.0, 50.0]),
        kept_failed_s=st.sampled_from([0.0, 500.0]),
        limit=limits,
        committing=st.sampled_from([["pacs", "outbox"], ["pacs"], []]),
    )
    def release(
        self, kept_s: float, kept_failed_s: float, limit: int, committing: list[str]
    ) -> None:
        may = self.model.releasable(kept_s, kept_failed_s, committing)
        files = self.ledger.give_up_bytes(kept_s, kept_failed_s, committing, limit)
        gone = [number for number in may if self.model.images[number].arrival.spool_name in files]
        assert len(gone) == min(limit, len(may))
        assert sorted(files) == sorted(
            name for number in gone for name in self.model.files_of(number)
        )

        ages = {number: self.model.images[number].completed_at or 0.0 for number in may}
        assert all(
            ages[number] <= ages[other] for number in gone for other in may if other not in gone
        )

        for number in gone:
            self.model.images[number].removed_at = self.model.now

    @precondition(lambda self: "failed" in self.model.states() or "refused" in self.model.states())
    @rule(
        states=st.sampled_from([["failed"], ["refused"], ["failed", "refused"]]),
        uid=st.none() | uids,
    )
    def rearm(self, states: list[str], uid: str | None) -> None:
        named = [] if uid is None else [uid, f"{uid}.a.analysed.SC"]
        assert self.ledger.rearm(states, named) == self.model.rearm(states, named)

    @precondition(lambda self: "owed" in self.model.states())
    @rule(
        known=st.sampled_from([["pacs", "outbox"], ["pacs"]]),
        owed_for_s=st.sampled_from([0.0, 60.0]),
    )
    def refuse_unknown_destinations(self, known: list[str], owed_for_s: float) -> None:
        refused = self.ledger.refuse_unknown_destinations(known, owed_for_s)
        assert refused == self.model.refuse_unknown_destinations(known, owed_for_s)

    @rule(owner=owners)
    def an_owner_is_known_to_be_dead(self, owner: str) -> None:
        self.ledger.release_leases(owner)
        self.model.expire(owner)
        assert owner not in self.ledger.inspect.lease_owners()

    # -- invariants
    # ----------------------------------------------------------------------------------------

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        with self.view.connect() as conn:
            images = {row["id"]: row for row in conn.execute(sa.select(instances)).mappings()}
            made = list(conn.execute(sa.select(results)).mappings())
            owed = list(
                conn.execute(
                    sa.select(deliveries, results.c.sop_instance_uid.label("result_uid")).join(
                        results
                    )
                ).mappings()
            )

        first = min(images, default=1) - 1, min((row["id"] for row in owed), default=1) - 1
        assert first == (0, 0)
        assert {number: {name: row[name] for name in _IMAGE} for number, row in images.items()} == {
            number: {name: getattr(image, name) for name in _IMAGE}
            for number, image in self.model.images.items()
        }
        assert {row["id"]: {name: row[name] for name in _DELIVERY} for row in owed} == {
            number: {name: getattr(delivery, name) for name in _DELIVERY}
            for number, delivery in self.model.deliveries.items()
        }
        # A result exists once, and is owed at most once to each destination.

        assert sorted(row["sop_instance_uid"] for row in made) == sorted(self.model.results)
        pairs = [(row["result_uid"], row["destination"]) for row in owed]
        assert len(pairs) == len(set(pairs))

        # A committed delivery stays committed.
        committed = {row["id"] for row in owed if row["state"] == "committed"}
        assert self.committed <= committed
        self.committed = committed

    @invariant()
    def each_accepted_instance_is_in_one_count(self) -> None:
        counts = self.ledger.inspect.counts()
        states = [image.state for image in self.model.images.values()]
        assert sum(counts["instances"].values()) == len(states) - states.count("duplicate")
        assert sum(counts["deliveries"].values()) == len(self.model.deliveries)
        for state, count in counts["instances"].items():
            assert count == states.count(state)

    @invariant()
    def files_are_known_exactly_while_they_are_needed(self) -> None:
        kept = self.model.kept_files()
        every = [name for number in self.model.images for name in self.model.files_of(number)]
        assert self.ledger.inspect.known_spool_names(every) == kept

        # Checked without the model's rules: a waiting image and an owed result have their files.
        for number, image in self.model.images.items():
            assert image.state != "received" or set(self.model.files_of(number)) <= kept
        for delivery in self.model.deliveries.values():
            is_kept = self.model.results[delivery.result_uid].spool_name in kept
            assert delivery.state != "owed" or is_kept

    def _empty(self) -> None:
        with self.view.begin() as conn:
            if self.view.dialect.name == "postgresql":
                names = ", ".join(
                    table.name for table in metadata.sorted_tables if table is not schema_version
                )
                conn.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY"))
                return
            for table in reversed(metadata.sorted_tables):
                if table is not schema_version:
                    conn.execute(table.delete())


_IMAGE = [name for name in Image.__dataclass_fields__ if name != "arrival"]
_DELIVERY = list(Delivery.__dataclass_fields__)
