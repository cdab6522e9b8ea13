"""A node under test with its surroundings: modalities, an archive, roles that can be killed, and
the final account.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from daemon.config import Config, load
from daemon.ledger import Ledger
from daemon.ledger.schema import deliveries
from tests.chaos.archive import Archive
from tests.chaos.crew import ROLES, Crew, Kills, forkserver
from tests.chaos.images import Templates, chests, quick_model, undecodable
from tests.chaos.invariant import Account, Check
from tests.chaos.modality import Modality, Record
from tests.chaos.secure import Secure
from tests.chaos.victim import Plan
from tools.peers.ports import unused_port

# A node that is not at rest within this time is stuck.
REST_S = 180.0
# A round ends after this many roles have ended by themselves.
HOPELESS = 20
# Images in progress at most. More would only lengthen the time until rest.
_BACKLOG = 40


@dataclass
class Tally:
    """The kills and faults of a whole run, and their outcome."""

    kills: Kills = field(default_factory=Kills)
    faults: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)


class Chaos:
    """What all rounds of a run share: the seed, the model, the pictures, and the process that
    victims are forked from.
    """

    def __init__(
        self, folder: Path, seed: int, pictures: Sequence[Path] = (), tls: bool = False
    ) -> None:
        """`tls`: every connection uses TLS with both sides verified."""
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        self.context: ForkServerContext = forkserver()
        made = chests(folder / "pictures")
        self.model = quick_model(folder / "model", made)
        self.pictures = [*made, undecodable(folder / "pictures"), *pictures]
        self.secure = Secure.make(folder / "certificates") if tls else None
        self.tally = Tally()
        self._rounds = 0

    def site(self, name: str, **settings: Any) -> Site:
        """A new node with its archive and modalities."""
        self._rounds += 1
        return Site(self, self.folder / f"{self._rounds:02d}-{name}", **settings)

    def settle(self, account: Account) -> Account:
        """Add a round's account to that of the run. Returns the round's account."""
        self.tally.account += account
        return account


class Site:
    """One node under test with its surroundings, as a context manager."""

    def __init__(self, chaos: Chaos, folder: Path, commits: bool = False, **settings: Any) -> None:
        self.chaos = chaos
        self.folder = folder
        self.commits = commits
        folder.mkdir(parents=True)

        self.port = unused_port()
        self.plan = Plan(folder / "plan")
        self.secure = chaos.secure
        self.archive = Archive(
            chaos.context, folder / "archive", unused_port(), self.port, commits, self.secure
        )

        self.outbox = folder / "outbox"
        self.path = folder / "pleura.yaml"

        destinations = [
            self.archive.destination(),
            {"name": "outbox", "folder": str(self.outbox), "results": ["SC"]},
        ]
        document = {
            "host": "127.0.0.1", "port": self.port, "model": str(chaos.model), "device": "cpu", "spool_reserve_mb": 1,
            "overlay": {"longest_side_px": 768}, "spool": str(folder / "spool"), "max_batch": 4,
            "ledger": f"sqlite:///{folder / 'ledger.db'}", "destinations": destinations,
            "retention": {"free_mb": 0},
        } | (self.secure.settings(self.port) if self.secure else {}) | settings  # fmt: skip
        self.path.write_text(yaml.safe_dump(document))
        self.config: Config = load(self.path)

        self._modalities: list[Modality] = []
        self._ledger: Ledger | None = None
        self._opening = threading.Lock()
        self.crew: Crew | None = None

    def settings(self, **changes: Any) -> None:
        """Change the settings before the node runs."""
        self.path.write_text(yaml.safe_dump(yaml.safe_load(self.path.read_text()) | changes))
        self.config = load(self.path)

    def __enter__(self) -> Site:
        self.archive.start()
        return self

    def __exit__(self, *_: object) -> None:
        for modality in self._modalities:
            modality.stop()
        if self.crew is not None:
            self.crew.stop(signal.SIGKILL)
        self.archive.kill()
        if self._ledger is not None:
            self._ledger.close()

    def man(
        self, roles: Sequence[str] = ROLES, kills: int = 0, tolerated: Sequence[int] = ()
    ) -> Crew:
        """Start roles, which will be killed `kills` times."""
        tally = self.chaos.tally.kills
        tally.wanted = tally.done + kills
        self.crew = Crew(
            self.chaos.context, self.path, self.plan, tally, self.chaos.rng, roles, tolerated
        )
        self.crew.start()
        return self.crew

    def dismiss(self, number: int = signal.SIGTERM) -> list[int | None]:
        """End the roles; returns their exit statuses."""
        assert self.crew is not None
        crew, self.crew = self.crew, None
        return crew.stop(number)

    def send(self, modalities: int = 2) -> None:
        """Start modalities that send images."""
        for _ in range(modalities):
            rng = random.Random(self.chaos.rng.random())
            templates = Templates(self.chaos.pictures, rng)
            modality = Modality(
                self.port, templates, self.folder / "sent", self._few_wait, rng, self.secure
            )
            modality.start()
            self._modalities.append(modality)

    def hush(self) -> None:
        """Stop the modalities."""
        for modality in self._modalities:
            modality.stop()
        self._modalities.clear()

    def acknowledged(self) -> int:
        """How often the running modalities were answered 0x0000."""
        return sum(modality.acknowledged for modality in self._modalities)

    def until_acknowledged(self, images: int, seconds: float = 120.0) -> None:
        """Wait until this many more images are acknowledged."""
        goal = self.acknowledged() + images
        wait(f"{images} images are acknowledged", lambda: self.acknowledged() >= goal, seconds)

    def counts(self) -> dict[str, dict[str, int]]:
        """The counts of `pleura status`. Raises an exception of the ledger's if it does not exist
        yet or its server is down.
        """
        with self._opening:
            if self._ledger is None:
                self._ledger = Ledger.existing(self.config.ledger)
        return self._ledger.inspect.counts()

    def rest(self) -> None:
        """Wait until no image waits and no result is owed."""
        self.archive.behave("well")

        def done() -> bool:
            assert self.crew is None or len(self.crew.unexpected) < HOPELESS, self.crew.unexpected[
                -1
            ]
            try:
                counts = self.counts()
            except Exception:
                # The ledger does not exist yet, or its server is being restarted.
                return False
            at_rest = not counts["instances"]["received"] and not counts["deliveries"]["owed"]
            return at_rest and not (self.commits and self._uncommitted())

        wait(f"the node is at rest; log: {self.folder / 'log.txt'}", done, REST_S)

    def _uncommitted(self) -> int:
        engine = sa.create_engine(self.config.ledger)
        here = sa.select(sa.func.count()).where(
            deliveries.c.destination == "archive", deliveries.c.state == "stored"
        )
        with engine.connect() as conn:
            number = int(conn.execute(here).scalar_one())
        engine.dispose()
        return number

    def settle(self) -> Account:
        """Stop faults and images, wait for rest, end all roles, and return the account."""
        crew = self.crew
        assert crew is not None
        crew.spare()
        self.hush()
        try:
            wait(
                f"all roles are ready; log: {self.folder / 'log.txt'}", lambda: crew.at_ease, REST_S
            )
            self.rest()
            stuck = []
        except AssertionError as error:
            stuck = [str(error)]

        statuses = self.dismiss()
        account = self.check()
        account.violations += stuck
        account.violations += [
            f"after rest and SIGTERM a role ended with status {status}"
            for status in statuses
            if status
        ]
        account.violations += crew.unexpected
        return self.chaos.settle(account)

    def settle_after(self, images: int) -> Account:
        """settle() after this many more images are acknowledged, so that the node still works."""
        assert self.crew is not None
        self.crew.spare()
        # If the node is stuck, settle() reports how.
        with contextlib.suppress(AssertionError):
            self.until_acknowledged(images)
        return self.settle()

    def check(self) -> Account:
        """The account now. No role may run."""
        return Check(self.config, self.path, self.archive, Record(self.folder / "sent")).run()

    def _few_wait(self) -> bool:
        try:
            return self.counts()["instances"]["received"] < _BACKLOG
        except Exception:
            # The ledger does not exist yet.
            return True


def wait(what: str, true: Callable[[], Any], seconds: float) -> None:
    """Poll until `true()`; after `seconds`, raise AssertionError with `what`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
