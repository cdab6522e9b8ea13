"""New settings for running processes: every process of the machine takes them, or none does.

SIGHUP, or `pleura reload` in another process, makes a proposal in the ledger. Each role's process
reads its file, checks what only it can check (a certificate, a model package), and answers. Once
all have agreed, each takes the settings. Work in hand keeps the settings that it began with.
ledger/generations.py holds the transitions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from daemon import config as settings
from daemon.config import Config, ConfigError
from daemon.ledger import (
    BusyError,
    Found,
    Generation,
    GenerationState,
    Ledger,
    Outage,
    describe,
    owner_name,
    this_machine,
)
from daemon.ledger.processes import is_alive

log = logging.getLogger("pleura.service")

# How often a process looks for a proposal, and how often while a proposal is being decided.
_QUIET_S = 0.5
_BUSY_S = 0.05
_TROUBLE_S = 5.0
_PATIENCE_S = 5.0
# Some sites send audit events as datagrams, which limits their size.
_MOST_OF_REASON = 1000


class RefusedError(Exception):
    """A process cannot take new settings. The message is for the operator."""


# Applies checked settings. If it raises, as when no thread can be started, it is called again until
# it succeeds, so it must be idempotent.
Take = Callable[[], None]
# Checks new settings. Raises RefusedError.
Check = Callable[[Config], Take]


@dataclass(frozen=True)
class _Checked:
    """Settings that this process can take, and the generation that they are."""

    number: int
    config: Config
    take: Take


def found(config: Config) -> Found:
    """The part of the settings that the ledger keeps: digests, and the values without secrets."""
    return Found(settings.digest(config), settings.digests(config), settings.public(config))


def propose(ledger: Ledger, config: Config, asked_by: str) -> int:
    """Ask this machine's processes to take these settings. Returns the generation.

    Raises:
        BusyError: other settings are being checked.
    """
    machine = this_machine()
    new = found(config)
    current = ledger.inspect.settings.in_force(machine)
    changes = settings.difference(current.shown, new.shown) if current else []
    return ledger.generations.propose(machine, new, changes, asked_by)


class LiveSettings:
    """One process's part: a thread that answers proposals, and takes what all have accepted."""

    def __init__(
        self,
        role: str,
        config: Config,
        read: Callable[[], Config],
        ledger: Ledger,
        taken: Callable[[Config], None] = lambda _: None,
        every_s: float = _QUIET_S,
    ) -> None:
        """`config`: the settings of the file that the process started with.

        `read`: reads them again, or raises ConfigError. `taken`: is told of settings that the role
        has taken. `every_s`: how often it looks for a proposal.
        """
        self._taken = taken
        self._every_s = every_s
        self._role = role
        self._config = config
        self._read = read
        self._ledger = ledger

        self._check: Check | None = None
        self._checked: _Checked | None = None
        self._answered = 0
        self._is_asked = False
        self._wake = threading.Event()
        self._is_over = False
        self._outage = Outage(log, f"{role}: settings: the ledger")
        self._thread = threading.Thread(target=self._run, name="live-settings", daemon=True)

    def __enter__(self) -> LiveSettings:
        self._answered = self._ledger.generations.begin(
            self._role, owner_name(), found(self._config), is_alive
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._wake.set()
        # A database that hangs must not hold up the end of the role.
        self._thread.join(_PATIENCE_S)
        try:
            self._ledger.generations.end(self._role, owner_name())
        except Exception as error:
            # Dead processes do not take part in decisions.
            log.warning("the end of the %s role is not recorded (%s)", self._role, describe(error))

    def serve(self, check: Check) -> None:
        """The role is ready: from now on it answers proposals, by `check`."""
        self._check = check

    def ask(self) -> None:
        """Read the settings again. May be called by a signal handler."""
        self._is_asked = True
        self._wake.set()

    def _run(self) -> None:
        pause_s = self._every_s
        while not self._is_over:
            self._wake.wait(pause_s)
            self._wake.clear()
            try:
                pause_s = self._turn()
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger comes back.
                self._outage.failed(error)
                pause_s = _TROUBLE_S
            else:
                self._outage.over()

    def _turn(self) -> float:
        """Continue with the pending proposal. Returns the pause before the next turn (seconds)."""
        if self._check is None:
            return self._every_s
        if self._is_asked:
            self._propose()

        if self._checked is not None:
            self._conclude(self._checked)
            return _BUSY_S

        pending = self._ledger.inspect.settings.pending(this_machine())
        if pending is None:
            return _BUSY_S if self._is_asked else self._every_s
        if pending.number > self._answered:
            self._answer(pending, self._check)
        self._ledger.generations.decide(pending.number, is_alive)
        return _BUSY_S

    def _propose(self) -> None:
        """Make a proposal of what the file says now. A file with errors changes nothing."""
        asked_by = f"SIGHUP to {self._role}"
        try:
            propose(self._ledger, self._read(), asked_by)
        except ConfigError as error:
            for line in str(error).splitlines():
                log.error("settings: %s; the old settings stay in force", line)
            facts = {"changes": "", "by": asked_by, "why": str(error)[:_MOST_OF_REASON]}
            self._ledger.record_audit("settings_refused", facts)
        except BusyError:
            # Try again once those are decided.
            return
        self._is_asked = False

    def _answer(self, pending: Generation, check: Check) -> None:
        """Say whether this process can take the proposal."""
        why = ""
        try:
            config = self._read()
            self._require_same(config, pending)
            self._checked = _Checked(pending.number, config, check(config))
        except (ConfigError, RefusedError) as error:
            why = str(error)
            log.error("settings: %s; the old settings stay in force", why)

        self._answered = pending.number
        self._ledger.generations.answer(self._role, owner_name(), pending.number, why)

    def _require_same(self, config: Config, pending: Generation) -> None:
        """Raises RefusedError where this process read other settings, or needs a restart."""
        if settings.digest(config) != pending.digest:
            raise RefusedError(
                "its settings file holds other settings than those proposed; was it edited again, "
                "or does this process have another file? `pleura reload` with its -c FILE"
            )
        changed = settings.restart_keys(self._config, config)
        if keys := [key for key in changed if not self._is_left_to_another(key, config)]:
            raise RefusedError(
                f"{', '.join(keys)}: changed, and only a restart takes it; restart the node, or "
                "change it back and reload the rest"
            )

    def _is_left_to_another(self, key: str, config: Config) -> bool:
        """Whether a key that only a restart takes concerns another role alone.

        That role must run, so that it answers for itself, or be absent from the new settings. If it
        does not run yet, accepting the key would pretend that it had been taken.
        """
        role = settings.ROLE_OF.get(key, self._role)
        if role == self._role:
            return False
        takers = self._ledger.inspect.settings.takers()
        runs = any(each.role == role and is_alive(each.owner) for each in takers)
        return runs or getattr(config, key) is None

    def _conclude(self, checked: _Checked) -> None:
        """Take what was accepted, or drop what was refused."""
        decided = self._ledger.generations.decide(checked.number, is_alive)
        if decided.state == GenerationState.PROPOSED.value:
            return
        if decided.state == GenerationState.REFUSED.value:
            self._checked = None
            log.warning("settings: generation %d is refused: %s", decided.number, decided.why)
            return

        checked.take()
        # Set here, so that it happens once: if the ledger fails in the next line, this turn is
        # repeated.
        self._checked = replace(checked, take=_nothing)
        self._config = checked.config
        self._taken(checked.config)

        self._ledger.generations.take(self._role, owner_name(), decided.number)
        self._checked = None
        log.info(
            "%s: settings of generation %d in force (%s): %s",
            self._role,
            decided.number,
            decided.asked_by,
            "; ".join(decided.changes) or "nothing changed",
        )


def _nothing() -> None:
    pass
