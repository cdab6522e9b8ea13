"""A courier in simulated time: images arrive on a schedule, and the archive gives scripted answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daemon.config import Config, DicomDestination
from daemon.deliver.courier import Courier, Store
from daemon.dicom.outgoing import Outgoing
from daemon.dicom.requestor import Answer
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.ledger.schema import deliveries
from daemon.spool import Spool
from tests.unit.clock import Clock

MINUTE_S = 60.0
HOUR_S = 3600.0
PACS = DicomDestination(name="pacs", ae_title="ARCHIVE", host="127.0.0.1", port=1, results=("SC",))

# (UID of a result, seconds since the start) -> the status to answer. May raise what a Store may
# raise.
Answers = Callable[[str, float], int]


class World:
    """One destination, for which a new result is queued every `every_s` seconds from the start on."""

    def __init__(self, folder: Path, url: str, answers: Answers, every_s: float) -> None:
        self.clock = Clock()
        self.start = self.clock.now
        self.config = Config(spool=folder / "spool", destinations=(PACS,))
        self.ledger = _Ledger(url, self)
        self.spool = Spool(folder / "spool")
        self.answers = answers

        # UID of a result -> seconds from the start.
        self.made: dict[str, float] = {}
        self.stored: dict[str, float] = {}
        # (seconds from the start, UID) of each try.
        self.tries: list[tuple[float, str]] = []

        self._every_s = every_s
        self._next_image_s = 0.0
        self._end_s = 0.0
        self._stop = threading.Event()
        self._courier = _Courier(self)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.clock.now - self.start

    def run(self, until_s: float) -> None:
        """Run the courier until `until_s` seconds after the start."""
        self._end_s = until_s
        self._stop.clear()
        self._courier.run(self._stop)

    def restart(self) -> None:
        """Continue with a new courier, as another process would."""
        self._courier = _Courier(self)

    def sends_no_more(self) -> None:
        """No further result is queued."""
        self._every_s = self._next_image_s = math.inf

    def counts(self) -> dict[str, int]:
        counts = self.ledger.inspect.counts()["deliveries"]
        return {state: number for state, number in counts.items() if number}

    def deliveries(self) -> list[dict[str, Any]]:
        """Every row of the deliveries table."""
        engine = sa.create_engine(self.ledger.url)
        with engine.connect() as conn:
            rows = [dict(row) for row in conn.execute(sa.select(deliveries)).mappings()]
        engine.dispose()
        return rows

    def destination(self) -> dict[str, object]:
        return self.ledger.inspect.destinations().get("pacs", {})

    def idle_s(self) -> float:
        """Seconds an idle courier sleeps: until the next image arrives, but at most ten."""
        return min(10.0, max(0.1, self._next_image_s - self.seconds))

    def pass_time(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.start + self._next_image_s <= min(until, self.start + self._end_s):
            self.clock.now = max(self.clock.now, self.start + self._next_image_s)
            self._image()
            self._next_image_s += self._every_s

        self.clock.now = max(self.clock.now, until)
        if self.seconds >= self._end_s:
            self._stop.set()

    def _image(self) -> None:
        uid = f"2.25.{len(self.made) + 1}"
        self.made[uid] = self.seconds
        name = self.spool.write(uid.encode())
        self.ledger.receive([Arrival(name, "1.2", f"1.{uid}", "", "", "dimse", 1, len(uid))])
        (job,) = self.ledger.claim_images("test", 1)
        result = StoredResult("SC", name, "1.2", uid, "1.2.840.10008.1.2.1", len(uid))
        self.ledger.complete(job, Completion("analysed", uid, results=(result,)), {"pacs": ("SC",)})


class _Ledger(Ledger):
    def __init__(self, url: str, world: World) -> None:
        super().__init__(url, clock=world.clock)
        self._world = world

    def wait(self, timeout_s: float) -> None:
        self._world.pass_time(self._world.idle_s())


class _Courier(Courier):
    def __init__(self, world: World) -> None:
        super().__init__(PACS, world.config, world.ledger, world.spool)
        self._world = world

    def pause(self, stop: threading.Event, seconds: float) -> None:
        self._world.pass_time(seconds)

    def open(self, objects: Sequence[Outgoing]) -> AbstractContextManager[Store]:
        return nullcontext(_Archive(self._world))


class _Archive:
    def __init__(self, world: World) -> None:
        self._world = world

    def store(self, outgoing: Outgoing) -> Answer:
        world = self._world
        uid = outgoing.sop_instance_uid
        world.pass_time(0.1)
        world.tries.append((world.seconds, uid))
        status = world.answers(uid, world.seconds)
        if status == 0:
            world.stored[uid] = world.seconds
        return Answer(status)
