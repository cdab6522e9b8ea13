"""Long runs of a node with footprints taken: associations, and images from socket to folder."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from daemon.commands.send import send
from tests.chaos.images import Templates, chests, quick_model
from tests.peers.footprint import Course
from tests.peers.hostile import Receive, copy, sample
from tools.peers.harness import Node
from tools.peers.waiting import wait_until

# Footprints taken over a run.
_LOOKS = 40
_AT_ONCE = 4
# Images that may wait. Without a limit, the growing queue would look like a leak.
_AHEAD = 40
_SIDE_PX = 96
ROLES = ("receive", "analyse", "deliver")


def associations(folder: Path, port: int, number: int) -> Course:
    """Send `number` small images to `pleura receive`, each in its own association."""
    with Receive(folder, port) as node:
        template = sample(folder).read_bytes()
        course = Course(node.process.pid)

        def send_image(which: int) -> None:
            path = copy(template, folder / f"{which % _AT_ONCE}.dcm", which)
            (sent,) = send([path], ("127.0.0.1", port), "PLEURA", "MODALITY")
            assert sent.ok, sent

        for first in range(0, number, step := number // _LOOKS):
            _side_by_side(send_image, first, first + step)
            course.look(first + step)
        assert len(node.rows()) == number
    return course


def images(folder: Path, port: int, number: int) -> dict[str, Course]:
    """Send `number` images through a whole node with a quick model into a folder.

    Returns the footprints of each role's process and of `serve`.
    """
    phantoms = chests(folder, side_px=_SIDE_PX)
    outbox = folder / "outbox"
    node = Node(
        folder / "node",
        port,
        model=str(quick_model(folder / "models", phantoms)),
        device="cpu",
        engine="auto",
        overlay={"longest_side_px": None},
        destinations=[{"name": "outbox", "folder": str(outbox), "results": ["SEG", "SC"]}],
    )

    templates = Templates(phantoms, random.Random(number))
    path = folder / "next.dcm"

    with node:
        assert node.process is not None
        pids = {role: node.role_pid(role) for role in ROLES} | {"serve": node.process.pid}
        courses = {role: Course(pid) for role, pid in pids.items() if pid is not None}
        results = 0

        for first in range(0, number, step := number // _LOOKS):
            for _ in range(step):
                templates.draw().dataset.save_as(path)
                (sent,) = send([path], ("127.0.0.1", port), "PLEURA", "MODALITY")
                assert sent.ok, sent
            wait_until("most are done", lambda: _waiting(folder / "node") < _AHEAD)
            results += _taken_away(outbox)
            for course in courses.values():
                course.look(first + step)

        counts = node.wait_done(number)
        results += _taken_away(outbox)

        # No process has been restarted.
        assert {role: node.role_pid(role) for role in ROLES} | {"serve": node.process.pid} == pids
        assert counts["instances"] == {
            "received": 0,
            "analysed": number,
            "not_analysed": 0,
            "failed": 0,
        }
        assert counts["deliveries"] == {"owed": 0, "stored": results, "committed": 0, "refused": 0}
        # A positive gives two results, any other image one: both kinds occurred.
        assert number < results < 2 * number
    return courses


def _waiting(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "ledger.db", timeout=30)) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM instances WHERE state = 'received'"
        ).fetchone()
    return int(count)


def _taken_away(outbox: Path) -> int:
    """Delete the results in the folder, as an archive that picks them up. Returns their number."""
    found = [*outbox.glob("*.dcm")]
    for path in found:
        path.unlink()
    return len(found)


def _side_by_side(act: Callable[[int], None], first: int, end: int) -> None:
    """Call act(first) to act(end - 1) in `_AT_ONCE` threads."""

    def act_on_share(offset: int) -> None:
        for which in range(first + offset, end, _AT_ONCE):
            act(which)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(act_on_share, range(_AT_ONCE)))
