"""How often Python's garbage collector runs in a role.

A start makes a million objects that stay: modules, classes, tables of operators. With Python's
thresholds the collector looks at them again and again, and finds nothing.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
# New objects between two collections. So few that a role does not grow while it waits for hours for
# its database server.
_SELDOM = 10_000


def seldom() -> None:
    """For a role until it is READY."""
    gc.set_threshold(_SELDOM)


def as_usual() -> None:
    """For a role at work: its garbage may hold pictures."""
    gc.set_threshold(*_USUAL)
