"""The node's answers beside radiologists' reports: sensitivity and positive predictive value.

A site feeds reports as HL7 messages (oru.py), or as a CSV with two columns: a SOP Instance UID or
an Accession Number, and whether the report tells of a pneumothorax. A report is positive for the
node where any of its images is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daemon.drift.statistics import Interval, wilson
from daemon.ledger import Inspection, ReportedImage, accession_digest

_YES = {"1", "yes", "y", "true", "positive", "ja", "j"}
_NO = {"0", "no", "n", "false", "negative", "nein"}
_MOST_ERRORS = 20
_MOST_OF_ACCESSION_NUMBER = 16


class ReportsError(ValueError):
    """A CSV of reports cannot be used. The message lists the lines, and quotes no value."""


@dataclass(frozen=True)
class Agreement:
    """Reports by finding and answer. `auc`: the area under the ROC curve of the probabilities."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    auc: float | None

    @property
    def reports(self) -> int:
        """How many reports had an analysed image."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def sensitivity(self) -> tuple[float | None, Interval]:
        """The share of reported pneumothoraces that the node found, and its 95 % interval."""
        return _share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def predictive_value(self) -> tuple[float | None, Interval]:
        """The share of the node's positives that reports confirm, and its 95 % interval."""
        return _share(self.true_positive, self.true_positive + self.false_positive)


def agreement(
    inspect: Inspection, first_week: int = 0, last_week: int | None = None
) -> Agreement | None:
    """The agreement of all reports whose images ended in these weeks; None if there is none.

    `last_week`: default the newest.
    """
    return agreed(
        [
            row
            for row in inspect.drift.reported()
            if row.week >= first_week and (last_week is None or row.week <= last_week)
        ]
    )


def agreed(rows: Sequence[ReportedImage]) -> Agreement | None:
    """The agreement of these reports; None without reports."""
    if not rows:
        return None

    def number(finding: bool, positive: bool) -> int:
        return sum(row.finding is finding and row.positive is positive for row in rows)

    scores = [(row.probability, row.finding) for row in rows]
    return Agreement(
        true_positive=number(True, True),
        false_positive=number(False, True),
        false_negative=number(True, False),
        true_negative=number(False, False),
        auc=auc(scores),
    )


def auc(scores: Iterable[tuple[float, bool]]) -> float | None:
    """The area under the ROC curve: how often a positive scores above a negative, ties half.

    None where either is absent.
    """
    ordered = sorted(scores)
    positives = sum(finding for _, finding in ordered)
    negatives = len(ordered) - positives
    if not positives or not negatives:
        return None

    # The rank of each value, the middle rank for equals (Mann and Whitney).
    ranks: dict[float, float] = {}
    for rank, (score, _) in enumerate(ordered, 1):
        ranks.setdefault(score, rank)
    lasts = {score: rank for rank, (score, _) in enumerate(ordered, 1)}
    total = sum((ranks[score] + lasts[score]) / 2 for score, finding in ordered if finding)
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def read_reports(text: str, spool_identity: str) -> dict[str, bool]:
    """A CSV of reports, as the ledger keeps them (DriftBook.tell_reports).

    The first column is a SOP Instance UID or an Accession Number, the second yes or no. A first
    line of column names, which have no digit, is left out. An Accession Number is kept as a digest
    alone.

    Raises:
        ReportsError: a line has other columns, or another word, or contradicts an earlier line.
    """
    found: dict[str, bool] = {}
    wrong: list[int] = []
    contradicting: list[int] = []
    lines = [
        line for line in enumerate(csv.reader(text.splitlines()), 1) if any(map(str.strip, line[1]))
    ]
    if lines and _is_header(lines[0][1]):
        del lines[0]

    for number, line in lines:
        name, word = line[0].strip(), _word(line)
        if not name or word not in _YES | _NO:
            wrong.append(number)
            continue
        key, finding = key_of(name, spool_identity), word in _YES
        if found.setdefault(key, finding) is not finding:
            contradicting.append(number)

    if wrong:
        raise ReportsError(
            f"line {_numbers(wrong)}: wanted an identifier and a finding in two columns; allowed "
            "as finding: yes, no, 1, 0, true, false; nothing was taken"
        )
    if contradicting:
        raise ReportsError(
            f"line {_numbers(contradicting)}: an earlier line has the other finding for the same "
            "identifier; allowed: one finding for each; nothing was taken"
        )
    return found


def _word(line: Sequence[str]) -> str:
    return line[1].strip().lower() if len(line) > 1 else ""


def _is_header(line: Sequence[str]) -> bool:
    """Whether the line holds column names: identifiers have digits, so no report is dropped."""
    return _word(line) not in _YES | _NO and not any(map(str.isdigit, line[0]))


def _numbers(lines: Sequence[int]) -> str:
    return ", ".join(map(str, lines[:_MOST_ERRORS]))


def key_of(name: str, spool_identity: str) -> str:
    """How the ledger names a report's image.

    An Accession Number may look like a UID (2024.00123) and must never be kept in plain text. It
    has at most 16 characters (PS3.5 6.2, SH), and no equipment makes UIDs that short.
    """
    is_uid = "." in name and not name.strip("0123456789.")
    if is_uid and len(name) > _MOST_OF_ACCESSION_NUMBER:
        return name
    return accession_digest(name, spool_identity)


def _share(hits: int, number: int) -> tuple[float | None, Interval]:
    return (hits / number if number else None), wilson(hits, number)
