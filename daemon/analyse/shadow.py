"""The shadow role: a second model answers the same images, for comparison only (docs/shadow.md).

This process asks the ledger and writes rows of its own (ledger/shadow.py). The networks run in a
process below it (answering.py), which may raise, hang, leak or be killed: that ends one comparison.
The role looks at an image only while none waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from daemon.analyse.answering import Answer, UnusableModelError
from daemon.backoff import doubled_s
from daemon.config import Config, Shadow
from daemon.ledger import Ledger, Outage, ShadowJob
from daemon.spool import Spool

log = logging.getLogger("pleura.shadow")

_MOST_OF_REASON = 200
_CHUNK = 65536
# How long the role may take to notice that it must end.
_NOTICE_S = 0.5


class EndedError(Exception):
    """The process with the networks has ended. The message says how."""


@dataclass(frozen=True)
class ShadowLimits:
    """How long the shadow waits, in seconds."""

    # Between two looks for an image.
    idle_s: float = 1.0
    # The longest time of one image. Beyond it the networks' process is ended.
    image_s: float = 300.0
    # The longest time to load and replay the package.
    load_s: float = 900.0
    # The first and the longest pause before the networks' process is started again.
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    # How long the role's thread may take to notice its end.
    drain_s: float = 5.0


class Networks(Protocol):
    """The shadow's networks."""

    def start(self) -> str:
        """Load them, and give their package's name as `instances.model` has it.

        Raises:
            UnusableModelError: the package cannot be used. EndedError: they ended.
        """

    def ask(self, path: Path) -> Answer:
        """The answer on one file. Raises EndedError."""

    def end(self) -> None:
        """End them, whatever they do; may be called from another thread."""

    def close(self) -> None:
        """As end(), and give back what they held."""


class Process:
    """The networks in a process of their own."""

    def __init__(self, command: Sequence[str], limits: ShadowLimits) -> None:
        self._limits = limits
        self._read = b""
        # Its standard error is discarded, because it may quote headers: errors come as answers.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )

        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to = self._process.stdin
        self._from = self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._from, selectors.EVENT_READ)

    def start(self) -> str:
        """Wait until it has loaded its package, and give the package's name."""
        reply = self._line(self._limits.load_s)
        if "unusable" in reply:
            raise UnusableModelError(reply["unusable"])
        return str(reply["name"])

    def ask(self, path: Path) -> Answer:
        """The answer on one file. Raises EndedError."""
        try:
            self._to.write(json.dumps(str(path)).encode() + b"\n")
            self._to.flush()
        except OSError as error:
            raise self._ended() from error
        said = self._line(self._limits.image_s)
        if said.pop("path", None) != str(path):
            # A late answer about an earlier image.
            raise EndedError("its answer is on another image")
        return Answer(**said)

    def end(self) -> None:
        """Kill it."""
        self._process.kill()

    def close(self) -> None:
        """Kill it, and close its pipes."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._from.close()
        with contextlib.suppress(OSError):
            # Input that it has not read is lost with it.
            self._to.close()

    def _line(self, within_s: float) -> dict[str, Any]:
        """The next line that it prints."""
        deadline = time.monotonic() + within_s
        while b"\n" not in self._read:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise EndedError(f"no answer in {within_s:g} s")
            got = os.read(self._from.fileno(), _CHUNK)
            if not got:
                raise self._ended()
            self._read += got

        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> EndedError:
        return EndedError(f"the networks' process ended with status {self._process.wait()}")


class ShadowWorker:
    """Asks the shadow about each analysed image in turn, one at a time."""

    def __init__(
        self,
        make: Callable[[], Networks],
        ledger: Ledger,
        spool: Spool,
        limits: ShadowLimits | None = None,
    ) -> None:
        """`make` gives the networks, which are not started yet."""
        self._make = make
        self._ledger = ledger
        self._spool = spool
        self._limits = limits or ShadowLimits()

        self._networks: Networks | None = None
        # How often in a row the networks ended before they could answer.
        self._ends = 0
        # The last image that was looked at; 0: the ledger knows.
        self._after = 0
        self._said = ""
        self._outage = Outage(log, "shadow: the ledger or the spool")

    def run(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        """Work until `stop` is set. `ready` is told the package's name once it can answer.

        An image in work is left behind: a node that ends does not wait for its shadow.
        """
        thread = threading.Thread(target=self._work, args=(stop, ready), name="shadow", daemon=True)
        thread.start()
        # In short steps: beside busy threads, a signal may not end a long wait.
        while not stop.wait(_NOTICE_S):
            pass

        if self._networks is not None:
            self._networks.end()
        thread.join(self._limits.drain_s)

    def _work(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        """Start the networks, and start them again with back-off where they end."""
        limits = self._limits
        while not stop.is_set():
            try:
                self._serve(stop, ready)
            except (UnusableModelError, EndedError) as error:
                self._say(f"shadow.model: {error}; no image depends on it", stop)

            stop.wait(doubled_s(limits.first_pause_s, limits.longest_pause_s, self._ends))
            self._ends += 1

    def _serve(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        """Start the networks and compare until `stop` is set.

        Raises:
            UnusableModelError: the package cannot be used. EndedError: the networks did not start,
                or ended.
        """
        try:
            networks = self._networks = self._make()
        except OSError as error:
            # Where memory or processes are short.
            raise EndedError(f"the networks' process does not start: {error.strerror}") from error

        try:
            name = networks.start()
            ready(name)
            self._ends = 0
            # The package may be another one than before.
            self._after = 0
            self._compare(networks, name, stop)
        finally:
            networks.close()

    def _say(self, words: str, stop: threading.Event) -> None:
        """Log each trouble once, but not an end that the role itself caused."""
        if words != self._said and not stop.is_set():
            log.error("%s", words)
            self._said = words

    def _compare(self, networks: Networks, name: str, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                has_looked = self.turn(networks, name)
            except EndedError:
                raise
            except Exception as error:
                # The loop's only catch-all: an unreachable ledger or disk comes back.
                self._outage.failed(error)
                has_looked = False
            else:
                self._outage.over()
            if not has_looked:
                stop.wait(self._limits.idle_s)

    def turn(self, networks: Networks, name: str) -> bool:
        """Look at the next image, if none waits for its analysis. Returns whether there was one.

        Raises:
            EndedError: the networks ended at this image. It is noted, and not tried again.
        """
        view = self._ledger.inspect.shadow
        self._after = self._after or view.last(name)
        job = view.next(self._after)
        if job is None:
            return False

        # After a promotion the model is its own shadow: there is nothing to compare.
        if job.model != name and self._ledger.shadow.begin(job, name):
            self._look(networks, job, name)
        self._after = job.instance_id
        return True

    def _look(self, networks: Networks, job: ShadowJob, name: str) -> None:
        try:
            said = networks.ask(self._spool.path(job.spool_name))
        except EndedError as error:
            try:
                self._note(job, name, Answer(None, None, str(error)))
            except Exception as not_noted:
                # The row stays without an answer, as it should. The networks have ended in any
                # case.
                raise error from not_noted
            raise
        if said.why:
            log.info("shadow: image %d has no answer: %s", job.instance_id, said.why)
        self._note(job, name, said)

    def _note(self, job: ShadowJob, name: str, said: Answer) -> None:
        why = said.why[:_MOST_OF_REASON]
        self._ledger.shadow.answer(job, name, said.probability, said.positive, why)


def command(config: Config, shadow: Shadow) -> list[str]:
    """The command line of the networks' process."""
    rules = json.dumps(config.admission.model_dump(mode="json"))
    python = [sys.executable, "-P", "-m", "daemon.analyse.answering"]
    return [*python, shadow.model, shadow.device, rules]
