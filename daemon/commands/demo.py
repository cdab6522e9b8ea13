"""`pleura demo`: a first look at the node's main job, with default settings.

It runs a node on loopback with a folder as its archive, and sends the files by C-STORE as a
modality would.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import pixel_array
from rich.console import Console
from rich.table import Table

from daemon.commands.send import Sent, send
from daemon.ledger import Ledger

_RESULTS_S = 300.0
_AE_TITLE = "PLEURA"


def run(files: Sequence[Path], out: Path) -> int:
    """Run the demo over `files`; everything it makes is under `out`. Returns the exit status."""
    # rich shows a spinner on a terminal, and plain lines in a pipe.
    console = Console()
    node_folder = out / "node"
    results = out / "results"
    for folder in (node_folder, results):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    port = _free_port()
    settings = node_folder / "pleura.yaml"
    settings.write_text(_settings(node_folder, results, port), encoding="utf-8")

    log = (node_folder / "log.txt").open("w", encoding="utf-8")
    command = _pleura("serve", settings)
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as node:
        try:
            with console.status("starting a node on loopback"):
                assert node.stdout is not None
                if node.stdout.readline().strip() != "READY":
                    console.print(f"the node did not start; its log: {log.name}")
                    return 1
            console.print(f"node READY as {_AE_TITLE} on 127.0.0.1:{port}")

            answers: list[Sent] = []
            for sent in send(files, ("127.0.0.1", port), _AE_TITLE, "DEMO"):
                console.print(str(sent), soft_wrap=True)
                answers.append(sent)
            with console.status("waiting for the results"):
                counts = _wait(settings)
        finally:
            node.terminate()
            node.wait()

    return _report(console, files, answers, node_folder, counts)


def _settings(node_folder: Path, results: Path, port: int) -> str:
    destination = {"name": "folder", "folder": str(results.resolve()), "results": ["SEG", "SC"]}
    settings = {
        "ae_title": _AE_TITLE,
        "host": "127.0.0.1",
        "port": port,
        "destinations": [destination],
        "spool": str((node_folder / "spool").resolve()),
        "ledger": _ledger_url(node_folder),
    }
    return yaml.safe_dump(settings, sort_keys=False)


def _pleura(command: str, settings: Path, *options: str) -> list[str]:
    # -P: nothing is imported from the working directory.
    return [sys.executable, "-P", "-m", "daemon.cli", command, *options, "-c", str(settings)]


def _wait(settings: Path) -> dict[str, dict[str, int]]:
    """The counts of `pleura status --json`, once no image waits and no delivery is owed.

    An image is in the counts before its C-STORE is answered.
    """
    command = _pleura("status", settings, "--json")
    deadline = time.monotonic() + _RESULTS_S
    while True:
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        counts: dict[str, dict[str, int]] = json.loads(answer)
        is_done = counts["instances"]["received"] == 0 and counts["deliveries"]["owed"] == 0
        if is_done or time.monotonic() > deadline:
            return counts
        time.sleep(0.2)


def _report(
    console: Console,
    files: Sequence[Path],
    answers: Sequence[Sent],
    node_folder: Path,
    counts: dict[str, dict[str, int]],
) -> int:
    """The table of results and the picture of the first overlay; 1 where an image has no result."""
    table = Table(title="what came out", title_justify="left")
    for column in ("image", "state", "answer", "objects in the folder"):
        table.add_column(column, overflow="fold")
    with closing(Ledger(_ledger_url(node_folder))) as ledger:
        for row in rows(files, answers, ledger):
            table.add_row(*row)
    console.print(table)
    for subject in ("instances", "deliveries"):
        words = ", ".join(f"{number} {state}" for state, number in counts[subject].items())
        console.print(f"{subject}: {words}", soft_wrap=True)

    folder = node_folder.parent / "results"
    objects = [dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    console.print(f"objects: {folder}", soft_wrap=True)
    overlays = [made for made in objects if made.Modality == "OT"]
    if overlays:
        outlined = {_source(made) for made in objects if made.Modality == "SEG"}
        picture = node_folder.parent / "overlay.png"
        save_png(max(overlays, key=lambda made: _source(made) in outlined), picture)
        console.print(f"overlay picture: {picture}", soft_wrap=True)

    console.print("Research use only - not for diagnosis.")
    unfinished = counts["instances"]["received"] + counts["deliveries"]["owed"]
    failed = counts["instances"]["failed"]
    is_whole = len(answers) == len(files) and all(sent.ok for sent in answers)
    return 0 if is_whole and not unfinished and not failed else 1


def rows(
    files: Sequence[Path], answers: Sequence[Sent], ledger: Ledger
) -> list[tuple[str, str, str, str]]:
    """A row for each file, in the order given. A file that comes twice has two rows."""
    # send() yields the files that hold no object first.
    left: dict[Path | None, list[Sent]] = {}
    for sent in answers:
        left.setdefault(sent.file, []).append(sent)

    rows = []
    seen: Counter[str] = Counter()
    for file in files:
        waiting = left.get(file) or [Sent(file, None, "not sent")]
        sent = waiting.pop(0)
        if not sent.ok:
            why = sent.why if sent.status is None else str(sent).removeprefix(f"{file}: ")
            rows.append((file.name, "not received", why, "none"))
            continue
        uid = sent.sop_instance_uid
        endings = ledger.inspect.history(uid)
        ending = endings[min(seen[uid], len(endings) - 1)]
        seen[uid] += 1
        rows.append((file.name, ending["state"], _answer(ending), _kinds(ending)))
    return rows


def _kinds(ending: dict[str, Any]) -> str:
    stored = [result["kind"] for result in ending["results"] if result["state"] == "stored"]
    return ", ".join(stored) or "none"


def _answer(ending: dict[str, Any]) -> str:
    if ending["positive"] is None:
        return ending["reason"] or ""
    found = "pneumothorax suspected" if ending["positive"] else "not detected"
    return f"{found}, score {ending['probability']:.2f}"


def _source(made: Dataset) -> str:
    return str(
        made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    )


def save_png(overlay: Dataset, path: Path) -> None:
    """The pixels of a received Secondary Capture as a PNG."""
    Image.fromarray(pixel_array(overlay)).save(path)


def _ledger_url(node_folder: Path) -> str:
    return f"sqlite:///{(node_folder / 'ledger.db').resolve()}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
