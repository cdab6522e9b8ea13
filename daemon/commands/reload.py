"""`pleura reload`: every running role of this machine takes the settings, or none does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon import live
from daemon.commands.status import left_destinations
from daemon.config import Config
from daemon.exits import CannotStartError
from daemon.ledger import (
    BusyError,
    Generation,
    GenerationState,
    Inspection,
    Ledger,
    Taker,
    this_machine,
)
from daemon.ledger.processes import is_alive

_LOOK_S = 0.05
# Beyond the time in which roles must answer: they also have to apply the settings.
_LONGEST_S = 90.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a reload, in words."""

    is_taken: bool
    words: str


def reload(ledger: Ledger, config: Config, asked_by: str) -> Outcome:
    """Propose the settings, and wait until every role has taken them, or one has refused.

    Raises:
        CannotStartError: no role runs here.
    """
    if not _running(ledger.inspect):
        raise CannotStartError(
            "reload: no role of this machine runs on this ledger; a node that starts reads its "
            "settings anyway. In a container, reload inside it; under systemd, `systemctl reload` "
            "of a role's unit does the same"
        )

    deadline = time.monotonic() + _LONGEST_S
    try:
        number = live.propose(ledger, config, asked_by)
    except BusyError as error:
        return Outcome(False, f"reload: {error}")

    while time.monotonic() < deadline:
        decided = ledger.generations.decide(number, is_alive)
        if decided.state == GenerationState.REFUSED.value:
            return Outcome(False, f"reload: refused, nothing has changed.\n{decided.why}")

        late = [each for each in _running(ledger.inspect) if each.generation < number]
        if decided.state == GenerationState.ACCEPTED.value and not late:
            configured = [each.name for each in config.destinations]
            left = left_destinations(ledger.inspect.destinations(), configured)
            told = [f"destination {name}: {words}" for name, words in left.items()]
            return Outcome(True, "\n".join([_success(decided), *told]))
        time.sleep(_LOOK_S)
    return Outcome(
        False, f"reload: generation {number} is not taken after {_LONGEST_S:g} s; see the log"
    )


def _success(taken: Generation) -> str:
    changes = "\n".join(taken.changes) or "no setting has changed"
    return (
        f"generation {taken.number} is in force\n{changes}\n"
        "the analyse role reads its model package again; `pleura status` says if it cannot serve"
    )


def _running(inspect: Inspection) -> list[Taker]:
    return [each for each in inspect.settings.takers() if is_alive(each.owner)]


def running_settings(inspect: Inspection) -> Mapping[str, Any]:
    """The settings that this machine's roles accepted last, without secrets.

    Raises:
        CannotStartError: no role has run on this machine since it started.
    """
    current = inspect.settings.in_force(this_machine())
    if current is None:
        raise CannotStartError(
            "config diff: no role of this machine has run on this ledger; give two files to "
            "compare them"
        )
    return current.shown
