"""Provokes the drift alarm by swapping the model of a running node. Takes about a quarter of an
hour.

    python -m tests.soak.swapped_model

A node with the shipped package receives 60 images by C-STORE. Their rows are moved into last week,
which becomes the baseline, so that the test need not wait a week. Then an untrained package
replaces the first, the node reloads, and 60 more images are sent. The alarms on the page, in the
metric, by mail (STARTTLS) and by webhook (HTTPS) are printed with their times.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from daemon.drift import monday_of
from daemon.ledger.weekly import week_of
from inference import package
from tests import models
from tools.peers.certificates import Authority
from tools.peers.harness import Node
from tools.peers.mail import MailServer, WebService
from tools.peers.ports import unused_port
from training import phantom

IMAGES = 60
SIZE = 512
# The node looks for drift every ten minutes.
_PATIENCE_S = 900.0


def main() -> None:
    """Provoke the alarm, and print where it was seen."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = Authority(folder / "authority").issue("house")
        with MailServer(pair) as mail, WebService(pair) as service:
            _provoke(folder, mail, service, folder / "authority" / "ca.pem")


def _provoke(folder: Path, mail: MailServer, service: WebService, ca: Path) -> None:
    serving = folder / "model"
    shutil.copytree(package.folder_of("default"), serving)
    page = unused_port()
    alerts = {
        "mail": {"host": "localhost", "port": mail.port, "ca": str(ca),
                 "sender": "node@h.example", "recipients": ["team@h.example"]},
        "webhook": {"url": f"https://localhost:{service.port}/", "ca": str(ca)},
    }  # fmt: skip
    node = Node(
        folder / "node",
        unused_port(),
        model=str(serving),
        device="cpu",
        web={"port": page},
        alerts=alerts,
        destinations=[{"name": "outbox", "folder": str(folder / "out"), "results": ["SC"]}],
    )

    with node:
        _say("READY, with the shipped package")
        _send(node, folder, first=0)
        _age_by_a_week(folder / "node" / "ledger.db")
        last_week = monday_of(week_of(time.time()) - 1).isoformat()
        _pleura("drift", "-c", node.path, "baseline", "--from", last_week, "--to", last_week)
        _say(f"{IMAGES} images are the baseline")

        aside = folder / "aside"
        serving.rename(aside)
        models.write(serving, models.tiny_networks(), "another")
        _pleura("reload", "-c", node.path)
        swapped_at = time.monotonic()
        _say("another package is in service")
        _send(node, folder, first=IMAGES)
        _say(f"{IMAGES} more images have ended")
        _pleura("drift", "-c", node.path)

        _watch(page, mail, service, swapped_at)


def _watch(page: int, mail: MailServer, service: WebService, swapped_at: float) -> None:
    """Print when each of the four shows the alarm, until all have."""
    url = f"http://127.0.0.1:{page}"
    seen = {
        "metric": lambda: _lines(httpx.get(f"{url}/metrics").text, 'pleura_trouble{kind="drift"'),
        "page": lambda: _lines(httpx.get(url).text, "stability index"),
        "mail": lambda: [str(each.mail["subject"]) for each in mail.received],
        "webhook": lambda: [f"{body['event']}: {body['text']}" for body, _ in service.received],
    }

    deadline = time.monotonic() + _PATIENCE_S

    while seen and time.monotonic() < deadline:
        for name, look in list(seen.items()):
            if found := look():
                _say(f"{name}, {time.monotonic() - swapped_at:.0f} s after the swap:")
                for line in found:
                    _say(f"    {line}")
                del seen[name]
        time.sleep(2)

    _say(f"not seen: {', '.join(seen) or 'nothing'}")


def _send(node: Node, folder: Path, first: int) -> None:
    """Send IMAGES phantoms, half of them with a pneumothorax, and wait until they have ended."""
    files = [
        str(phantom.write(phantom.draw(seed, seed % 2 == 0, SIZE), folder / f"{seed}.dcm"))
        for seed in range(first, first + IMAGES)
    ]
    _pleura(
        "send", *files, "--to", f"127.0.0.1:{node.port}", "--called", "PLEURA", "--calling", "XRAY1"
    )
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        waiting = node.counts()["instances"]["received"]
        if not waiting:
            return
        time.sleep(2)
    raise AssertionError(f"{waiting} images wait; log: {node.log}")


def _age_by_a_week(ledger: Path) -> None:
    with sqlite3.connect(ledger) as conn:
        conn.execute("UPDATE weekly SET week = week - 1")
    conn.close()


def _pleura(*arguments: object) -> None:
    command = [sys.executable, "-m", "daemon.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in (done.stdout + done.stderr).splitlines()[:12]:
        _say(f"    pleura {arguments[0]}: {line[:160]}")


def _lines(text: str, word: str) -> list[str]:
    return [line.strip()[:300] for line in text.splitlines() if word in line][:3]


def _say(words: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
