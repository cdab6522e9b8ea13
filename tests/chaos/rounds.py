"""The rounds. In each, images flow through a node while faults happen; then the node comes to rest
and everything is accounted for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daemon.config import Config
from daemon.ledger.schema import deliveries, instances, results
from daemon.spool import Spool
from tests.chaos.archive import MODES
from tests.chaos.crew import Crew, Orders
from tests.chaos.invariant import Account
from tests.chaos.served import Served
from tests.chaos.site import HOPELESS, REST_S, Chaos, Site, wait
from tools.peers.ports import unused_port
from tools.peers.postgres import Postgres

# Images that a node must still accept after its round
_MORE = 5
# The time that a victim under serve has to reach its point
_ORDER_S = 12.0
_MIB = 1024 * 1024


def kills(chaos: Chaos, number: int, **settings: Any) -> Account:
    """All roles are killed at named points and at random times, while the archive misbehaves in
    every way.
    """
    with chaos.site("kills", commits=True, **settings) as site:
        crew = site.man(kills=number)
        site.send()
        while chaos.tally.kills.done < chaos.tally.kills.wanted and len(crew.unexpected) < HOPELESS:
            mood(
                site,
                chaos.rng.choice(("well", "well", "well", "down", *MODES)),
                chaos.rng.uniform(0.2, 1.5),
            )
        return site.settle_after(_MORE)


def moods(chaos: Chaos) -> Account:
    """The archive misbehaves in each way for a while; no role is killed."""
    with chaos.site("archive", commits=True) as site:
        site.man()
        site.send()
        site.until_acknowledged(5)
        for mode in (*MODES, "down"):
            mood(site, mode, 2.0)
        return site.settle()


def mood(site: Site, mode: str, seconds: float) -> None:
    """Let the archive misbehave for some seconds, then work well again."""
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
    """All roles die at once, and the newest files are truncated although they were synced, as on a
    disk that reports a sync too early.
    """
    with chaos.site("power-loss") as site:
        site.archive.kill()
        site.man(("receive", "analyse"))
        site.send(1)
        wait("results wait", lambda: results_wait(site, 8), 60)

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


def results_wait(site: Site, number: int) -> bool:
    """True if at least `number` results are owed."""
    try:
        return site.counts()["deliveries"]["owed"] >= number
    except Exception:
        # The ledger does not exist yet.
        return False


def damage(site: Site, rng: random.Random) -> set[str]:
    """Truncate three received images and three results in the spool, and leave unfinished files.

    Returns the names of the truncated files.
    """

    waiting = [
        row["spool_name"] for row in read(site.config, instances) if row["state"] == "received"
    ]
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
    """Spool, ledger and folder destination are on small disks, which fill up in turn, some of them
    to the last byte.
    """
    with ExitStack() as disks:
        base = chaos.folder / "disks"
        folders = {
            name: disks.enter_context(small_disk(base / name, 64))
            for name in ("spool", "ledger", "outbox")
        }
        outbox = {"name": "outbox", "folder": str(folders["outbox"] / "in"), "results": ["SC"]}
        with chaos.site(
            "disks",
            spool=str(folders["spool"] / "spool"),
            ledger=f"sqlite:///{folders['ledger'] / 'ledger.db'}",
            spool_reserve_mb=0,
            # Without quick retention, finished images would fill the disks.
            retention={"keep_days": 5 / 86400, "free_mb": 0},
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
    """A separate small file system. Raises PermissionError if it cannot be mounted."""
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
    """Leave only `left_bytes` bytes free in a file system while the block runs."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    size = max(0, room.f_bavail * room.f_frsize - left_bytes)
    # The node writes at the same time, so the disk may be full earlier.
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        for _ in range(size // _MIB):
            file.write(bytes(_MIB))
        file.write(bytes(size % _MIB))
    try:
        yield
    finally:
        ballast.unlink()


def postgresql(chaos: Chaos, restarts: int, number_of_kills: int) -> Account:
    """PostgreSQL is restarted, cleanly and after a crash, while images flow and roles are killed."""
    with Postgres(chaos.folder / "postgres", unused_port()) as server:
        url = server.create_database(f"node_{chaos.rng.getrandbits(32):08x}")
        # A role that starts while the server is down ends itself, and is restarted.
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
    """The ledger's clock is set back and forth by seconds to days, while roles that hold leases are
    killed.
    """
    with chaos.site("clock") as site:
        crew = site.man(kills=number_of_kills)
        site.send()

        offset_s = 0.0
        for _ in range(steps):
            site.until_acknowledged(4)
            offset_s += chaos.rng.choice(
                (-86400.0 * 3, -86400.0, -7200.0, -600.0, -30.0, 30.0, 5400.0)
            )
            site.plan.set_clock(offset_s)
            chaos.tally.faults["clock stepped"] += 1
        until_killed(chaos, crew)
        return site.settle_after(_MORE)


def until_killed(chaos: Chaos, crew: Crew) -> None:
    """Wait for the wanted number of kills, or until too many roles have ended by themselves."""
    while chaos.tally.kills.done < chaos.tally.kills.wanted and len(crew.unexpected) < HOPELESS:
        time.sleep(0.2)


def drains(chaos: Chaos, times: int) -> Account:
    """SIGTERM while images flow: a role finishes its work in progress, ends with status 0, and
    keeps no lease.
    """
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
    """The real `pleura serve` restarts children that are killed; when serve itself is killed, they
    die with it.
    """
    tally = chaos.tally.kills
    orders = Orders(chaos.rng)
    with chaos.site("serve", commits=True) as site, Served(site) as served:
        site.send()
        for turn in range(number):
            role = ("serve", "receive", "analyse", "deliver")[turn % 4]
            before = len(site.plan.died())
            ordered = turn % 2 == 0 or chaos.rng.random() < 0.5
            # The role's next process takes the order; it starts after the kill.
            if ordered:
                site.plan.order(role, *orders.draw(role))
            served.kill(role)
            tally.counted[f"{role}: under serve, at a random time"] += 1

            goal = site.acknowledged() + 3
            deadline = time.monotonic() + _ORDER_S * ordered

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
