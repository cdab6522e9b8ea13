"""A model of the ledger in plain Python, without a database: what each of its methods must do.

The state machine does each step twice, here and in a ledger, and compares all rows after it. This
module uses no SQL; it follows the ledger's docstrings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daemon.ledger import Arrival, Completion, DeliveryJob, ImageJob

LEASE_S = 60.0
LONGEST_LEASE_S = 5 * LEASE_S
LONGEST_DELIVERY_WAIT_S = 600.0
LONGEST_WAIT_S = 3600.0
MAXIMUM_REMAKES = 3
FINISHED = ("analysed", "not_analysed")


@dataclass
class Image:
    arrival: Arrival
    state: str = "received"
    content_digest: str | None = None
    duplicate_of: int | None = None
    owner: str | None = None
    lease_until: float = 0.0
    attempt: int = 0
    unfinished: int = 0
    unfinished_alone: int = 0
    completed_at: float | None = None
    result_time: float | None = None
    remakes: int = 0
    removed_at: float | None = None


@dataclass
class Delivery:
    result_uid: str
    destination: str
    priority: int
    due_at: float
    owed_at: float
    state: str = "owed"
    owner: str | None = None
    lease_until: float = 0.0
    attempt: int = 0
    failures: int = 0
    commit_due_at: float | None = None
    commit_asks: int = 0


@dataclass
class Result:
    image: int
    spool_name: str


@dataclass
class Model:
    """Rows by number, in order of arrival. `now` is the ledger's clock."""

    now: float = 1_000_000.0
    images: dict[int, Image] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    # Transaction UID -> destination
    asked: dict[str, str] = field(default_factory=dict)
    # Owed destination that the settings do not have -> when that was first seen
    unknown_since: dict[str, float] = field(default_factory=dict)

    def states(self) -> set[str]:
        """All states of images and deliveries."""
        return {row.state for row in (*self.images.values(), *self.deliveries.values())}

    def is_past(self, when: float, longest_s: float) -> bool:
        """True if `when` is past. So is a time beyond the longest wait: the clock was set back."""
        return when <= self.now or when > self.now + longest_s

    def is_lease_over(self, row: Image | Delivery) -> bool:
        return self.is_past(row.lease_until, LONGEST_LEASE_S)

    def is_delivery_due(self, delivery: Delivery) -> bool:
        """True if its time has come. A delivery that was never postponed is always due."""
        was_postponed = delivery.due_at != delivery.owed_at
        return not was_postponed or self.is_past(delivery.due_at, LONGEST_DELIVERY_WAIT_S)

    def is_request_due(self, delivery: Delivery) -> bool:
        if delivery.commit_due_at is None:
            return False
        asked_again = delivery.commit_asks > 1
        longest_s = LONGEST_WAIT_S if asked_again else LONGEST_DELIVERY_WAIT_S
        return self.is_past(delivery.commit_due_at, longest_s)

    def image(self, job: ImageJob) -> Image | None:
        """The job's image if this attempt still holds it, else None."""
        image = self.images[job.id]
        return image if image.state == "received" and image.attempt == job.attempt else None

    def delivery(self, job: DeliveryJob) -> Delivery | None:
        """The job's delivery if this attempt still holds it, else None."""
        delivery = self.deliveries[job.id]
        return delivery if delivery.state == "owed" and delivery.attempt == job.attempt else None

    # -- receive, analyse
    # ---------------------------------------------------------------------------------------

    def receive(self, arrival: Arrival) -> None:
        self.images[len(self.images) + 1] = Image(arrival)

    def claim_images(self, owner: str, limit: int) -> list[tuple[int, int, int]]:
        """Returns (number, attempt, earlier attempts alone) of the images to claim, in order."""
        waiting = sorted(
            (number for number, image in self.images.items() if image.state == "received"),
            key=lambda number: (self.images[number].arrival.priority, number),
        )
        waiting = [number for number in waiting if self.is_lease_over(self.images[number])][:limit]

        if not waiting:
            return []

        first = self.images[waiting[0]]
        solitary = first.unfinished > 0

        def special(number: int) -> bool:
            return self.images[number].unfinished > 0 or self.images[number].result_time is not None

        chosen = (
            waiting[:1]
            if special(waiting[0])
            else [number for number in waiting if not special(number)]
        )

        claimed = []
        for number in chosen:
            image = self.images[number]
            image.owner = owner
            image.lease_until = self.now + LEASE_S
            image.attempt += 1
            image.unfinished += 1
            claimed.append((number, image.attempt, image.unfinished_alone))
            image.unfinished_alone += solitary
        return claimed

    def give_back(self, job: ImageJob) -> None:
        if image := self.image(job):
            image.owner = None
            image.lease_until = self.now
            image.attempt += 1
            image.unfinished -= 1
            image.unfinished_alone = job.unfinished_alone

    def abandon(self, job: ImageJob) -> None:
        if image := self.image(job):
            image.owner = None
            image.lease_until = self.now
            image.attempt += 1

    def renew(self, job: ImageJob | DeliveryJob) -> None:
        held = self.image(job) if isinstance(job, ImageJob) else self.delivery(job)
        if held and held.owner is not None:
            held.lease_until = self.now + LEASE_S

    def complete(
        self, job: ImageJob, completion: Completion, owed: Mapping[str, Sequence[str]]
    ) -> str | None:
        image = self.image(job)
        if image is None:
            return None

        uid = image.arrival.sop_instance_uid
        digest = completion.content_digest
        # An image that was not analysed is not the original of a copy that is.
        finished = ("analysed",) if completion.state == "analysed" else FINISHED
        originals = [
            number
            for number, other in self.images.items()
            if number != job.id and other.arrival.sop_instance_uid == uid
            if other.content_digest == digest and other.state in finished
        ]

        image.owner = None
        image.completed_at = self.now
        image.content_digest = digest
        if originals and not image.remakes:
            image.state = "duplicate"
            image.duplicate_of = originals[0]
            return "duplicate"

        image.state = completion.state
        image.result_time = job.result_time
        for result in completion.results:
            if result.sop_instance_uid in self.results:
                # Another image failed in the same way: the first image's file stays.
                if self.results[result.sop_instance_uid].image != job.id:
                    continue
                self.results[result.sop_instance_uid].spool_name = result.spool_name
                for delivery in self.deliveries.values():
                    if delivery.result_uid == result.sop_instance_uid and delivery.state == "owed":
                        delivery.due_at = self.now
                continue
            # The lost result is made again; a new result comes from another version.
            if image.remakes:
                continue
            self.results[result.sop_instance_uid] = Result(job.id, result.spool_name)
            for destination, kinds in owed.items():
                if result.kind in kinds:
                    self.deliveries[len(self.deliveries) + 1] = Delivery(
                        result.sop_instance_uid,
                        destination,
                        image.arrival.priority,
                        due_at=self.now,
                        owed_at=self.now,
                    )
        return completion.state

    # -- deliver
    # ------------------------------------------------------------------------------------------------

    def claim_deliveries(
        self, destination: str, owner: str, limit: int
    ) -> list[tuple[int, int, int]]:
        """Returns (number, attempt, failures) of the deliveries to claim, in order."""
        due = [
            number
            for number, delivery in self.deliveries.items()
            if delivery.destination == destination and delivery.state == "owed"
            if self.is_delivery_due(delivery) and self.is_lease_over(delivery)
        ]

        due = sorted(due, key=lambda number: (self.deliveries[number].priority, number))[:limit]

        for number in due:
            delivery = self.deliveries[number]
            delivery.owner = owner
            delivery.lease_until = self.now + LEASE_S
            delivery.attempt += 1

        return [
            (number, self.deliveries[number].attempt, self.deliveries[number].failures)
            for number in due
        ]

    def stored(self, job: DeliveryJob, commitment: bool) -> None:
        if delivery := self.delivery(job):
            delivery.state = "stored"
            delivery.owner = None
            delivery.commit_due_at = self.now if commitment else None

    def refused(self, job: DeliveryJob) -> None:
        if delivery := self.delivery(job):
            delivery.state = "refused"
            delivery.owner = None

    def retry_later(self, job: DeliveryJob, delay_s: float, status: int | None) -> None:
        if delivery := self.delivery(job):
            delivery.owner = None
            delivery.due_at = self.now + delay_s
            delivery.lease_until = self.now
            delivery.failures = job.failures + (status is not None)

    def give_back_delivery(self, job: DeliveryJob) -> None:
        if delivery := self.delivery(job):
            delivery.owner = None
            delivery.lease_until = self.now

    def remake(self, job: DeliveryJob) -> bool:
        delivery = self.delivery(job)
        if delivery is None:
            return False
        image = self.images[self.results[delivery.result_uid].image]
        if image.removed_at is not None or image.state not in (*FINISHED, "received"):
            return False

        if image.state in FINISHED:
            if image.remakes == MAXIMUM_REMAKES:
                return False
            image.state = "received"
            image.lease_until = self.now
            # Its earlier attempts ended well.
            image.unfinished = image.unfinished_alone = 0
            image.remakes += 1
            image.attempt += 1

        delivery.owner = None
        delivery.due_at = self.now + 30
        delivery.lease_until = self.now
        return True

    def expire(self, owner: str) -> None:
        for row in (*self.images.values(), *self.deliveries.values()):
            if row.state in ("received", "owed") and row.owner == owner:
                row.owner = None
                row.lease_until = self.now

    def refuse_unknown_destinations(
        self, known: Sequence[str], owed_for_s: float
    ) -> dict[str, int]:
        owed = [delivery for delivery in self.deliveries.values() if delivery.state == "owed"]

        unknown = {delivery.destination for delivery in owed} - set(known)
        self.unknown_since = {
            name: at
            for name in unknown
            if (at := self.unknown_since.get(name, self.now)) <= self.now
        }
        for name in unknown:
            self.unknown_since.setdefault(name, self.now)

        gone = [
            delivery
            for delivery in owed
            if delivery.destination in unknown
            and self.unknown_since[delivery.destination] <= self.now - owed_for_s
            and self.is_lease_over(delivery)
        ]
        for delivery in gone:
            delivery.state = "refused"
            delivery.owner = None
        return dict(Counter(delivery.destination for delivery in gone))

    # -- storage commitment
    # -------------------------------------------------------------------------------------

    def awaiting(self, destination: str) -> list[int]:
        """The numbers of the deliveries for which a commitment request is due now."""
        return [
            number
            for number, delivery in self.deliveries.items()
            if delivery.destination == destination and delivery.state == "stored"
            if self.is_request_due(delivery)
        ]

    def ask(
        self, destination: str, transaction_uid: str, uids: Sequence[str], first_wait_s: float
    ) -> None:
        self.asked[transaction_uid] = destination
        for delivery in self._stored(destination, uids):
            delivery.commit_due_at = self.now + min(
                LONGEST_WAIT_S, first_wait_s * 2**delivery.commit_asks
            )
            delivery.commit_asks += 1

    def not_asked(self, destination: str, uids: Sequence[str], delay_s: float) -> None:
        for delivery in self._stored(destination, uids):
            delivery.commit_due_at = self.now + delay_s
            delivery.commit_asks -= 1

    def reported(
        self,
        destination: str,
        transaction_uid: str,
        committed: Sequence[str],
        lost: Sequence[str],
        no: Sequence[str],
    ) -> bool:
        if self.asked.get(transaction_uid) != destination:
            return False
        for delivery in self._stored(destination, committed):
            delivery.state = "committed"

        for delivery in self._stored(destination, lost):
            later = (
                0.0
                if delivery.commit_asks < 2
                else min(LONGEST_DELIVERY_WAIT_S, 60.0 * 2 ** (delivery.commit_asks - 2))
            )
            delivery.owed_at = self.now
            delivery.state = "owed"
            delivery.due_at = self.now + later
            delivery.lease_until = self.now
            delivery.commit_due_at = None
            delivery.attempt += 1

        for delivery in self._stored(destination, no):
            delivery.state = "refused"
        return True

    def _stored(self, destination: str, uids: Sequence[str]) -> list[Delivery]:
        found = (
            delivery
            for delivery in self.deliveries.values()
            if delivery.destination == destination and delivery.state == "stored"
        )
        return [delivery for delivery in found if delivery.result_uid in uids]

    # -- retention, people
    # --------------------------------------------------------------------------------------

    def releasable(
        self, kept_s: float, kept_failed_s: float, committing: Sequence[str]
    ) -> list[int]:
        """The numbers of the images whose bytes may be removed now."""
        found = []

        for number, image in self.images.items():
            if image.removed_at is not None or image.state == "received":
                continue

            mine = [
                delivery
                for delivery in self.deliveries.values()
                if self.results[delivery.result_uid].image == number
            ]
            awaited = [
                delivery
                for delivery in mine
                if delivery.destination in committing and delivery.commit_due_at is not None
            ]

            if any(delivery.state == "owed" for delivery in mine) or any(
                delivery.state == "stored" for delivery in awaited
            ):
                continue
            troubled = image.state == "failed" or any(
                delivery.state == "refused" for delivery in mine
            )
            assert image.completed_at is not None
            if image.completed_at <= self.now - (kept_failed_s if troubled else kept_s):
                found.append(number)
        return found

    def files_of(self, number: int) -> list[str]:
        made = [result.spool_name for result in self.results.values() if result.image == number]
        return [self.images[number].arrival.spool_name, *made]

    def kept_files(self) -> set[str]:
        return {
            name
            for number, image in self.images.items()
            if image.removed_at is None
            for name in self.files_of(number)
        }

    def rearm(self, states: Sequence[str], uids: Sequence[str]) -> int:
        count = 0
        for image in self.images.values():
            named = not uids or image.arrival.sop_instance_uid in uids
            if (
                "failed" in states
                and image.state == "failed"
                and image.removed_at is None
                and named
            ):
                image.state = "received"
                image.completed_at = None
                image.lease_until = self.now
                image.unfinished = image.unfinished_alone = 0
                image.attempt += 1
                count += 1

        for delivery in self.deliveries.values():
            kept = self.images[self.results[delivery.result_uid].image].removed_at is None
            if (
                "refused" in states
                and delivery.state == "refused"
                and kept
                and (not uids or delivery.result_uid in uids)
            ):
                delivery.state = "owed"
                delivery.due_at = self.now
                delivery.lease_until = self.now
                delivery.failures = 0
                delivery.owed_at = self.now
                delivery.attempt += 1
                count += 1

        return count
