"""`pleura demo`: the main job on an embedded default, for eyes that have not seen it before.

A node of its own on loopback with a folder as its archive; the files go in over C-STORE as from a modality.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import pixel_array
from rich.console import Console
from rich.table import Table

from daemon.commands.send import send
from daemon.ledger import Ledger

_RESULTS_S = 300.0
_AE_TITLE = "PLEURA"


def run(files: Sequence[Path], out: Path) -> int:
    """Run the demo over `files`; everything it makes is under `out`. Returns the exit status."""
    console = Console()
    # Terminal or pipe, rich knows: a spinner there, plain lines here.
    node_folder, results = out / "node", out / "results"
    for folder in (node_folder, results):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    settings = node_folder / "pleura.yaml"
    port = _free_port()
    settings.write_text(
        yaml.safe_dump(
            {
                "ae_title": _AE_TITLE,
                "host": "127.0.0.1",
                "port": port,
                "destinations": [
                    {"name": "folder", "folder": str(results.resolve()), "results": ["SEG", "SC"]}
                ],
                "spool": str((node_folder / "spool").resolve()),
                "ledger": _ledger_url(node_folder),
            },
            sort_keys=False,
        ),
        encoding="utf-8",
    )
    log = (node_folder / "log.txt").open("w", encoding="utf-8")
    command = [sys.executable, "-m", "daemon.cli", "serve", "-c", str(settings)]
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as node:
        try:
            with console.status("starting a node on loopback"):
                assert node.stdout is not None
                if node.stdout.readline().strip() != "READY":
                    console.print(f"the node did not start; its log: {log.name}")
                    return 1
            console.print(f"node READY as {_AE_TITLE} on 127.0.0.1:{port}")
            refused = 0
            for answer in send(files, ("127.0.0.1", port), _AE_TITLE, "DEMO"):
                console.print(str(answer), soft_wrap=True)
                refused += not answer.ok
            with console.status("waiting for the results"):
                counts = _wait(settings, len(files) - refused)
        finally:
            node.terminate()
            node.wait()
    return _report(console, files, node_folder, counts)


def _wait(settings: Path, wanted: int) -> dict[str, dict[str, int]]:
    """`pleura status --json` until every image has its end and every delivery is made."""
    command = [sys.executable, "-m", "daemon.cli", "status", "--json", "-c", str(settings)]
    deadline = time.monotonic() + _RESULTS_S
    while True:
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        counts: dict[str, dict[str, int]] = json.loads(answer)
        instances, deliveries = counts["instances"], counts["deliveries"]
        ended = sum(instances.values()) - instances["received"]
        if (ended >= wanted and deliveries["owed"] == 0) or time.monotonic() > deadline:
            return counts
        time.sleep(0.2)


def _report(
    console: Console, files: Sequence[Path], node_folder: Path, counts: dict[str, dict[str, int]]
) -> int:
    """The table of what came out and the picture of the first overlay; 1 when something did not arrive."""
    ledger = Ledger(_ledger_url(node_folder))
    table = Table(title="what came out", title_justify="left")
    for column in ("image", "state", "answer", "objects in the folder"):
        table.add_column(column, overflow="fold")
    for file in files:
        for ending in ledger.inspect.history(
            str(dcmread(file, stop_before_pixels=True, force=True).get("SOPInstanceUID"))
        ):
            kinds = ", ".join(
                result["kind"] for result in ending["results"] if result["state"] == "stored"
            )
            table.add_row(file.name, ending["state"], _answer(ending), kinds or "none")
    ledger.close()
    console.print(table)
    console.print(json.dumps(counts), soft_wrap=True)
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
    missing = (
        counts["instances"]["received"]
        + counts["instances"]["failed"]
        + counts["deliveries"]["owed"]
    )
    return 1 if missing or sum(counts["instances"].values()) < len(files) else 0


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
