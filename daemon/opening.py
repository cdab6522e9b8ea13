"""The ledger that a command's settings name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from daemon.exits import EXIT_FAILED, CannotStartError

if TYPE_CHECKING:
    # Imported where it is used: a command without a ledger starts without SQLAlchemy.
    from daemon.config import Config
    from daemon.ledger import Inspection, Ledger
    from daemon.ledger.overview import Overview
    from daemon.ledger.view import View

_Opened = TypeVar("_Opened")

# How long `pleura status` and `trace` wait for a database server: a monitor wants an answer.
_ANSWER_S = 60.0


@contextlib.contextmanager
def answer_in_time() -> Iterator[None]:
    """A block that only reads the ledger. After `_ANSWER_S` in it, the process ends.

    A database server that hangs keeps its connections open, so no time-out of the network ends the
    wait, and neither would an exception: the driver would wait again for the end of its statement.
    """

    def end(*_: object) -> None:
        print(  # noqa: T201 - as the command's other errors
            f"ledger: the database server gave no answer in {_ANSWER_S:g} s; it, or the server "
            "behind its PgBouncer, hangs",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_FAILED)

    earlier = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, _ANSWER_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def ledger(settings: Config) -> Ledger:
    """The ledger, which must exist; it records for the audit trail where the settings want it.

    Raises:
        CannotStartError: it is not there.
    """
    from daemon.ledger import Ledger, LedgerError

    try:
        found = Ledger.existing(settings.ledger, migrate=False)
    except LedgerError as error:
        raise CannotStartError(str(error)) from error
    found.is_audited = settings.audit is not None
    return found


def inspection(settings: Config) -> Inspection:
    """The same ledger for a command that only looks: it never writes, migrates or locks.

    Raises:
        CannotStartError: it is not there.
    """
    from daemon.ledger import Inspection

    return _opened(Inspection.open, settings)


def overview(settings: Config) -> Overview:
    """The same ledger for `pleura status`, which loads no SQLAlchemy for SQLite's file.

    Raises:
        CannotStartError: it is not there.
    """
    from daemon import config
    from daemon.ledger.overview import FileOverview

    file = config.sqlite_file(settings.ledger)
    if file is None:
        return inspection(settings)
    return _opened(lambda _: FileOverview.open(Path(file)), settings)


def view(settings: Config) -> View:
    """As inspection(), with the questions about single images.

    Raises:
        CannotStartError: it is not there.
    """
    from daemon.ledger.view import View

    return _opened(View.open, settings)


def _opened(opens: Callable[[str], _Opened], settings: Config) -> _Opened:
    from daemon.ledger import LedgerError

    try:
        return opens(settings.ledger)
    except LedgerError as error:
        raise CannotStartError(str(error)) from error
