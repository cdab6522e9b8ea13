"""Passwords: their hashes, and how often an address may try, or a name be tried."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from daemon.web.turn import Turn

# RFC 9106, section 4: the second recommended option, for less memory. 64 MiB for each try.
_hasher = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=4)
# The longest password: without a limit, argon2 would hash megabytes.
MOST_CHARACTERS = 256
# How many verifications may wait for the running one.
_MOST_WAITING = 2
# Free failures, per address and per name. An attacker who fails on purpose for a name must not soon
# lock out its owner.
_FREE_OF_ADDRESS = 5
_FREE_OF_NAME = 25
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 900.0
# How many addresses and names are remembered.
_MOST_REMEMBERED = 2000


def hashed(password: str) -> str:
    """The hash of a password, for `password_hash` in the settings."""
    return _hasher.hash(password)


class Passwords:
    """The users' hashes. One verification at a time: each takes 64 MiB and a tenth of a second."""

    def __init__(
        self, hashes: Mapping[str, str], verify: Callable[[str, str], bool] = _hasher.verify
    ) -> None:
        """`verify` compares a hash with a password. Raises VerificationError: they differ."""
        self._hashes = dict(hashes)
        self._verify = verify
        # An unknown name is compared with another user's hash. So it takes as long as a wrong
        # password, and an attacker cannot find out which names exist.
        self._nobody = next(iter(hashes.values()), "")
        self._turn = Turn(_MOST_WAITING)

    def is_right(self, name: str, password: str) -> bool:
        """Whether this is the user's password. Raises BusyError: too many wait to be verified."""
        if len(password) > MOST_CHARACTERS:
            return False

        known = self._hashes.get(name)
        with self._turn:
            try:
                is_match = self._verify(known or self._nobody, password)
            except (VerificationError, InvalidHashError):
                return False
        return is_match and known is not None


@dataclass
class _Failures:
    number: int = 0
    last_at: float = 0.0


class Throttle:
    """Pauses after failed logins, doubled with each, for an address and for a name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, str], _Failures] = {}

    def begin(self, address: str, name: str) -> int:
        """Begin a try. Returns 0, or the whole seconds until this address may try this name.

        A try that begins counts as a failure until succeeded() or withdraw(), so that parallel
        tries are limited like consecutive ones.
        """
        now = self._clock()
        with self._lock:
            left = [self._left_s(key, free, now) for key, free in _keys(address, name)]
            wait_s = math.ceil(max(0.0, *left))
            if not wait_s:
                for key, _ in _keys(address, name):
                    self._count(key, now)
        return wait_s

    def withdraw(self, address: str, name: str) -> None:
        """The password was never checked: the try no longer counts."""
        with self._lock:
            for key, _ in _keys(address, name):
                if found := self._failures.get(key):
                    found.number = max(0, found.number - 1)

    def succeeded(self, address: str, name: str) -> None:
        """Forget the failures."""
        with self._lock:
            for key, _ in _keys(address, name):
                self._failures.pop(key, None)

    def _count(self, key: tuple[str, str], now: float) -> None:
        if key not in self._failures and len(self._failures) >= _MOST_REMEMBERED:
            oldest = min(self._failures, key=lambda each: self._failures[each].last_at)
            del self._failures[oldest]
        found = self._failures.setdefault(key, _Failures())
        found.number += 1
        found.last_at = now

    def _left_s(self, key: tuple[str, str], free: int, now: float) -> float:
        found = self._failures.get(key)
        if found is None or found.number < free:
            return 0.0
        doublings = min(found.number - free, 20)
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**doublings)
        return float(found.last_at + pause_s - now)


def _keys(address: str, name: str) -> tuple[tuple[tuple[str, str], int], ...]:
    return (
        (("address", address), _FREE_OF_ADDRESS),
        (("name", name[:64]), _FREE_OF_NAME),
    )
