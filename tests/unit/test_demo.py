"""The table of `pleura demo`: one row for each file named on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.commands.demo import rows
from daemon.commands.send import Sent
from daemon.ledger import Arrival, Completion, Ledger, StoredResult


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield ledger
    ledger.close()


def end(ledger: Ledger, number: int, ending: Completion) -> str:
    """Receive an image and end it. Returns its SOP Instance UID."""
    uid = f"1.2.{number}"
    ledger.receive([Arrival(f"{number:032x}", "1.2", uid, "1.2.1", "DEMO", "dimse", 1, 9)])
    (job,) = ledger.claim_images("me", 1)
    ledger.complete(job, ending, {"folder": ["SEG", "SC"]})
    return uid


def analysed(digest: str, positive: bool, *kinds: str) -> Completion:
    made = tuple(
        StoredResult(kind, f"{digest}{kind}", "1.2", f"9.{digest}.{kind}", "1.2.1", 9)
        for kind in kinds
    )
    return Completion(
        "analysed", digest, probability=0.9, positive=positive, results=made, device="cpu"
    )


def test_every_file_has_a_row_in_the_given_order(ledger: Ledger, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.dcm", "text.txt", "b.dcm", "c.dcm", "d.dcm")]
    a, text, b, c, _ = files
    positive = end(ledger, 1, analysed("1", True, "SEG", "SC"))
    excluded = end(ledger, 2, Completion("not_analysed", "2", reason="body_part"))
    failed = end(ledger, 3, Completion("failed", "3", reason="analysis_error"))

    # The file that is not an object is answered first; the last file got no answer.
    answers = [
        Sent(text, None, "no DICOM object"),
        Sent(a, 0x0000, sop_instance_uid=positive),
        Sent(b, 0x0000, sop_instance_uid=excluded),
        Sent(c, 0x0000, sop_instance_uid=failed),
    ]
    table = rows(files, answers, ledger)
    assert [row[:3] for row in table] == [
        ("a.dcm", "analysed", "pneumothorax suspected, score 0.90"),
        ("text.txt", "not received", "no DICOM object"),
        ("b.dcm", "not_analysed", "body_part"),
        ("c.dcm", "failed", "analysis_error"),
        ("d.dcm", "not received", "not sent"),
    ]


def test_a_file_named_twice_has_two_rows(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    uid = end(ledger, 1, analysed("1", False, "SC"))
    end(ledger, 1, analysed("1", False))
    answer = Sent(file, 0x0000, sop_instance_uid=uid)
    table = rows([file, file], [answer, answer], ledger)
    assert [row[1] for row in table] == ["analysed", "duplicate"]
