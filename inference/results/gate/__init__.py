"""The gate: an object is read back from its bytes and checked before it may leave.

A validator's clean run is not enough (it passed a SEG that crashed a viewer), and archives accept
nearly anything. The gate derives from finding and header what the object must say. It imports no
encoder and nothing that an encoder computes with, only tables and the derived UIDs (a test enforces
that). A complaint names tags and UIDs, never a patient's value.
"""

from __future__ import annotations

from inference.finding import Result
from inference.results.case import Case
from inference.results.gate.errors import GateError
from inference.results.gate.expected import Expected
from inference.results.gate.file import read
from inference.results.gate.header import everything
from inference.results.kinds import KINDS

__all__ = ["GateError", "check"]


def check(result: Result, case: Case) -> None:
    """Return if the object may leave.

    Raises:
        GateError: the first thing found wrong.
    """
    kind = KINDS.get(result.kind)
    if kind is None:
        raise GateError(result.kind, f"no such kind; wanted one of {', '.join(KINDS)}")

    try:
        dataset = read(result)
        expected = Expected(case, kind, *everything(dataset))
        for rule in kind.gate_rules:
            for complaint in rule(dataset, expected):
                raise GateError(result.kind, complaint)
    except GateError:
        raise
    except Exception as error:
        # A broken object may break any line above: that is the complaint.
        raise GateError(result.kind, f"it cannot be examined ({type(error).__name__})") from error
