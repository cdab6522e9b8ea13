"""The ledger's promises as plain Python: what every method ought to do, one statement at a time,
without a database.

The state machine does everything twice, here and in a ledger, and compares all rows after each
step. Nothing is claimed, ordered or counted by SQL here; what both agree on is what the words of
the ledger's docstrings say.
"""

from __future__ import annotations

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
    """Rows by number, in the order they came; `now` is the clock of the ledger."""

    now: float = 1_000_000.0
    images: dict[int, Image] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)  # transaction UID -> destination
    # Name outside the settings that something is owed to -> when that was first seen.
    unknown_since: dict[str, float] = field(default_factory=dict)

    def states(self) -> set[str]:
        """All states that some image or delivery is in."""
        return {row.state for row in (*self.images.values(), *self.deliveries.values())}

    def is_past(self, when: float, longest_s: float) -> bool:
        """A date beyond the longest wait of its kind comes from a clock that was set back."""
        return when <= self.now or when > self.now + longest_s

    def is_lease_over(self, row: Image | Delivery) -> bool:
        return self.is_past(row.lease_until, LONGEST_LEASE_S)

    def is_delivery_due(self, delivery: Delivery) -> bool:
        """A delivery that was never put off is due, also after the clock was set back."""
        was_put_off = delivery.due_at != delivery.owed_at
        return not was_put_off or self.is_past(delivery.due_at, LONGEST_DELIVERY_WAIT_S)

    def is_request_due(self, delivery: Delivery) -> bool:
        if delivery.commit_due_at is None:
            return False
        asked_again = delivery.commit_asks > 1
        longest_s = LONGEST_WAIT_S if asked_again else LONGEST_DELIVERY_WAIT_S
        return self.is_past(delivery.commit_due_at, longest_s)

    def image(self, job: ImageJob) -> Image | None:
        """The image that this attempt still holds."""
        image = self.images[job.id]
        return image if image.state == "received" and image.attempt == job.attempt else None

    def delivery(self, job: DeliveryJob) -> Delivery | None:
        """The delivery that this attempt still holds."""
        delivery = self.deliveries[job.id]
        return delivery if delivery.state == "owed" and delivery.attempt == job.attempt else None

    # -- receive, analyse
    # ---------------------------------------------------------------------------------------

    def receive(self, arrival: Arrival) -> None:
        self.images[len(self.images) + 1] = Image(arrival)

    def claim_images(self, owner: str, limit: int) -> list[tuple[int, int, int]]:
        """Returns (number, attempt, earlier solitary attempts) of what has to be claimed, in order."""
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
            image.owner, image.lease_until = owner, self.now + LEASE_S
            image.attempt += 1
            image.unfinished += 1
            claimed.append((number, image.attempt, image.unfinished_alone))
            image.unfinished_alone += solitary
        return claimed

    def give_back(self, job: ImageJob) -> None:
        if image := self.image(job):
            image.owner, image.lease_until = None, self.now
            image.attempt += 1
            image.unfinished -= 1
            image.unfinished_alone = job.unfinished_alone

    def abandon(self, job: ImageJob) -> None:
        if image := self.image(job):
            image.owner, image.lease_until = None, self.now
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
        uid, digest = image.arrival.sop_instance_uid, completion.content_digest
        # An excluded image is no original of a copy that is analysed.
        finished = ("analysed",) if completion.state == "analysed" else FINISHED
        originals = [
            number
            for number, other in self.images.items()
            if number != job.id and other.arrival.sop_instance_uid == uid
            if other.content_digest == digest and other.state in finished
        ]
        image.owner, image.completed_at, image.content_digest = None, self.now, digest
        if originals and not image.remakes:
            image.state, image.duplicate_of = "duplicate", originals[0]
            return "duplicate"
        image.state, image.result_time = completion.state, job.result_time
        for result in completion.results:
            if result.sop_instance_uid in self.results:
                if self.results[result.sop_instance_uid].image != job.id:
                    continue  # another image failed alike: the first one's file stands
                self.results[result.sop_instance_uid].spool_name = result.spool_name
                for delivery in self.deliveries.values():
                    if delivery.result_uid == result.sop_instance_uid and delivery.state == "owed":
                        delivery.due_at = self.now
                continue
            if image.remakes:
                continue  # another version's answer is not what was lost
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
        """Returns (number, attempt, failures) of what has to be claimed, in order."""
        due = [
            number
            for number, one in self.deliveries.items()
            if one.destination == destination and one.state == "owed"
            if self.is_delivery_due(one) and self.is_lease_over(one)
        ]
        due = sorted(due, key=lambda number: (self.deliveries[number].priority, number))[:limit]
        for number in due:
            one = self.deliveries[number]
            one.owner, one.lease_until, one.attempt = owner, self.now + LEASE_S, one.attempt + 1
        return [
            (number, self.deliveries[number].attempt, self.deliveries[number].failures)
            for number in due
        ]

    def stored(self, job: DeliveryJob, commitment: bool) -> None:
        if one := self.delivery(job):
            one.state, one.owner, one.commit_due_at = (
                "stored",
                None,
                self.now if commitment else None,
            )

    def refused(self, job: DeliveryJob) -> None:
        if one := self.delivery(job):
            one.state, one.owner = "refused", None

    def retry_later(self, job: DeliveryJob, delay_s: float, status: int | None) -> None:
        if one := self.delivery(job):
            one.owner, one.due_at, one.lease_until = None, self.now + delay_s, self.now
            one.failures = job.failures + (status is not None)

    def give_back_delivery(self, job: DeliveryJob) -> None:
        if one := self.delivery(job):
            one.owner, one.lease_until = None, self.now

    def remake(self, job: DeliveryJob) -> bool:
        one = self.delivery(job)
        if one is None:
            return False
        image = self.images[self.results[one.result_uid].image]
        if image.removed_at is not None or image.state not in (*FINISHED, "received"):
            return False
        if image.state in FINISHED:
            if image.remakes == MAXIMUM_REMAKES:
                return False
            image.state, image.lease_until = "received", self.now
            image.unfinished = image.unfinished_alone = 0  # its earlier attempts ended well
            image.remakes += 1
            image.attempt += 1
        one.owner, one.due_at, one.lease_until = None, self.now + 30, self.now
        return True

    def expire(self, owner: str) -> None:
        for row in (*self.images.values(), *self.deliveries.values()):
            if row.state in ("received", "owed") and row.owner == owner:
                row.owner, row.lease_until = None, self.now

    def refuse_unknown_destinations(self, known: Sequence[str], owed_for_s: float) -> int:
        owed = [one for one in self.deliveries.values() if one.state == "owed"]
        unknown = {one.destination for one in owed} - set(known)
        self.unknown_since = {
            name: at
            for name in unknown
            if (at := self.unknown_since.get(name, self.now)) <= self.now
        }
        for name in unknown:
            self.unknown_since.setdefault(name, self.now)
        gone = [
            one
            for one in owed
            if one.destination in unknown
            and self.unknown_since[one.destination] <= self.now - owed_for_s
            and self.is_lease_over(one)
        ]
        for one in gone:
            one.state, one.owner = "refused", None
        return len(gone)

    # -- storage commitment
    # -------------------------------------------------------------------------------------

    def awaiting(self, destination: str) -> list[int]:
        """What one destination has to be asked for now."""
        return [
            number
            for number, one in self.deliveries.items()
            if one.destination == destination and one.state == "stored"
            if self.is_request_due(one)
        ]

    def ask(
        self, destination: str, transaction_uid: str, uids: Sequence[str], first_wait_s: float
    ) -> None:
        self.asked[transaction_uid] = destination
        for one in self._stored(destination, uids):
            one.commit_due_at = self.now + min(LONGEST_WAIT_S, first_wait_s * 2**one.commit_asks)
            one.commit_asks += 1

    def not_asked(self, destination: str, uids: Sequence[str], delay_s: float) -> None:
        for one in self._stored(destination, uids):
            one.commit_due_at = self.now + delay_s
            one.commit_asks -= 1

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
        for one in self._stored(destination, committed):
            one.state = "committed"
        for one in self._stored(destination, lost):
            later = (
                0.0
                if one.commit_asks < 2
                else min(LONGEST_DELIVERY_WAIT_S, 60.0 * 2 ** (one.commit_asks - 2))
            )
            one.owed_at = self.now
            one.state, one.due_at, one.lease_until, one.commit_due_at = (
                "owed",
                self.now + later,
                self.now,
                None,
            )
            one.attempt += 1
        for one in self._stored(destination, no):
            one.state = "refused"
        return True

    def _stored(self, destination: str, uids: Sequence[str]) -> list[Delivery]:
        found = (
            one
            for one in self.deliveries.values()
            if one.destination == destination and one.state == "stored"
        )
        return [one for one in found if one.result_uid in uids]

    # -- retention, people
    # --------------------------------------------------------------------------------------

    def releasable(
        self, kept_s: float, kept_failed_s: float, committing: Sequence[str]
    ) -> list[int]:
        """Images whose bytes may go now."""
        found = []
        for number, image in self.images.items():
            if image.removed_at is not None or image.state == "received":
                continue
            mine = [
                one
                for one in self.deliveries.values()
                if self.results[one.result_uid].image == number
            ]
            awaited = [
                one
                for one in mine
                if one.destination in committing and one.commit_due_at is not None
            ]
            if any(one.state == "owed" for one in mine) or any(
                one.state == "stored" for one in awaited
            ):
                continue
            troubled = image.state == "failed" or any(one.state == "refused" for one in mine)
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
                image.state, image.completed_at, image.lease_until = "received", None, self.now
                image.unfinished = image.unfinished_alone = 0
                image.attempt += 1
                count += 1
        for one in self.deliveries.values():
            kept = self.images[self.results[one.result_uid].image].removed_at is None
            if (
                "refused" in states
                and one.state == "refused"
                and kept
                and (not uids or one.result_uid in uids)
            ):
                one.state, one.due_at, one.lease_until, one.failures = "owed", self.now, self.now, 0
                one.owed_at = self.now
                one.attempt += 1
                count += 1
        return count
