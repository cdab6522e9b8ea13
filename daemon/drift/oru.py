"""Findings from radiologists' reports as HL7 v2 messages (ORU^R01): an order's number, yes or no.

Nothing else of a message is read, kept or quoted: PID is never looked at. HL7 v2.5.1, chapter 7.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daemon.drift.agreement import key_of

# The largest message; a report with an embedded PDF is larger, and holds no coded finding.
MOST_BYTES = 1_000_000
MOST_MESSAGES = 10_000
# The folder for files that cannot be used.
UNUSABLE = "unusable"
_MOST_SEGMENTS = 5_000
_MOST_IDENTIFIER = 64

# OBX-3, the question: the code of pneumothorax in SNOMED CT and in RadLex, each with the names that
# systems give the vocabulary (HL7 table 0396).
_QUESTIONS = {
    "36118008": {"SCT", "SNM3", "SNOMED-CT"},
    "RID5352": {"RADLEX", "RADELEMENT", "RID"},
}
# OBX-5, the answer: HL7 table 0136, and SNOMED CT's present and absent.
_ANSWERS = {"Y": True, "52101004": True, "N": False, "2667000": False}
# OBX-11, the states of a result that may be counted: final, corrected.
_FINAL = {"F", "C"}


class MessageError(ValueError):
    """A message cannot be used. The error quotes no value of it."""


@dataclass(frozen=True)
class Reports:
    """The findings of reports, and the files that they came from."""

    # Whether a report tells of a pneumothorax, by the order as the ledger keeps it.
    findings: dict[str, bool] = field(default_factory=dict)
    taken: list[Path] = field(default_factory=list)
    # The reason why, by file.
    unusable: dict[Path, str] = field(default_factory=dict)
    # Files that were not looked at.
    left: int = 0


@dataclass(frozen=True)
class Marks:
    """The delimiters of one message (MSH-1, MSH-2)."""

    field: str
    component: str
    repetition: str


def findings(message: bytes) -> dict[str, bool]:
    """Order number (accession number, or a UID) -> whether its report tells of a pneumothorax.

    Empty where the message holds no coded, final answer to that question.

    Raises:
        MessageError: not an ORU^R01, too large, or an order with an answer but no number.
    """
    if len(message) > MOST_BYTES:
        raise MessageError(f"more than {MOST_BYTES} bytes")

    # Each byte is a character: the delimiters and codes are ASCII in every character set of HL7's.
    text = message.decode("latin-1").strip("\x0b\x1c\r\n ")
    segments = text.replace("\r\n", "\r").replace("\n", "\r").split("\r")
    if len(segments) > _MOST_SEGMENTS:
        raise MessageError(f"more than {_MOST_SEGMENTS} segments")
    marks = _marks(segments[0])

    found: dict[str, bool] = {}
    for number, answer in _answers(segments[1:], marks):
        if not number:
            raise MessageError("an order with an answer has no number in OBR-18 or OBR-3")
        # One positive answer makes the report positive, as one positive image does.
        found[number] = found.get(number, False) or answer
    return found


def read_messages(folder: Path, spool_identity: str) -> Reports:
    """The messages in a folder: the first MOST_MESSAGES of its `*.hl7`, by name.

    Of two reports of one order the later name counts. A line about a file gives its place in that
    order, since a name may be a patient's.

    Raises:
        OSError: the folder cannot be read.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".hl7")
    found = Reports(left=max(0, len(paths) - MOST_MESSAGES))

    for place, path in enumerate(paths[:MOST_MESSAGES], 1):
        try:
            in_file = findings(_content(path))
        except (MessageError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            found.unusable[path] = f"file {place} by name: {why}"
        else:
            found.taken.append(path)
            found.findings.update(
                (key_of(name, spool_identity), yes) for name, yes in in_file.items()
            )

    return found


def move_away(found: Reports, folder: Path) -> list[str]:
    """Move files that were taken into a folder, and the others into `unusable` there.

    A file of the same name there is replaced. Returns a line for each reason why files stay.
    """
    targets = [(path, folder) for path in found.taken]
    targets += [(path, folder / UNUSABLE) for path in found.unusable]

    stay: Counter[str] = Counter()
    for path, target in targets:
        try:
            shutil.move(path, target / path.name)
        except OSError as error:
            stay[error.strerror or type(error).__name__] += 1
    return [f"{number} files stay, not moved to {folder}: {why}" for why, number in stay.items()]


def _content(path: Path) -> bytes:
    """A file's bytes, at most one more than allowed. Raises MessageError for a link or a pipe."""
    if path.is_symlink() or not path.is_file():
        raise MessageError("no plain file")
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _marks(header: str) -> Marks:
    """The delimiters of a message that is an ORU^R01. Raises MessageError."""
    if not header.startswith("MSH") or len(header) < 8 or header[3].isalnum():
        raise MessageError("no MSH segment at its beginning; wanted one HL7 v2 message")
    marks = Marks(header[3], header[4], header[5])
    if len({marks.field, marks.component, marks.repetition}) < 3:
        raise MessageError("MSH-1 and MSH-2 name one delimiter twice")

    # MSH-1 is the delimiter itself, so that MSH-9 is the ninth part.
    fields = header.split(marks.field)
    kind = fields[8].split(marks.component) if len(fields) > 8 else []
    if kind[:2] != ["ORU", "R01"]:
        raise MessageError("MSH-9 is not ORU^R01; wanted results of radiology")
    return marks


def _answers(segments: list[str], marks: Marks) -> Iterator[tuple[str, bool]]:
    """The order and the answer of each OBX that answers the question."""
    number = ""
    for segment in segments:
        fields = segment.split(marks.field)
        if fields[0] == "OBR":
            number = _order(fields, marks)
        elif fields[0] == "OBX":
            answer = _answer(fields, marks)
            if answer is not None:
                yield number, answer


def _order(fields: list[str], marks: Marks) -> str:
    """The accession number: OBR-18 (IHE Radiology), otherwise the filler's number (OBR-3)."""
    for place in (18, 3):
        number = _part(fields, place, 0, marks)
        if number:
            return number if len(number) <= _MOST_IDENTIFIER and number.isprintable() else ""
    return ""


def _answer(fields: list[str], marks: Marks) -> bool | None:
    """Whether an OBX reports a pneumothorax; None: it says neither yes nor no."""
    question, vocabulary = (_part(fields, 3, place, marks) for place in (0, 2))
    if vocabulary.upper() not in _QUESTIONS.get(question, ()):
        return None
    if _part(fields, 11, 0, marks) not in _FINAL:
        return None
    return _ANSWERS.get(_part(fields, 5, 0, marks))


def _part(fields: list[str], place: int, component: int, marks: Marks) -> str:
    """A component of the first repetition of a field; "" if it is absent."""
    if place >= len(fields):
        return ""
    parts = fields[place].split(marks.repetition)[0].split(marks.component)
    return parts[component].strip() if component < len(parts) else ""
