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
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from daemon import torch_process

# As the analyse role does, before torch is loaded: both sides wait and keep memory alike.
torch_process.prepare()

import torch
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from benchmarks.measurement import (
    add_data_option,
    command_line,
    machine,
    median_ms,
    median_ratio,
    program,
    rotated,
    xray_files,
)
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

_KINDS = ("SEG", "SC")
_LONGEST_S = 240.0


def main() -> None:
    """Print the times of both sides, their ratio, and the steps of the node."""
    options = _options()
    # The first opens what stays open, and is not counted.
    first, *files = _spread(xray_files(options.data), options.images)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrivals = Arrivals(folder)
        archive = _archive(folder / "orthanc", arrivals)
        node = Node(folder / "node", unused_port(), destinations=[archive.destination()])

        with archive, node:
            bare = Bare(archive, folder / "bare")
            sides = Sides(archive, arrivals, node, bare)
            sides.warm_up(first, files)

            for number, path in enumerate(files):
                # Each side goes first as often as the other.
                for run in rotated([sides.run_bare, sides.run_node], number):
                    run(path)

            bare.close()
            steps = _steps(node, files)

    results = sum(sides.objects[path] for path in files)
    print(f"{len(files)} images, {results} result objects, {machine()}")
    _print(sides)
    _print_steps(steps)


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=20)
    add_data_option(parser)
    return parser.parse_args()


def _spread(paths: Sequence[Path], count: int) -> Sequence[Path]:
    """`count` of the paths and one more, evenly spread."""
    return paths[:: max(1, len(paths) // (count + 1))][: count + 1]


def _archive(folder: Path, arrivals: Arrivals) -> Orthanc:
    ports = (unused_port(), unused_port())
    return Orthanc(program("Orthanc"), folder, ports, LuaScripts=[str(arrivals.script)])


def _print(sides: Sides) -> None:
    bare_ms, node_ms = median_ms(sides.bare_s), median_ms(sides.node_s)
    pairs = median_ratio(sides.node_s, sides.bare_s)

    print(
        f"bare work {median_ms(sides.bare.work_s):.1f} ms, its objects over an open association "
        f"{median_ms(sides.bare.sending_s):.1f} ms"
    )
    print(f"bare work and sending              median {bare_ms:7.1f} ms")
    print(f"C-STORE success -> in the archive  median {node_ms:7.1f} ms")
    print(f"ratio of medians {node_ms / bare_ms:.2f} (median of the pairs {pairs:.2f})")


def _print_steps(steps: Sequence[tuple[str, float]]) -> None:
    print("\nstep of the node, median milliseconds since the step before:")
    for words, milliseconds in steps:
        print(f"{milliseconds:7.1f}  {words}")


class Arrivals:
    """What the archive says that it has stored: it calls us, with a script of its own."""

    def __init__(self, folder: Path) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._last = 0.0

        server = HTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"

        self.script = folder / "stored.lua"
        self.script.write_text(f'function OnStoredInstance(id) HttpPost("{url}", id) end\n')

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        note = self._note

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                note()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing is printed."""

        return Handler

    def _note(self) -> None:
        with self._changed:
            self._count += 1
            self._last = time.perf_counter()
            self._changed.notify_all()

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

        kinds = [KINDS[name] for name in _KINDS]
        contexts = [(str(kind.sop_class_uid), str(kind.transfer_syntax_uid)) for kind in kinds]
        remote = Remote(archive.ae_title, "127.0.0.1", archive.dicom_port)
        self._link = Link.open("BENCHMARK", remote, proposal(contexts))

        self.work_s: list[float] = []
        self.sending_s: list[float] = []

    def run(self, path: Path) -> tuple[float, int]:
        """Analyse and send one image; returns its seconds, and how many objects it has."""
        data = path.read_bytes()
        began = time.perf_counter()
        (outcome,) = self._pipeline.analyse([data], datetime.now().astimezone())
        work_s = time.perf_counter() - began

        # A file is this sender's input: writing it is no part of the least that it could take.
        outgoing = [self._written(result) for result in outcome.results]
        began = time.perf_counter()
        for result in outgoing:
            answer = self._link.store(result)
            assert answer.status == 0, answer
        sending_s = time.perf_counter() - began

        self.work_s.append(work_s)
        self.sending_s.append(sending_s)
        return work_s + sending_s, len(outgoing)

    def forget(self) -> None:
        """Leave out what has been measured so far."""
        self.work_s.clear()
        self.sending_s.clear()

    def close(self) -> None:
        """Release the association."""
        self._link.__exit__(None, None, None)

    def _written(self, result: Result) -> Outgoing:
        path = self._folder / result.kind
        path.write_bytes(result.data)
        uids = (result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax_uid)
        return Outgoing(path, *uids)


class Sides:
    """The node and the bare work; for each image both begin with an empty archive."""

    def __init__(self, archive: Orthanc, arrivals: Arrivals, node: Node, bare: Bare) -> None:
        self._archive = archive
        self._arrivals = arrivals
        self._node = node
        self._storescu = program("storescu")
        self.bare = bare

        # Image -> how many result objects it has.
        self.objects: dict[Path, int] = {}
        # Seconds of each image.
        self.node_s: list[float] = []
        self.bare_s: list[float] = []

    def warm_up(self, first: Path, files: Sequence[Path]) -> None:
        """Count every image's objects, and take `first` through the node; none is counted."""
        self.objects = {path: self.bare.run(path)[1] for path in (first, *files)}
        self._arrivals.settled(sum(self.objects.values()))
        self.run_node(first)

        self.node_s.clear()
        self.bare.forget()

    def run_node(self, path: Path) -> None:
        """Note the seconds from storescu's exit until the archive holds the image's objects."""
        self._empty()
        syntax = dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
        proposed = "-xy" if syntax == JPEGBaseline8Bit else "-xt"

        sent = storescu(self._storescu, self._node, [path], proposed)
        began = time.perf_counter()
        assert sent.returncode == 0, sent.stderr

        self.node_s.append(self._arrivals.last_of(self.objects[path]) - began)
        self._arrivals.settled(self.objects[path])

    def run_bare(self, path: Path) -> None:
        """Note the seconds of work and sending alone."""
        self._empty()
        self.bare_s.append(self.bare.run(path)[0])
        self._arrivals.settled(self.objects[path])

    def _empty(self) -> None:
        for name in self._archive.get("/instances"):
            self._archive.delete(name)


def _steps(node: Node, files: Sequence[Path]) -> list[tuple[str, float]]:
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
