"""Real processes for tests and benchmarks: a Pleura node, an Orthanc, a DCMTK sender.

All use free loopback ports and temporary folders.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from daemon.ledger import Inspection
from tools.peers.waiting import DEADLINE_S, wait_until


class Node:
    """`pleura serve` on a free port with its own spool and ledger."""

    def __init__(
        self, folder: Path, port: int, prefix: Sequence[str] = (), **settings: Any
    ) -> None:
        """`prefix`: words before the command, such as those that run it in a network namespace."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port
        self.path = folder / "pleura.yaml"
        self.log = folder / "log.txt"
        self._prefix = prefix

        self.settings: dict[str, Any] = {
            "ae_title": "PLEURA",
            "host": "127.0.0.1",
            "port": port,
            "spool": str(folder / "spool"),
            "ledger": f"sqlite:///{folder / 'ledger.db'}",
            "spool_reserve_mb": 1,
            # A node that runs for seconds has no time to choose an engine.
            "engine": "torch",
        } | settings
        self.process: subprocess.Popen[str] | None = None

    def write_settings(self) -> None:
        """Write `settings` as they are now to `path`."""
        self.path.write_text(yaml.safe_dump(self.settings))

    def start(self) -> Node:
        """Start the node; returns when it is READY."""
        self.write_settings()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "daemon.cli", "serve", "-c", str(self.path)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

        process = self.process
        ready = _said_ready(process)
        try:
            wait_until(
                f"READY; log: {self.log}", lambda: ready.is_set() or process.poll() is not None
            )
        except AssertionError:
            self.stop(signal.SIGKILL)
            raise

        assert process.poll() is None, self.log.read_text()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE_S)

        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return status

    def role_pid(self, role: str) -> int | None:
        """The process of one role, a child of serve."""
        assert self.process is not None
        serve = self.process.pid
        children = Path(f"/proc/{serve}/task/{serve}/children").read_text().split()

        for pid in children:
            try:
                if role in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                    return int(pid)
            except OSError:
                continue
        return None

    def status(self) -> dict[str, dict[str, int]]:
        """The counts that `pleura status` prints."""
        answer = subprocess.run(
            [sys.executable, "-m", "daemon.cli", "status", "--json", "-c", str(self.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        counts: dict[str, dict[str, int]] = json.loads(answer.stdout)
        return counts

    def counts(self) -> dict[str, dict[str, int]]:
        """The same counts, read in this process, because tests poll them."""
        inspection = Inspection.open(self.settings["ledger"])
        try:
            return inspection.counts()
        finally:
            inspection.close()

    def wait_done(self, images: int) -> dict[str, dict[str, int]]:
        """Wait until `images` have ended and no result is owed. Returns the counts."""

        def done() -> dict[str, dict[str, int]] | None:
            counts = inspection.counts()
            ended = sum(counts["instances"].values()) - counts["instances"]["received"]
            return counts if ended >= images and not counts["deliveries"]["owed"] else None

        inspection = Inspection.open(self.settings["ledger"])
        try:
            counts: dict[str, dict[str, int]] = wait_until(
                f"{images} images done; log: {self.log}", done
            )
        finally:
            inspection.close()
        return counts

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.stop()


def _said_ready(process: subprocess.Popen[str]) -> threading.Event:
    """An event that is set when the process prints READY. A thread reads on, so that the pipe never
    fills up.
    """
    ready = threading.Event()
    assert process.stdout is not None
    stdout = process.stdout

    def listen() -> None:
        for line in stdout:
            if line.strip() == "READY":
                ready.set()

    threading.Thread(target=listen, daemon=True).start()
    return ready


class Orthanc:
    """A real Orthanc as archive, whose REST API shows its contents."""

    def __init__(
        self,
        program: str,
        folder: Path,
        ports: tuple[int, int],
        node_port: int | None = None,
        **more: Any,
    ) -> None:
        """`node_port`: the node's port, to which Orthanc reports storage commitment. `more`:
        further keys of Orthanc's configuration.
        """
        self.dicom_port, self.http_port = ports
        self.ae_title = "ORTHANC"
        folder.mkdir(parents=True, exist_ok=True)

        configuration = {
            "Name": "archive",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": self.ae_title,
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "Plugins": [],
            "DicomModalities": {"pleura": ["PLEURA", "127.0.0.1", node_port]} if node_port else {},
        } | more

        self._path = folder / "orthanc.json"
        self._path.write_text(json.dumps(configuration))
        self._program = program
        self._log = folder / "orthanc.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Orthanc:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._path)],
                stdout=log,
                stderr=log,
                env=os.environ | {"TCP_NODELAY": "1"},
            )

        try:
            wait_until("Orthanc answers, or ends", lambda: self._ended() or self._answers())
        except AssertionError:
            self._process.kill()
            self._process.wait(DEADLINE_S)

        if self._ended():
            words = self._log.read_text(errors="replace")
            raise AssertionError(f"Orthanc did not start; its log:\n{words[-4000:]}")

        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(DEADLINE_S)

    def destination(self, **more: Any) -> dict[str, Any]:
        """This archive's entry in `destinations`."""
        return {
            "name": "pacs",
            "ae_title": self.ae_title,
            "host": "127.0.0.1",
            "port": self.dicom_port,
        } | more

    def get(self, path: str) -> Any:
        """The answer of the REST API for a path, parsed."""
        return json.loads(self._read(path))

    def instances(self) -> dict[str, dict[str, Any]]:
        """Main tags, Modality and StudyInstanceUID of every object, by SOP Instance UID."""
        held = {}
        for name in self.get("/instances"):
            tags = self.get(f"/instances/{name}/simplified-tags")
            held[tags["SOPInstanceUID"]] = tags | {"orthanc": name}
        return held

    def file(self, orthanc_name: str) -> bytes:
        """The bytes of an object as a file."""
        return self._read(f"/instances/{orthanc_name}/file")

    def send(self, orthanc_name: str, modality: str = "pleura") -> dict[str, Any]:
        """C-STORE an object to a modality that Orthanc knows. Raises HTTPError if it fails."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/modalities/{modality}/store",
            data=json.dumps(orthanc_name).encode(),
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told

    def delete(self, orthanc_name: str) -> None:
        """Remove an object from the archive."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/instances/{orthanc_name}", method="DELETE"
        )
        urllib.request.urlopen(request, timeout=30).close()

    def _read(self, path: str) -> bytes:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.http_port}{path}", timeout=30
        ) as answer:
            body: bytes = answer.read()
        return body

    def _ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            self.get("/system")
        except OSError:
            return False
        return True


def storescu(
    program: str, node: Node, files: Iterable[Path], *options: str
) -> subprocess.CompletedProcess[str]:
    """DCMTK's storescu as a modality.

    `-xs`, `-xy`, ... propose one compressed transfer syntax beside the uncompressed.
    """
    titles = ("-aec", "PLEURA", "-aet", "XRAY1")
    address = ("127.0.0.1", str(node.port))
    return subprocess.run(
        [program, *options, *titles, *address, *map(str, files)],
        capture_output=True,
        text=True,
        env=os.environ | {"TCP_NODELAY": "1"},
    )


def dicom_errors(program: str, files: Sequence[Path]) -> list[str]:
    """dciodvfy's error lines for files, each with its file's name."""
    errors = []
    for path in files:
        answer = subprocess.run([program, str(path)], capture_output=True, text=True)
        lines = (answer.stdout + answer.stderr).splitlines()
        errors += [f"{path.name}: {line}" for line in lines if line.startswith("Error")]
    return errors
