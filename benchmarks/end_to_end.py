"""The time from C-STORE success to every result in the archive, beside the least possible time.

One image at a time, in alternate turns in one run, with one Orthanc on loopback:
- node: from storescu's exit until Orthanc holds all of the image's objects, through `pleura serve`;
- bare: this process decodes and analyses the same image, encodes and checks its objects (without
  spool and ledger), and sends them over an open association.
Both begin with an archive that holds none of the objects, and both run plain torch on the same
number of threads. Nothing polls the archive: a Lua script in Orthanc calls this process for each
stored object. A client that polled every millisecond took up to a core from the node, and that
looked like the node's own time.

    python -m benchmarks.end_to_end [--images N] [--data DIR]

Prints medians in milliseconds, the ratio of medians (wanted: at most 1.15), and the node's time
step by step, from the data of `pleura trace`. Absolute times hold only for this machine and its
other load.
"""

# torch reads some settings only when it is imported, so they are set before.
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

# As the analyse role does: both sides then have the same settings for threads and memory.
torch_process.prepare()

import torch
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from benchmarks.measurement import (
    add_data_option,
    command_line,
    in_turn,
    machine,
    median_ms,
    median_ratio,
    program,
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
    # The first image opens connections that stay open, and is not counted.
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
                for run in in_turn([sides.run_bare, sides.run_node], number):
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
    """`count` + 1 of the paths, evenly spread."""
    return paths[:: max(1, len(paths) // (count + 1))][: count + 1]


def _archive(folder: Path, arrivals: Arrivals) -> Orthanc:
    ports = (unused_port(), unused_port())
    return Orthanc(program("Orthanc"), folder, ports, LuaScripts=[str(arrivals.script)])


def _print(sides: Sides) -> None:
    bare_ms = median_ms(sides.bare_s)
    node_ms = median_ms(sides.node_s)
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
    """Counts the stored objects of the archive, whose script calls us for each."""

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
                """Print nothing."""

        return Handler

    def _note(self) -> None:
        with self._changed:
            self._count += 1
            self._last = time.perf_counter()
            self._changed.notify_all()

    def settled(self, count: int) -> None:
        """Wait until `count` objects have arrived since the last call, and reset the count."""
        self.last_of(count)
        with self._changed:
            self._count = 0

    def last_of(self, count: int) -> float:
        """Wait for `count` objects; returns when the last arrived (time.perf_counter)."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._count >= count, _LONGEST_S)
            assert came, f"{self._count} of {count} objects in the archive"
            return self._last


class Bare:
    """Only the analysis and the sending, over an open association, with nothing between them."""

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
        """Analyse and send one image; returns the seconds and the number of objects."""
        data = path.read_bytes()
        began = time.perf_counter()
        (outcome,) = self._pipeline.analyse([data], datetime.now().astimezone())
        work_s = time.perf_counter() - began

        # The sender reads files. Writing them is not part of the least possible time.
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
        """Drop the measurements so far."""
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
    """The node and the bare work. For each image both begin with an empty archive."""

    def __init__(self, archive: Orthanc, arrivals: Arrivals, node: Node, bare: Bare) -> None:
        self._archive = archive
        self._arrivals = arrivals
        self._node = node
        self._storescu = program("storescu")
        self.bare = bare

        # Image -> the number of its result objects.
        self.objects: dict[Path, int] = {}
        # Seconds of each image.
        self.node_s: list[float] = []
        self.bare_s: list[float] = []

    def warm_up(self, first: Path, files: Sequence[Path]) -> None:
        """Count every image's objects, and send `first` through the node. No time is kept."""
        self.objects = {path: self.bare.run(path)[1] for path in (first, *files)}
        self._arrivals.settled(sum(self.objects.values()))
        self.run_node(first)

        self.node_s.clear()
        self.bare.forget()

    def run_node(self, path: Path) -> None:
        """Record the seconds from storescu's exit until the archive holds the image's objects."""
        self._empty()
        syntax = dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
        proposed = "-xy" if syntax == JPEGBaseline8Bit else "-xt"

        sent = storescu(self._storescu, self._node, [path], proposed)
        began = time.perf_counter()
        assert sent.returncode == 0, sent.stderr

        self.node_s.append(self._arrivals.last_of(self.objects[path]) - began)
        self._arrivals.settled(self.objects[path])

    def run_bare(self, path: Path) -> None:
        """Record the seconds of the bare analysis and sending."""
        self._empty()
        self.bare_s.append(self.bare.run(path)[0])
        self._arrivals.settled(self.objects[path])

    def _empty(self) -> None:
        for name in self._archive.get("/instances"):
            self._archive.delete(name)


def _steps(node: Node, files: Sequence[Path]) -> list[tuple[str, float]]:
    """(description, median milliseconds over all images) of each step of the node, in order."""
    took: dict[str, list[float]] = {}
    places: dict[str, list[int]] = {}
    view = View.open(node.settings["ledger"])
    uids = [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]

    for (image,) in trace.found(view, uids).values():
        before = 0.0
        for place, event in enumerate(image["events"]):
            # An end event's words contain the reason and time of one image, so replace them.
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
