"""The points at which a role may be killed, as a table: one between any two steps. victim.py
patches the point that it is ordered to die at.

Each point is a call that stays when code is rewritten: a system call for file steps (os.open,
os.write), the transition's method and the engine's COMMIT for ledger steps, and a socket call for
network steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Point:
    """Where to die: at the n-th call of one of `targets`; n is drawn from 1 to `passes`.

    `moment`: before the call, after it, or after half of the call's bytes. `where`: count only
    calls for this kind of path (victim.py). `during`: count only calls inside this method of the
    ledger.
    """

    role: str
    name: str
    # before, after, half
    moment: str
    # "module:attribute", "module:Class.method"
    targets: tuple[str, ...]
    passes: int = 4
    where: str = ""
    during: str = ""

    def __str__(self) -> str:
        return f"{self.role}: {self.name}"


WRITES = ("os:write", "os:writev", "os:pwrite", "os:pwritev")
NAMES = ("os:rename", "os:replace", "os:link")
_COMMIT = (
    "sqlalchemy.engine.default:DefaultDialect.do_commit",
    # SQLite: a received object's row, past SQLAlchemy
    "daemon.ledger.database:execute_and_commit",
)

# step, moment, calls, kind of path (after the folder's name)
_FILE_STEPS = (
    ("file opened", "after", ("os:open",), "new file"),
    ("half of the bytes written", "half", WRITES, "file"),
    ("before the file is synced", "before", ("os:fsync",), "file"),
    ("before the file is named", "before", NAMES, "file"),
    ("file named, folder not synced", "after", NAMES, "file"),
    ("folder synced", "after", ("os:fsync",), "folder"),
)
_WRITERS = (("receive", "spool"), ("analyse", "spool"), ("deliver", "outbox"))

# Every transition that a role makes, with its passes. It may die before it, before its commit, and
# after its commit.
_TRANSITIONS = (
    ("receive", "receive", 6),
    ("receive", "record_commitment_report", 2),
    ("analyse", "claim_images", 3),
    ("analyse", "complete", 4),
    ("deliver", "claim_deliveries", 6),
    ("deliver", "mark_stored", 6),
    ("deliver", "retry_later", 1),
    ("deliver", "give_back_delivery", 1),
    ("deliver", "ask_commitment", 2),
    ("deliver", "postpone_commitment", 1),
    ("deliver", "give_up_bytes", 1),
)
_TRANSITION_STEPS = (
    ("before {}", "before", None),
    ("before the commit of {}", "before", _COMMIT),
    ("after the commit of {}", "after", _COMMIT),
)

SENDS = ("socket:socket.send", "socket:socket.sendall", "socket:socket.sendmsg")
READS = ("socket:socket.recv", "socket:socket.recv_into")
# role, step, moment, calls, passes
_OTHER_STEPS = (
    ("receive", "bytes read from a peer", "after", READS, 60),
    ("receive", "before an answer", "before", SENDS, 12),
    ("receive", "half of an answer sent", "half", SENDS, 12),
    ("receive", "an answer sent", "after", SENDS, 12),
    ("analyse", "before the first claim", "after", ("inference.pipeline:Pipeline.warm_up",), 1),
    ("analyse", "before the analysis", "before", ("inference.pipeline:Pipeline.read",), 3),
    ("analyse", "read, not answered", "before", ("inference.pipeline:Pipeline.answer",), 3),
    ("analyse", "answered, not concluded", "before", ("inference.pipeline:Pipeline.conclude",), 3),
    ("analyse", "analysed, nothing written", "after", ("inference.pipeline:Pipeline.conclude",), 3),
    ("analyse", "before a duplicate's file goes", "before", ("daemon.spool:Spool.remove",), 1),
    ("analyse", "after a duplicate's file went", "after", ("daemon.spool:Spool.remove",), 1),
    ("deliver", "before the association", "before", ("daemon.dicom.link:Link.open",), 2),
    ("deliver", "associated", "after", ("daemon.dicom.link:Link.open",), 2),
    ("deliver", "before C-STORE", "before", ("daemon.dicom.link:Link.store",), 8),
    ("deliver", "half of an object sent", "half", SENDS, 20),
    ("deliver", "a part of an object sent", "after", SENDS, 20),
    ("deliver", "answered", "after", READS, 30),
    ("deliver", "answer understood", "after", ("daemon.dicom.link:Link.store",), 8),
    ("deliver", "before the association's end", "before", ("daemon.dicom.link:Link.__exit__",), 2),
    ("deliver", "commitment about to be asked", "before", ("daemon.dicom.link:Link.action",), 1),
    ("deliver", "commitment asked", "after", ("daemon.dicom.link:Link.action",), 1),
    ("deliver", "before the sweep", "before", ("daemon.spool:Spool.sweep",), 1),
    ("deliver", "before an old file goes", "before", ("daemon.spool:Spool.remove",), 4),
    ("deliver", "after an old file went", "after", ("daemon.spool:Spool.remove",), 4),
    ("serve", "a child started", "after", ("subprocess:Popen.__init__",), 6),
    ("serve", "children watched", "after", ("subprocess:Popen.poll",), 60),
)


def _table() -> list[Point]:
    table = [
        Point(role, f"{folder}: {step}", moment, calls, 4, f"{folder} {kind}")
        for (role, folder), (step, moment, calls, kind) in product(_WRITERS, _FILE_STEPS)
    ]
    for (role, method, passes), (step, moment, calls) in product(_TRANSITIONS, _TRANSITION_STEPS):
        own = (f"daemon.ledger.ledger:Ledger.{method}",)
        table.append(
            Point(
                role,
                step.format(method),
                moment,
                calls or own,
                passes,
                during=method if calls else "",
            )
        )

    table += [Point(*step) for step in _OTHER_STEPS]
    return table


POINTS = _table()


def missing(point: Point) -> list[str]:
    """The calls of a point that no longer exist, because the code was rewritten."""
    wanted = list(point.targets) + (
        [f"daemon.ledger.ledger:Ledger.{point.during}"] if point.during else []
    )
    absent = []
    for target in wanted:
        try:
            holder, name = resolve(target)
            getattr(holder, name)
        except (ImportError, AttributeError):
            absent.append(target)
    return absent


def resolve(target: str) -> tuple[Any, str]:
    """ "module:Class.method" -> the class and "method". Raises ImportError, AttributeError."""
    module, _, path = target.partition(":")
    holder: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    return holder, name
