"""C-STORE out: what one more object on an open association costs our SCU, beside DCMTK's storescu.

Both send the same files, read from the page cache, over one association on loopback, alternating,
TCP_NODELAY=1 for DCMTK. A round measures N files and one file; (time of N - time of 1) / (N - 1)
leaves out what there is once: storescu's process start, connecting, negotiation and release. Ours
is `send()`, which looks into each file before it associates, as storescu does.

The receiver is the same for both, a separate process, and must not be what is measured. Two of
them:
- sink: a bare SCP that reads, counts and answers; it neither parses nor stores. The fairest to two
  senders.
- storescp --ignore: DCMTK's, with the largest PDUs it takes; a real peer, which parses each object
  before it answers.

    python -m benchmarks.send [--rounds N] [--data DIR]

Prints medians in milliseconds and the ratio of medians (storescu / ours: above 1, ours is quicker),
of elapsed time and of the sender's own processor time. The second leaves out the receiver and other
work on the machine. Absolute times are of this machine and its noise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from daemon.commands.send import send
from tools.peers.ports import unused_port

REPOSITORY = Path(__file__).resolve().parent.parent
AE_TITLE = "ARCHIVE"
PDU_BYTES = 131072  # the most that DCMTK sends and takes
# Elapsed and processor time, in seconds.
Times = tuple[float, float]
RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    options = parser.parse_args()
    for name in ("storescu", "storescp"):
        if shutil.which(name) is None:
            raise SystemExit(f"{name} is not installed (apt-get install dcmtk)")
    xray = min(
        (options.data / "siim" / "dicom").glob("*.dcm"),
        key=lambda path: abs(path.stat().st_size - 130_000),
    )
    print(
        f"{os.cpu_count()} cores, {options.rounds} rounds; ms per object, storescu / ours = ratio of "
        "medians: elapsed, then the sender's processor time"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = {
            "15 MB uncompressed": (secondary_captures(folder / "large", 10, (3072, 2560)), "-xe"),
            "1 MB uncompressed": (secondary_captures(folder / "small", 100, (800, 656)), "-xe"),
            "0.13 MB JPEG X-ray": ([xray] * 300, "-xy"),
        }
        for receiver, start in {"sink": sink, "storescp": storescp}.items():
            port = unused_port()
            with start(port):
                for kind, (files, syntax) in kinds.items():
                    theirs = per_object(partial(storescu, port, syntax), files)
                    ours = per_object(partial(pleura, port), files)
                    next(theirs), next(ours)  # warm up
                    pairs = [(next(theirs), next(ours)) for _ in range(options.rounds)]
                    ratios = "   ".join(ratio(pairs, clock) for clock in (0, 1))
                    print(f"{receiver:9} {kind:19} {len(files):4} objects  {ratios}", flush=True)


def ratio(pairs: Sequence[tuple[Times, Times]], clock: int) -> str:
    """Medians of storescu and ours, in milliseconds, and their ratio."""
    dcmtk_ms, pleura_ms = (
        statistics.median(times[clock] for times in column) * 1e3
        for column in zip(*pairs, strict=True)
    )
    return f"{dcmtk_ms:7.2f} / {pleura_ms:6.2f} = {dcmtk_ms / pleura_ms:.2f}"


def per_object(
    send_some: Callable[[Sequence[Path]], None], files: Sequence[Path]
) -> Iterator[Times]:
    """Seconds for one more object, elapsed and of the processor, one measurement at each step."""
    while True:
        times = []
        for some in (files[:1], files):
            started, processor = time.perf_counter(), processor_s()
            send_some(some)
            times.append((time.perf_counter() - started, processor_s() - processor))
        elapsed_s, processor_time_s = (
            (many - one) / (len(files) - 1) for one, many in zip(*times, strict=True)
        )
        yield elapsed_s, processor_time_s


def processor_s() -> float:
    """The processor time of this process and of the programs that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def storescu(port: int, syntax: str, files: Sequence[Path]) -> None:
    command = ["storescu", "-R", syntax, "-aec", AE_TITLE, "127.0.0.1", str(port), *map(str, files)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"TCP_NODELAY": "1"})


def pleura(port: int, files: Sequence[Path]) -> None:
    sent = list(send(files, ("127.0.0.1", port), AE_TITLE))
    assert [one for one in sent if not one.ok] == []
    assert len(sent) == len(files)


def secondary_captures(folder: Path, count: int, shape: tuple[int, int]) -> list[Path]:
    """Files of 16-bit noise: nothing on the way can make it smaller."""
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(count)]
    for path in paths:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
        dataset.PatientName = dataset.PatientID = dataset.StudyDate = dataset.StudyTime = (
            dataset.AccessionNumber
        ) = ""
        dataset.Modality, dataset.ConversionType = "OT", "SYN"
        dataset.Rows, dataset.Columns = shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = (
            1,
            "MONOCHROME2",
            0,
        )
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelData = np.random.default_rng().integers(0, 1 << 16, shape, np.uint16).tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
    return paths


@contextmanager
def storescp(port: int) -> Iterator[None]:
    command = ["storescp", "-aet", AE_TITLE, "--ignore", "+xa", "-pdu", str(PDU_BYTES), str(port)]
    process = subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"})
    try:
        wait_for(port)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def sink(port: int) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(
        target=serve_sink, args=(port,), daemon=True
    )
    process.start()
    try:
        wait_for(port)
        yield
    finally:
        process.terminate()
        process.join()


def serve_sink(port: int) -> None:
    """Take every context in the first syntax that is proposed, read, and answer each message with
    0x0000.
    """
    buffer = bytearray(PDU_BYTES + 6)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while read_exactly(connection, memoryview(buffer)[:6]):
                    length = int.from_bytes(buffer[2:6], "big")
                    read_exactly(connection, memoryview(buffer)[6 : 6 + length])
                    reply = answer(memoryview(buffer)[: 6 + length])
                    if reply:
                        connection.sendall(reply)


def read_exactly(connection: socket.socket, view: memoryview) -> bool:
    at = 0
    while at < len(view):
        count = connection.recv_into(view[at:])
        if not count:
            return False
        at += count
    return True


_command: dict[int, bytes] = {}  # of the message that is being received


def answer(pdu: memoryview) -> bytes:
    """The answer to this PDU, if it needs one. Both senders send one PDV in each PDU."""
    if pdu[0] == 0x01:
        return accept(bytes(pdu))
    if pdu[0] == 0x05:
        return RELEASE_RP
    context_id, control = pdu[10], pdu[11]
    if pdu[0] != 0x04 or not control & 0b10:  # not the last fragment
        return b""
    if control & 0b01:  # of the command set: PS3.7 6.3.1
        at = 12
        while at < len(pdu):
            end = at + 8 + int.from_bytes(pdu[at + 4 : at + 8], "little")
            _command[int.from_bytes(pdu[at + 2 : at + 4], "little")] = bytes(pdu[at + 8 : end])
            at = end
        return b""
    values = {
        0x0002: _command[0x0002],
        0x0100: b"\x01\x80",
        0x0120: _command[0x0110],
        0x0800: b"\x01\x01",
    }
    values |= {0x0900: b"\0\0", 0x1000: _command[0x1000]}
    elements = b"".join(element(tag, value) for tag, value in values.items())
    command = element(0x0000, len(elements).to_bytes(4, "little")) + elements
    item = (len(command) + 2).to_bytes(4, "big") + bytes([context_id, 0b11]) + command
    return b"\x04\0" + len(item).to_bytes(4, "big") + item


def element(number: int, value: bytes) -> bytes:
    return b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def accept(request: bytes) -> bytes:
    proposed = A_ASSOCIATE_RQ()
    proposed.decode(request)
    primitive = proposed.to_primitive()
    for context in primitive.presentation_context_definition_list:
        context.transfer_syntax = [*context.transfer_syntax[:1]]
        context.result = 0
    primitive.presentation_context_definition_results_list = (
        primitive.presentation_context_definition_list
    )
    primitive.presentation_context_definition_list = []
    primitive.maximum_length_received = PDU_BYTES
    primitive.result, primitive.result_source = 0, 1
    return A_ASSOCIATE_AC(primitive).encode()


def wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()
