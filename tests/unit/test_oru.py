"""Findings from HL7 ORU messages: an order number and a coded answer, never patient data."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli import main
from daemon.drift import MessageError, read_messages
from daemon.drift.oru import MOST_BYTES, findings
from daemon.ledger import Arrival, Completion, Ledger, accession_digest

HEAD = "MSH|^~\\&|RIS|HOUSE|PLEURA|HOUSE|20261129||ORU^R01^ORU_R01|1|P|2.5.1"
PATIENT = "PID|1||4711^^^HOUSE||DOE^JANE||19500101|F"
ASKED = "36118008^Pneumothorax^SCT"
# A UID in place of an Accession Number, and longer than any of them.
UID = "1.2.840.10008.4711.3"


def order(number: str, filler: str = "F1") -> str:
    return f"OBR|1|P1|{filler}|36643-5^Chest^LN||||||||||||||{number}"


def answer(value: str, question: str = ASKED, state: str = "F") -> str:
    return f"OBX|1|CWE|{question}||{value}||||||{state}"


def message(*segments: str, end: str = "\r") -> bytes:
    return end.join((HEAD, PATIENT, *segments)).encode()


@pytest.mark.parametrize(
    ("segments", "wanted"),
    [
        ([order("A1"), answer("Y^Yes^HL70136")], {"A1": True}),
        ([order("A1"), answer("N")], {"A1": False}),
        ([order("A1"), answer("52101004^Present^SCT")], {"A1": True}),
        ([order("A1"), answer("2667000^Absent^SCT", "RID5352^pneumothorax^RadLex")], {"A1": False}),
        ([order("", "A2"), answer("Y", state="C")], {"A2": True}),
        # One positive answer (an image or a lung of several) makes the order positive.
        ([order("A1"), answer("N"), answer("Y")], {"A1": True}),
        ([order("A1"), answer("Y"), order("A2"), answer("N")], {"A1": True, "A2": False}),
        # These answers do not count: preliminary, another question, another vocabulary, free text.
        ([order("A1"), answer("Y", state="P")], {}),
        ([order("A1"), answer("Y", "60046008^Effusion^SCT")], {}),
        ([order("A1"), answer("Y", "36118008^Local^99HOUSE")], {}),
        ([order("A1"), "OBX|1|TX|36118008^Pneumothorax^SCT||no pneumothorax||||||F"], {}),
        ([], {}),
    ],
)  # fmt: skip
def test_a_coded_final_answer_is_taken(segments: list[str], wanted: dict[str, bool]) -> None:
    for end in ("\r", "\n", "\r\n"):
        assert findings(message(*segments, end=end)) == wanted
    framed = b"\x0b" + message(*segments) + b"\x1c\r"
    assert findings(framed) == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no MSH"),
        (b"\x00" * 500, "no MSH"),
        (b"MSH|||&|", "one delimiter twice"),
        (HEAD.replace("ORU^R01", "ADT^A01").encode(), "not ORU"),
        (message(order("", ""), answer("Y")), "no number"),
        (message(order("A" * 65), answer("Y")), "no number"),
        (message(order("A\x07"), answer("Y")), "no number"),
        (message("NTE|1" + "\r" * 5_000 + "NTE|2"), "segments"),
        (HEAD.encode() + b"x" * MOST_BYTES, "bytes"),
    ],
)
def test_an_invalid_message_is_refused_without_quoting_a_value(content: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words) as caught:
        findings(content)
    assert "DOE" not in str(caught.value)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_or_have_no_finding(tail: bytes) -> None:
    for content in (tail, message(order("A1")) + b"\rOBX|" + tail, HEAD.encode()[:5] + tail):
        try:
            found = findings(content)
        except MessageError:
            continue
        assert all(len(name) <= 64 and name.isprintable() for name in found)


def test_a_folder_gives_its_findings_and_names_files_only_by_position(tmp_path: Path) -> None:
    (tmp_path / "1.hl7").write_bytes(message(order("A1"), answer("N")))
    (tmp_path / "2.HL7").write_bytes(message(order("A1"), answer("Y")))
    (tmp_path / "3 DOE JANE.hl7").write_bytes(b"nothing")
    (tmp_path / "4.hl7").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "5.hl7")
    (tmp_path / "6.hl7").write_bytes(message(order(UID), answer("N")))
    (tmp_path / "7.tmp").write_bytes(message(order("A9"), answer("N")))

    read = read_messages(tmp_path, "")
    assert read.findings == {accession_digest("A1", ""): True, UID: False}
    lines = list(read.unusable.values())
    assert [line.partition(":")[0] for line in lines] == [f"file {n} by name" for n in (3, 4, 5)]
    assert "DOE" not in str(lines)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command `pleura drift reports` for a node with one positive image."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url)
    ledger.receive([Arrival("f1", "1.2", UID, "1.2.1", "XRAY1", "dimse", 1, 9)])
    (job,) = ledger.claim_images("me", 1)
    ledger.complete(job, Completion("analysed", "d", probability=0.9, positive=True), {})
    ledger.close()
    settings = tmp_path / "pleura.yaml"
    settings.write_text(f"spool: {tmp_path}/spool\nledger: {url}\n")
    return ["drift", "-c", str(settings), "reports"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one message."""
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "1.hl7").write_bytes(message(order(UID), answer("Y")))
    return folder


def test_the_command_takes_a_folder(
    command: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.append(str(folder))
    assert main(command) == 0
    assert "1 reports taken; 1 reports in all" in capsys.readouterr().out
    (folder / "2.hl7").write_bytes(b"x")
    assert main(command) == 1
    assert "file 2 by name: no MSH" in capsys.readouterr().err
    assert b"DOE" not in (tmp_path / "ledger.db").read_bytes()


def test_an_unusable_message_delays_no_later_message(
    command: list[str],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = tmp_path / "taken"
    away.mkdir()
    command += [str(folder), "--move-to", str(away)]
    (folder / "0.hl7").write_bytes(HEAD.replace("ORU^R01", "ADT^A01").encode())
    (folder / "2.hl7").write_bytes(message(order("A2"), answer("N")))
    monkeypatch.setattr("daemon.drift.oru.MOST_MESSAGES", 2)

    assert main(command) == 1
    printed = capsys.readouterr()
    assert "1 reports taken; 1 reports in all" in printed.out
    assert "file 1 by name: MSH-9 is not ORU^R01" in printed.err
    assert "1 more files are left" in printed.err
    assert main(command) == 0
    assert not list(folder.iterdir())
    assert sorted(path.name for path in away.iterdir()) == ["1.hl7", "2.hl7", "unusable"]
    assert [path.name for path in (away / "unusable").iterdir()] == ["0.hl7"]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("drop", "missing", "No such file or directory; a folder that can be written wanted"),
        ("drop", "drop", "another folder wanted"),
        ("drop/1.hl7", "drop", r"a folder of \*\.hl7 wanted"),
    ],
)
def test_an_unusable_folder_is_refused_before_any_message_is_taken(
    source: str, target: str, words: str, command: list[str], folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command += [str(tmp_path / source), "--move-to", str(tmp_path / target)]
    assert main(command) != 0
    assert re.search(words, capsys.readouterr().err)
    assert (folder / "1.hl7").exists()
