"""Three days without the archive, in simulated time: results wait, and afterwards drain without
help, urgent results first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from daemon.config import Config, DicomDestination
from daemon.deliver.courier import Courier, Store
from daemon.dicom.link import LinkDownError
from daemon.dicom.outgoing import Outgoing
from daemon.dicom.requestor import Answer
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.spool import Spool

HOUR_S = 3600.0
OUTAGE_S = 72 * HOUR_S
# A new image arrives every half hour.
EVERY_S = 1800.0
LONGEST_PAUSE_S = 300.0
PACS = DicomDestination(name="pacs", ae_title="ARCHIVE", host="127.0.0.1", port=1, results=("SC",))


class World:
    """A clock, images that arrive on schedule, and an archive that is unreachable until the outage
    ends.
    """

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000.0
        self.outage_ends = self.now + OUTAGE_S
        self.next_image = self.now
        self.ledger = _IdleLedger(f"sqlite:///{folder}/ledger.db", self)
        self.spool = Spool(folder / "spool")
        self.urgent: set[str] = set()
        self.made: dict[str, float] = {}
        self.stored: list[tuple[float, str]] = []
        self.tries = 0
        self.stop = threading.Event()

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.next_image <= min(until, self.outage_ends):
            self.now = max(self.now, self.next_image)
            self._image(f"2.25.{len(self.made) + 1}")
            self.next_image += EVERY_S
        self.now = max(self.now, until)

    def _image(self, uid: str) -> None:
        priority = 0 if len(self.made) % 7 == 0 else 1
        if priority == 0:
            self.urgent.add(uid)
        name = self.spool.write(uid.encode())
        self.ledger.receive([Arrival(name, "1.2", f"1.{uid}", "", "", "dimse", priority, len(uid))])
        (job,) = self.ledger.claim_images("test", 1)
        result = StoredResult("SC", name, "1.2", uid, "1.2.840.10008.1.2.1", len(uid))
        self.ledger.complete(job, Completion("analysed", uid, results=(result,)), {"pacs": ("SC",)})
        self.made[uid] = self.now


class _IdleLedger(Ledger):
    def __init__(self, url: str, world: World) -> None:
        super().__init__(url, clock=lambda: world.now)
        self._world = world

    def wait(self, timeout_s: float) -> None:
        self._world.pass_time(timeout_s)
        if self._world.now > self._world.outage_ends + HOUR_S:
            self._world.stop.set()


class _Courier(Courier):
    def __init__(self, world: World) -> None:
        super().__init__(PACS, Config(destinations=(PACS,)), world.ledger, world.spool)
        self._world = world

    def pause(self, stop: threading.Event, seconds: float) -> None:
        self._world.pass_time(seconds)

    def open(self, objects: Sequence[Outgoing]) -> AbstractContextManager[Store]:
        self._world.tries += 1
        if self._world.now < self._world.outage_ends:
            raise LinkDownError("nobody listens")
        return nullcontext(_Archive(self._world))


class _Archive:
    def __init__(self, world: World) -> None:
        self._world = world

    def store(self, outgoing: Outgoing) -> Answer:
        self._world.pass_time(0.1)
        self._world.stored.append((self._world.now, outgoing.sop_instance_uid))
        return Answer(0)


def test_results_of_a_three_day_outage_drain_with_the_urgent_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    _Courier(world).run(world.stop)

    uids = [uid for _, uid in world.stored]
    assert len(world.made) == OUTAGE_S / EVERY_S + 1
    # Each result was stored exactly once.
    assert sorted(uids) == sorted(world.made)
    assert world.ledger.inspect.counts()["deliveries"] == {
        "owed": 0,
        "stored": len(uids),
        "committed": 0,
        "refused": 0,
    }

    first, last = world.stored[0][0], world.stored[-1][0]
    assert world.outage_ends <= first <= world.outage_ends + LONGEST_PAUSE_S + 1
    # Once the archive is back, no result waits for a back-off of its own.
    assert last - first < 60 + 0.1 * len(uids)

    # Leave out the first two results, whose retries found the archive back.
    waited = [uid for uid in uids[2:] if world.made[uid] < world.outage_ends - HOUR_S]
    number_urgent = sum(uid in world.urgent for uid in waited)
    assert {uid in world.urgent for uid in waited[:number_urgent]} == {True}
    assert waited[number_urgent:] == sorted(waited[number_urgent:], key=lambda uid: world.made[uid])

    # A dead archive is tried once every few minutes, not hammered.
    assert OUTAGE_S / LONGEST_PAUSE_S < world.tries < 2.2 * OUTAGE_S / LONGEST_PAUSE_S
    world.ledger.close()
