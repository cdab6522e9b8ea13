"""Retention, in the deliver role: removes bytes with nothing owed when they are old or room is
short.

Two steps, so that a crash between them loses nothing: the ledger gives the bytes up, then the files
go. Files without a row in the ledger, including those of such a crash, are swept once they are old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from daemon.adoption import adopt_strays
from daemon.config import Config
from daemon.ledger import Ledger, Outage
from daemon.spool import Faults, Spool

log = logging.getLogger("pleura.retention")

_EVERY_S = 60.0
_SWEEP_EVERY_S = 3600.0
# Another host may have newer settings than this one, or a reload had a mistake in it.
_UNKNOWN_FOR_S = 600.0
_BATCH = 100  # images per transaction
_DAY_S = 86400.0


class Retention:
    """One process's retention. Any number of processes may run it."""

    def __init__(self, config: Config, ledger: Ledger, spool: Spool) -> None:
        self._config = config
        self._ledger = ledger
        self._spool = spool

    def take(self, config: Config) -> None:
        """New settings, from the next image on."""
        self._config = config

    def run(self, stop: threading.Event) -> None:
        """Tidy up each minute until `stop` is set."""
        outage = Outage(log, "tidying up: the ledger or the spool")
        swept = float("-inf")

        while not stop.is_set():
            try:
                self.refuse_unknown_destinations()
                self.remove_what_is_done(stop)
                if time.monotonic() - swept > _SWEEP_EVERY_S:
                    self.sweep()
                    swept = time.monotonic()
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger or disk comes back.
                outage.failed(error)
            else:
                outage.over()

            stop.wait(_EVERY_S)

    def refuse_unknown_destinations(self) -> None:
        """Refuse, visibly, every delivery to a destination that left the settings."""
        known = [one.name for one in self._config.destinations]
        refused = self._ledger.refuse_unknown_destinations(known, _UNKNOWN_FOR_S)
        for name, number in refused.items():
            log.warning(
                "%s has not been in the settings for ten minutes: %d results owed to it are "
                "refused; name it again and `pleura retry --to %s`, or `pleura retry --from %s "
                "--to NAME`",
                *(name, number, name, name),
            )

    def remove_what_is_done(self, stop: threading.Event) -> int:
        """Remove by age; and while room is short, the oldest first.

        Returns how many files were removed.
        """
        keep = self._config.retention
        by_age = self._remove(keep.keep_days * _DAY_S, keep.keep_failed_days * _DAY_S, stop)

        early = 0
        free_bytes = keep.free_mb * 1024 * 1024
        while self._spool.free_bytes() < free_bytes and not stop.is_set():
            count = self._remove_some(0.0, keep.keep_failed_days * _DAY_S)
            if not count:
                log.warning(
                    "room is short, and nothing more may be removed: the remaining files are owed, "
                    "or wait for a person"
                )
                break
            early += count

        if by_age or early:
            log.info("removed %d files by age and %d for room", by_age, early)
        return by_age + early

    def sweep(self) -> int:
        """Remove old files whose bytes were given up. Returns how many.

        Files that the ledger never knew are adopted or quarantined, never removed (adoption.py).
        """
        # The row of an old file may still wait for a standby server although its receiver has
        # ended.
        self._ledger.wait_for_commits()

        faults = Faults()
        with faults.noted():
            adopt_strays(self._ledger, self._spool)
        count = self._spool.sweep(self._spared)
        faults.raise_first()

        if count:
            log.info("swept %d spool files that nothing is owed on", count)
        return count

    def _spared(self, names: Iterable[str]) -> set[str]:
        """The files that must stay: the ledger refers to them, or has never known them."""
        every = list(names)
        inspect = self._ledger.inspect
        # In this order: a row that is committed between the two questions is known to the second.
        unknown = inspect.unknown_spool_names(every)
        return unknown | inspect.known_spool_names(every)

    def _remove(self, kept_s: float, kept_failed_s: float, stop: threading.Event) -> int:
        total = 0
        while not stop.is_set() and (count := self._remove_some(kept_s, kept_failed_s)):
            total += count
        return total

    def _remove_some(self, kept_s: float, kept_failed_s: float) -> int:
        committing = [one.name for one in self._config.committing()]
        # If the spool is not mounted, the free room of its folder is another disk's.
        self._spool.require()
        names = self._ledger.give_up_bytes(kept_s, kept_failed_s, committing, _BATCH)

        faults = Faults()
        for name in names:
            with faults.noted():
                self._spool.remove(name)
        faults.raise_first()
        return len(names)
