"""From C-STORE success to every result in the archive, beside the least that it could take.

One image at a time, by alternate turns in one run, against one Orthanc on loopback:
- node: storescu's exit -> Orthanc holds all of the image's objects, through `pleura serve`;
- bare: the same image decoded, answered, its objects encoded and checked in this process (no spool,
  no ledger), then sent over an association that is open already.
Both begin with an archive that holds none of the objects, and both run plain torch on as many
threads. While the node works nothing asks: the archive itself calls this process with each object
that it has stored (a Lua script of Orthanc's). A client that asked it every millisecond took up to
a core from the node, and looked like the node's own time.

    python -m benchmarks.end_to_end [--images N] [--data DIR]

Prints medians in milliseconds, the ratio of medians (wanted: 1.15 or less), and where the node's
time goes, step by step, as `pleura trace` tells it. Absolute times are of this machine and its
noise.
"""

# What torch reads once is set before it is imported.
# ruff: noqa: E402

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from daemon import torch_process

# As the analyse role does, before torch is loaded: both sides wait and keep memory alike.
torch_process.prepare()

import torch
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from daemon.commands import trace
from daemon.dicom.link import Link, Remote, proposal
from daemon.dicom.outgoing import Outgoing
from daemon.ledger.view import View
from inference import package
from inference.engine import Engine
from inference.finding import Result
from inference.pipeline import AnalysisSettings, Pipeline
from inference.results.kinds import KINDS
from tools.peers.harness import Node, Orthanc, storescu
from tools.peers.ports import unused_port

REPOSITORY = Path(__file__).resolve().parent.parent
_KINDS = ("SEG", "SC")
_LONGEST_S = 240.0


class Arrivals:
    """What the archive says that it has stored: it calls us, with a script of its own."""

    def __init__(self, folder: Path) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._last = 0.0

        def note() -> None:
            with self._changed:
                self._count += 1
                self._last = time.perf_counter()
                self._changed.notify_all()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                note()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        self.script = folder / "stored.lua"
        self.script.write_text(f'function OnStoredInstance(id) HttpPost("{url}", id) end\n')

    def settled(self, count: int) -> None:
        """Return once `count` objects have come since the last call, and forget them."""
        self.last_of(count)
        with self._changed:
            self._count = 0

    def last_of(self, count: int) -> float:
        """When (time.perf_counter) the last of `count` objects came."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._count >= count, _LONGEST_S)
            assert came, f"{self._count} of {count} objects in the archive"
            return self._last


class Bare:
    """The work and the sending alone: nothing between them, the association open."""

    def __init__(self, archive: Orthanc, folder: Path) -> None:
        engine = Engine(package.load(package.default_folder()), torch.device("cpu"))
        self._pipeline = Pipeline(engine, AnalysisSettings())
        self._pipeline.warm_up()
        self._folder = folder
        folder.mkdir()
        objects = [
            (str(KINDS[name].sop_class_uid), str(KINDS[name].transfer_syntax_uid))
            for name in _KINDS
        ]
        remote = Remote(archive.ae_title, "127.0.0.1", archive.dicom_port)
        self._link = Link.open("BENCHMARK", remote, proposal(objects))
        self.works: list[float] = []
        self.sends: list[float] = []

    def run(self, path: Path) -> tuple[float, int]:
        """One image; returns its seconds, and how many objects it has."""
        data = path.read_bytes()
        began = time.perf_counter()
        (outcome,) = self._pipeline.analyse([data], datetime.now().astimezone())
        worked = time.perf_counter()

        # A file is this sender's input: writing it is no part of the least that it could take.
        outgoing = [self._written(result) for result in outcome.results]
        sending = time.perf_counter()
        for each in outgoing:
            answer = self._link.store(each)
            assert answer.status == 0, answer
        sent = time.perf_counter()

        self.works.append(worked - began)
        self.sends.append(sent - sending)
        return worked - began + sent - sending, len(outgoing)

    def close(self) -> None:
        self._link.__exit__(None, None, None)

    def _written(self, result: Result) -> Outgoing:
        path = self._folder / result.kind
        path.write_bytes(result.data)
        uids = (result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax_uid)
        return Outgoing(path, *uids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    options = parser.parse_args()
    # The first opens what stays open, and is not counted.
    every = sorted((options.data / "siim" / "dicom").glob("*.dcm"))
    first, *files = every[:: max(1, len(every) // (options.images + 1))][: options.images + 1]
    programs = {name: _program(name) for name in ("Orthanc", "storescu")}

    through: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ports = (unused_port(), unused_port())
        arrivals = Arrivals(Path(folder))
        scripts = [str(arrivals.script)]
        archive = Orthanc(programs["Orthanc"], Path(folder) / "orthanc", ports, LuaScripts=scripts)
        node = Node(Path(folder) / "node", unused_port(), destinations=[archive.destination()])
        with archive, node:
            alone = Bare(archive, Path(folder) / "bare")
            objects = {path: alone.run(path)[1] for path in (first, *files)}
            arrivals.settled(sum(objects.values()))

            def ours(path: Path) -> None:
                _empty(archive)
                through.append(_node(node, arrivals, programs["storescu"], path, objects[path]))
                arrivals.settled(objects[path])

            def theirs(path: Path) -> None:
                _empty(archive)
                bare.append(alone.run(path)[0])
                arrivals.settled(objects[path])

            ours(first)
            through.clear()
            alone.works.clear()
            alone.sends.clear()
            for number, path in enumerate(files):
                # Each side goes first as often as the other.
                for turn in (ours, theirs) if number % 2 else (theirs, ours):
                    turn(path)
            alone.close()
            steps = _steps(node, files)

    results = sum(objects[path] for path in files)
    print(f"{len(files)} images, {results} result objects, {os.cpu_count()} cores")
    works, sends = statistics.median(alone.works) * 1e3, statistics.median(alone.sends) * 1e3
    bare_ms, through_ms = statistics.median(bare) * 1e3, statistics.median(through) * 1e3
    pairs = statistics.median(ours / theirs for ours, theirs in zip(through, bare, strict=True))
    print(f"bare work {works:.1f} ms, its objects over an open association {sends:.1f} ms")
    print(f"bare work and sending              median {bare_ms:7.1f} ms")
    print(f"C-STORE success -> in the archive  median {through_ms:7.1f} ms")
    print(f"ratio of medians {through_ms / bare_ms:.2f} (median of the pairs {pairs:.2f})")
    print("\nstep of the node, median milliseconds since the step before:")
    for words, milliseconds in steps:
        print(f"{milliseconds:7.1f}  {words}")


def _program(name: str) -> str:
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        raise SystemExit(f"{name} is not installed (apt-get install dcmtk orthanc)")
    return path


def _empty(archive: Orthanc) -> None:
    for name in archive.get("/instances"):
        archive.delete(name)


def _node(node: Node, arrivals: Arrivals, program: str, path: Path, objects: int) -> float:
    """Seconds from storescu's exit until the archive holds the objects of one image."""
    syntax = dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    sent = storescu(program, node, [path], "-xy" if syntax == JPEGBaseline8Bit else "-xt")
    began = time.perf_counter()
    assert sent.returncode == 0, sent.stderr
    return arrivals.last_of(objects) - began


def _steps(node: Node, files: list[Path]) -> list[tuple[str, float]]:
    """Each step of the node in words, in order, and its median milliseconds over all images."""
    took: dict[str, list[float]] = {}
    places: dict[str, list[int]] = {}
    view = View.open(node.settings["ledger"])
    uids = [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]
    for (image,) in trace.found(view, uids).values():
        before = 0.0
        for place, event in enumerate(image["events"]):
            # Its words name the reason and the time of one image.
            is_end = event["event"] in ("analysed", "not_analysed", "failed")
            words = "the answer's transaction began" if is_end else event["words"]
            took.setdefault(words, []).append(event["milliseconds"] - before)
            places.setdefault(words, []).append(place)
            before = event["milliseconds"]
    view.close()

    ordered = sorted(took, key=lambda words: statistics.mean(places[words]))
    return [(words, statistics.median(took[words])) for words in ordered]


if __name__ == "__main__":
    main()
