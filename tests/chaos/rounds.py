"""One round: a node, traffic, a fault for as long as it takes, then rest, then the account."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from daemon.config import Config, load
from daemon.ledger import Ledger
from daemon.schema import deliveries, instances, results
from daemon.spool import Spool
from tests.chaos.archive import MODES, Archive
from tests.chaos.crew import ROLES, Crew, Kills, Orders, forkserver
from tests.chaos.images import Templates, chests, quick_model, undecodable
from tests.chaos.invariant import Account, Check
from tests.chaos.modality import Modality, Record
from tests.chaos.victim import PLAN, Plan
from tests.conftest import unused_port
from tests.postgres import Postgres

REST_S = 180.0  # a node that is not at rest by then is stuck
_HOPELESS = 20  # roles that ended by themselves: the round is over
_MORE = 5  # images that a node must still take after its round
_ORDER_S = 12.0  # how long a victim under serve gets to reach its point
_BACKLOG = 40  # images under way: more would only lengthen the rest
_MIB = 1024 * 1024


@dataclass
class Tally:
    """What a whole run has done to the nodes, and what became of it."""

    kills: Kills = field(default_factory=Kills)
    faults: Counter[str] = field(default_factory=Counter)
    account: Account = field(default_factory=Account)


class Chaos:
    """What all rounds of one run share: the seed, the model, the pictures, the process that victims are forked from."""

    def __init__(self, folder: Path, seed: int, pictures: Sequence[Path] = ()) -> None:
        self.folder, self.seed = folder, seed
        self.rng = random.Random(seed)
        self.context: ForkServerContext = forkserver()
        made = chests(folder / "pictures")
        self.model = quick_model(folder / "model", made)
        self.pictures = [*made, undecodable(folder / "pictures"), *pictures]
        self.tally = Tally()
        self._rounds = 0

    def site(self, name: str, **settings: Any) -> Site:
        """A new node with its archive and modalities."""
        self._rounds += 1
        return Site(self, self.folder / f"{self._rounds:02d}-{name}", **settings)

    def settle(self, account: Account) -> Account:
        """Add a round's account to the whole. Returns it."""
        self.tally.account += account
        return account


class Site:
    """One node under test, with what is around it, as a context manager."""

    def __init__(self, chaos: Chaos, folder: Path, commits: bool = False, **settings: Any) -> None:
        self.chaos, self.folder, self.commits = chaos, folder, commits
        folder.mkdir(parents=True)
        self.port = unused_port()
        self.plan = Plan(folder / "plan")
        self.archive = Archive(chaos.context, folder / "archive", unused_port(), self.port, commits)
        self.outbox = folder / "outbox"
        self.path = folder / "pleura.yaml"
        destinations = [self.archive.destination(), {"name": "outbox", "folder": str(self.outbox), "results": ["SC"]}]
        document = {
            "host": "127.0.0.1", "port": self.port, "model": str(chaos.model), "device": "cpu", "spool_reserve_mb": 1,
            "overlay": {"longest_side_px": 768}, "spool": str(folder / "spool"), "max_batch": 4,
            "ledger": f"sqlite:///{folder / 'ledger.db'}", "destinations": destinations,
            "retention": {"free_mb": 0},
        } | settings  # fmt: skip
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

    def man(self, roles: Sequence[str] = ROLES, kills: int = 0, tolerated: Sequence[int] = ()) -> Crew:
        """Start roles; they are killed so many times."""
        tally = self.chaos.tally.kills
        tally.wanted = tally.done + kills
        self.crew = Crew(self.chaos.context, self.path, self.plan, tally, self.chaos.rng, roles, tolerated)
        self.crew.start()
        return self.crew

    def dismiss(self, number: int = signal.SIGTERM) -> list[int | None]:
        """End the roles; returns their exit statuses."""
        assert self.crew is not None
        crew, self.crew = self.crew, None
        return crew.stop(number)

    def send(self, modalities: int = 2) -> None:
        """Let images flow."""
        for _ in range(modalities):
            rng = random.Random(self.chaos.rng.random())
            templates = Templates(self.chaos.pictures, rng)
            one = Modality(self.port, templates, self.folder / "sent", self._few_wait, rng)
            one.start()
            self._modalities.append(one)

    def hush(self) -> None:
        """No more images."""
        for modality in self._modalities:
            modality.stop()
        self._modalities.clear()

    def acknowledged(self) -> int:
        """How often a modality that sends now was answered 0x0000."""
        return sum(one.acknowledged for one in self._modalities)

    def until_acknowledged(self, images: int, seconds: float = 120.0) -> None:
        """Until so many images more are acknowledged."""
        goal = self.acknowledged() + images
        wait(f"{images} images are acknowledged", lambda: self.acknowledged() >= goal, seconds)

    def counts(self) -> dict[str, dict[str, int]]:
        """As `pleura status`. Raises whatever a ledger does that is not made yet, or whose server is away."""
        with self._opening:
            if self._ledger is None:
                self._ledger = Ledger.existing(self.config.ledger)
        return self._ledger.counts()

    def rest(self) -> None:
        """Until nothing waits and nothing is owed."""
        self.archive.behave("well")

        def done() -> bool:
            assert self.crew is None or len(self.crew.unexpected) < _HOPELESS, self.crew.unexpected[-1]
            try:
                counts = self.counts()
            except Exception:  # not made yet, or its server is being restarted
                return False
            at_rest = not counts["instances"]["received"] and not counts["deliveries"]["owed"]
            return at_rest and not (self.commits and self._uncommitted())

        wait(f"the node is at rest; log: {self.folder / 'log.txt'}", done, REST_S)

    def _uncommitted(self) -> int:
        engine = sa.create_engine(self.config.ledger)
        here = sa.select(sa.func.count()).where(deliveries.c.destination == "archive", deliveries.c.state == "stored")
        with engine.connect() as conn:
            number = int(conn.execute(here).scalar_one())
        engine.dispose()
        return number

    def settle(self) -> Account:
        """No more faults and images; rest, a clean end of all roles, and the account."""
        crew = self.crew
        assert crew is not None
        crew.spare()
        self.hush()
        try:
            wait(f"all roles are ready; log: {self.folder / 'log.txt'}", lambda: crew.at_ease, REST_S)
            self.rest()
            stuck = []
        except AssertionError as error:
            stuck = [str(error)]
        statuses = self.dismiss()
        account = self.check()
        account.violations += stuck
        account.violations += [
            f"after rest and SIGTERM a role ended with status {status}" for status in statuses if status
        ]
        account.violations += crew.unexpected
        return self.chaos.settle(account)

    def settle_after(self, images: int) -> Account:
        """The same, once so many images more are acknowledged: the node still works."""
        assert self.crew is not None
        self.crew.spare()
        with contextlib.suppress(AssertionError):  # the account tells how it is stuck
            self.until_acknowledged(images)
        return self.settle()

    def check(self) -> Account:
        """The account as it stands; nothing may run."""
        return Check(self.config, self.path, self.archive, Record(self.folder / "sent")).run()

    def _few_wait(self) -> bool:
        try:
            return self.counts()["instances"]["received"] < _BACKLOG
        except Exception:
            return True  # there is no ledger yet


def wait(what: str, true: Callable[[], Any], seconds: float) -> None:
    """Poll until `true()`; AssertionError with `what` when it does not come."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


# -- the rounds ---------------------------------------------------------------------------------------------------


def kills(chaos: Chaos, number: int, **settings: Any) -> Account:
    """Deaths of all roles, at every named point and at random times, under an archive in every mood."""
    with chaos.site("kills", commits=True, **settings) as site:
        crew = site.man(kills=number)
        site.send()
        while chaos.tally.kills.done < chaos.tally.kills.wanted and len(crew.unexpected) < _HOPELESS:
            mood(site, chaos.rng.choice(("well", "well", "well", "down", *MODES)), chaos.rng.uniform(0.2, 1.5))
        return site.settle_after(_MORE)


def moods(chaos: Chaos) -> Account:
    """The archive in each mood for a while, nobody killed."""
    with chaos.site("archive", commits=True) as site:
        site.man()
        site.send()
        site.until_acknowledged(5)
        for mode in (*MODES, "down"):
            mood(site, mode, 2.0)
        return site.settle()


def mood(site: Site, mode: str, seconds: float) -> None:
    """The archive behaves like this for so long; then it is well again."""
    if mode == "down":
        site.archive.kill()
    else:
        site.archive.behave(mode)
    if mode != "well":
        site.chaos.tally.faults[f"archive: {mode}"] += 1
    time.sleep(seconds)
    if mode == "down":
        site.archive.start()
    site.archive.behave("well")


def power_loss(chaos: Chaos) -> Account:
    """All die at once, and the newest files have lost their end, although they were synced: disks lie."""
    with chaos.site("power-loss") as site:
        site.archive.kill()
        site.man(("receive", "analyse"))
        site.send(1)
        wait("results wait", lambda: at_rest_but_for_delivery(site, 8), 60)
        site.hush()
        wait("all is analysed", lambda: not site.counts()["instances"]["received"], 60)
        site.dismiss(signal.SIGKILL)
        site.man(("receive",))
        site.send(1)
        site.until_acknowledged(6)
        site.hush()
        site.dismiss(signal.SIGKILL)
        damaged = damage(site, chaos.rng)
        chaos.tally.faults["file truncated"] += len(damaged)
        site.archive.start()
        site.man()
        account = site.settle()
        rows = {row["spool_name"]: row for row in read(site.config, instances)}
        for name in damaged & rows.keys():
            if (rows[name]["state"], rows[name]["reason"]) != ("failed", "bytes_missing"):
                account.violations.append(f"silent: a damaged image ended {rows[name]['state']}")
        return account


def at_rest_but_for_delivery(site: Site, number: int) -> bool:
    try:
        return site.counts()["deliveries"]["owed"] >= number
    except Exception:  # the ledger is not made yet
        return False


def damage(site: Site, rng: random.Random) -> set[str]:
    """Truncate three received images and three results in the spool, leave unfinished files. Returns the names."""
    waiting = [row["spool_name"] for row in read(site.config, instances) if row["state"] == "received"]
    owed = {row["result_id"] for row in read(site.config, deliveries) if row["state"] == "owed"}
    made = [row["spool_name"] for row in read(site.config, results) if row["id"] in owed]
    spool = Spool(site.config.spool)
    damaged = set(waiting[-3:] + made[-3:])
    for name in damaged:
        path = spool.path(name)
        os.truncate(path, rng.choice((0, rng.randrange(path.stat().st_size))))
        path.with_name(f".{name[:16]}.part").write_bytes(b"unfinished")
    return damaged


def read(config: Config, table: sa.Table) -> list[dict[str, Any]]:
    """All rows of one table of the ledger."""
    engine = sa.create_engine(config.ledger)
    with engine.connect() as conn:
        rows = [dict(row) for row in conn.execute(sa.select(table).order_by(table.c.id)).mappings()]
    engine.dispose()
    return rows


def full_disks(chaos: Chaos, seconds: float, number_of_kills: int = 0) -> Account:
    """Spool, ledger and folder destination on small disks of their own, each full now and then, to the last byte."""
    with ExitStack() as disks:
        base = chaos.folder / "disks"
        folders = {name: disks.enter_context(small_disk(base / name, 64)) for name in ("spool", "ledger", "outbox")}
        outbox = {"name": "outbox", "folder": str(folders["outbox"] / "in"), "results": ["SC"]}
        with chaos.site(
            "disks",
            spool=str(folders["spool"] / "spool"),
            ledger=f"sqlite:///{folders['ledger'] / 'ledger.db'}",
            spool_reserve_mb=0,
            retention={"keep_days": 5 / 86400, "free_mb": 0},  # else what is done would fill them by itself
        ) as site:
            site.settings(destinations=[site.archive.destination(), outbox])
            site.man(kills=number_of_kills, tolerated=(1, 2))
            site.send()
            end = time.monotonic() + seconds
            for name in itertools.cycle(folders):
                if time.monotonic() > end:
                    break
                site.until_acknowledged(1)
                chaos.tally.faults[f"disk full: {name}"] += 1
                with full(folders[name], chaos.rng.randrange(200_000)):
                    time.sleep(chaos.rng.uniform(0.5, 1.5))
            return site.settle()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own. Raises PermissionError where none can be mounted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("a small file system cannot be mounted (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(folder: Path, left_bytes: int) -> Iterator[None]:
    """Only so many bytes are free while the block runs."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    size = max(0, room.f_bavail * room.f_frsize - left_bytes)
    with contextlib.suppress(OSError), ballast.open("wb") as file:  # others write meanwhile
        for _ in range(size // _MIB):
            file.write(bytes(_MIB))
        file.write(bytes(size % _MIB))
    try:
        yield
    finally:
        ballast.unlink()


def postgresql(chaos: Chaos, restarts: int, number_of_kills: int) -> Account:
    """The database server is restarted, in order and by a crash, while images flow and roles die."""
    with Postgres(chaos.folder / "postgres", unused_port()) as server:
        url = server.create_database(f"node_{chaos.rng.getrandbits(32):08x}")
        # A role that starts while the server is away ends, and is started again.
        with chaos.site("postgresql", commits=True, ledger=url) as site:
            crew = site.man(kills=number_of_kills, tolerated=(1, 2))
            site.send()
            for number in range(restarts):
                site.until_acknowledged(5)
                server.stop(("fast", "immediate")[number % 2])
                time.sleep(chaos.rng.uniform(0.0, 1.5))
                server.start()
                chaos.tally.faults["PostgreSQL restarted"] += 1
            until_killed(chaos, crew)
            return site.settle_after(_MORE)


def clock_steps(chaos: Chaos, steps: int, number_of_kills: int) -> Account:
    """The ledger's clock is set back and forth by minutes, hours and days while roles die with leases in hand."""
    with chaos.site("clock") as site:
        crew = site.man(kills=number_of_kills)
        site.send()
        offset_s = 0.0
        for _ in range(steps):
            site.until_acknowledged(4)
            offset_s += chaos.rng.choice((-86400.0 * 3, -86400.0, -7200.0, -600.0, -30.0, 30.0, 5400.0))
            site.plan.set_clock(offset_s)
            chaos.tally.faults["clock stepped"] += 1
        until_killed(chaos, crew)
        return site.settle_after(_MORE)


def until_killed(chaos: Chaos, crew: Crew) -> None:
    """Until as many have died as were to; or until roles end by themselves all the time."""
    while chaos.tally.kills.done < chaos.tally.kills.wanted and len(crew.unexpected) < _HOPELESS:
        time.sleep(0.2)


def drains(chaos: Chaos, times: int) -> Account:
    """SIGTERM while images flow: what is in hand is finished, the role ends with 0, and nothing stays leased."""
    with chaos.site("drains") as site:
        crew = site.man()
        site.send()
        found = []
        for _ in range(times):
            site.until_acknowledged(4)
            ended = None
            while ended is None:
                time.sleep(0.05)
                ended = crew.drain()
            role, pid, status = ended
            chaos.tally.faults[f"SIGTERM: {role}"] += 1
            if status != 0:
                found.append(f"{role} ended with status {status} after SIGTERM")
            waiting = [row for row in read(site.config, instances) if row["state"] == "received"]
            waiting += [row for row in read(site.config, deliveries) if row["state"] == "owed"]
            leased = [row for row in waiting if str(row["owner"]).endswith(f":{pid}")]
            if leased:
                found.append(f"{role} still holds {len(leased)} leases after SIGTERM")
        account = site.settle()
        account.violations += found
        return account


def serve(chaos: Chaos, number: int) -> Account:
    """The real `pleura serve`: its children die and are started again by it; it dies itself, and they die with it."""
    tally = chaos.tally.kills
    orders = Orders(chaos.rng)
    with chaos.site("serve", commits=True) as site, Served(site) as served:
        site.send()
        for turn in range(number):
            role = ("serve", "receive", "analyse", "deliver")[turn % 4]
            before = len(site.plan.died())
            ordered = turn % 2 == 0 or chaos.rng.random() < 0.5
            if ordered:  # taken by that role's next life, which begins now
                site.plan.order(role, *orders.draw(role))
            served.kill(role)
            tally.counted[f"{role}: under serve, at a random time"] += 1
            goal, deadline = site.acknowledged() + 3, time.monotonic() + _ORDER_S * ordered

            def gone_on(goal: int = goal, deadline: float = deadline, before: int = before) -> bool:
                served.keep()
                died = len(site.plan.died()) > before or time.monotonic() > deadline
                return died and site.acknowledged() >= goal

            wait("images flow under serve", gone_on, REST_S)
            site.plan.cancel()
        for point in site.plan.died().values():
            tally.counted[point] += 1
        site.plan.cancel()
        served.restart()
        return served.settle()


class Served:
    """`python -m tests.chaos.victim serve`, started again when it is dead."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process: subprocess.Popen[bytes] | None = None
        self._last: list[int] = []  # its children when it was last seen alive
        self._orphans: list[str] = []

    def __enter__(self) -> Served:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def kill(self, role: str) -> None:
        """kill -9 of the parent or of one child."""
        self.keep()
        assert self._process is not None
        if role == "serve":
            self._process.kill()
            self._process.wait()
            self.keep()
            return
        for pid in self._children():
            with contextlib.suppress(OSError):
                if role in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                    os.kill(pid, signal.SIGKILL)

    def keep(self) -> None:
        """Start it again if it is dead; its children must have died with it."""
        assert self._process is not None
        if self._process.poll() is None:
            self._last = self._children() or self._last
            return
        wait("the roles die with serve", lambda: not any(map(_runs, self._last)), REST_S)
        self._start()

    def restart(self) -> None:
        """In order: it must end with 0."""
        assert self._process is not None
        self.keep()
        self._process.terminate()
        if status := self._process.wait(90):
            self._orphans.append(f"serve ended with status {status} after SIGTERM")
        self._start()

    def settle(self) -> Account:
        """Rest, a clean end, the account."""
        self._site.hush()
        self._site.rest()
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(90)
        account = self._site.check()
        account.violations += self._orphans + ([f"serve ended with status {status}"] if status else [])
        return self._site.chaos.settle(account)

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.victim", "serve", "-c", str(self._site.path)]
        environment = os.environ | {PLAN: str(self._site.plan.folder), "OMP_NUM_THREADS": "1"}
        with (self._site.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._last = []

    def _children(self) -> list[int]:
        assert self._process is not None
        with contextlib.suppress(OSError):
            path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
