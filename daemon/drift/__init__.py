"""Has the node's work changed? A week's figures against a baseline, and answers against reports."""

from daemon.drift.agreement import (
    Agreement,
    ReportsError,
    agreed,
    agreement,
    auc,
    read_reports,
)
from daemon.drift.oru import UNUSABLE, MessageError, Reports, move_away, read_messages
from daemon.drift.shadow import Comparison, comparison
from daemon.drift.statistics import difference, psi, psi_limit, wilson
from daemon.drift.weeks import (
    EVERY_AE,
    INBOX,
    Alarm,
    Drift,
    Week,
    compare,
    drift,
    monday_of,
    summed,
    weeks_between,
)

__all__ = [
    "EVERY_AE",
    "INBOX",
    "UNUSABLE",
    "Agreement",
    "Alarm",
    "Comparison",
    "Drift",
    "MessageError",
    "Reports",
    "ReportsError",
    "Week",
    "agreed",
    "agreement",
    "auc",
    "compare",
    "comparison",
    "difference",
    "drift",
    "monday_of",
    "move_away",
    "psi",
    "psi_limit",
    "read_messages",
    "read_reports",
    "summed",
    "weeks_between",
    "wilson",
]
