"""The meaning of C-STORE answers, and the back-off between tries."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from daemon.backoff import Backoff
from daemon.config import Config, FolderDestination
from daemon.deliver.courier import Courier, Store
from daemon.deliver.verdict import Verdict, verdict
from daemon.dicom.outgoing import Outgoing, UnsendableError
from daemon.dicom.requestor import Answer
from daemon.ledger import Arrival, Completion, Ledger, StoredResult
from daemon.spool import Spool


@pytest.mark.parametrize(
    ("status", "failures", "failing_h", "stores_others", "meaning"),
    [
        (0x0000, 0, 99, True, Verdict.STORED),
        (0xB000, 0, 99, True, Verdict.STORED),
        (0xB006, 0, 99, True, Verdict.STORED),
        (0xB007, 99, 99, True, Verdict.STORED),
        (0x0111, 0, 99, True, Verdict.STORED),
        (0xA700, 99, 99, True, Verdict.BUSY),
        (0xA7FF, 0, 99, True, Verdict.BUSY),
        (0xA900, 0, 99, True, Verdict.REFUSED),
        (0xA9FF, 0, 99, True, Verdict.REFUSED),
        (0x0122, 0, 99, True, Verdict.REFUSED),
        (0xC000, 0, 99, True, Verdict.RETRY),
        (0xCFFF, 6, 99, True, Verdict.RETRY),
        (0xC211, 7, 0, True, Verdict.REFUSED),
        (0xC211, 7, 6, False, Verdict.REFUSED),
        (0xC211, 99, 5.9, False, Verdict.RETRY),
        (0x0110, 99, 99, True, Verdict.RETRY),
        (0x0124, 0, 99, True, Verdict.RETRY),
        (0xA800, 0, 99, True, Verdict.RETRY),
        (0xFFFF, 0, 99, True, Verdict.RETRY),
    ],
)
def test_a_status_gives_the_right_verdict(
    status: int, failures: int, failing_h: float, stores_others: bool, meaning: Verdict
) -> None:
    assert verdict(status, failures, failing_h * 3600.0, stores_others) is meaning


def test_back_off_grows_to_five_minutes_and_stays_there() -> None:
    for failures, longest in [
        (1, 0.5),
        (2, 1.0),
        (3, 2.0),
        (10, 256.0),
        (11, 300.0),
        (12, 300.0),
        (100_000, 300.0),
    ]:
        pauses = [Backoff().pause_s(failures) for _ in range(200)]
        assert max(pauses) <= longest
        assert min(pauses) >= longest / 2
        # The pauses have jitter.
        assert len(set(pauses)) > 100


class _Leaving(Courier):
    """A courier whose spool disappears when the first object is stored."""

    def __init__(self, folder: FolderDestination, ledger: Ledger, spool: Spool) -> None:
        super().__init__(folder, Config(destinations=(folder,)), ledger, spool)
        self.spool = spool
        self.stop = threading.Event()
        self.stored = 0

    def open(self, objects: Sequence[Outgoing]) -> AbstractContextManager[Store]:
        return nullcontext(self)

    def store(self, outgoing: Outgoing) -> Answer:
        if not outgoing.path.exists():
            raise UnsendableError("its file is gone")
        self.stored += 1
        self.spool.folder.rename(self.spool.folder.with_name("away"))
        return Answer(0)

    def pause(self, stop: threading.Event, seconds: float) -> None:
        stop.set()


def test_results_in_a_vanished_spool_are_not_refused(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    spool = Spool(tmp_path / "spool")
    spool.claim(ledger.spool_identity)
    folder = FolderDestination(name="outbox", folder=tmp_path / "outbox")

    for number in range(4):
        name = spool.write(b"x")
        ledger.receive([Arrival(name, "1.2", f"1.{number}", "", "", "dimse", 1, 1)])
        (job,) = ledger.claim_images("test", 1)
        result = StoredResult("SC", name, "1.2", f"2.{number}", "1.2.840.10008.1.2.1", 1)
        ledger.complete(
            job, Completion("analysed", str(number), results=(result,)), {"outbox": ("SC",)}
        )

    courier = _Leaving(folder, ledger, spool)
    courier.run(courier.stop)
    assert courier.stored == 1
    assert ledger.inspect.counts()["deliveries"] == {
        "owed": 3,
        "stored": 1,
        "committed": 0,
        "refused": 0,
    }
