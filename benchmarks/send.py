"""The time to send one more object on an open association, beside DCMTK's storescu.

Both send the same files, read from the page cache, over one association on loopback, in alternate
turns; DCMTK gets TCP_NODELAY=1. A round measures N files and one file. The figure is (time of N -
time of 1) / (N - 1), without the costs that occur once: storescu's process start, connecting,
negotiation and release. Ours is `send()`, which reads each file's header before it associates, as
storescu does.

The receiver is a separate process, the same for both, and should take as little time as possible:
- sink: a bare SCP that only reads and answers, without parsing or storing. It is the fairest for
  comparing senders.
- storescp --ignore: DCMTK's, with the largest PDUs that it accepts. It is a real peer, which parses
  each object before it answers.

    python -m benchmarks.send [--rounds N] [--data DIR]

Prints medians in milliseconds and the ratio of medians (storescu / ours: above 1, ours is faster),
of elapsed time and of the sender's own processor time, which excludes the receiver and other work
on the machine. Absolute times hold only for this machine and its other load.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
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

from benchmarks.measurement import (
    add_data_option,
    command_line,
    machine,
    median_ms,
    program,
    seconds_of,
    xray_files,
)
from daemon.commands.send import send
from tools.peers.ports import unused_port

AE_TITLE = "ARCHIVE"
# The largest PDU that DCMTK sends and accepts.
PDU_BYTES = 131072
RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")
# Elapsed and processor time, in seconds.
Times = tuple[float, float]


def main() -> None:
    """Print the time of one more object, for each receiver and kind of object."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    add_data_option(parser)
    options = parser.parse_args()
    xray = min(xray_files(options.data), key=lambda path: abs(path.stat().st_size - 130_000))

    print(
        f"{machine(f'{options.rounds} rounds')}; ms per object, storescu / ours = ratio of "
        "medians: elapsed, then the sender's processor time"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The files of one association, and storescu's option for their transfer syntax.
        kinds = {
            "15 MB uncompressed": (secondary_captures(folder / "large", 10, (3072, 2560)), "-xe"),
            "1 MB uncompressed": (secondary_captures(folder / "small", 100, (800, 656)), "-xe"),
            "0.13 MB JPEG X-ray": ([xray] * 300, "-xy"),
        }

        for receiver, start in {"sink": sink, "storescp": storescp}.items():
            port = unused_port()
            with start(port):
                for kind, (files, syntax) in kinds.items():
                    ratios = _ratios(port, files, syntax, options.rounds)
                    print(f"{receiver:9} {kind:19} {len(files):4} objects  {ratios}", flush=True)


def _ratios(port: int, files: Sequence[Path], syntax: str, rounds: int) -> str:
    """The ratios of elapsed times and of processor times, of both senders in alternate turns."""
    theirs = per_object(partial(storescu, port, syntax), files)
    ours = per_object(partial(pleura, port), files)
    # The first turn warms up.
    pairs = [(next(theirs), next(ours)) for _ in range(rounds + 1)][1:]
    return "   ".join(ratio(pairs, clock) for clock in (0, 1))


def ratio(pairs: Sequence[tuple[Times, Times]], clock: int) -> str:
    """Medians of storescu and ours in milliseconds, and their ratio, as text.

    `clock`: 0 is elapsed time, 1 processor time.
    """
    dcmtk_ms, pleura_ms = (
        median_ms(times[clock] for times in column) for column in zip(*pairs, strict=True)
    )
    return f"{dcmtk_ms:7.2f} / {pleura_ms:6.2f} = {dcmtk_ms / pleura_ms:.2f}"


def per_object(
    send_all: Callable[[Sequence[Path]], None], files: Sequence[Path]
) -> Iterator[Times]:
    """Elapsed and processor seconds for one more object; each next() measures once."""
    while True:
        single = _times(partial(send_all, files[:1]))
        many = _times(partial(send_all, files))
        elapsed_s, processor_time_s = (
            (of_many - of_single) / (len(files) - 1)
            for of_single, of_many in zip(single, many, strict=True)
        )
        yield elapsed_s, processor_time_s


def _times(work: Callable[[], object]) -> Times:
    processor_began = processor_s()
    elapsed_s = seconds_of(work)
    return elapsed_s, processor_s() - processor_began


def processor_s() -> float:
    """The processor time of this process and of its ended children, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def storescu(port: int, syntax: str, files: Sequence[Path]) -> None:
    """Send the files by DCMTK over one association; its option `syntax` chooses the proposal."""
    options = ["-R", syntax, "-aec", AE_TITLE]
    command = [program("storescu"), *options, "127.0.0.1", str(port), *map(str, files)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"TCP_NODELAY": "1"})


def pleura(port: int, files: Sequence[Path]) -> None:
    """Send the files by our SCU over one association."""
    answers = list(send(files, ("127.0.0.1", port), AE_TITLE))
    assert [answer for answer in answers if not answer.ok] == []
    assert len(answers) == len(files)


def secondary_captures(folder: Path, count: int, shape: tuple[int, int]) -> list[Path]:
    """Files of 16-bit noise, which cannot be compressed."""
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(count)]
    for path in paths:
        _noise(shape).save_as(path, enforce_file_format=True)
    return paths


def _noise(shape: tuple[int, int]) -> Dataset:
    """A secondary capture of (rows, columns)."""
    values = {
        "SOPClassUID": SecondaryCaptureImageStorage, "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.2", "PatientName": "",
        "PatientID": "", "StudyDate": "", "StudyTime": "", "AccessionNumber": "",
        "Modality": "OT", "ConversionType": "SYN", "Rows": shape[0], "Columns": shape[1],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 0, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
    }  # fmt: skip
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)

    noise = np.random.default_rng().integers(0, 1 << 16, shape, np.uint16)
    dataset.PixelData = noise.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


# ---- the receivers


@contextmanager
def storescp(port: int) -> Iterator[None]:
    """Run DCMTK's receiver until the block ends."""
    options = ["-aet", AE_TITLE, "--ignore", "+xa", "-pdu", str(PDU_BYTES)]
    command = [program("storescp"), *options, str(port)]
    process = subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"})

    try:
        wait_for(port)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def sink(port: int) -> Iterator[None]:
    """Run the bare receiver in a separate process until the block ends."""
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
    """Serve one association after another: accept every context in its first proposed syntax, and
    answer each message with 0x0000.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                _serve(connection)


def _serve(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(PDU_BYTES + 6))
    answers = Answers()

    while read_exactly(connection, buffer[:6]):
        length = int.from_bytes(buffer[2:6], "big")
        read_exactly(connection, buffer[6 : 6 + length])
        reply = answers.to(buffer[: 6 + length])
        if reply:
            connection.sendall(reply)


def read_exactly(connection: socket.socket, view: memoryview) -> bool:
    """Fill the view. Returns False if the peer closes before it is full."""
    filled = 0
    while filled < len(view):
        count = connection.recv_into(view[filled:])
        if not count:
            return False
        filled += count
    return True


class Answers:
    """The answers of one association. Both senders send one PDV in each PDU."""

    def __init__(self) -> None:
        # Element number -> value, of the current message's command set.
        self._command: dict[int, bytes] = {}

    def to(self, pdu: memoryview) -> bytes:
        """The answer to a PDU; empty if it needs none."""
        if pdu[0] == 0x01:
            return accept(bytes(pdu))
        if pdu[0] == 0x05:
            return RELEASE_RP

        context_id = pdu[10]
        control = pdu[11]
        is_last_fragment = bool(control & 0b10)
        if pdu[0] != 0x04 or not is_last_fragment:
            return b""

        is_command = bool(control & 0b01)
        if is_command:
            self._read_command(pdu[12:])
            return b""
        return self._c_store_rsp(context_id)

    def _read_command(self, command_set: memoryview) -> None:
        """Read the elements: group, element, length, value (PS3.7 6.3.1)."""
        begin = 0
        while begin < len(command_set):
            number = int.from_bytes(command_set[begin + 2 : begin + 4], "little")
            length = int.from_bytes(command_set[begin + 4 : begin + 8], "little")
            end = begin + 8 + length
            self._command[number] = bytes(command_set[begin + 8 : end])
            begin = end

    def _c_store_rsp(self, context_id: int) -> bytes:
        """A C-STORE-RSP with success, as a P-DATA-TF PDU."""
        values = {
            0x0002: self._command[0x0002],
            0x0100: b"\x01\x80",
            0x0120: self._command[0x0110],
            0x0800: b"\x01\x01",
            0x0900: b"\0\0",
            0x1000: self._command[0x1000],
        }
        elements = b"".join(element(number, value) for number, value in values.items())
        command = element(0x0000, len(elements).to_bytes(4, "little")) + elements
        item = (len(command) + 2).to_bytes(4, "big") + bytes([context_id, 0b11]) + command
        return b"\x04\0" + len(item).to_bytes(4, "big") + item


def element(number: int, value: bytes) -> bytes:
    """An element of a command set (group 0000)."""
    return b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def accept(request: bytes) -> bytes:
    """The A-ASSOCIATE-AC that accepts every context in its first syntax."""
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
    primitive.result = 0
    primitive.result_source = 1
    return A_ASSOCIATE_AC(primitive).encode()


def wait_for(port: int) -> None:
    """Wait until a receiver listens. Raises OSError if none does within 30 s."""
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
